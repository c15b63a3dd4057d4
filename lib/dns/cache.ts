/**
 * A bounded table of answers as bytes. A hit allocates nothing: the question's hash finds the entry, its bytes are
 * compared. Two questions with one hash replace each other; the hash is seeded, so nobody can arrange that.
 */
import { HEADER_BYTES } from "./constants.ts";
import type { Entry } from "./entry.ts";
import type { Query } from "./query.ts";

export interface CacheLimits {
  readonly maxEntries: number;
  /** Sum over entries of their bytes and {@link ENTRY_OVERHEAD}. */
  readonly maxBytes: number;
}

/** Roughly what an entry costs beside its bytes: the object, two typed arrays, the slot. */
export const ENTRY_OVERHEAD = 320;

export interface CacheStats {
  readonly entries: number;
  readonly bytes: number;
  readonly evicted: number;
}

export class AnswerCache {
  readonly #entries = new Map<number, Entry>();
  readonly #limits: CacheLimits;
  #bytes = 0;
  #evicted = 0;

  constructor(limits: CacheLimits) {
    this.#limits = limits;
  }

  get stats(): CacheStats {
    return { entries: this.#entries.size, bytes: this.#bytes, evicted: this.#evicted };
  }

  /** The entry for exactly this question, of any age. */
  get(query: Query): Entry | undefined {
    const entry = this.#entries.get(query.hash);
    if (entry === undefined || entry.variant !== query.variant || !sameQuestion(entry, query)) return undefined;
    entry.used = true;
    return entry;
  }

  /** As {@link get}, for a question kept as bytes (name in lower case, type, class). */
  peek(hash: number, variant: number, wire: Uint8Array): Entry | undefined {
    const entry = this.#entries.get(hash);
    if (entry === undefined || entry.variant !== variant || entry.questionEnd !== wire.length + HEADER_BYTES) {
      return undefined;
    }
    for (let i = 0; i < wire.length; i++) if (entry.bytes[HEADER_BYTES + i] !== wire[i]) return undefined;
    return entry;
  }

  set(hash: number, entry: Entry): void {
    const size = sizeOf(entry);
    if (size > this.#limits.maxBytes) return;
    this.#remove(hash);
    this.#entries.set(hash, entry);
    this.#bytes += size;
    while (this.#bytes > this.#limits.maxBytes || this.#entries.size > this.#limits.maxEntries) this.#evictOne();
  }

  clear(): void {
    this.#entries.clear();
    this.#bytes = 0;
  }

  /** Hash and entry of everything, oldest first. */
  entries(): Iterable<readonly [number, Entry]> {
    return this.#entries.entries();
  }

  /** Second chance: whoever was used since the hand last passed goes to the back once. */
  #evictOne(): void {
    for (const [hash, entry] of this.#entries) {
      if (entry.used && this.#entries.size > 1) {
        entry.used = false;
        this.#entries.delete(hash);
        this.#entries.set(hash, entry);
        continue;
      }
      this.#remove(hash);
      this.#evicted++;
      return;
    }
  }

  #remove(hash: number): void {
    const old = this.#entries.get(hash);
    if (old === undefined) return;
    this.#entries.delete(hash);
    this.#bytes -= sizeOf(old);
  }
}

function sizeOf(entry: Entry): number {
  return entry.bytes.length + ENTRY_OVERHEAD;
}

function sameQuestion(entry: Entry, query: Query): boolean {
  const size = query.questionEnd - HEADER_BYTES;
  if (entry.questionEnd !== query.questionEnd) return false;
  const bytes = entry.bytes;
  const lower = query.lower;
  for (let i = 0; i < size; i++) if (bytes[HEADER_BYTES + i] !== lower[i]) return false;
  return true;
}
