/**
 * Reads queries from bytes without building anything: one {@link Query} object is reused for every datagram. It also
 * lower-cases and hashes the question on the way, which is all that a cache hit needs.
 */
import { CLASS_IN, FLAG, HEADER_BYTES, MAX_LABEL_BYTES, MAX_NAME_BYTES, MIN_UDP_BYTES, TYPE } from "./constants.ts";
import type { Labels } from "./labels.ts";

/** What a packet is: `query` may be answered; `drop` gets nothing, so that two servers can never talk in circles. */
export type Verdict = "query" | "formerr" | "notimp" | "badvers" | "drop";

/** Questions beyond name, type and class have fixed size. */
const QUESTION_TAIL = 4;
/** Fixed part of a record after its owner name. */
const RECORD_FIXED = 10;
/** DO bit of the OPT record's TTL field (RFC 3225). */
const EDNS_DO = 0x8000;
/** Differs with every start, so that nobody outside can choose names that collide. */
const HASH_SEED = crypto.getRandomValues(new Int32Array(1))[0]!;
/** FNV-1a's. */
const FNV_PRIME = 0x01000193;

/** One parsed query. Fields are valid until the next {@link Query.parse}. */
export class Query {
  id = 0;
  /** The flags word as it came. */
  flags = 0;
  type = 0;
  qclass = 0;
  /** End of the question section; 12 when there is none to echo. */
  questionEnd = HEADER_BYTES;
  /** The name in lower case followed by type and class: `[0, questionEnd - 12)`; what caches compare. */
  readonly lower: Uint8Array = new Uint8Array(MAX_NAME_BYTES + QUESTION_TAIL);
  /** Hash of {@link lower} and of {@link variant}. */
  hash = 0;
  /** Whether the name has upper-case letters: only then do question bytes need patching. */
  hasUpper = false;
  labelCount = 0;
  /** Whether the client sent an OPT record. */
  edns = false;
  /** What the client can take over UDP: 512 without EDNS (RFC 6891 §6.2.3). */
  udpSize = MIN_UDP_BYTES;
  dnssecOk = false;
  /** DO and CD as bits 0 and 1: answers differ by them. */
  variant = 0;

  /** Reads `bytes[0, length)`. */
  parse(bytes: Uint8Array, length: number): Verdict {
    this.questionEnd = HEADER_BYTES;
    this.edns = false;
    this.dnssecOk = false;
    this.udpSize = MIN_UDP_BYTES;
    if (length < HEADER_BYTES) return "drop";
    this.id = (bytes[0]! << 8) | bytes[1]!;
    this.flags = (bytes[2]! << 8) | bytes[3]!;
    if ((this.flags & FLAG.QR) !== 0) return "drop";
    if ((this.flags & 0x7800) !== 0) return "notimp";
    if (u16(bytes, 4) !== 1) return "formerr";
    // Queries have neither answers nor authority; servers that met them disagree on what they mean.
    if (bytes[6]! | bytes[7]! | bytes[8]! | bytes[9]!) return "formerr";
    const end = this.#name(bytes, length);
    if (end < 0 || end + QUESTION_TAIL > length) return "formerr";
    this.type = u16(bytes, end);
    this.qclass = u16(bytes, end + 2);
    this.questionEnd = end + QUESTION_TAIL;
    const tail = end - HEADER_BYTES;
    for (let i = 0; i < QUESTION_TAIL; i++) this.lower[tail + i] = bytes[end + i]!;
    const extra = u16(bytes, 10);
    const verdict = extra === 0 ? "query" : this.#additional(bytes, length, extra);
    this.variant = (this.dnssecOk ? 1 : 0) | ((this.flags & FLAG.CD) !== 0 ? 2 : 0);
    this.hash = hashWith(Math.imul(this.hash ^ this.type, FNV_PRIME), this.variant);
    return verdict;
  }

  /** Makes it the question for a name in lower case, without a client. */
  fill(lower: Labels, type: number, variant: number): void {
    let at = HEADER_BYTES;
    const bytes = new Uint8Array(HEADER_BYTES + this.lower.length);
    bytes[5] = 1;
    for (const label of lower) {
      bytes[at++] = label.length;
      for (let i = 0; i < label.length; i++) bytes[at++] = label.charCodeAt(i);
    }
    at++;
    bytes[at] = type >>> 8;
    bytes[at + 1] = type;
    bytes[at + 3] = CLASS_IN;
    if ((variant & 2) !== 0) bytes[3] = FLAG.CD;
    this.parse(bytes, at + QUESTION_TAIL);
    if ((variant & 1) === 0) return;
    this.dnssecOk = true;
    this.hash = hashWith(this.hash ^ this.variant, variant);
    this.variant = variant;
  }

