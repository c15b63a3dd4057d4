/**
 * Moves the bytes between two connections of the loop, both ways, until both directions ended or one broke. Small
 * messages are copied through one shared buffer (two calls); a direction that fills the buffer changes to splice(2),
 * which moves pages inside the kernel. A pipe is held only while there is something in it.
 */
import type { ReasonCode } from "../errors.ts";
import { type StreamHandler, WOULD_BLOCK } from "../net.ts";
import type { Libc } from "./ffi.ts";
import { Memory } from "./memory.ts";
import { type Pipe, PIPE_BYTES, PipePool } from "./pipes.ts";
import type { Deferred, Poller } from "./poller.ts";
import type { TcpStream } from "./tcp_stream.ts";

/** The shared buffer; a read that fills it is the sign of a bulk transfer. */
const COPY_BYTES = 64 * 1024;
/** A wake-up that moved less than this ends bulk mode: for small messages one copy is cheaper than two splices. */
const BULK_LEAVE_BYTES = 16 * 1024;
/** Rounds of one direction before other connections get their turn. */
const ROUNDS_PER_TURN = 16;

/** Told once, from the loop, when both connections are over. `aToB` and `bToA` are bytes delivered to the kernel. */
export type OnSpliceEnd = (reason: ReasonCode | undefined, aToB: number, bToA: number) => void;

export interface SpliceOptions {
  readonly onEnd: OnSpliceEnd;
  /** Bytes of `a` that were read before and go to `b` first; they must not change until they are sent. */
  readonly first?: Uint8Array;
}

/** What the splices of one loop share. */
export class SpliceKit {
  readonly c: Libc;
  readonly poller: Poller;
  readonly pipes: PipePool;
  readonly buffer = Memory.allocate(COPY_BYTES);
  readonly active = new Set<Splice>();

  constructor(c: Libc, poller: Poller) {
    this.c = c;
    this.poller = poller;
    this.pipes = new PipePool(c);
  }

  close(): void {
    for (const splice of this.active) splice.abandon();
    this.pipes.close();
    this.buffer.free();
  }
}

/** A running transfer between two connections. It owns both: nobody else may use them. */
export class Splice {
  readonly #kit: SpliceKit;
  readonly #a: TcpStream;
  readonly #b: TcpStream;
  readonly #onEnd: OnSpliceEnd;
  readonly #aToB: Flow;
  readonly #bToA: Flow;
  #open = 2;

