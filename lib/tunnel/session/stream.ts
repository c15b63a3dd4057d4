/**
 * One stream of a session: the state between its OPEN and its end, and the {@link MeshStream} its owner holds.
 *
 * opening ─OPEN_OK→ open ─FIN both ways→ (leaves the table) ─owner read the end→ over
 * offered ─accept→  open     RST, reset, session's end: over from every state
 */
import { MeshError, type ReasonCode, reasonNumber } from "../../errors.ts";
import { idleHandler, type MeshStream, type StreamHandler, WOULD_BLOCK } from "../../net.ts";
import { FLOOR_CREDIT } from "../constants.ts";
import { OFFSET_SIZE, put16, put64, REASON_SIZE, TYPE } from "../frame.ts";
import type { Incoming, PieceOwner } from "./incoming.ts";
import type { Sender } from "./sender.ts";
import type { Teller } from "./turn.ts";
import { Unread } from "./unread.ts";
import { ReceiveWindow, type WindowPool } from "./window.ts";

export type StreamState = "opening" | "offered" | "open" | "over";

/** What a stream needs of its session. */
export interface StreamHost {
  readonly sender: Sender;
  readonly incoming: Incoming;
  readonly windows: WindowPool;
  now(): number;
  rttMs(): number;
  /** Calls `deliver` soon, never from inside the present call. */
  notify(teller: Teller): void;
  /** The owner took an offered stream. */
  streamAccepted(stream: Stream): void;
  /** No frame of this stream will come or go any more: it leaves the table. */
  streamEnded(stream: Stream): void;
  /** The stream holds nothing any more. */
  streamReleased(stream: Stream): void;
}

const OPENED = 1;
const READABLE = 2;
const CLOSED = 4;

export class Stream implements MeshStream, PieceOwner, Teller {
  handler: StreamHandler;
  readonly id: number;
  readonly mine: boolean;
  state: StreamState;
  // For Incoming, Sender and the session's run queue.
  firstPiece = -1;
  lastPiece = -1;
  waiting = false;
  notified = false;
  batchNumber = -1;
  batchBytes = 0;
  turnBytes = 0;
  // For the table: whether it is in the numbers of open and of not yet accepted streams.
  counted = false;
  pending = false;
  /** Offset of its OPEN, if it is ours. */
  openedAt = 0;

  readonly #host: StreamHost;
  readonly #window: ReceiveWindow;
  readonly #unread = new Unread();
  #events = 0;
  #reason: ReasonCode | undefined;
  #wantRead = true;
  #wantWrite = false;
  #received = 0;
  #remoteFin = false;
  #sawEnd = false;
  /** The owner called reset: it hears nothing more. */
  #givenUp = false;
  #sent = 0;
  #sendLimit = FLOOR_CREDIT;
  /** First bytes beyond the floor credit: they go before anything that is written later. */
  #tail: Uint8Array | undefined;
  #finWanted = false;
  #finSent = false;

  constructor(host: StreamHost, id: number, handler: StreamHandler | undefined) {
    this.#host = host;
    this.id = id;
    this.mine = handler !== undefined;
    this.state = this.mine ? "opening" : "offered";
    this.handler = handler ?? idleHandler;
    this.#window = new ReceiveWindow(host.windows);
  }

  /** Bytes held for the reader. */
  get unread(): number {
    return this.#unread.length;
  }

  /** Takes the receive window; returns its limit for OPEN. */
  startWindow(): number {
    return this.#window.start(this.#host.now());
  }

  // ── the owner's side ──

