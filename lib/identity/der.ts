/**
 * Reads DER strictly: one encoding per value, nothing left over (X.690 §10, §11). Strictness is a security property
 * here, see certificate.ts: a lenient reader would accept bytes that the TLS library could not read, and the TLS
 * library skips the proof of possession for certificates it cannot read.
 */

/** Bytes that are not strict DER, or not what the profile allows. Callers turn it into a reason with context. */
export class DerError extends Error {
  override readonly name = "DerError";
}

export const TAG = {
  BOOLEAN: 0x01,
  INTEGER: 0x02,
  BIT_STRING: 0x03,
  OCTET_STRING: 0x04,
  OID: 0x06,
  UTF8_STRING: 0x0c,
  PRINTABLE_STRING: 0x13,
  IA5_STRING: 0x16,
  UTC_TIME: 0x17,
  GENERALIZED_TIME: 0x18,
  SEQUENCE: 0x30,
  SET: 0x31,
} as const;

/** One element: its tag, the whole of it, and its content. The arrays are views of the bytes read. */
export interface DerElement {
  readonly tag: number;
  readonly raw: Uint8Array;
  readonly content: Uint8Array;
}

/** Walks the elements of one constructed value. */
export class DerReader {
  readonly #bytes: Uint8Array;
  #at = 0;

  constructor(bytes: Uint8Array) {
    this.#bytes = bytes;
  }

  get done(): boolean {
    return this.#at === this.#bytes.length;
  }

  /** The next element's tag without consuming it; undefined at the end. */
  peek(): number | undefined {
    return this.#bytes[this.#at];
  }

  /** The next element, of this tag when one is given. Throws {@link DerError}. */
  next(tag?: number): DerElement {
    const start = this.#at;
    const found = this.#byte();
    if (tag !== undefined && found !== tag) throw new DerError(`tag ${hex(tag)} expected, ${hex(found)} found`);
    if ((found & 0x1f) === 0x1f) throw new DerError("tag number beyond 30");
    const length = this.#length();
    const from = this.#at;
    if (from + length > this.#bytes.length) throw new DerError("element is longer than what holds it");
    this.#at = from + length;
    return {
      tag: found,
      raw: this.#bytes.subarray(start, this.#at),
      content: this.#bytes.subarray(from, this.#at),
    };
  }

  /** The next element when it has this tag, else undefined. */
  optional(tag: number): DerElement | undefined {
    return this.peek() === tag ? this.next(tag) : undefined;
  }

  /** Throws {@link DerError} unless everything was read. */
  end(): void {
    if (!this.done) throw new DerError(`${this.#bytes.length - this.#at} bytes left over`);
  }

  #byte(): number {
    const b = this.#bytes[this.#at];
    if (b === undefined) throw new DerError("element is cut short");
    this.#at++;
    return b;
  }

  #length(): number {
    const first = this.#byte();
    if (first < 0x80) return first;
    const count = first & 0x7f;
    // 0x80 is BER's indefinite form; three bytes (16 MiB) are far above every cap of ours.
    if (count === 0 || count > 3) throw new DerError(`length form ${hex(first)}`);
    let n = 0;
    for (let i = 0; i < count; i++) n = n * 256 + this.#byte();
    if (n < 0x80 || n < 2 ** (8 * (count - 1))) throw new DerError("length is not in its shortest form");
    return n;
  }
}

/** Reads exactly one element that fills the bytes. */
export function derOnly(bytes: Uint8Array, tag: number): DerElement {
  const reader = new DerReader(bytes);
  const element = reader.next(tag);
  reader.end();
  return element;
}

/** Content of a non-negative INTEGER without its sign byte. Throws {@link DerError} unless it is in shortest form. */
export function derUnsigned(content: Uint8Array): Uint8Array {
  const [first, second] = content;
  if (first === undefined) throw new DerError("empty INTEGER");
  if (first & 0x80) throw new DerError("negative INTEGER");
  if (first !== 0 || content.length === 1) return content;
  if (!(second! & 0x80)) throw new DerError("INTEGER is not in its shortest form");
  return content.subarray(1);
}

/** A BOOLEAN's value; DER allows 0x00 and 0xff only. */
export function derBoolean(content: Uint8Array): boolean {
  if (content.length !== 1 || (content[0] !== 0 && content[0] !== 0xff)) throw new DerError("BOOLEAN is not DER");
  return content[0] === 0xff;
}

/** Dotted text of an OBJECT IDENTIFIER. */
export function derOid(content: Uint8Array): string {
  if (content.length === 0 || content.length > 32) throw new DerError("OID length");
  const parts: number[] = [];
  let value = 0;
  let start = true;
  for (const b of content) {
    if (start && b === 0x80) throw new DerError("OID is not in its shortest form");
    value = value * 128 + (b & 0x7f);
    if (value > Number.MAX_SAFE_INTEGER / 128) throw new DerError("OID arc is too large");
    start = !(b & 0x80);
    if (!start) continue;
    if (parts.length === 0) {
      const top = Math.min(2, Math.floor(value / 40));
      parts.push(top, value - 40 * top);
    } else parts.push(value);
    value = 0;
  }
  if (!start) throw new DerError("OID is cut short");
  return parts.join(".");
}

/** Milliseconds of a UTCTime or GeneralizedTime in the one form RFC 5280 §4.1.2.5 allows (seconds, `Z`). */
export function derTime(element: DerElement): number {
  const text = derAscii(element.content);
  let digits: string;
  if (element.tag === TAG.UTC_TIME && /^\d{12}Z$/.test(text)) {
    digits = (Number(text.slice(0, 2)) >= 50 ? "19" : "20") + text;
  } else if (element.tag === TAG.GENERALIZED_TIME && /^\d{14}Z$/.test(text)) {
    digits = text;
  } else throw new DerError(`time ${JSON.stringify(text.slice(0, 20))}`);
  const p = (from: number, to: number) => Number(digits.slice(from, to));
  const ms = Date.UTC(p(0, 4), p(4, 6) - 1, p(6, 8), p(8, 10), p(10, 12), p(12, 14));
  // Date.UTC lets 31 February roll over; the text written back must be the text read.
  const back = new Date(ms).toISOString().replace(/[-:T]|\.\d+/g, "");
  if (back !== digits) throw new DerError(`time ${digits}`);
  return ms;
}

/** Printable ASCII as text. */
export function derAscii(content: Uint8Array): string {
  let text = "";
  for (const b of content) {
    if (b < 0x20 || b > 0x7e) throw new DerError("text is not printable ASCII");
    text += String.fromCharCode(b);
  }
  return text;
}

function hex(n: number): string {
  return "0x" + n.toString(16).padStart(2, "0");
}
