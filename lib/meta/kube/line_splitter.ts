/** Bytes of a watch → lines, without copying more than once and never holding more than one bounded line. */

/** Longest line taken: etcd holds at most 1.5 MB per object, JSON and managed fields may triple that. */
export const MAX_LINE = 8 * 1024 * 1024;

export class LineSplitter {
  readonly #max: number;
  #parts: Uint8Array[] = [];
  #length = 0;
  #skipping = false;

  constructor(max = MAX_LINE) {
    this.#max = max;
  }

  /**
   * Takes a chunk and calls `line` for each complete line (without its newline; empty ones left out), or `oversized`
   * once for a line that is too long, whose bytes are dropped up to its end. Lines are valid during the call only.
   */
  push(chunk: Uint8Array, line: (bytes: Uint8Array) => void, oversized: () => void): void {
    let from = 0;
    for (;;) {
      const end = chunk.indexOf(10, from);
      const part = chunk.subarray(from, end < 0 ? chunk.length : end);
      if (!this.#skipping && this.#length + part.length > this.#max) {
        this.#drop();
        this.#skipping = true;
        oversized();
      }
      if (end < 0) {
        if (!this.#skipping && part.length > 0) {
          // The chunk belongs to whoever read it; the rest of a line outlives it.
          this.#parts.push(part.slice());
          this.#length += part.length;
        }
        return;
      }
      if (!this.#skipping) this.#emit(part, line);
      this.#skipping = false;
      from = end + 1;
    }
  }

  /** Bytes of a line that has not ended: not zero at the end of a stream means it was cut. */
  get pending(): number {
    return this.#length;
  }

  #emit(last: Uint8Array, line: (bytes: Uint8Array) => void): void {
    if (this.#parts.length === 0) {
      if (last.length > 0) line(last);
      return;
    }
    const whole = new Uint8Array(this.#length + last.length);
    let at = 0;
    for (const part of [...this.#parts, last]) {
      whole.set(part, at);
      at += part.length;
    }
    this.#drop();
    line(whole);
  }

  #drop(): void {
    this.#parts = [];
    this.#length = 0;
  }
}
