/**
 * The sending half of a session: what goes into the next batch and when it leaves. Streams write into the retention
 * log (send_log.ts); while the carrier takes batches each full one leaves at once and the last one at the end of the
 * turn, so small frames of many streams share a batch. While the carrier is busy a stream may add one quantum to the
 * batch that will go next, and waits in line for more.
 */
import { type ReasonCode, reasonNumber } from "../../errors.ts";
import { ACK_BYTES, ACK_ROOM, FRAME_HEADER, QUANTUM } from "../constants.ts";
import { DatagramSender } from "./datagrams.ts";
import { Fifo } from "./fair.ts";
import { get64, GOAWAY_SIZE, OFFSET_SIZE, PING_SIZE, put16, put64, putHeader, TYPE } from "../frame.ts";
import type { Flow } from "./flow.ts";
import type { Link } from "./link.ts";
import type { Violation } from "./receiver.ts";
import { type Opened, type SendBatch, SendLog } from "./send_log.ts";
import type { Stream } from "./stream.ts";

/** Below this room a busy carrier's next batch counts as full. */
const LITTLE = 512;
const NONE = -1;

/** What the sending half needs of its session. */
export interface SenderHost {
  /** Counted bytes received, to acknowledge. */
  received(): number;
  /** Something was written: flush at the end of the event, or soon. */
  wake(): void;
  /** An owner threw. */
  fault(error: unknown): void;
}

export class Sender {
  readonly log: SendLog;
  readonly datagrams: DatagramSender;
  readonly #host: SenderHost;
  readonly #line = new Fifo<Stream>();
  #link: Link | undefined;
  #serving = false;
  #ackSent = 0;
  #ackDue = false;
  #ackBytes = ACK_BYTES;
  // Uncounted frames that go with the next flush.
  /** Offset of the next counted byte as the peer expects it on this link; NONE = it was not told yet. */
  #told = NONE;
  #ping = NONE;
  #pong = false;
  readonly #pongBytes = new Uint8Array(PING_SIZE);
  #goaway: ReasonCode | undefined;
  #goawayFinal = false;
  readonly #control = new Uint8Array(128);
  #batches = 0;
  #bytes = 0;

  constructor(host: SenderHost, log: SendLog, datagrams: DatagramSender) {
    this.#host = host;
    this.log = log;
    this.datagrams = datagrams;
  }

  /** Batches and bytes given to carriers. */
  get batches(): number {
    return this.#batches;
  }

  get bytes(): number {
    return this.#bytes;
  }

  get ackSent(): number {
    return this.#ackSent;
  }

  get link(): Link | undefined {
    return this.#link;
  }

  /** Streams waiting for room. */
  get inLine(): number {
    return this.#line.size;
  }

  /** Whether a batch can be sent now. */
  get ready(): boolean {
    return this.#link !== undefined && !this.#link.busy;
  }

  /** From now on everything goes over `link`, counted frames from where the log stands (`rewind` it before). */
  use(link: Link): void {
    const before = this.#link;
    // Even where it is busy: it takes one batch more, and the other end puts a datagram together from one carrier only.
    if (before !== undefined && before !== link) this.datagrams.finish((batch) => before.give(batch));
    this.#link = link;
    this.#told = NONE;
    // An ACK on the carrier before may be lost.
    this.#ackSent = 0;
    this.#ackDue = true;
  }

  /** No carrier takes anything. */
  pause(): void {
    this.#link = undefined;
    this.#told = this.#ping = NONE;
    this.#pong = false;
    this.#goaway = undefined;
  }

  /** Gives memory back that is not in use: an idle session holds no buffer. */
  trim(): void {
    this.log.trim();
    this.datagrams.trim();
  }

  /** The peer lost its state: of all that was written, only the frames of `keep` that it never got still count. */
  restart(keep: ReadonlyMap<number, Opened>): void {
    this.pause();
    this.log.restart(keep);
    this.datagrams.clear();
    this.#ackSent = 0;
    this.#ackDue = false;
    this.trim();
  }

