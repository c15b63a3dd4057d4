/**
 * A bounded table of answers as bytes, built like a processor's cache: the hash names a set of eight places. A hit
 * allocates nothing; storing costs the same however full the table is. Two questions with one hash replace each other;
 * the hash is seeded, so nobody can arrange that.
 */
import { HEADER_BYTES } from "../wire/constants.ts";
import type { Entry } from "./entry.ts";
import type { Query } from "../wire/query.ts";

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

/** Places that one question may have; when all are taken, one of them is given up. */
const WAYS = 8;
/** The table is at most half full: sets fill unevenly, and one that is full gives up what others would keep. */
const FULL = 0.5;
/** Places at the start; the table doubles as it fills. */
const FIRST_SLOTS = 256;

export class AnswerCache {
  readonly #limits: CacheLimits;
  readonly #maxSlots: number;
  /** Entries of one set stand side by side. A Map would do, were it not for the cost of deleting from it. */
  #slots: (Entry | undefined)[] = new Array(FIRST_SLOTS).fill(undefined);
  #count = 0;
  #bytes = 0;
  #evicted = 0;
  /** Where the search for something to give up goes on when bytes run out. */
  #hand = 0;

  constructor(limits: CacheLimits) {
    this.#limits = limits;
    let slots = FIRST_SLOTS;
    while (slots * FULL < limits.maxEntries) slots *= 2;
    this.#maxSlots = slots;
  }

  get stats(): CacheStats {
    return { entries: this.#count, bytes: this.#bytes, evicted: this.#evicted };
  }

  /** The entry for exactly this question, of any age. */
  get(query: Query): Entry | undefined {
    const { hash, variant, lower } = query;
    const first = this.#set(hash);
    for (let i = first; i < first + WAYS; i++) {
      const entry = this.#slots[i];
      if (entry === undefined || entry.hash !== hash || entry.variant !== variant) continue;
      if (entry.questionEnd !== query.questionEnd || !sameQuestion(entry, lower)) continue;
      entry.used = true;
      return entry;
    }
    return undefined;
  }

  /** As {@link get}, for a question kept as bytes (name in lower case, type, class). */
  peek(hash: number, variant: number, wire: Uint8Array): Entry | undefined {
    const first = this.#set(hash);
    for (let i = first; i < first + WAYS; i++) {
      const entry = this.#slots[i];
      if (entry === undefined || entry.hash !== hash || entry.variant !== variant) continue;
      if (entry.questionEnd === wire.length + HEADER_BYTES && sameQuestion(entry, wire)) return entry;
    }
    return undefined;
  }

  /** Keeps an entry under its hash, in the place of an older one for the same question. */
  set(entry: Entry): void {
    const size = sizeOf(entry);
    if (size > this.#limits.maxBytes) return;
    if (this.#count >= this.#slots.length * FULL && this.#slots.length < this.#maxSlots) this.#grow();
    const first = this.#set(entry.hash);
    let place = first;
    for (let i = first; i < first + WAYS; i++) {
      const old = this.#slots[i];
      if (old === undefined || old.hash === entry.hash) {
        place = i;
        break;
      }
      // Second chance within the set: what was used since the last time goes last.
      if (this.#slots[place]!.used && !old.used) place = i;
    }
    const old = this.#slots[place];
    if (old !== undefined) {
      this.#drop(place, old.hash !== entry.hash);
      // A new round of second chances, begun only when somebody had to go: what is used between two rounds stays.
      for (let i = first; i < first + WAYS; i++) if (this.#slots[i]) this.#slots[i]!.used = false;
    }
    this.#slots[place] = entry;
    this.#count++;
    this.#bytes += size;
    while (this.#bytes > this.#limits.maxBytes || this.#count > this.#limits.maxEntries) this.#giveUpOne(entry);
  }

  clear(): void {
    if (this.#count === 0) return;
    this.#slots = new Array(FIRST_SLOTS).fill(undefined);
    this.#count = 0;
    this.#bytes = 0;
  }

  /** Everything that is kept, in no order. */
  *entries(): Iterable<Entry> {
    for (const entry of this.#slots) if (entry) yield entry;
  }

  #set(hash: number): number {
    // The low bits of a multiplicative hash are its worst.
    return ((hash ^ (hash >>> 16)) & (this.#slots.length / WAYS - 1)) * WAYS;
  }

  #drop(at: number, counted: boolean): void {
    this.#bytes -= sizeOf(this.#slots[at]!);
    this.#slots[at] = undefined;
    this.#count--;
    if (counted) this.#evicted++;
  }

  /** Something that was not used since the hand last passed; `spare` is new and stays. */
  #giveUpOne(spare: Entry): void {
    for (;;) {
      this.#hand = (this.#hand + 1) % this.#slots.length;
      const entry = this.#slots[this.#hand];
      if (entry === undefined || entry === spare) continue;
      if (!entry.used) return this.#drop(this.#hand, true);
      entry.used = false;
    }
  }

  #grow(): void {
    const old = this.#slots;
    this.#slots = new Array(old.length * 2).fill(undefined);
    for (const entry of old) {
      if (entry === undefined) continue;
      // A set splits into two, so that there is always room.
      let at = this.#set(entry.hash);
      while (this.#slots[at] !== undefined) at++;
      this.#slots[at] = entry;
    }
  }
}

function sizeOf(entry: Entry): number {
  return entry.bytes.length + ENTRY_OVERHEAD;
}

/** Whether an entry's question, which follows its header, is these bytes; their lengths are known to be equal. */
function sameQuestion(entry: Entry, wire: Uint8Array): boolean {
  const { bytes, questionEnd } = entry;
  for (let i = HEADER_BYTES; i < questionEnd; i++) if (bytes[i] !== wire[i - HEADER_BYTES]) return false;
  return true;
}
