/**
 * Reads messages that others wrote, trusting nothing: names with pointers, records, data with names inside. Returns
 * undefined on anything that breaks RFC 1035; never throws. Pointers lead backwards only, which also rules out loops.
 */
import { CLASS_IN, HEADER_BYTES, MAX_LABEL_BYTES, MAX_NAME_BYTES, TYPE } from "./constants.ts";
import type { Labels } from "./labels.ts";
import type { RData, ResourceRecord } from "./records.ts";

export interface Message {
  readonly flags: number;
  readonly question: { readonly name: Labels; readonly type: number };
  readonly answers: readonly ResourceRecord[];
  readonly authorities: readonly ResourceRecord[];
  /** Without OPT. */
  readonly additionals: readonly ResourceRecord[];
}

/** Records per message that are read at all: 64 KiB cannot hold more of them. */
const MAX_RECORDS = 6000;

/**
 * Where names stand inside data that may be compressed (RFC 3597 §4): bytes before the first name, then how many
 * names, then bytes after. SRV may not be compressed, but some do.
 */
const NAMES_IN_DATA = new Map<number, { readonly before: number; readonly names: number; readonly after: number }>([
  [TYPE.NS, { before: 0, names: 1, after: 0 }],
  [3, /* MD */ { before: 0, names: 1, after: 0 }],
  [4, /* MF */ { before: 0, names: 1, after: 0 }],
  [TYPE.CNAME, { before: 0, names: 1, after: 0 }],
  [TYPE.SOA, { before: 0, names: 2, after: 20 }],
  [7, /* MB */ { before: 0, names: 1, after: 0 }],
  [8, /* MG */ { before: 0, names: 1, after: 0 }],
  [9, /* MR */ { before: 0, names: 1, after: 0 }],
  [TYPE.PTR, { before: 0, names: 1, after: 0 }],
  [14, /* MINFO */ { before: 0, names: 2, after: 0 }],
  [TYPE.MX, { before: 2, names: 1, after: 0 }],
  [17, /* RP */ { before: 0, names: 2, after: 0 }],
  [18, /* AFSDB */ { before: 2, names: 1, after: 0 }],
  [21, /* RT */ { before: 2, names: 1, after: 0 }],
  [26, /* PX */ { before: 2, names: 2, after: 0 }],
  [TYPE.SRV, { before: 6, names: 1, after: 0 }],
  [36, /* KX */ { before: 2, names: 1, after: 0 }],
  [TYPE.DNAME, { before: 0, names: 1, after: 0 }],
]);

interface NameAt {
  readonly labels: Labels;
  /** Offset after the name where it stands. */
  readonly next: number;
}

/** Reads a whole response with one question. */
export function readMessage(bytes: Uint8Array): Message | undefined {
  if (bytes.length < HEADER_BYTES || u16(bytes, 4) !== 1) return undefined;
  const name = readName(bytes, HEADER_BYTES);
  if (name === undefined || name.next + 4 > bytes.length) return undefined;
  const question = { name: name.labels, type: u16(bytes, name.next) };
  const cursor = { at: name.next + 4 };
  const sections: ResourceRecord[][] = [];
  for (const countAt of [6, 8, 10]) {
    const count = u16(bytes, countAt);
    if (count > MAX_RECORDS) return undefined;
    const records: ResourceRecord[] = [];
    for (let i = 0; i < count; i++) {
      const record = readRecord(bytes, cursor);
      if (record === undefined) return undefined;
      if (record !== "skip") records.push(record);
    }
    sections.push(records);
  }
  const [answers, authorities, additionals] = sections as [ResourceRecord[], ResourceRecord[], ResourceRecord[]];
  return { flags: u16(bytes, 2), question, answers, authorities, additionals };
}

