/**
 * Memory that C code may use. V8 frees a buffer whose variable is dead even while the kernel still writes into it,
 * and keeps typed arrays of 64 bytes or less inside its moving heap. A {@link Memory} therefore owns an ArrayBuffer of
 * at least 128 bytes and stays reachable until it is freed by hand.
 */
import { MeshError } from "../errors.ts";
import { libc } from "./ffi.ts";
import { MADV_DONTNEED } from "./structs.ts";

const SMALLEST = 128;
/** The largest page of any kernel this runs on (arm64): what is aligned to it is aligned to every other. */
const PAGE_MAX = 65_536;

const held = new Set<Memory>();

/** How many pieces are held now: for leak tests. */
export function memoryHeld(): number {
  return held.size;
}

/** A fixed piece of memory with its address. */
export class Memory {
  readonly bytes: Uint8Array<ArrayBuffer>;
  readonly u32: Uint32Array<ArrayBuffer>;
  readonly i32: Int32Array<ArrayBuffer>;
  readonly view: DataView<ArrayBuffer>;
  /** For pointer parameters; made once, because making one allocates. */
  readonly pointer: Deno.PointerObject;
  /** The address as two 32-bit halves, to be stored in structures without a BigInt. */
  readonly low: number;
  readonly high: number;

  private constructor(buffer: ArrayBuffer, size: number) {
    this.bytes = new Uint8Array(buffer, 0, size);
    this.u32 = new Uint32Array(buffer);
    this.i32 = new Int32Array(buffer);
    this.view = new DataView(buffer);
    const { pointer, low, high } = addressOf(buffer);
    this.pointer = pointer;
    this.low = low;
    this.high = high;
  }

  /** `size` zero bytes. */
  static allocate(size: number): Memory {
    const memory = new Memory(new ArrayBuffer(Math.max(SMALLEST, (size + 7) & ~7)), size);
    held.add(memory);
    return memory;
  }

  /** The text in UTF-8 with a terminating zero byte. */
  static text(text: string): Memory {
    const bytes = new TextEncoder().encode(text);
    const memory = Memory.allocate(bytes.length + 1);
    memory.bytes.set(bytes);
    return memory;
  }

  /** Stores the address of byte `offset` of `target` at byte `at` of this memory, which must be a multiple of 4. */
  putAddress(at: number, target: Address, offset = 0): void {
    const low = target.low + offset;
    this.u32[at >>> 2] = low >>> 0;
    this.u32[(at >>> 2) + 1] = target.high + (low > 0xffffffff ? 1 : 0);
  }

  /** A pointer to byte `offset`. Allocates: keep the result, do not call it per packet. */
  pointerAt(offset: number): Deno.PointerObject {
    return offset === 0 ? this.pointer : Deno.UnsafePointer.offset(this.pointer, offset)!;
  }

  /**
   * Gives the pages back to the system until something is written again: for large buffers whose content does not
   * matter now. The bytes are zeros or what they were afterwards; what shares a page with others keeps it.
   */
  discard(): void {
    const skip = (PAGE_MAX - this.low % PAGE_MAX) % PAGE_MAX;
    const length = this.bytes.length - skip;
    if (length >= PAGE_MAX) libc().madvise(this.pointerAt(skip), length - length % PAGE_MAX, MADV_DONTNEED);
  }

  /** Lets the garbage collector have it. Nothing may use the pointer afterwards. */
  free(): void {
    held.delete(this);
  }
}

/** Where an ArrayBuffer begins. */
export interface Address {
  readonly pointer: Deno.PointerObject;
  readonly low: number;
  readonly high: number;
}

const known = new WeakMap<ArrayBufferLike, Address>();

/**
 * The address of a caller's buffer, for use inside one synchronous call. Looked up once per buffer: asking V8 for it
 * allocates, and forwarding code writes from the same few buffers for ever.
 */
export function addressOf(buffer: ArrayBufferLike): Address {
  let address = known.get(buffer);
  if (address === undefined) {
    const pointer = Deno.UnsafePointer.of(buffer as ArrayBuffer);
    if (pointer === null) throw new MeshError("INTERNAL", "An empty buffer has no address");
    const value = BigInt(Deno.UnsafePointer.value(pointer));
    address = { pointer, low: Number(value & 0xffffffffn), high: Number(value >> 32n) };
    known.set(buffer, address);
  }
  return address;
}

/** Pieces of one size that are used again and again. Keeps at most `spare` of them. */
export class MemoryPool {
  readonly #size: number;
  readonly #spare: number;
  readonly #free: Memory[] = [];

  constructor(size: number, spare: number) {
    this.#size = size;
    this.#spare = spare;
  }

  take(): Memory {
    return this.#free.pop() ?? Memory.allocate(this.#size);
  }

  /** Returns a piece; its content is not cleared. */
  give(memory: Memory): void {
    if (this.#free.length < this.#spare) this.#free.push(memory);
    else memory.free();
  }

  /** Frees the pieces that are not in use. */
  clear(): void {
    for (const memory of this.#free.splice(0)) memory.free();
  }
}