  constructor(kit: SpliceKit, ends: readonly [a: TcpStream, b: TcpStream], options: SpliceOptions) {
    this.#kit = kit;
    [this.#a, this.#b] = ends;
    this.#onEnd = options.onEnd;
    this.#aToB = new Flow(kit, this.#a, this.#b, options.first);
    this.#bToA = new Flow(kit, this.#b, this.#a, undefined);
    this.#aToB.belongTo(this, this.#bToA);
    this.#bToA.belongTo(this, this.#aToB);
    this.#a.handler = this.#aToB;
    this.#b.handler = this.#bToA;
    kit.active.add(this);
    // What was announced to the owner before us will not be announced again.
    if (this.#a.isAnnounced || options.first !== undefined) kit.poller.defer(this.#aToB);
    if (this.#b.isAnnounced) kit.poller.defer(this.#bToA);
  }

  /** Bytes given to `b` so far. */
  get aToB(): number {
    return this.#aToB.bytes;
  }

  /** Bytes given to `a` so far. */
  get bToA(): number {
    return this.#bToA.bytes;
  }

  /** Breaks both connections without a callback. */
  reset(code: ReasonCode): void {
    this.#a.reset(code);
    this.#b.reset(code);
    this.abandon();
  }

  /** Gives the pipes back; the connections are closed by whoever closes the loop. */
  abandon(): void {
    this.#aToB.release();
    this.#bToA.release();
    this.#kit.active.delete(this);
  }

  /** One connection is over; `other` is the one that is left. */
  ended(other: TcpStream, reason: ReasonCode | undefined): void {
    this.#open--;
    if (reason !== undefined) {
      other.reset(reason);
      this.#open = 0;
    }
    if (this.#open > 0) return;
    this.abandon();
    this.#onEnd(reason, this.aToB, this.bToA);
  }
}

/**
 * One direction, and the handler of the connection it reads from: thousands of connections may stand idle, and an
 * object of its own for the handler would be a third of what each takes.
 */
class Flow implements Deferred, StreamHandler {
  bytes = 0;
  #splice!: Splice;
  #back!: Flow;
  readonly #kit: SpliceKit;
  readonly #from: TcpStream;
  readonly #to: TcpStream;
  #pipe: Pipe | undefined;
  #inPipe = 0;
  /** Bytes that follow those in the pipe and have no room there. */
  #rest: Uint8Array | undefined;
  #bulk = false;
  #released = false;

  constructor(kit: SpliceKit, from: TcpStream, to: TcpStream, first: Uint8Array | undefined) {
    this.#kit = kit;
    this.#from = from;
    this.#to = to;
    this.#rest = first !== undefined && first.length > 0 ? first : undefined;
  }

  /** Ties the two directions together; once, before anything moves. */
  belongTo(splice: Splice, back: Flow): void {
    this.#splice = splice;
    this.#back = back;
  }

  onOpen(): void {
    this.#back.run();
    this.run();
  }

  onReadable(): void {
    this.run();
  }

  onWritable(): void {
    this.#back.run();
  }

  onClose(reason: ReasonCode | undefined): void {
    this.#splice.ended(this.#to, reason);
  }

  /** Moves what can be moved now. */
  run(): void {
    if (this.#released || !this.#to.isOpen) return;
    let moved = 0;
    for (let round = 0; round < ROUNDS_PER_TURN; round++) {
      if (!this.#flush()) return;
      const n = this.#bulk ? this.#spliceIn() : this.#copy();
      if (n === WOULD_BLOCK) {
        if (moved < BULK_LEAVE_BYTES) this.#bulk = false;
        return this.#givePipe();
      }
      if (n === 0) {
        this.#givePipe();
        return this.#to.closeWrite();
      }
      moved += n;
    }
    this.#kit.poller.defer(this);
  }

  release(): void {
    this.#released = true;
    this.#rest = undefined;
    this.#givePipe();
  }

  /** Sends what was read before; whether all of it left. */
  #flush(): boolean {
    if (this.#inPipe > 0) {
      const n = this.#to.spliceOut(this.#pipe!.read, this.#inPipe);
      this.#inPipe -= n;
      this.bytes += n;
      if (this.#inPipe > 0) return false;
    }
    if (this.#rest !== undefined) {
      const n = this.#to.write(this.#rest, 0, this.#rest.length);
      this.bytes += n;
      this.#rest = n === this.#rest.length ? undefined : this.#rest.subarray(n);
    }
    return this.#rest === undefined;
  }

  #spliceIn(): number {
    this.#pipe ??= this.#kit.pipes.take();
    if (this.#pipe === undefined) {
      this.#bulk = false;
      return this.#copy();
    }
    const n = this.#from.spliceIn(this.#pipe.write, PIPE_BYTES);
    if (n > 0) this.#inPipe = n;
    return n;
  }

  #copy(): number {
    const buffer = this.#kit.buffer.bytes;
    const n = this.#from.read(buffer);
    if (n <= 0) return n;
    const sent = this.#to.write(buffer, 0, n);
    this.bytes += sent;
    if (sent < n) this.#keep(sent, n);
    else if (n === COPY_BYTES) this.#bulk = true;
    return n;
  }

  /** The receiver is full: the rest of the shared buffer waits in a pipe, or in memory where no pipe can be had. */
  #keep(start: number, end: number): void {
    const { c, pipes, buffer } = this.#kit;
    this.#pipe ??= pipes.take();
    const kept = this.#pipe === undefined ? 0 : c.write(this.#pipe.write, buffer.pointerAt(start), end - start);
    this.#inPipe = Math.max(0, kept);
    if (start + this.#inPipe < end) this.#rest = buffer.bytes.slice(start + this.#inPipe, end);
  }

  #givePipe(): void {
    if (this.#pipe !== undefined) this.#kit.pipes.give(this.#pipe, this.#inPipe === 0);
    this.#pipe = undefined;
    this.#inPipe = 0;
  }
}
