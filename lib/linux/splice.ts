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

/** Whoever joined two connections. */
export interface SpliceOwner {
  /** Both are over; told once, from the loop. `aToB` and `bToA` are bytes delivered to the kernel. */
  onEnd(reason: ReasonCode | undefined, aToB: number, bToA: number): void;
}

/** What was read of `a` before. */
export interface SpliceAhead {
  /** So many bytes of it `b` has already. */
  readonly sent: number;
  /** The rest goes first, and must not change until it is sent. */
  readonly rest: Uint8Array | undefined;
}

/** What the splices of one loop share. */
export class SpliceKit {
  readonly c: Libc;
  readonly poller: Poller;
  readonly pipes: PipePool;
  readonly buffer = Memory.allocate(COPY_BYTES);

  constructor(c: Libc, poller: Poller) {
    this.c = c;
    this.poller = poller;
    this.pipes = new PipePool(c);
  }

  close(): void {
    this.pipes.close();
    this.buffer.free();
  }
}

/** A running transfer between two connections. It owns both: nobody else may use them. */
export class Splice {
  readonly kit: SpliceKit;
  /** Nothing moves any more. */
  over = false;
  readonly #owner: SpliceOwner;
  readonly #aToB: Flow;
  readonly #bToA: Flow;
  #open = 2;

  constructor(
    kit: SpliceKit,
    [a, b]: readonly [a: TcpStream, b: TcpStream],
    owner: SpliceOwner,
    ahead: SpliceAhead | undefined,
  ) {
    this.kit = kit;
    this.#owner = owner;
    this.#aToB = new Flow(this, a);
    this.#bToA = new Flow(this, b);
    this.#aToB.back = this.#bToA;
    this.#bToA.back = this.#aToB;
    a.handler = this.#aToB;
    b.handler = this.#bToA;
    if (ahead) this.#aToB.startAfter(ahead);
    // What was announced to the owner before us will not be announced again.
    if (a.isAnnounced || ahead?.rest !== undefined) kit.poller.defer(this.#aToB);
    if (b.isAnnounced) kit.poller.defer(this.#bToA);
  }

  /** Bytes given to `b` so far. */
  get aToB(): number {
    return this.#aToB.bytes;
  }

  /** Bytes given to `a` so far. */
  get bToA(): number {
    return this.#bToA.bytes;
  }

  /** The kernel moves the bytes; who has ended its direction is its business. */
  get halfClosed(): boolean {
    return false;
  }

  /** Breaks both connections without a callback. */
  reset(code: ReasonCode): void {
    this.#aToB.from.reset(code);
    this.#bToA.from.reset(code);
    this.#release();
  }

  /** One connection is over; `other` is the one that is left. */
  ended(other: TcpStream, reason: ReasonCode | undefined): void {
    this.#open--;
    if (reason !== undefined) {
      other.reset(reason);
      this.#open = 0;
    }
    if (this.#open > 0) return;
    this.#release();
    this.#owner.onEnd(reason, this.aToB, this.bToA);
  }

  #release(): void {
    this.over = true;
    this.#aToB.release();
    this.#bToA.release();
  }
}

/**
 * One direction, and the handler of the connection it reads from: thousands of connections may stand idle, and an
 * object of its own for the handler would be a third of what each takes.
 */
class Flow implements Deferred, StreamHandler {
  readonly from: TcpStream;
  /** The other direction; set before anything moves. */
  back!: Flow;
  bytes = 0;
  readonly #splice: Splice;
  #pipe: Pipe | undefined;
  #inPipe = 0;
  /** Bytes that follow those in the pipe and have no room there. */
  #rest: Uint8Array | undefined;
  #bulk = false;
  #ended = false;

  constructor(splice: Splice, from: TcpStream) {
    this.#splice = splice;
    this.from = from;
  }

  startAfter({ sent, rest }: SpliceAhead): void {
    this.bytes = sent;
    if (rest !== undefined && rest.length > 0) this.#rest = rest;
  }

  onOpen(): void {
    this.back.run();
    this.run();
  }

  onReadable(): void {
    this.run();
  }

  onWritable(): void {
    this.back.run();
  }

  onClose(reason: ReasonCode | undefined): void {
    this.#splice.ended(this.back.from, reason);
  }

  /** Moves what can be moved now. */
  run(): void {
    const to = this.back.from;
    if (this.#splice.over || !to.isOpen) return;
    if (this.#ended) return to.closeWrite();
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
        this.#ended = true;
        // What was written last waits for the FIN.
        if (moved > 0) return to.closeWrite();
        // At the end of the turn: where the other direction has ended by then, each connection is closed by one call.
        break;
      }
      moved += n;
    }
    this.#splice.kit.poller.defer(this);
  }

  release(): void {
    this.#rest = undefined;
    this.#givePipe();
  }

  /** Sends what was read before; whether all of it left. */
  #flush(): boolean {
    if (this.#inPipe > 0) {
      const n = this.back.from.spliceOut(this.#pipe!.read, this.#inPipe);
      this.#inPipe -= n;
      this.bytes += n;
      if (this.#inPipe > 0) return false;
    }
    if (this.#rest !== undefined) {
      const n = this.back.from.write(this.#rest, 0, this.#rest.length);
      this.bytes += n;
      this.#rest = n === this.#rest.length ? undefined : this.#rest.subarray(n);
    }
    return this.#rest === undefined;
  }

  #spliceIn(): number {
    this.#pipe ??= this.#splice.kit.pipes.take();
    if (this.#pipe === undefined) {
      this.#bulk = false;
      return this.#copy();
    }
    const n = this.from.spliceIn(this.#pipe.write, PIPE_BYTES);
    if (n > 0) this.#inPipe = n;
    return n;
  }

  #copy(): number {
    const buffer = this.#splice.kit.buffer.bytes;
    const n = this.from.read(buffer);
    if (n <= 0) return n;
    const to = this.back.from;
    const sent = this.from.isAtEnd ? to.writeLast(buffer, n) : to.write(buffer, 0, n);
    this.bytes += sent;
    if (sent < n) this.#keep(sent, n);
    else if (n === COPY_BYTES) this.#bulk = true;
    return n;
  }

  /** The receiver is full: the rest of the shared buffer waits in a pipe, or in memory where no pipe can be had. */
  #keep(start: number, end: number): void {
    const { c, pipes, buffer } = this.#splice.kit;
    this.#pipe ??= pipes.take();
    const kept = this.#pipe === undefined ? 0 : c.write(this.#pipe.write, buffer.pointerAt(start), end - start);
    this.#inPipe = Math.max(0, kept);
    if (start + this.#inPipe < end) this.#rest = buffer.bytes.slice(start + this.#inPipe, end);
  }

  #givePipe(): void {
    if (this.#pipe !== undefined) this.#splice.kit.pipes.give(this.#pipe, this.#inPipe === 0);
    this.#pipe = undefined;
    this.#inPipe = 0;
  }
}
