/**
 * Receive windows. A stream starts with {@link FLOOR_CREDIT}, which needs no permission, plus a share of what the
 * peer's sum leaves; it doubles while its reader empties more than a window in two round trips, that is, while the
 * window and not the reader is what slows the sender (the rule of QUIC implementations). So the bytes a peer can make
 * us hold are at most `windowSum` plus the floor of each stream, and a stalled reader stops only its own sender.
 */
import { FLOOR_CREDIT, MIN_TUNE_RTT_MS, type SessionLimits } from "../constants.ts";

/** What all windows of one peer may still take. */
export class WindowPool {
  readonly limits: SessionLimits;
  #free: number;

  constructor(limits: SessionLimits) {
    this.limits = limits;
    this.#free = limits.windowSum;
  }

  get free(): number {
    return this.#free;
  }

  /** What a new stream gets above the floor: never more than a sixteenth of what is left, so there is always some. */
  first(): number {
    return this.take(Math.min(this.limits.initialWindow - FLOOR_CREDIT, Math.floor(this.#free / 16)));
  }

  take(bytes: number): number {
    const got = Math.max(0, Math.min(bytes, this.#free));
    this.#free -= got;
    return got;
  }

  give(bytes: number): void {
    this.#free += bytes;
  }
}

export class ReceiveWindow {
  readonly #pool: WindowPool;
  /** Above the floor, taken from the pool. */
  #extra = 0;
  /** Absolute offsets: what the sender may send, and what the reader took. */
  #limit = FLOOR_CREDIT;
  #consumed = 0;
  /** Where and when the current measurement began. */
  #markOffset = 0;
  #markAt = 0;

  constructor(pool: WindowPool) {
    this.#pool = pool;
  }

  /** Absolute offset up to which the peer may send. */
  get limit(): number {
    return this.#limit;
  }

  get size(): number {
    return FLOOR_CREDIT + this.#extra;
  }

  /** Takes the starting window; the new {@link limit} is for OPEN or OPEN_OK to tell. */
  start(now: number): number {
    this.#extra = this.#pool.first();
    this.#limit = this.#consumed + this.size;
    this.#markAt = now;
    this.#markOffset = this.#consumed;
    return this.#limit;
  }

  /** The reader took bytes. True when the peer is to be told by {@link grant}: a quarter of the window is free. */
  consume(bytes: number): boolean {
    this.#consumed += bytes;
    return this.#consumed + this.size - this.#limit >= this.size >>> 2;
  }

  /** Moves the limit on, and doubles the window if it is what holds the sender back. Returns the new limit. */
  grant(now: number, rttMs: number): number {
    const took = this.#consumed - this.#markOffset;
    const elapsed = now - this.#markAt;
    if (elapsed < (2 * Math.max(rttMs, MIN_TUNE_RTT_MS) * took) / this.size) {
      this.#extra += this.#pool.take(Math.min(this.size, this.#pool.limits.maxWindow - this.size));
    }
    this.#markOffset = this.#consumed;
    this.#markAt = now;
    this.#limit = this.#consumed + this.size;
    return this.#limit;
  }

  /** The stream is over: its share goes back. */
  release(): void {
    this.#pool.give(this.#extra);
    this.#extra = 0;
  }
}
