/**
 * What a session has sent and the peer has not acknowledged. Frames are written here once, as finished batches; the
 * carrier sends them from here, and after a change of carrier they are sent again from here. So being resumable costs
 * no copy: one number, the peer's received offset, says where to go on.
 *
 * Offsets count the bytes of counted frames (header and payload) since the session began. Batches lie in segments;
 * in front of each is room for an ACK, which is written at the moment of sending and not part of the count.
 */
import { ACK_ROOM, BATCH_ROOM, FRAME_HEADER, MAX_PAYLOAD, SEGMENT } from "../constants.ts";
import { BufferPool } from "../buffer_pool.ts";
import { get24, get32, put16, putHeader, TYPE } from "../frame.ts";

/** Below this much room a batch counts as full: a tiny last frame costs more than a slightly shorter batch. */
const SLIVER = 512;
/** Least room in a segment worth beginning a batch. */
const MIN_BATCH = 4096;

/** Shared by all sessions of the process: free segments beyond 4 MiB go back to the garbage collector. */
export const segmentPool: BufferPool = new BufferPool(SEGMENT, 16);

interface Segment {
  readonly bytes: Uint8Array<ArrayBuffer>;
  /** Batches in it, the open one included. */
  live: number;
}

/** Sends bytes `[start, end)`; the `room` bytes before `start` may be overwritten, for an ACK that travels with them. */
export type SendBatch = (bytes: Uint8Array<ArrayBuffer>, start: number, end: number, room: number) => void;

/** A stream or flow of ours. */
export interface Opened {
  /** Offset of its OPEN. */
  openedAt: number;
}

interface Batch {
  segment: Segment;
  /** Offset of its first byte. */
  offset: number;
  /** Where it lies in the segment. */
  start: number;
  length: number;
}

/** Stands in used-up places of the circle, so that they do not keep a segment alive. */
const NO_SEGMENT: Segment = { bytes: new Uint8Array(0), live: 0 };

export class SendLog {
  readonly #pool: BufferPool;
  readonly #cap: number;
  /** Sealed batches in order, as a circle of objects that are used again. */
  #ring: Batch[] = [];
  #head = 0;
  #count = 0;
  /** Index from `#head` of the batch to send next, and how much of it is not to be sent. */
  #cursor = 0;
  #skip = 0;
  #segment: Segment | undefined;
  #start = 0;
  #end = 0;
  #limit = 0;
  /** Where the next batch begins in `#segment`. */
  #free = 0;
  #open = false;
  #tx = 0;
  #acked = 0;
  /** Offset after the last byte ever given to a carrier: what the peer may acknowledge. */
  #high = 0;
  #held = 0;
  /** Header position of the last frame if it is DATA that may grow. */
  #lastData = -1;
  #lastId = -1;
  #batchNumber = 0;

  constructor(cap: number, pool: BufferPool = segmentPool) {
    this.#cap = cap;
    this.#pool = pool;
  }

  /** Offset after the last frame written. */
  get tx(): number {
    return this.#tx;
  }

  get acked(): number {
    return this.#acked;
  }

  /** Offset after the last byte ever given to a carrier. */
  get sent(): number {
    return this.#high;
  }

  /** Bytes of memory that wait for an acknowledgement. */
  get held(): number {
    return this.#held;
  }

