/**
 * The bytes of a Kubernetes list answer → one piece per item, as they arrive. A list of 5 000 Services is some 15 MB of
 * JSON: parsed at once it would hold the loop for a tenth of a second and need three times its size; item by item it
 * needs one item at a time. A small state machine over bytes; it checks only what it needs to find the pieces, the
 * JSON parser checks the rest.
 */

/** Largest single item; a larger one is left out and reported. */
export const MAX_ITEM = 8 * 1024 * 1024;
/** Everything outside the items: kind, apiVersion, metadata. */
const MAX_ENVELOPE = 256 * 1024;

export interface ListPieces {
  /** One item's JSON. The bytes are valid during the call only. */
  item(bytes: Uint8Array): void;
  /** An item larger than {@link MAX_ITEM} was left out. */
  oversized(): void;
}

const QUOTE = 0x22;
const OPEN_LIST = 0x5b;
const BACKSLASH = 0x5c;
const CLOSE_LIST = 0x5d;
const OPEN_OBJECT = 0x7b;
const CLOSE_OBJECT = 0x7d;

/** The end of the envelope so far, when what follows is the list of items. */
const ITEMS_KEY = /"items"\s*:\s*$/;

export class ListSplitter {
  readonly #pieces: ListPieces;
  readonly #maxItem: number;
  /** Nesting of the envelope; items are at depth 1. */
  #depth = 0;
  /** Nesting within the current item; 0 = between items. Meaningful while {@link #inItems}. */
  #itemDepth = 0;
  #inItems = false;
  #inString = false;
  #escaped = false;
  #envelope = "";
  #item: Uint8Array[] = [];
  #itemLength = 0;
  #tooLarge = false;
  #broken = false;

  constructor(pieces: ListPieces, maxItem = MAX_ITEM) {
    this.#pieces = pieces;
    this.#maxItem = maxItem;
  }

  push(chunk: Uint8Array): void {
    let at = 0;
    while (at < chunk.length && !this.#broken) {
      at = this.#inItems ? this.#items(chunk, at) : this.#outside(chunk, at);
    }
  }

  /** The envelope (items left out) once the answer is complete; undefined when it was cut short or is no list. */
  finish(): Readonly<Record<string, unknown>> | undefined {
    if (this.#broken || this.#inItems || this.#depth !== 0 || this.#envelope === "") return undefined;
    try {
      const value: unknown = JSON.parse(this.#envelope);
      return typeof value === "object" && value !== null && !Array.isArray(value)
        ? value as Record<string, unknown>
        : undefined;
    } catch {
      return undefined;
    }
  }

  /** Reads envelope bytes from `at`; returns where it stopped: the end of the chunk or the first byte of the items. */
  #outside(chunk: Uint8Array, at: number): number {
    const from = at;
    for (; at < chunk.length; at++) {
      const byte = chunk[at]!;
      if (this.#inString) {
        this.#stringByte(byte);
      } else if (byte === QUOTE) {
        this.#inString = true;
      } else if (byte === OPEN_OBJECT || byte === OPEN_LIST) {
        this.#depth++;
        if (byte === OPEN_LIST && this.#depth === 2 && this.#atItems(chunk.subarray(from, at))) {
          this.#inItems = true;
          at++;
          break;
        }
      } else if (byte === CLOSE_OBJECT || byte === CLOSE_LIST) {
        this.#depth--;
      }
    }
    // Latin-1 keeps one character per byte; the few names that matter are ASCII and JSON's structure is too.
    this.#envelope += LATIN1.decode(chunk.subarray(from, at));
    if (this.#envelope.length > MAX_ENVELOPE || this.#depth < 0) this.#broken = true;
    return at;
  }

  #atItems(before: Uint8Array): boolean {
    const tail = LATIN1.decode(before.subarray(-32));
    return ITEMS_KEY.test(tail.length < 32 ? this.#envelope.slice(-32) + tail : tail);
  }

  /** Reads bytes of the items from `at`; returns where it stopped: the end of the chunk or past the list's end. */
  #items(chunk: Uint8Array, at: number): number {
    let from = at;
    for (; at < chunk.length; at++) {
      const byte = chunk[at]!;
      if (this.#inString) {
        this.#stringByte(byte);
      } else if (byte === QUOTE) {
        this.#inString = true;
      } else if (byte === OPEN_OBJECT || byte === OPEN_LIST) {
        if (this.#itemDepth++ === 0) from = at;
      } else if (byte === CLOSE_OBJECT || byte === CLOSE_LIST) {
        if (this.#itemDepth === 0) {
          // The end of the list itself: the envelope goes on.
          this.#inItems = false;
          return at;
        }
        if (--this.#itemDepth === 0) {
          this.#emit(chunk.subarray(from, at + 1));
          from = at + 1;
        }
      }
    }
    if (this.#itemDepth > 0) this.#keep(chunk.subarray(from, at));
    return at;
  }

  #stringByte(byte: number): void {
    if (this.#escaped) this.#escaped = false;
    else if (byte === BACKSLASH) this.#escaped = true;
    else if (byte === QUOTE) this.#inString = false;
  }

  #keep(part: Uint8Array): void {
    this.#itemLength += part.length;
    if (this.#itemLength > this.#maxItem) {
      this.#tooLarge = true;
      this.#item = [];
    }
    if (!this.#tooLarge) this.#item.push(part.slice());
  }

  #emit(last: Uint8Array): void {
    const tooLarge = this.#tooLarge || this.#itemLength + last.length > this.#maxItem;
    const parts = this.#item;
    const length = this.#itemLength + last.length;
    this.#item = [];
    this.#itemLength = 0;
    this.#tooLarge = false;
    if (tooLarge) return this.#pieces.oversized();
    if (parts.length === 0) return this.#pieces.item(last);
    const whole = new Uint8Array(length);
    let at = 0;
    for (const part of [...parts, last]) {
      whole.set(part, at);
      at += part.length;
    }
    this.#pieces.item(whole);
  }
}

const LATIN1 = new TextDecoder("latin1");