  /** A copy that later parsing leaves alone. */
  copy(): Query {
    const copy = new Query();
    copy.id = this.id;
    copy.flags = this.flags;
    copy.type = this.type;
    copy.qclass = this.qclass;
    copy.questionEnd = this.questionEnd;
    copy.lower.set(this.lower);
    copy.hash = this.hash;
    copy.hasUpper = this.hasUpper;
    copy.labelCount = this.labelCount;
    copy.edns = this.edns;
    copy.udpSize = this.udpSize;
    copy.dnssecOk = this.dnssecOk;
    copy.variant = this.variant;
    return copy;
  }

  /** The name's labels in the case they were asked; copies, for work beyond a cache hit. */
  labels(bytes: Uint8Array): Labels {
    return labelsFrom(bytes, HEADER_BYTES, this.questionEnd - QUESTION_TAIL);
  }

  /** The same in lower case. */
  lowerLabels(): Labels {
    return labelsFrom(this.lower, 0, this.questionEnd - HEADER_BYTES - QUESTION_TAIL);
  }

  /** Walks the question's name; returns the offset after it or -1. Compression has nothing to point at here. */
  #name(bytes: Uint8Array, length: number): number {
    let at = HEADER_BYTES;
    let hash = HASH_SEED;
    let count = 0;
    let upper = false;
    const lower = this.lower;
    for (;;) {
      if (at >= length) return -1;
      const size = bytes[at]!;
      if (size > MAX_LABEL_BYTES) return -1;
      lower[at - HEADER_BYTES] = size;
      hash = Math.imul(hash ^ size, FNV_PRIME);
      at++;
      if (size === 0) break;
      const end = at + size;
      // The root's byte must still fit into 255.
      if (end > length || end - HEADER_BYTES >= MAX_NAME_BYTES) return -1;
      for (; at < end; at++) {
        let c = bytes[at]!;
        if (c >= 0x41 && c <= 0x5a) {
          c += 0x20;
          upper = true;
        }
        lower[at - HEADER_BYTES] = c;
        hash = Math.imul(hash ^ c, FNV_PRIME);
      }
      count++;
    }
    this.hash = hash;
    this.hasUpper = upper;
    this.labelCount = count;
    return at;
  }

  /** Looks for the OPT record; every other additional record (a TSIG, say) is stepped over. */
  #additional(bytes: Uint8Array, length: number, count: number): Verdict {
    let at = this.questionEnd;
    let version = 0;
    for (let i = 0; i < count; i++) {
      const root = bytes[at] === 0;
      at = skipName(bytes, at, length);
      if (at < 0 || at + RECORD_FIXED > length) return "formerr";
      const type = u16(bytes, at);
      const next = at + RECORD_FIXED + u16(bytes, at + 8);
      if (next > length) return "formerr";
      if (type === TYPE.OPT) {
        if (this.edns || !root || !optionsFit(bytes, at + RECORD_FIXED, next)) return "formerr";
        this.edns = true;
        // RFC 6891 §6.2.3: values below 512 mean 512.
        this.udpSize = Math.max(MIN_UDP_BYTES, u16(bytes, at + 2));
        version = bytes[at + 5]!;
        this.dnssecOk = (u16(bytes, at + 6) & EDNS_DO) !== 0;
      }
      at = next;
    }
    return version > 0 ? "badvers" : "query";
  }
}

/** Labels of an uncompressed name that stands in `[start, end)`, its root included. */
function labelsFrom(bytes: Uint8Array, start: number, end: number): Labels {
  // One string for all, cut into labels: the cuts share its characters.
  const text = String.fromCharCode.apply(null, bytes.subarray(start, end) as unknown as number[]);
  const labels: string[] = [];
  for (let at = 0; at < text.length - 1;) {
    const next = at + 1 + text.charCodeAt(at);
    labels.push(text.slice(at + 1, next));
    at = next;
  }
  return labels;
}

/** The variant goes in last, so that it can be taken out again. */
function hashWith(hash: number, variant: number): number {
  return (hash ^ variant) | 0;
}

/** Offset after a possibly compressed name, or -1. Pointers are not followed: their target was, or will be, read. */
export function skipName(bytes: Uint8Array, from: number, length: number): number {
  let at = from;
  for (;;) {
    if (at >= length) return -1;
    const size = bytes[at]!;
    if (size >= 0xc0) return at + 2 <= length ? at + 2 : -1;
    if (size > MAX_LABEL_BYTES) return -1;
    at += size + 1;
    if (size === 0) return at;
  }
}

function optionsFit(bytes: Uint8Array, from: number, end: number): boolean {
  let at = from;
  while (at < end) {
    if (at + 4 > end) return false;
    at += 4 + u16(bytes, at + 2);
  }
  return at === end;
}

function u16(bytes: Uint8Array, at: number): number {
  return (bytes[at]! << 8) | bytes[at + 1]!;
}