  read(into: Uint8Array): number {
    if (into.length === 0) throw new MeshError("INTERNAL", "Cannot read into an empty buffer");
    // A broken stream must not look like one that ended: its owner would pass half an answer on as a whole one.
    if (this.state === "over") return this.#sawEnd || this.#givenUp ? 0 : WOULD_BLOCK;
    let n = this.#unread.length > 0 ? this.#unread.read(into, 0) : 0;
    if (n < into.length && this.firstPiece >= 0) n += this.#host.incoming.read(this, into, n);
    if (n === 0) {
      if (this.#remoteFin) {
        this.#sawEnd = true;
        this.#finish();
        return 0;
      }
      this.#wantRead = true;
      return WOULD_BLOCK;
    }
    if (this.#window.consume(n) && !this.#remoteFin) this.#grant();
    return n;
  }

  write(from: Uint8Array, offset: number, length: number): number {
    if (this.state === "over" || this.#finWanted || length <= 0) return 0;
    const done = this.#tail === undefined ? this.#put(from, offset, length) : 0;
    if (done < length) this.#wantWrite = true;
    return done;
  }

  closeWrite(): void {
    if (this.state === "over" || this.#finWanted) return;
    this.#finWanted = true;
    if (this.#tail === undefined) this.#fin();
  }

  reset(code: ReasonCode): void {
    this.#givenUp = true;
    this.#events = 0;
    if (this.state === "over") return;
    const told = this.#finSent && this.#remoteFin;
    this.#leave();
    if (!told) {
      const sender = this.#host.sender;
      const at = sender.frame(TYPE.RST, this.id, REASON_SIZE);
      put16(sender.log.bytes, at, reasonNumber(code));
      this.#host.streamEnded(this);
    }
    this.#host.streamReleased(this);
  }

  // ── the session's side ──

  /** Sends the bytes that travel with the OPEN; what exceeds the credit waits for OPEN_OK. */
  first(bytes: Uint8Array): void {
    const done = this.#put(bytes, 0, bytes.length);
    if (done < bytes.length) this.#tail = bytes.slice(done);
  }

  /** The owner takes an offered stream. */
  accept(handler: StreamHandler, sendLimit: number): void {
    this.handler = handler;
    // A stream that broke while it was offered tells so to its new owner.
    if (this.state === "over") return this.#tell(CLOSED);
    this.state = "open";
    this.#host.streamAccepted(this);
    this.#sendLimit = Math.max(this.#sendLimit, sendLimit);
    const sender = this.#host.sender;
    const at = sender.frame(TYPE.OPEN_OK, this.id, OFFSET_SIZE);
    put64(sender.log.bytes, at, this.startWindow());
    this.#tell(this.#readable() ? OPENED | READABLE : OPENED);
  }

  opened(sendLimit: number): void {
    this.state = "open";
    this.#sendLimit = Math.max(this.#sendLimit, sendLimit);
    this.#tell(OPENED);
    this.room();
  }

  /** Raises what may be sent. A limit below the present one says nothing new. */
  credit(limit: number): void {
    if (limit <= this.#sendLimit) return;
    this.#sendLimit = limit;
    this.room();
  }

  /** There may be room again: goes on with what waits. */
  room(): void {
    if (this.state === "over" || this.waiting) return;
    if ((this.#tail !== undefined || this.#wantWrite) && this.#sent < this.#sendLimit) this.#host.sender.wait(this);
  }

  /** Its turn to write has come. */
  turn(): void {
    if (this.state === "over") return;
    if (this.#tail !== undefined) {
      const done = this.#put(this.#tail, 0, this.#tail.length);
      this.#tail = done < this.#tail.length ? this.#tail.subarray(done) : undefined;
      if (this.#tail !== undefined) return;
      if (this.#finWanted) return this.#fin();
    }
    if (!this.#wantWrite || this.#sent >= this.#sendLimit || this.state === "opening") return;
    this.#wantWrite = false;
    this.handler.onWritable();
  }

  /** Bytes of a DATA frame in the present batch. False if there are none, they break the credit or come after FIN. */
  data(offset: number, length: number): boolean {
    if (length === 0 || this.#remoteFin || this.#received + length > this.#window.limit) return false;
    this.#received += length;
    this.#host.incoming.add(this, offset, length);
    this.#wakeReader();
    return true;
  }

  keep(from: Uint8Array, offset: number, length: number): void {
    if (this.state !== "over") this.#unread.push(from, offset, length);
  }

  /** The peer ended its direction. False if it had done so before. */
  fin(): boolean {
    if (this.#remoteFin) return false;
    this.#remoteFin = true;
    this.#wakeReader();
    if (this.#finSent) this.#host.streamEnded(this);
    return true;
  }

  /** The stream broke: by RST or with the session. The caller takes it out of the table. */
  fail(reason: ReasonCode): void {
    if (this.state === "over") return;
    const opened = this.#events & OPENED;
    this.#reason = reason;
    this.#leave();
    this.#tell(opened | CLOSED);
    this.#host.streamReleased(this);
  }

  /** Delivers what was noted with {@link StreamHost.notify}. */
  deliver(): void {
    const events = this.#events;
    this.#events = 0;
    if (events & OPENED) this.handler.onOpen();
    if (events & READABLE && this.state !== "over") {
      this.#wantRead = false;
      this.handler.onReadable();
    }
    if (events & CLOSED) this.handler.onClose(this.#reason);
  }

  /** The owner threw: his stream ends, the session goes on. */
  broke(): void {
    this.reset("INTERNAL");
  }

  #put(from: Uint8Array, offset: number, length: number): number {
    let done = 0;
    while (done < length && this.#sent < this.#sendLimit) {
      const n = this.#host.sender.take(
        this,
        from,
        offset + done,
        Math.min(length - done, this.#sendLimit - this.#sent),
      );
      if (n === 0) break;
      done += n;
      this.#sent += n;
    }
    if (done < length && this.#sent < this.#sendLimit) this.#host.sender.wait(this);
    return done;
  }

  #fin(): void {
    this.#finSent = true;
    this.#wantWrite = false;
    this.#host.sender.frame(TYPE.FIN, this.id, 0);
    if (this.#remoteFin) this.#host.streamEnded(this);
    this.#finish();
  }

  #grant(): void {
    const before = this.#window.limit;
    const limit = this.#window.grant(this.#host.now(), this.#host.rttMs());
    if (limit === before) return;
    const sender = this.#host.sender;
    const at = sender.frame(TYPE.CREDIT, this.id, OFFSET_SIZE);
    put64(sender.log.bytes, at, limit);
  }

  #readable(): boolean {
    return this.#wantRead && (this.#remoteFin || this.firstPiece >= 0 || this.#unread.length > 0);
  }

  #wakeReader(): void {
    if (this.#wantRead && this.state === "open") this.#tell(READABLE);
  }

  #tell(events: number): void {
    this.#events |= events;
    this.#host.notify(this);
  }

  /** Both directions ended and the owner knows it. */
  #finish(): void {
    if (!this.#finSent || !this.#sawEnd || this.state === "over") return;
    this.#leave();
    this.#tell(CLOSED);
    this.#host.streamReleased(this);
  }

  #leave(): void {
    this.state = "over";
    this.firstPiece = -1;
    this.#tail = undefined;
    this.#unread.clear();
    this.#window.release();
    this.#events = 0;
  }
}
