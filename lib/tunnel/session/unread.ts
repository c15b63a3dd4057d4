/**
 * Bytes of one stream that arrived and were not read yet. Only slow readers have any: a reader that keeps up reads
 * out of the carrier's batch. Bytes are packed, so a thousand one-byte frames take a thousand bytes.
 */
import { BufferPool } from "../buffer_pool.ts";
import { copy } from "./send_log.ts";

/** For the little that a paused request leaves behind, and for the bulk of a slow download. Shared by all sessions. */
export const smallChunks: BufferPool = new BufferPool(2 * 1024, 256);
export const largeChunks: BufferPool = new BufferPool(16 * 1024, 256);

export class Unread {
  readonly #chunks: Uint8Array<ArrayBuffer>[] = [];
  /** Read position in the first chunk, write position in the last. */
  #start = 0;
  #end = 0;
  #length = 0;

  get length(): number {
    return this.#length;
  }

  /** Appends bytes `[offset, offset + length)` of `from`. */
  push(from: Uint8Array, offset: number, length: number): void {
    this.#length += length;
    while (length > 0) {
      let last = this.#chunks.at(-1);
      if (last === undefined || this.#end === last.length) {
        last = (this.#length <= smallChunks.size ? smallChunks : largeChunks).take();
        this.#chunks.push(last);
        this.#end = 0;
      }
      const n = Math.min(length, last.length - this.#end);
      copy(last, this.#end, from, offset, n);
      this.#end += n;
      offset += n;
      length -= n;
    }
  }

  /** Moves bytes into `into` from `at` on; returns how many. */
  read(into: Uint8Array, at: number): number {
    let done = 0;
    while (this.#length > 0 && at + done < into.length) {
      const first = this.#chunks[0]!;
      const filled = this.#chunks.length === 1 ? this.#end : first.length;
      const n = Math.min(into.length - at - done, filled - this.#start);
      copy(into, at + done, first, this.#start, n);
      done += n;
      this.#start += n;
      this.#length -= n;
      if (this.#start === filled && (this.#length === 0 || this.#chunks.length > 1)) this.#drop();
    }
    return done;
  }

  clear(): void {
    this.#length = 0;
    while (this.#chunks.length > 0) this.#drop();
  }

  #drop(): void {
    const chunk = this.#chunks.shift()!;
    (chunk.length === smallChunks.size ? smallChunks : largeChunks).give(chunk);
    this.#start = 0;
  }
}
