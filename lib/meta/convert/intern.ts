/**
 * One copy of each repeated string. Parsed JSON has a fresh string for every occurrence of a node, zone, namespace or
 * Service name; 50 000 endpoints on 200 nodes would hold 50 000 node names.
 */

/** Names kept at a time. A table that overflows starts anew: sharing is lost for a while, correctness never. */
const MAX_STRINGS = 1 << 16;

export class Interner {
  readonly #strings = new Map<string, string>();

  /** The first string seen that equals `text`. */
  share(text: string): string {
    const known = this.#strings.get(text);
    if (known !== undefined) return known;
    if (this.#strings.size >= MAX_STRINGS) this.#strings.clear();
    this.#strings.set(text, text);
    return text;
  }
}
