/**
 * Flows: datagrams between one client and one endpoint. They share the carrier with the streams but not their
 * promises: a datagram is sent once, on the carrier of the moment, whole or not at all, and the oldest ones give way
 * when the carrier is busy.
 */
import { type ReasonCode, reasonNumber } from "../../errors.ts";
import type { DatagramFlow, FlowHandler } from "../../net.ts";
import { MAX_DATAGRAM, type SessionLimits } from "../constants.ts";
import { get16, put16, REASON_SIZE, TYPE } from "../frame.ts";
import { copy } from "./send_log.ts";
import type { Sender } from "./sender.ts";
import type { Teller } from "./turn.ts";

export type FlowState = "offered" | "open" | "over";

/** What a flow needs of its session. */
export interface FlowHost {
  readonly limits: SessionLimits;
  readonly sender: Sender;
  /** Calls `deliver` soon, never from inside the present call. */
  notify(teller: Teller): void;
  /** The flow leaves the table; its queue is to be dropped. */
  flowEnded(flow: Flow): void;
}

const idleFlow: FlowHandler = { onDatagram() {}, onClose() {} };

export class Flow implements DatagramFlow, Teller {
  readonly id: number;
  readonly mine: boolean;
  state: FlowState;
  /** Datagrams that wait for the carrier. */
  readonly queue: DatagramQueue;
  /** Datagrams that came before the flow was accepted. */
  #early: DatagramQueue | undefined;
  waiting = false;
  notified = false;
  /** Offset of its OPEN, if it is ours. */
  openedAt = 0;
  readonly #host: FlowHost;
  #handler: FlowHandler;
  #reason: ReasonCode | undefined;

  constructor(host: FlowHost, id: number, handler: FlowHandler | undefined) {
    this.#host = host;
    this.id = id;
    this.mine = handler !== undefined;
    this.state = this.mine ? "open" : "offered";
    this.#handler = handler ?? idleFlow;
    this.queue = new DatagramQueue(host.limits.flowQueue);
    if (!this.mine) this.#early = new DatagramQueue(host.limits.flowEarly);
  }

  send(bytes: Uint8Array, length: number): boolean {
    if (this.state !== "open" || length < 0 || length > MAX_DATAGRAM || length > bytes.length) return false;
    return this.#host.sender.datagram(this, bytes, length);
  }

  close(code: ReasonCode): void {
    if (this.state === "over") return;
    this.#leave();
    const { sender } = this.#host;
    const at = sender.frame(TYPE.FLOW_CLOSE, this.id, REASON_SIZE);
    put16(sender.log.bytes, at, reasonNumber(code));
    this.#host.flowEnded(this);
  }

  /** The owner takes an offered flow; what came early follows at once, from the run queue. */
  accept(handler: FlowHandler): void {
    this.#handler = handler;
    if (this.state === "offered") this.state = "open";
    this.#host.notify(this);
  }

  /** One datagram of the peer; `bytes` is valid during the call only. */
  receive(bytes: Uint8Array, length: number): void {
    if (this.state === "offered") this.#early?.push(bytes, length);
    else if (this.state === "open") this.#handler.onDatagram(bytes, length);
  }

  /** The flow is over: by FLOW_CLOSE or with the session. The caller takes it out of the table. */
  fail(reason: ReasonCode): void {
    if (this.state === "over") return;
    this.#reason = reason;
    this.#leave();
    this.#host.notify(this);
  }

  /** Delivers what was noted with {@link FlowHost.notify}. */
  deliver(): void {
    if (this.state === "over") {
      if (this.#reason !== undefined) this.#handler.onClose(this.#reason);
      return;
    }
    const early = this.#early;
    this.#early = undefined;
    while (early !== undefined && early.bytes > 0 && this.state === "open") {
      early.take((b, o, n) => this.#handler.onDatagram(b.subarray(o, o + n), n));
    }
  }

  /** The owner threw: his flow ends, the session goes on. */
  broke(): void {
    this.close("INTERNAL");
  }

  #leave(): void {
    this.state = "over";
    this.#early = undefined;
  }
}

/** Bytes of bookkeeping per queued datagram. */
const RECORD = 2;
const FIRST_SIZE = 2048;

/** Datagrams in order, packed; the oldest are dropped beyond the cap. Holds no memory while empty. */
export class DatagramQueue {
  readonly #cap: number;
  #buffer: Uint8Array<ArrayBuffer> = new Uint8Array(0);
  #head = 0;
  #tail = 0;
  #dropped = 0;

  constructor(cap: number) {
    this.#cap = cap;
  }

  /** Bytes held, bookkeeping included. */
  get bytes(): number {
    return this.#tail - this.#head;
  }

  /** Datagrams dropped because newer ones came. */
  get dropped(): number {
    return this.#dropped;
  }

  /** Length of the oldest datagram. Call only while {@link bytes} > 0. */
  get nextLength(): number {
    return get16(this.#buffer, this.#head);
  }

  /** Appends a datagram, at the cost of the oldest. False if it is larger than the whole queue. */
  push(bytes: Uint8Array, length: number): boolean {
    const need = RECORD + length;
    if (need > this.#cap) return false;
    while (this.bytes + need > this.#cap) this.drop();
    if (this.#tail + need > this.#buffer.length) this.#makeRoom(need);
    put16(this.#buffer, this.#tail, length);
    copy(this.#buffer, this.#tail + RECORD, bytes, 0, length);
    this.#tail += need;
    return true;
  }

  /** Hands the oldest datagram to `taker` and forgets it. The bytes are valid during the call only. */
  take(taker: (bytes: Uint8Array, offset: number, length: number) => void): void {
    const length = this.nextLength;
    taker(this.#buffer, this.#head + RECORD, length);
    this.#forget(length);
  }

  /** Drops the oldest datagram. */
  drop(): void {
    this.#dropped++;
    this.#forget(this.nextLength);
  }

  clear(): void {
    this.#head = this.#tail = 0;
    this.#buffer = new Uint8Array(0);
  }

  #forget(length: number): void {
    this.#head += RECORD + length;
    if (this.#head < this.#tail) return;
    this.#head = this.#tail = 0;
    // A small buffer stays: a flow that queues now and then would make a new one each time.
    if (this.#buffer.length > FIRST_SIZE) this.#buffer = new Uint8Array(0);
  }

  #makeRoom(need: number): void {
    const used = this.bytes;
    let size = Math.max(FIRST_SIZE, this.#buffer.length);
    // Half again as much as is held: moving what is held to the front then happens once per many pushes.
    while (size < used + (used >>> 1) + need) size *= 2;
    const to: Uint8Array<ArrayBuffer> = size === this.#buffer.length ? this.#buffer : new Uint8Array(size);
    if (to === this.#buffer) to.copyWithin(0, this.#head, this.#tail);
    else to.set(this.#buffer.subarray(this.#head, this.#tail));
    this.#buffer = to;
    this.#head = 0;
    this.#tail = used;
  }
}
