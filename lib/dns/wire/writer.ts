/**
 * Writes DNS messages with name compression (RFC 1035 §4.1.4). One writer is reused for every message: its buffer is
 * large enough for any, and what it returns is valid until the next `begin`.
 */
import { ipBytes } from "../../addr.ts";
import { CLASS_IN, HEADER_BYTES, MAX_TCP_BYTES, TYPE } from "./constants.ts";
import type { Labels } from "./labels.ts";
import type { RData, ResourceRecord } from "./records.ts";

export type Section = "answer" | "authority" | "additional";

/** Offset of each section's count in the header. */
const COUNT_AT: Record<Section, number> = { answer: 6, authority: 8, additional: 10 };
/**
 * Labels remembered as targets of pointers. The first ones are the question's, which is where nearly all pointers lead;
 * searching many more would make long answers quadratic.
 */
const MAX_KNOWN = 48;
const DOT = 0x2e;
const ZERO = 0x30;
/** Pointers have 14 bits. */
const MAX_POINTER = 0x3fff;
/** Types whose names other software is known to expand when compressed: those of RFC 1035 only (RFC 3597 §4). */
const COMPRESSED_TARGET = new Set<number>([TYPE.CNAME, TYPE.NS, TYPE.PTR]);

export class MessageWriter {
  readonly bytes = new Uint8Array(MAX_TCP_BYTES);
  #length = 0;
  #question: Labels = [];
  /** Where labels of names already stand; each begins a name that later ones may point to. */
  readonly #known = new Uint16Array(MAX_KNOWN);
  #knownCount = 0;

  get length(): number {
    return this.#length;
  }

  /** Starts a message with one question; the id is left 0 for whoever sends it. */
  begin(flags: number, question: Labels, type: number): void {
    this.#knownCount = 0;
    this.#question = question;
    this.bytes.fill(0, 0, HEADER_BYTES);
    this.#put16(2, flags);
    this.#put16(4, 1);
    this.#length = HEADER_BYTES;
    this.#name(question, true);
    this.#u16(type);
    this.#u16(CLASS_IN);
  }

  setFlags(flags: number): void {
    this.#put16(2, flags);
  }

  /** Appends a record and counts it; false, and nothing written, when the message would grow beyond `limit`. */
  record(section: Section, record: ResourceRecord, limit = MAX_TCP_BYTES): boolean {
    const start = this.#length;
    if (start + roomFor(record) > this.bytes.length) return false;
    this.#name(record.name, true);
    this.#u16(record.type);
    this.#u16(CLASS_IN);
    this.#u16(record.ttl >>> 16);
    this.#u16(record.ttl & 0xffff);
    const lengthAt = this.#length;
    this.#length += 2;
    this.#data(record.type, record.data);
    this.#put16(lengthAt, this.#length - lengthAt - 2);
    if (this.#length > limit) {
      this.#length = start;
      while (this.#knownCount > 0 && this.#known[this.#knownCount - 1]! >= start) this.#knownCount--;
      return false;
    }
    const at = COUNT_AT[section];
    this.#put16(at, ((this.bytes[at]! << 8) | this.bytes[at + 1]!) + 1);
    return true;
  }

  /** A copy of the message, its own size. */
  copy(): Uint8Array {
    return this.bytes.slice(0, this.#length);
  }

  #data(type: number, data: RData): void {
    switch (data.kind) {
      case "address":
        return this.#address(data.ip);
      case "name":
        return this.#name(data.target, COMPRESSED_TARGET.has(type));
      case "srv":
        this.#u16(data.priority);
        this.#u16(data.weight);
        this.#u16(data.port);
        // RFC 2782 forbids compression of the target.
        return this.#name(data.target, false);
      case "text":
        for (const text of data.strings) {
          this.bytes[this.#length++] = text.length;
          for (let i = 0; i < text.length; i++) this.bytes[this.#length++] = text.charCodeAt(i);
        }
        return;
      case "soa":
        this.#name(data.mname, true);
        this.#name(data.rname, true);
        for (const n of [data.serial, data.refresh, data.retry, data.expire, data.minimum]) {
          this.#u16(n >>> 16);
          this.#u16(n & 0xffff);
        }
        return;
      case "raw":
        this.bytes.set(data.bytes, this.#length);
        this.#length += data.bytes.length;
        return;
    }
  }

  #address(ip: string): void {
    if (ip.includes(":")) {
      this.bytes.set(ipBytes(ip), this.#length);
      this.#length += 16;
      return;
    }
    // Canonical dotted decimal, read in one pass: this runs for every address of every answer.
    let part = 0;
    for (let i = 0; i < ip.length; i++) {
      const c = ip.charCodeAt(i);
      if (c === DOT) {
        this.bytes[this.#length++] = part;
        part = 0;
      } else part = part * 10 + c - ZERO;
    }
    this.bytes[this.#length++] = part;
  }

  /** Names are compared with their letter case, so that case survives compression. */
  #name(labels: Labels, compress: boolean): void {
    if (compress && labels === this.#question && this.#length > HEADER_BYTES) return this.#u16(0xc000 | HEADER_BYTES);
    // Labels of the name itself do not count: what follows them is not written yet.
    const known = this.#knownCount;
    for (let i = 0; i < labels.length; i++) {
      const at = compress ? this.#find(labels, i, known) : 0;
      if (at > 0) return this.#u16(0xc000 | at);
      if (this.#knownCount < MAX_KNOWN && this.#length <= MAX_POINTER) this.#known[this.#knownCount++] = this.#length;
      const label = labels[i]!;
      this.bytes[this.#length++] = label.length;
      for (let j = 0; j < label.length; j++) this.bytes[this.#length++] = label.charCodeAt(j);
    }
    this.bytes[this.#length++] = 0;
  }

  /** Where the name `labels[from…]` already stands; 0 = nowhere. */
  #find(labels: Labels, from: number, known: number): number {
    for (let k = 0; k < known; k++) {
      if (this.#standsAt(this.#known[k]!, labels, from)) return this.#known[k]!;
    }
    return 0;
  }

  #standsAt(start: number, labels: Labels, from: number): boolean {
    const bytes = this.bytes;
    let at = start;
    for (let i = from; i < labels.length; i++) {
      while (bytes[at]! >= 0xc0) at = ((bytes[at]! & 0x3f) << 8) | bytes[at + 1]!;
      const label = labels[i]!;
      if (bytes[at] !== label.length) return false;
      for (let j = 0; j < label.length; j++) if (bytes[at + 1 + j] !== label.charCodeAt(j)) return false;
      at += label.length + 1;
    }
    while (bytes[at]! >= 0xc0) at = ((bytes[at]! & 0x3f) << 8) | bytes[at + 1]!;
    return bytes[at] === 0;
  }

  #u16(n: number): void {
    this.bytes[this.#length++] = n >>> 8;
    this.bytes[this.#length++] = n;
  }

  #put16(at: number, n: number): void {
    this.bytes[at] = n >>> 8;
    this.bytes[at + 1] = n;
  }
}

/** No less than the record can take: names at most 255 bytes each, fixed fields 10. */
function roomFor(record: ResourceRecord): number {
  const data = record.data;
  switch (data.kind) {
    case "address":
      return 255 + 10 + 16;
    case "name":
      return 255 + 10 + 255;
    case "srv":
      return 255 + 10 + 6 + 255;
    case "text":
      return 255 + 10 + data.strings.reduce((sum, s) => sum + s.length + 1, 0);
    case "soa":
      return 255 + 10 + 255 + 255 + 20;
    case "raw":
      return 255 + 10 + data.bytes.length;
  }
}
