/** Reading the positional JSON values of the wire and the disk, with bounds on everything. */
import type { Interner } from "../convert/intern.ts";

export type Json = string | number | boolean | null | readonly Json[] | { readonly [key: string]: Json };

/** A value that is not what its place asks for. Caught where an object is decoded; never leaves this folder. */
export class BadValue extends Error {}

/** One positional value. An absent position reads as 0, which is how writers leave out what is not there. */
export class WireReader {
  readonly #value: unknown;
  readonly #strings: Interner;
  readonly #path: string;

  constructor(value: unknown, strings: Interner, path = "") {
    this.#value = value;
    this.#strings = strings;
    this.#path = path;
  }

  fail(why: string, at?: number): never {
    throw new BadValue(`${this.#path}${at === undefined ? "" : `[${at}]`} ${why}`.trim());
  }

  /** The value at a position if there is one. */
  optional<T>(at: number, read: (at: number) => T): T | undefined {
    const value = this.#at(at);
    return value === 0 || value === undefined ? undefined : read(at);
  }

  text(at: number, max: number): string {
    const value = this.#at(at);
    if (typeof value !== "string") return this.fail("must be text", at);
    return value.length <= max ? value : this.fail(`is longer than ${max}`, at);
  }

  /** Text of which one copy is kept. */
  shared(at: number, max: number): string {
    return this.#strings.share(this.text(at, max));
  }

  /** A name that satisfies a predicate; one copy is kept. */
  name(at: number, valid: (text: string) => boolean): string {
    const text = this.text(at, 253);
    return valid(text) ? this.#strings.share(text) : this.fail("is not a valid name", at);
  }

  int(at: number, min: number, max: number): number {
    const value = this.#at(at) ?? 0;
    if (typeof value === "number" && Number.isInteger(value) && value >= min && value <= max) return value;
    return this.fail(`must be a whole number from ${min} to ${max}`, at);
  }

  list<T>(at: number, max: number, read: (item: WireReader) => T): T[] {
    const value = this.#at(at);
    if (!Array.isArray(value)) return this.fail("must be a list", at);
    if (value.length > max) this.fail(`holds more than ${max}`, at);
    return value.map((item, i) => read(new WireReader(item, this.#strings, `${this.#path}[${at}][${i}]`)));
  }

  record(at: number): Record<string, unknown> {
    const value = this.#at(at);
    if (typeof value !== "object" || value === null || Array.isArray(value)) return this.fail("must be an object", at);
    return value as Record<string, unknown>;
  }

  labels(at: number, maxKeys: number, maxText: number): Readonly<Record<string, string>> {
    const present = this.optional(at, () => this.record(at));
    if (!present) return NO_LABELS;
    const pairs = Object.entries(present);
    if (pairs.length === 0) return NO_LABELS;
    if (pairs.length > maxKeys) this.fail(`holds more than ${maxKeys} keys`, at);
    for (const [key, value] of pairs) {
      if (typeof value !== "string" || value.length > maxText || key.length > maxText) this.fail("must be text", at);
    }
    return Object.fromEntries(pairs as [string, string][]);
  }

  /** The value itself as text, for lists of texts. */
  wholeText(max: number): string {
    if (typeof this.#value !== "string" || this.#value.length > max) return this.fail("must be text");
    return this.#value;
  }

  #at(at: number): unknown {
    if (!Array.isArray(this.#value)) return this.fail("must be a list");
    return this.#value[at];
  }
}

const NO_LABELS: Readonly<Record<string, string>> = Object.freeze({});