  /** The session is over. */
  clear(): void {
    this.restart(new Map());
    this.#line.clear();
  }

  /** Acknowledge at least this often: a quarter of what the peer can hold. */
  limitAck(retention: number): void {
    this.#ackBytes = Math.max(1, Math.min(ACK_BYTES, retention >>> 2));
  }

  // ── frames ──

  /** Begins a counted frame; returns where its payload goes in `log.bytes`. */
  frame(type: number, id: number, length: number): number {
    const at = this.log.frame(type, id, length);
    this.#host.wake();
    return at;
  }

  /** Takes bytes of a stream as DATA; 0 when there is no room, then {@link wait}. */
  take(stream: Stream, from: Uint8Array, offset: number, length: number): number {
    const log = this.log;
    let n = Math.min(length, log.room);
    if (this.#serving) n = Math.min(n, this.#line.size > 0 ? QUANTUM - stream.turnBytes : n);
    // Others wait for acknowledgements: not past them.
    else if (this.#line.size > 0 && log.room < QUANTUM) return 0;
    else if (this.#link?.busy) {
      const had = stream.batchNumber === log.batchNumber ? stream.batchBytes : 0;
      if (log.pending || log.openRoom < LITTLE) return 0;
      n = Math.min(n, log.openRoom, QUANTUM - had);
    }
    if (n <= 0) return 0;
    const taken = log.data(stream.id, from, offset, n);
    stream.turnBytes += taken;
    if (stream.batchNumber !== log.batchNumber) {
      stream.batchNumber = log.batchNumber;
      stream.batchBytes = 0;
    }
    stream.batchBytes += taken;
    if ((log.full || log.pending) && this.ready) this.#shipLog();
    this.#host.wake();
    return taken;
  }

  /** Puts a stream in line for room. */
  wait(stream: Stream): void {
    if (stream.waiting) return;
    stream.waiting = true;
    this.#line.push(stream);
  }

  /** Sends, gathers or queues one datagram; false when it was dropped. */
  datagram(flow: Flow, bytes: Uint8Array, length: number): boolean {
    const { datagrams } = this;
    if (this.ready && !this.#mustResume && datagrams.pending && !datagrams.fits(length)) {
      this.#shipLog();
      if (this.ready) datagrams.ship(this.#give);
    }
    if (this.#link === undefined || !datagrams.fits(length)) return datagrams.enqueue(flow, bytes, length);
    datagrams.put(flow, bytes, length);
    this.#host.wake();
    return true;
  }

  ping(token: number): void {
    this.#ping = token;
    this.#host.wake();
  }

  /** PING: answered with the next flush. Only the last one of a batch is, so a flood of them costs nothing. */
  pinged(batch: Uint8Array, at: number, length: number): Violation {
    if (length !== PING_SIZE) return "PING of a forbidden form";
    this.#pong = true;
    for (let i = 0; i < PING_SIZE; i++) this.#pongBytes[i] = batch[at + i]!;
    return undefined;
  }

  /** ACK: what the peer has received need not be kept. */
  acknowledged(batch: Uint8Array, at: number, length: number): Violation {
    const offset = length === OFFSET_SIZE ? get64(batch, at) : -1;
    if (offset < 0) return "ACK of a forbidden form";
    return this.log.ack(offset) ? undefined : "ACK of what was never sent";
  }

  goaway(reason: ReasonCode, final: boolean): void {
    this.#goaway = reason;
    this.#goawayFinal = final;
    this.#host.wake();
  }

  /** Tells the peer that the session ends, even to a busy carrier: there is no later. */
  lastWord(reason: ReasonCode, now: number): void {
    if (this.#link === undefined) return;
    this.goaway(reason, true);
    this.#sendControl(now);
  }

  /** An ACK goes with the next flush even if nothing else does. */
  ackSoon(): void {
    this.#ackDue = true;
  }

  // ── moving ──

  /** Gives streams in line their turn, while there is room. Their owners are called from here. */
  serve(): void {
    this.#serving = true;
    while (this.#line.size > 0 && this.ready && this.log.room >= QUANTUM) {
      const stream = this.#line.shift()!;
      stream.waiting = false;
      stream.turnBytes = 0;
      try {
        stream.turn();
      } catch (error) {
        this.#host.fault(error);
        stream.broke();
      }
    }
    this.#serving = false;
  }

  /** Sends everything the carrier takes. `now` is for PINGs. */
  flush(now: number): void {
    if (this.#link === undefined) return;
    if (this.ready && this.#uncounted) this.#sendControl(now);
    while (this.ready) {
      const had = this.log.unsent;
      if (had) this.#shipOne();
      if (this.ready && this.datagrams.fill()) this.datagrams.ship(this.#give);
      else if (!had) break;
    }
    const unacknowledged = this.#host.received() - this.#ackSent;
    if (this.ready && unacknowledged > 0 && (this.#ackDue || unacknowledged >= this.#ackBytes)) this.#sendAck();
  }

  /** Sends what streams have written. Not before a RESUME that must precede it. */
  #shipLog(): void {
    if (this.#mustResume) return;
    this.log.seal();
    while (this.ready && this.log.pending) this.log.ship(this.#sendBatch);
    this.#told = this.log.next;
  }

  #shipOne(): void {
    if (!this.log.pending) this.log.seal();
    this.log.ship(this.#sendBatch);
    this.#told = this.log.next;
  }

  readonly #sendBatch: SendBatch = (bytes, start, end, room) => {
    if (room >= ACK_ROOM && this.#host.received() > this.#ackSent) {
      start -= ACK_ROOM;
      this.#putAck(bytes, start);
    }
    this.#give(bytes.subarray(start, end));
  };

  #sendAck(): void {
    this.#putAck(this.#control, 0);
    this.#give(this.#control.subarray(0, ACK_ROOM));
  }

  #putAck(bytes: Uint8Array, at: number): void {
    this.#ackSent = this.#host.received();
    this.#ackDue = false;
    putHeader(bytes, at, TYPE.ACK, 0, OFFSET_SIZE);
    put64(bytes, at + FRAME_HEADER, this.#ackSent);
  }

  /** On a new link, and where an ACK has made us skip what was to be sent again. */
  get #mustResume(): boolean {
    return this.#told !== this.log.next;
  }

  get #uncounted(): boolean {
    return this.#mustResume || this.#ping !== NONE || this.#pong || this.#goaway !== undefined;
  }

  #sendControl(now: number): void {
    const b = this.#control;
    let n = 0;
    const header = (type: number, length: number) => {
      putHeader(b, n, type, 0, length);
      n += FRAME_HEADER + length;
      return n - length;
    };
    if (this.#mustResume) {
      this.#told = this.log.next;
      put64(b, header(TYPE.RESUME, OFFSET_SIZE), this.#told);
    }
    if (this.#ping !== NONE) {
      const at = header(TYPE.PING, PING_SIZE);
      put64(b, at, this.#ping);
      put64(b, at + 8, Math.round(now * 1000));
    }
    if (this.#pong) b.set(this.#pongBytes, header(TYPE.PONG, PING_SIZE));
    if (this.#goaway !== undefined) {
      const at = header(TYPE.GOAWAY, GOAWAY_SIZE);
      put16(b, at, reasonNumber(this.#goaway));
      b[at + 2] = this.#goawayFinal ? 1 : 0;
    }
    this.#ping = NONE;
    this.#pong = false;
    this.#goaway = undefined;
    this.#give(b.subarray(0, n));
  }

  readonly #give = (batch: Uint8Array): void => {
    this.#batches++;
    this.#bytes += batch.length;
    this.#link!.give(batch);
  };
}