  /** Bytes of data that may still be written: writes stop at the cap, control frames (few, bounded by the streams) do not. */
  get room(): number {
    return Math.max(0, this.#cap - this.#held);
  }

  /** Room for one more frame's payload in the batch that is being built. */
  get openRoom(): number {
    return (this.#open ? this.#limit - this.#end : BATCH_ROOM) - FRAME_HEADER;
  }

  /** Changes with each batch: what a stream wrote "into this batch" is counted by it. */
  get batchNumber(): number {
    return this.#batchNumber;
  }

  /** The batch being built has no room for another useful frame. */
  get full(): boolean {
    return this.#open && this.#limit - this.#end < SLIVER;
  }

  /** Sealed batches wait to be sent. */
  get pending(): boolean {
    return this.#cursor < this.#count;
  }

  /** Something was written and not yet given to a carrier. */
  get unsent(): boolean {
    return this.#open || this.#cursor < this.#count;
  }

  /** The segment that {@link frame} wrote into. */
  get bytes(): Uint8Array<ArrayBuffer> {
    return this.#segment!.bytes;
  }

  /** Begins a counted frame and returns where its payload goes in {@link bytes}. */
  frame(type: number, id: number, length: number): number {
    this.#need(FRAME_HEADER + length);
    const at = this.#end;
    putHeader(this.bytes, at, type, id, length);
    this.#grow(FRAME_HEADER + length);
    this.#lastData = -1;
    return at + FRAME_HEADER;
  }

  /**
   * Writes bytes of a stream as DATA into one batch and returns how many: up to `length`, a frame, and what is left of
   * the batch. Goes on with the last frame if that is of the same stream.
   */
  data(id: number, from: Uint8Array, offset: number, length: number): number {
    if (this.#lastData >= 0 && this.#lastId === id) {
      const had = this.#end - this.#lastData - FRAME_HEADER;
      const n = Math.min(length, MAX_PAYLOAD - had, this.#limit - this.#end);
      if (n > 0) {
        copy(this.bytes, this.#end, from, offset, n);
        this.bytes[this.#lastData + 1] = (had + n) >>> 16;
        put16(this.bytes, this.#lastData + 2, had + n);
        this.#grow(n);
        return n;
      }
    }
    this.#need(FRAME_HEADER + Math.min(length, SLIVER));
    const n = Math.min(length, MAX_PAYLOAD, this.#limit - this.#end - FRAME_HEADER);
    const at = this.#end;
    putHeader(this.bytes, at, TYPE.DATA, id, n);
    copy(this.bytes, at + FRAME_HEADER, from, offset, n);
    this.#grow(FRAME_HEADER + n);
    this.#lastData = at;
    this.#lastId = id;
    return n;
  }

  /** Ends the batch that is being built, if any. */
  seal(): void {
    if (!this.#open) return;
    this.#open = false;
    this.#lastData = -1;
    this.#batchNumber++;
    this.#free = this.#end;
    if (this.#count === this.#ring.length) this.#enlarge();
    const batch = this.#at(this.#count++);
    batch.segment = this.#segment!;
    batch.start = this.#start;
    batch.length = this.#end - this.#start;
    batch.offset = this.#tx - batch.length;
  }

  /** Offset of the next byte to be given to a carrier. */
  get next(): number {
    if (this.#cursor < this.#count) return this.#at(this.#cursor).offset + this.#skip;
    return this.#open ? this.#tx - (this.#end - this.#start) : this.#tx;
  }

  /** Gives the next sealed batch to `send`. Call only while {@link pending}. */
  ship(send: SendBatch): void {
    const batch = this.#at(this.#cursor++);
    const skip = this.#skip;
    this.#skip = 0;
    this.#high = Math.max(this.#high, batch.offset + batch.length);
    send(batch.segment.bytes, batch.start + skip, batch.start + batch.length, skip === 0 ? ACK_ROOM : 0);
  }

  /** Forgets what lies before `offset`. False if that was never sent. */
  ack(offset: number): boolean {
    if (offset > this.#high) return false;
    if (offset <= this.#acked) return true;
    this.#acked = offset;
    while (this.#count > 0) {
      const batch = this.#at(0);
      if (batch.offset + batch.length > offset) break;
      this.#head = (this.#head + 1) & (this.#ring.length - 1);
      this.#count--;
      if (this.#cursor > 0) this.#cursor--;
      else this.#skip = 0;
      this.#held -= batch.length + ACK_ROOM;
      this.#release(batch.segment);
      batch.segment = NO_SEGMENT;
    }
    return true;
  }

  /** The next batch sent will begin at `offset`. False if that is not the border of a frame that is still held. */
  rewind(offset: number): boolean {
    if (offset < this.#acked || offset > this.#high) return false;
    this.seal();
    this.#cursor = this.#count;
    this.#skip = 0;
    for (let i = 0; i < this.#count; i++) {
      const batch = this.#at(i);
      if (batch.offset + batch.length <= offset) continue;
      this.#cursor = i;
      this.#skip = offset - batch.offset;
      return isBorder(batch, this.#skip);
    }
    return true;
  }

  /** Drops everything; counting starts at 0 again. */
  clear(): void {
    this.seal();
    for (let i = 0; i < this.#count; i++) {
      this.#release(this.#at(i).segment);
      this.#at(i).segment = NO_SEGMENT;
    }
    this.#count = this.#cursor = this.#skip = 0;
    this.#held =
      this.#tx =
      this.#acked =
      this.#high =
        0;
    this.trim();
  }

  /** Drops everything but the frames of `keep`, none of which was given to a carrier; counting starts at 0 again. */
  restart(keep: ReadonlyMap<number, Opened>): void {
    this.seal();
    const kept: Uint8Array[] = [];
    for (let i = 0; i < this.#count; i++) {
      const { segment, start, length } = this.#at(i);
      for (let at = start; at < start + length;) {
        const size = FRAME_HEADER + get24(segment.bytes, at + 1);
        if (keep.has(get32(segment.bytes, at + 4))) kept.push(segment.bytes.slice(at, at + size));
        at += size;
      }
    }
    this.clear();
    for (const frame of kept) {
      const id = get32(frame, 4);
      if (frame[0] === TYPE.OPEN) keep.get(id)!.openedAt = this.#tx;
      const at = this.frame(frame[0]!, id, frame.length - FRAME_HEADER);
      this.bytes.set(frame.subarray(FRAME_HEADER), at);
    }
  }

  /** Gives the last segment back when nothing is held: an idle session keeps no buffer. */
  trim(): void {
    if (this.#segment === undefined || this.#segment.live > 0) return;
    this.#pool.give(this.#segment.bytes);
    this.#segment = undefined;
  }

  #need(size: number): void {
    if (this.#open && this.#limit - this.#end >= size) return;
    this.seal();
    this.#lastData = -1;
    if (this.#segment?.live === 0) this.#free = 0;
    if (this.#segment === undefined || SEGMENT - this.#free < Math.max(MIN_BATCH, ACK_ROOM + size)) {
      this.#segment = { bytes: this.#pool.take(), live: 0 };
      this.#free = 0;
    }
    this.#segment.live++;
    this.#open = true;
    this.#start = this.#end = this.#free + ACK_ROOM;
    this.#limit = Math.min(this.#start + BATCH_ROOM, SEGMENT);
    this.#held += ACK_ROOM;
  }

  #grow(n: number): void {
    this.#end += n;
    this.#tx += n;
    this.#held += n;
  }

  #release(segment: Segment): void {
    if (--segment.live === 0 && segment !== this.#segment) this.#pool.give(segment.bytes);
  }

  #at(index: number): Batch {
    return this.#ring[(this.#head + index) & (this.#ring.length - 1)]!;
  }

  #enlarge(): void {
    const size = Math.max(8, this.#ring.length * 2);
    const ring: Batch[] = [];
    for (let i = 0; i < size; i++) {
      ring.push(i < this.#count ? this.#at(i) : { segment: NO_SEGMENT, offset: 0, start: 0, length: 0 });
    }
    this.#ring = ring;
    this.#head = 0;
  }
}

/** Copies `n` bytes; small counts by hand, because making a view costs more than moving them. */
export function copy(into: Uint8Array, at: number, from: Uint8Array, offset: number, n: number): void {
  if (n <= 32) {
    for (let i = 0; i < n; i++) into[at + i] = from[offset + i]!;
  } else if (offset === 0 && n === from.length) into.set(from, at);
  else into.set(from.subarray(offset, offset + n), at);
}

function isBorder(batch: Batch, skip: number): boolean {
  let at = 0;
  while (at < skip) at += FRAME_HEADER + get24(batch.segment.bytes, batch.start + at + 1);
  return at === skip;
}
