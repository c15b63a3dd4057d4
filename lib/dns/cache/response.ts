/** From a cached answer to the bytes for one client: id, flags, question case, rotation, TTLs, size, OPT. */
import { FLAG, HEADER_BYTES, MAX_TCP_BYTES, MAX_UDP_BYTES, OPT_BYTES, TYPE } from "../wire/constants.ts";
import type { Entry } from "./entry.ts";
import { type Query, skipName } from "../wire/query.ts";

/** RFC 8767 §4: stale answers live this long at the client, seconds. */
export const STALE_TTL = 30;

export class Responder {
  /** What {@link write} fills; two bytes in front of it are free for the length prefix of TCP. */
  readonly frame: Uint8Array = new Uint8Array(MAX_TCP_BYTES + 2 + OPT_BYTES);
  readonly out: Uint8Array = this.frame.subarray(2);
  #turn = 0;

  /**
   * Writes the response to `query` (its bytes are `asked`) and returns its length, at most `limit`. `now` counts TTLs
   * down; a stale entry shows {@link STALE_TTL}.
   */
  write(entry: Entry, query: Query, asked: Uint8Array, limit: number, now: number): number {
    const { out } = this;
    const { bytes } = entry;
    let length = bytes.length;
    const room = query.edns ? limit - OPT_BYTES : limit;
    out.set(bytes);
    if (entry.rotateCount > 1) this.#rotate(entry);
    if (entry.ttls !== undefined) countDown(out, entry.ttls, entry, now);
    const mask = query.dnssecOk || (query.flags & FLAG.AD) !== 0 ? 0xffff : ~FLAG.AD;
    const flags = (((bytes[2]! << 8) | bytes[3]!) & mask) | (query.flags & (FLAG.RD | FLAG.CD));
    out[0] = query.id >>> 8;
    out[1] = query.id;
    out[2] = flags >>> 8;
    out[3] = flags;
    if (query.hasUpper) { for (let i = query.questionEnd - 5; i >= HEADER_BYTES; i--) out[i] = asked[i]!; }
    if (length > room) length = truncate(out, length, room);
    return query.edns ? appendOpt(out, length, query.dnssecOk, 0) : length;
  }

  #rotate(entry: Entry): void {
    const { rotateAt, rotateSize, rotateCount, bytes } = entry;
    const { out } = this;
    this.#turn = (this.#turn + 1) & 0x3fffffff;
    const size = rotateSize * rotateCount;
    // All records of the run are of one RRset: equal owner, equal TTL (RFC 2181 §5.2), so only places change.
    let from = (this.#turn % rotateCount) * rotateSize;
    for (let i = 0; i < size; i++) {
      out[rotateAt + i] = bytes[rotateAt + from]!;
      if (++from === size) from = 0;
    }
  }
}

/** The UDP limit for a query: what the client can take, and never more than passes unfragmented. */
export function udpLimit(query: Query): number {
  return query.udpSize < MAX_UDP_BYTES ? query.udpSize : MAX_UDP_BYTES;
}

/** Appends an OPT record (RFC 6891 §6.1.2); returns the new length. */
export function appendOpt(out: Uint8Array, length: number, dnssecOk: boolean, extendedRcode: number): number {
  out[length] = 0;
  out[length + 1] = 0;
  out[length + 2] = TYPE.OPT;
  out[length + 3] = MAX_UDP_BYTES >>> 8;
  out[length + 4] = MAX_UDP_BYTES & 0xff;
  out[length + 5] = extendedRcode;
  out[length + 6] = 0;
  out[length + 7] = dnssecOk ? 0x80 : 0;
  out[length + 8] = 0;
  out[length + 9] = 0;
  out[length + 10] = 0;
  const additional = ((out[10]! << 8) | out[11]!) + 1;
  out[10] = additional >>> 8;
  out[11] = additional;
  return length + OPT_BYTES;
}

/**
 * Drops whole records from the end until `room` bytes suffice. TC is set only when answers or authority were dropped:
 * a missing additional record is no reason to ask again (RFC 2181 §9).
 */
export function truncate(out: Uint8Array, length: number, room: number): number {
  const counts = [u16(out, 6), u16(out, 8), u16(out, 10)] as const;
  let at = skipName(out, HEADER_BYTES, length) + 4;
  let cut = false;
  for (let section = 0; section < 3; section++) {
    let kept = 0;
    for (let i = 0; i < counts[section]!; i++) {
      const fixed = cut ? -1 : skipName(out, at, length);
      const next = fixed < 0 ? length + 1 : fixed + 10 + u16(out, fixed + 8);
      if (next > room) {
        if (!cut && section < 2) out[2] = out[2]! | (FLAG.TC >>> 8);
        cut = true;
        break;
      }
      at = next;
      kept++;
    }
    out[6 + section * 2] = kept >>> 8;
    out[7 + section * 2] = kept;
  }
  return at;
}

/** Beyond its TTL; an answer with TTL 0 is not stale at the moment it comes. */
export function isStale(entry: Entry, now: number): boolean {
  return now >= entry.life.expiresAt && now > entry.life.storedAt;
}

function countDown(out: Uint8Array, ttls: Uint16Array, entry: Entry, now: number): void {
  const stale = isStale(entry, now);
  const age = Math.max(0, Math.floor((now - entry.life.storedAt) / 1000));
  for (let i = 0; i < ttls.length; i++) {
    const at = ttls[i]!;
    const ttl = stale ? STALE_TTL : Math.max(0, u16(out, at) * 0x10000 + u16(out, at + 2) - age);
    out[at] = ttl >>> 24;
    out[at + 1] = ttl >>> 16;
    out[at + 2] = ttl >>> 8;
    out[at + 3] = ttl;
  }
}

function u16(bytes: Uint8Array, at: number): number {
  return (bytes[at]! << 8) | bytes[at + 1]!;
}
