/**
 * The arithmetic of a link with delay, jitter and loss, and the memory of the packets on their way. Pure: time comes
 * in as a number, randomness from a seed, packets stay where the caller put them.
 */

/** How a link treats each packet. One direction; the round trip takes twice the delay. */
export interface LinkShape {
  readonly delayMs: number;
  /** Upper bound of an extra delay, uniform in [0, jitterMs). Packets never overtake each other. */
  readonly jitterMs: number;
  /** Probability of losing a packet, 0 to 1. */
  readonly loss: number;
}

/** Decides when, and whether, each packet arrives. */
export class DelayLine {
  #shape: LinkShape;
  #random: number;
  #lastDue = 0;

  constructor(shape: LinkShape, seed: number) {
    this.#shape = shape;
    this.#random = seed >>> 0;
  }

  get shape(): LinkShape {
    return this.#shape;
  }

  set shape(shape: LinkShape) {
    this.#shape = shape;
  }

  /** When the packet that entered at `now` leaves, or -1 when it is lost. */
  admit(now: number): number {
    const { delayMs, jitterMs, loss } = this.#shape;
    if (loss > 0 && this.#next() < loss) return -1;
    const due = now + delayMs + (jitterMs > 0 ? this.#next() * jitterMs : 0);
    // A queue, not a bag: a later packet waits for an earlier one, as on a real link.
    this.#lastDue = Math.max(due, this.#lastDue);
    return this.#lastDue;
  }

  /** mulberry32: 32 bits of state, uniform enough for loss, the same sequence on each machine. */
  #next(): number {
    this.#random = (this.#random + 0x6d2b79f5) | 0;
    let t = Math.imul(this.#random ^ (this.#random >>> 15), 1 | this.#random);
    t = (t + Math.imul(t ^ (t >>> 7), 61 | t)) ^ t;
    return ((t ^ (t >>> 14)) >>> 0) / 4_294_967_296;
  }
}

/**
 * Queue of packets in one block of memory: a packet is read straight to its place and written from there. Packets
 * leave in the order they came; one that does not fit before the end of the block starts again at its beginning.
 */
export class PacketRing {
  readonly #capacity: number;
  readonly #due: Float64Array;
  readonly #offset: Uint32Array;
  readonly #length: Uint32Array;
  #head = 0;
  #count = 0;
  #write = 0;

  /** `capacity` bytes of packets, at most `packets` of them. */
  constructor(capacity: number, packets: number) {
    this.#capacity = capacity;
    this.#due = new Float64Array(packets);
    this.#offset = new Uint32Array(packets);
    this.#length = new Uint32Array(packets);
  }

  get count(): number {
    return this.#count;
  }

  /** Offset where `length` bytes in a row are free, or -1 when the ring is full. */
  reserve(length: number): number {
    if (this.#count === this.#due.length) return -1;
    if (this.#count === 0) return length <= this.#capacity ? 0 : -1;
    const oldest = this.#offset[this.#head]!;
    if (this.#write > oldest) {
      if (this.#capacity - this.#write >= length) return this.#write;
      return oldest >= length ? 0 : -1;
    }
    return oldest - this.#write >= length ? this.#write : -1;
  }

  /** Keeps `length` bytes at `offset`, as {@link reserve} gave it, until `due`. */
  push(offset: number, length: number, due: number): void {
    const slot = (this.#head + this.#count) % this.#due.length;
    this.#due[slot] = due;
    this.#offset[slot] = offset;
    this.#length[slot] = length;
    this.#count++;
    this.#write = offset + length;
  }

  /** When the oldest packet is due; Infinity when there is none. */
  get due(): number {
    return this.#count === 0 ? Infinity : this.#due[this.#head]!;
  }

  /** Place of the oldest packet. */
  get offset(): number {
    return this.#offset[this.#head]!;
  }

  get length(): number {
    return this.#length[this.#head]!;
  }

  pop(): void {
    this.#head = (this.#head + 1) % this.#due.length;
    this.#count--;
  }
}
