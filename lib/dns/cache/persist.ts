/**
 * Foreign answers across a restart: with the cloud and the upstreams gone, what was known yesterday is still served
 * (RFC 8767). The file is a cache and treated as one: anything odd about it and it is ignored.
 *
 *     "emdns1\n\0"  u32 checksum of the rest  then per entry:
 *     f64 wall ms stored  u32 ttl s  u32 stale s  u8 variant  u8 length of `from`  u16 length of the message  from  message
 */
import type { MonoMs, WallMs } from "../../clock.ts";
import type { AnswerCache } from "./cache.ts";
import { type Entry, makeEntry } from "./entry.ts";
import { Query } from "../wire/query.ts";
import { readMessage } from "../wire/reader.ts";
import { lowerLabels } from "../wire/labels.ts";

/** Where the agent keeps the bytes. */
export interface CacheStore {
  /** What was saved last; undefined when there is nothing. Throws nothing. */
  load(): Uint8Array | undefined;
  save(bytes: Uint8Array): Promise<void>;
}

/** Both clocks at one moment. */
export interface Moment {
  readonly now: MonoMs;
  readonly wall: WallMs;
}

const MAGIC = new TextEncoder().encode("emdns1\n\0");
const HEAD_BYTES = 20;
/** Small on purpose: flash wears out, and what people use fits many times over. */
const MAX_SAVED_BYTES = 1 << 20;

/** Entries that may outlive a restart, the most recently learned first. */
export function saveCache(cache: AnswerCache, at: Moment): Uint8Array {
  const entries = [...cache.entries()].filter((e) => worthSaving(e, at.now));
  entries.sort((a, b) => b.life.storedAt - a.life.storedAt);
  const out = new Uint8Array(MAX_SAVED_BYTES);
  const view = new DataView(out.buffer);
  out.set(MAGIC);
  let length = MAGIC.length + 4;
  for (const entry of entries) {
    const from = new TextEncoder().encode(entry.life.from ?? "").subarray(0, 255);
    const size = HEAD_BYTES + from.length + entry.bytes.length;
    if (length + size > MAX_SAVED_BYTES) continue;
    view.setFloat64(length, at.wall - (at.now - entry.life.storedAt));
    view.setUint32(length + 8, (entry.life.expiresAt - entry.life.storedAt) / 1000);
    view.setUint32(length + 12, (entry.life.staleUntil - entry.life.expiresAt) / 1000);
    out[length + 16] = entry.variant;
    out[length + 17] = from.length;
    view.setUint16(length + 18, entry.bytes.length);
    out.set(from, length + HEAD_BYTES);
    out.set(entry.bytes, length + HEAD_BYTES + from.length);
    length += size;
  }
  view.setUint32(MAGIC.length, checksum(out.subarray(MAGIC.length + 4, length)));
  return out.slice(0, length);
}

/** Puts saved entries back; returns how many. A damaged file yields none. */
export function restoreCache(cache: AnswerCache, bytes: Uint8Array, at: Moment): number {
  const body = MAGIC.length + 4;
  if (bytes.length < body || !MAGIC.every((b, i) => bytes[i] === b)) return 0;
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  if (view.getUint32(MAGIC.length) !== checksum(bytes.subarray(body))) return 0;
  const query = new Query();
  let count = 0;
  let offset = body;
  while (offset + HEAD_BYTES <= bytes.length) {
    const fromLength = bytes[offset + 17]!;
    const messageAt = offset + HEAD_BYTES + fromLength;
    const end = messageAt + view.getUint16(offset + 18);
    if (end > bytes.length) break;
    const ttl = view.getUint32(offset + 8) * 1000;
    const stale = view.getUint32(offset + 12) * 1000;
    const age = at.wall - view.getFloat64(offset);
    const variant = bytes[offset + 16]!;
    const message = bytes.slice(messageAt, end);
    const read = readMessage(message);
    offset = end;
    // A clock that was set back (a board without a battery) says nothing about age: then the answer just expired.
    const expiresAt = age >= 0 ? at.now - age + ttl : at.now;
    if (read === undefined || expiresAt + stale <= at.now) continue;
    query.fill(lowerLabels(read.question.name), read.question.type, variant & 3);
    const from = new TextDecoder().decode(bytes.subarray(messageAt - fromLength, messageAt));
    const life = { storedAt: expiresAt - ttl, expiresAt, staleUntil: expiresAt + stale, countDown: true, from };
    cache.set(makeEntry(message, { hash: query.hash, variant: variant & 3, caseBound: false }, life));
    count++;
  }
  return count;
}

function worthSaving(entry: Entry, now: MonoMs): boolean {
  return (entry.rcode === 0 || entry.rcode === 3) && now < entry.life.staleUntil &&
    entry.life.staleUntil > entry.life.expiresAt;
}

/** Adler-32 (RFC 1950 §9): finds torn and flipped bytes; nobody attacks a file that only root can write. */
function checksum(bytes: Uint8Array): number {
  let a = 1;
  let b = 0;
  for (let i = 0; i < bytes.length; i++) {
    a = (a + bytes[i]!) % 65521;
    b = (b + a) % 65521;
  }
  return ((b << 16) | a) >>> 0;
}
