/**
 * Two streams joined: what one side sends the other receives, with back-pressure, half-close and reset kept end to
 * end (FIN ↔ closeWrite, RST ↔ reset). Bytes go through one scratch buffer that all pipes share; only what a slow
 * receiver did not take is set aside, in a pooled buffer, and then nothing more is read from the sender.
 */
import type { ReasonCode } from "../errors.ts";
import { type MeshStream, type StreamHandler, WOULD_BLOCK } from "../net.ts";

/** Bytes per read. Larger ones gain nothing over loopback, smaller ones cost system calls. */
export const SCRATCH_BYTES = 65536;
/** Reads of one direction before others get their turn; 1 MiB. */
const READS_PER_TURN = 16;
/** Set-aside buffers kept for reuse: 4 MiB. */
const POOL_MAX = 64;

/** What all pipes of one thread share. */
export class PipeKit {
  readonly scratch = new Uint8Array(new ArrayBuffer(SCRATCH_BYTES));
  readonly #defer: ((task: () => void) => void) | undefined;
  readonly #pool: Uint8Array[] = [];

  /** `defer` runs a task after other sockets had their turn; without it a fast pair is pumped until it blocks. */
  constructor(defer?: (task: () => void) => void) {
    this.#defer = defer;
  }

  /** A buffer of {@link SCRATCH_BYTES}. */
  take(): Uint8Array {
    return this.#pool.pop() ?? new Uint8Array(new ArrayBuffer(SCRATCH_BYTES));
  }

  give(buffer: Uint8Array): void {
    if (this.#pool.length < POOL_MAX) this.#pool.push(buffer);
  }

  /** Lets the buffers go that are kept for reuse. */
  trim(): void {
    this.#pool.length = 0;
  }

  /** Schedules the rest of a long run; false where that is not possible. */
  later(task: () => void): boolean {
    if (!this.#defer) return false;
    this.#defer(task);
    return true;
  }
}

/** Whoever joined two streams. */
export interface PipeOwner {
  /** Both are over; told once. `undefined`: both directions ended cleanly. */
  onEnd(reason: ReasonCode | undefined): void;
}

/** What was read from one stream before it was joined: so much the other one has, and that it has not. */
export interface Ahead {
  readonly sent: number;
  readonly rest: Uint8Array | undefined;
}

export class Pipe {
  readonly #a: Side;
  readonly #b: Side;
  readonly #owner: PipeOwner;
  #over = false;

  /** Takes over the handlers of both streams, which must be open, and starts at once. `ahead` goes from `a` to `b`. */
  constructor(kit: PipeKit, a: MeshStream, b: MeshStream, owner: PipeOwner, ahead?: Ahead) {
    this.#owner = owner;
    this.#a = new Side(kit, a, this);
    this.#b = new Side(kit, b, this);
    this.#a.other = this.#b;
    this.#b.other = this.#a;
    a.handler = this.#a;
    b.handler = this.#b;
    if (ahead) this.#a.startAfter(ahead);
    // Bytes may have come before we were there, and their edge will not come again.
    this.#a.pump();
    this.#b.pump();
  }

  /** Bytes that went from a to b. */
  get aToB(): number {
    return this.#a.bytes;
  }

  /** Bytes that went from b to a. */
  get bToA(): number {
    return this.#b.bytes;
  }

  /** One direction has ended, the other has not. */
  get halfClosed(): boolean {
    return this.#a.ended !== this.#b.ended;
  }

  /** Ends both streams without a callback. */
  reset(code: ReasonCode): void {
    this.#stop(code, undefined);
  }

  /** Called by a side whose stream is over. */
  sideClosed(side: Side, reason: ReasonCode | undefined): void {
    if (reason === undefined && !side.other.closed) return;
    if (this.#stop(reason, side)) this.#owner.onEnd(reason);
  }

  /** Whether it was running until now. */
  #stop(reason: ReasonCode | undefined, closed: Side | undefined): boolean {
    if (this.#over) return false;
    this.#over = true;
    for (const side of [this.#a, this.#b]) {
      side.release();
      if (reason !== undefined && side !== closed && !side.closed) side.stream.reset(reason);
    }
    return true;
  }

  get over(): boolean {
    return this.#over;
  }
}

/** One stream of a pipe, and the direction that is read from it. */
class Side implements StreamHandler {
  readonly stream: MeshStream;
  other!: Side;
  /** Bytes read here and accepted by the other stream. */
  bytes = 0;
  /** The other end of this stream will send nothing more. */
  ended = false;
  closed = false;
  readonly #kit: PipeKit;
  readonly #pipe: Pipe;
  #held: Uint8Array | undefined;
  #start = 0;
  #end = 0;
  #passedEnd = false;
  #scheduled = false;

  constructor(kit: PipeKit, stream: MeshStream, pipe: Pipe) {
    this.#kit = kit;
    this.stream = stream;
    this.#pipe = pipe;
  }

  onOpen(): void {}

  onReadable(): void {
    this.pump();
  }

  onWritable(): void {
    this.other.pump();
  }

  onClose(reason: ReasonCode | undefined): void {
    this.closed = true;
    this.ended = true;
    this.#pipe.sideClosed(this, reason);
  }

  /** Counts what the other stream has already, and holds what goes before all that is read from now on. */
  startAfter({ sent, rest }: Ahead): void {
    this.bytes = sent;
    if (rest) this.#setAside(rest, 0, rest.length);
  }

  /** Moves what can be moved from this stream to the other one. */
  pump(): void {
    const { scratch } = this.#kit;
    const to = this.other.stream;
    for (let turn = 0; !this.#pipe.over; turn++) {
      if (this.#held && !this.#flush()) return;
      if (this.ended) return this.#passEnd();
      if (turn >= READS_PER_TURN && this.#yield()) return;
      const n = this.stream.read(scratch);
      if (n === WOULD_BLOCK) return;
      if (n === 0) {
        this.ended = true;
        continue;
      }
      const taken = to.write(scratch, 0, n);
      this.bytes += taken;
      if (taken < n) this.#setAside(scratch, taken, n);
    }
  }

  release(): void {
    if (this.#held) this.#kit.give(this.#held);
    this.#held = undefined;
  }

  #setAside(from: Uint8Array, start: number, end: number): void {
    this.#held = this.#kit.take();
    this.#held.set(start === 0 && end === from.length ? from : from.subarray(start, end));
    this.#start = 0;
    this.#end = end - start;
  }

  /** Writes what was set aside; false while some is left. */
  #flush(): boolean {
    const n = this.other.stream.write(this.#held!, this.#start, this.#end - this.#start);
    this.bytes += n;
    this.#start += n;
    if (this.#start < this.#end) return false;
    this.release();
    return true;
  }

  #passEnd(): void {
    if (this.#passedEnd) return;
    this.#passedEnd = true;
    this.other.stream.closeWrite();
  }

  #yield(): boolean {
    if (this.#scheduled) return true;
    this.#scheduled = this.#kit.later(this.#resume);
    return this.#scheduled;
  }

  readonly #resume = () => {
    this.#scheduled = false;
    this.pump();
  };
}