/** Reads a name that may be compressed. */
export function readName(bytes: Uint8Array, from: number, end = bytes.length): NameAt | undefined {
  const labels: string[] = [];
  let at = from;
  let next = -1;
  let limit = end;
  let lowest = from;
  let total = 1;
  for (;;) {
    if (at >= limit) return undefined;
    const size = bytes[at]!;
    if (size === 0) return { labels, next: next < 0 ? at + 1 : next };
    if (size >= 0xc0) {
      if (at + 1 >= limit) return undefined;
      const target = ((size & 0x3f) << 8) | bytes[at + 1]!;
      if (next < 0) next = at + 2;
      // Strictly backwards from where this stretch of the name began: every jump makes progress.
      if (target >= lowest || target < HEADER_BYTES) return undefined;
      lowest = target;
      at = target;
      limit = bytes.length;
      continue;
    }
    if (size > MAX_LABEL_BYTES || at + 1 + size > limit) return undefined;
    total += size + 1;
    if (total > MAX_NAME_BYTES) return undefined;
    labels.push(String.fromCharCode(...bytes.subarray(at + 1, at + 1 + size)));
    at += size + 1;
  }
}

/** `skip`: a record of another class, or OPT. */
function readRecord(bytes: Uint8Array, cursor: { at: number }): ResourceRecord | "skip" | undefined {
  const name = readName(bytes, cursor.at);
  if (name === undefined || name.next + 10 > bytes.length) return undefined;
  const at = name.next;
  const type = u16(bytes, at);
  const start = at + 10;
  const end = start + u16(bytes, at + 8);
  if (end > bytes.length) return undefined;
  cursor.at = end;
  if (type === TYPE.OPT || u16(bytes, at + 2) !== CLASS_IN) return "skip";
  const data = readData(bytes, type, start, end);
  if (data === undefined) return undefined;
  // RFC 2181 §8: a TTL with the highest bit set is 0.
  const ttl = bytes[at + 4]! >= 0x80 ? 0 : u16(bytes, at + 4) * 0x10000 + u16(bytes, at + 6);
  return { name: name.labels, type, ttl, data };
}

function readData(bytes: Uint8Array, type: number, start: number, end: number): RData | undefined {
  if (type === TYPE.A && end - start !== 4) return undefined;
  if (type === TYPE.AAAA && end - start !== 16) return undefined;
  const layout = NAMES_IN_DATA.get(type);
  if (layout === undefined) return { kind: "raw", bytes: bytes.slice(start, end) };
  let at = start + layout.before;
  const names: Labels[] = [];
  for (let i = 0; i < layout.names; i++) {
    const name = at < end ? readName(bytes, at, end) : undefined;
    if (name === undefined) return undefined;
    names.push(name.labels);
    at = name.next;
  }
  if (at + layout.after !== end) return undefined;
  const [first, second] = names as [Labels, Labels | undefined];
  if (layout.before === 0 && layout.names === 1) return { kind: "name", target: first };
  if (type === TYPE.SRV) {
    return {
      kind: "srv",
      priority: u16(bytes, start),
      weight: u16(bytes, start + 2),
      port: u16(bytes, start + 4),
      target: first,
    };
  }
  if (type === TYPE.SOA) {
    const n = (i: number) => u16(bytes, at + i * 4) * 0x10000 + u16(bytes, at + i * 4 + 2);
    return {
      kind: "soa",
      mname: first,
      rname: second!,
      serial: n(0),
      refresh: n(1),
      retry: n(2),
      expire: n(3),
      minimum: n(4),
    };
  }
  return { kind: "raw", bytes: expand(bytes.subarray(start, start + layout.before), names) };
}

/** Data with its names written in full. */
function expand(before: Uint8Array, names: readonly Labels[]): Uint8Array {
  const out: number[] = [...before];
  for (const labels of names) {
    for (const label of labels) {
      out.push(label.length);
      for (let i = 0; i < label.length; i++) out.push(label.charCodeAt(i));
    }
    out.push(0);
  }
  return Uint8Array.from(out);
}

function u16(bytes: Uint8Array, at: number): number {
  return (bytes[at]! << 8) | bytes[at + 1]!;
}
