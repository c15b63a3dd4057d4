/**
 * The sending half of flows: gathers datagrams into a batch of its own, because their bytes are never retained.
 * While the carrier is busy they wait in their flow's queue; flows are then served one datagram each in turn.
 */
import { BufferPool } from "../buffer_pool.ts";
import { MAX_BATCH } from "../carrier.ts";
import { FRAME_HEADER, MAX_DATAGRAM, MAX_PAYLOAD } from "../constants.ts";
import { Fifo } from "./fair.ts";
import type { Flow } from "./flow.ts";
import { DGRAM_HEADER, put16, putHeader, TYPE } from "../frame.ts";
import { copy } from "./send_log.ts";

const HEADER = FRAME_HEADER + DGRAM_HEADER;
/** Most bytes of a datagram in one frame. */
export const PIECE: number = MAX_PAYLOAD - DGRAM_HEADER;

/** Holds one batch, or the one datagram (of the largest) whose last piece goes into the next batch. */
export const datagramPool: BufferPool = new BufferPool(Math.max(MAX_BATCH, wireSize(MAX_DATAGRAM)), 8);

export class DatagramSender {
  readonly #sumCap: number;
  readonly #line = new Fifo<Flow>();
  #batch: Uint8Array<ArrayBuffer> | undefined;
  #end = 0;
  /** End of the last frame that fits into one batch. */
  #cut = 0;
  /** Bytes at the beginning that belong to a datagram of which a part was sent. */
  #rest = 0;
  #number = 0;
  #queued = 0;
  #sent = 0;
  #dropped = 0;

  constructor(sumCap: number) {
    this.#sumCap = sumCap;
  }

  /** Datagrams handed to carriers. */
  get sent(): number {
    return this.#sent;
  }

  /** Datagrams dropped before that. */
  get dropped(): number {
    return this.#dropped;
  }

  /** Bytes waiting in flows' queues. */
  get queued(): number {
    return this.#queued;
  }

  /** A batch waits to be sent. */
  get pending(): boolean {
    return this.#end > 0;
  }

  /** No flow waits, and a datagram of this length would be part of the next batch. */
  fits(length: number): boolean {
    return this.#line.size === 0 && this.#hasRoom(length);
  }

  /** Adds a datagram that {@link fits}. */
  put(flow: Flow, bytes: Uint8Array, length: number): void {
    this.#write(flow.id, bytes, 0, length);
  }

  /** Queues a datagram; false when it was dropped. Older ones of the same flow give way first. */
  enqueue(flow: Flow, bytes: Uint8Array, length: number): boolean {
    const { queue } = flow;
    const before = queue.dropped;
    this.#queued -= queue.bytes;
    while (queue.bytes > 0 && this.#queued + queue.bytes + length > this.#sumCap) queue.drop();
    const taken = this.#queued + length <= this.#sumCap && queue.push(bytes, length);
    if (!taken) this.#dropped++;
    this.#queued += queue.bytes;
    this.#dropped += queue.dropped - before;
    if (taken && !flow.waiting) {
      flow.waiting = true;
      this.#line.push(flow);
    }
    return taken;
  }

  /** Fills the batch from the queues, a datagram of each flow in turn. True when there is something to send. */
  fill(): boolean {
    while (this.#line.size > 0) {
      const flow = this.#line.peek()!;
      if (flow.queue.bytes > 0) {
        if (!this.#hasRoom(flow.queue.nextLength)) break;
        this.#queued -= flow.queue.bytes;
        flow.queue.take((bytes, offset, length) => this.#write(flow.id, bytes, offset, length));
        this.#queued += flow.queue.bytes;
      }
      this.#line.shift();
      flow.waiting = flow.queue.bytes > 0;
      if (flow.waiting) this.#line.push(flow);
    }
    return this.#end > 0;
  }

  /** Gives the batch to `send`. Call only while {@link pending}. */
  ship(send: (batch: Uint8Array) => void): void {
    const batch = this.#batch!;
    send(batch.subarray(0, this.#cut));
    batch.copyWithin(0, this.#cut, this.#end);
    this.#end -= this.#cut;
    this.#rest = this.#cut = this.#end;
  }

  /** Gives what is left of a datagram to `send`, to follow its beginning before another carrier is used. */
  finish(send: (batch: Uint8Array) => void): void {
    if (this.#rest === 0) return;
    this.#end -= this.#rest;
    this.#cut -= this.#rest;
    send(this.#batch!.subarray(0, this.#rest));
    this.#batch!.copyWithin(0, this.#rest, this.#rest + this.#end);
    this.#rest = 0;
  }

  /** The flow is over: what it had waiting is gone. */
  forget(flow: Flow): void {
    this.#queued -= flow.queue.bytes;
    flow.queue.clear();
  }

  /** Drops what was gathered or queued: it is too old, or the peer changed. */
  clear(): void {
    this.#end = this.#cut = this.#rest = 0;
    for (let flow = this.#line.shift(); flow !== undefined; flow = this.#line.shift()) {
      flow.waiting = false;
      this.forget(flow);
    }
  }

  /** Gives the batch's memory back while nothing is in it. */
  trim(): void {
    if (this.#batch === undefined || this.#end > 0) return;
    datagramPool.give(this.#batch);
    this.#batch = undefined;
  }

  #hasRoom(length: number): boolean {
    return this.#end === 0 || this.#end + wireSize(length) <= MAX_BATCH;
  }

  #write(id: number, bytes: Uint8Array, offset: number, length: number): void {
    const batch = this.#batch ??= datagramPool.take();
    this.#number = (this.#number + 1) & 0xffff;
    this.#sent++;
    let done = 0;
    do {
      const n = Math.min(PIECE, length - done);
      const at = this.#end;
      putHeader(batch, at, TYPE.DGRAM, id, DGRAM_HEADER + n);
      put16(batch, at + FRAME_HEADER, this.#number);
      put16(batch, at + FRAME_HEADER + 2, length);
      put16(batch, at + FRAME_HEADER + 4, done);
      copy(batch, at + HEADER, bytes, offset + done, n);
      this.#end = at + HEADER + n;
      if (this.#end <= MAX_BATCH) this.#cut = this.#end;
      done += n;
    } while (done < length);
  }
}

/** Bytes a datagram takes on the wire, headers of its pieces included. */
function wireSize(length: number): number {
  return length + Math.max(1, Math.ceil(length / (MAX_PAYLOAD - DGRAM_HEADER))) * HEADER;
}
