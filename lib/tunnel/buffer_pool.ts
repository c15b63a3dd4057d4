/**
 * Buffers of one size that are used again: the traffic path must not allocate. A pool keeps at most `keep` of them
 * free; what is given back beyond goes to the garbage collector, so a burst does not hold memory for ever.
 */
export class BufferPool {
  readonly size: number;
  readonly #keep: number;
  readonly #free: Uint8Array<ArrayBuffer>[] = [];
  #out = 0;

  constructor(size: number, keep: number) {
    this.size = size;
    this.#keep = keep;
  }

  /** Buffers taken and not given back: leak tests count them. */
  get taken(): number {
    return this.#out;
  }

  take(): Uint8Array<ArrayBuffer> {
    this.#out++;
    return this.#free.pop() ?? new Uint8Array(this.size);
  }

  /** The caller must not use `buffer` any more. */
  give(buffer: Uint8Array<ArrayBuffer>): void {
    this.#out--;
    if (this.#free.length < this.#keep) this.#free.push(buffer);
  }

  /** Lets the free ones go. */
  trim(): void {
    this.#free.length = 0;
  }
}
