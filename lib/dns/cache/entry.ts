/**
 * An answer as bytes, ready to be sent: the whole response with id 0, the question in lower case and no OPT record.
 * Serving it means copying it and patching a few bytes; {@link file://./response.ts} does that.
 */
import { HEADER_BYTES, RCODE, TYPE } from "../wire/constants.ts";
import { skipName } from "../wire/query.ts";

export interface Entry {
  /** Of the question, as {@link Query.hash}. */
  readonly hash: number;
  readonly bytes: Uint8Array;
  readonly questionEnd: number;
  /** DO and CD of the question, as {@link Query.variant}. */
  readonly variant: number;
  /** The bytes repeat the letter case of one question: they serve only questions without upper case. */
  readonly caseBound: boolean;
  readonly rcode: number;
  /** A run of address records of one size at the end of the answer section: they may be sent in any rotation. */
  readonly rotateAt: number;
  readonly rotateSize: number;
  readonly rotateCount: number;
  /** Offsets of TTL fields to count down; undefined where TTLs are constant. */
  readonly ttls: Uint16Array | undefined;
  readonly life: EntryLife;
  /** Set by each hit; cleared and looked at by the eviction clock. */
  used: boolean;
}

/** How long an entry lives; one object for all entries of a snapshot. Times in monotonic milliseconds. */
export interface EntryLife {
  readonly storedAt: number;
  readonly expiresAt: number;
  /** Until then it may be served beyond its TTL when nobody can be asked. */
  readonly staleUntil: number;
  /** Whether TTLs count down; those of the cluster's names are constant. */
  readonly countDown: boolean;
  /** Whose answer it is, for explanations; undefined for our own. */
  readonly from?: string;
  /** When nobody could renew it; stale answers are given without asking again for a while (RFC 8767 §5). */
  failedAt?: number;
}

/** For answers that live exactly as long as the snapshot they were made from. */
export const SNAPSHOT_LIFE: EntryLife = { storedAt: 0, expiresAt: Infinity, staleUntil: Infinity, countDown: false };

/** Makes an entry of a response this program wrote itself; throws RangeError on anything else (a bug). */
export function makeEntry(
  bytes: Uint8Array,
  about: { readonly hash: number; readonly variant: number; readonly caseBound: boolean },
  life: EntryLife,
): Entry {
  const questionEnd = skipName(bytes, HEADER_BYTES, bytes.length) + 4;
  const ttls: number[] = [];
  let at = questionEnd;
  let rotateAt = 0;
  let rotateSize = 0;
  let rotateCount = 0;
  const answers = u16(bytes, 6);
  const total = answers + u16(bytes, 8) + u16(bytes, 10);
  for (let i = 0; i < total; i++) {
    const fixed = skipName(bytes, at, bytes.length);
    if (fixed < 0 || fixed + 10 > bytes.length) throw new RangeError(`Record ${i} of an own response is cut off`);
    const type = u16(bytes, fixed);
    const next = fixed + 10 + u16(bytes, fixed + 8);
    if (fixed + 4 <= 0xffff) ttls.push(fixed + 4);
    if (i < answers && (type === TYPE.A || type === TYPE.AAAA)) {
      const size = next - at;
      if (rotateCount > 0 && size === rotateSize) rotateCount++;
      else [rotateAt, rotateSize, rotateCount] = [at, size, 1];
    } else if (i < answers) {
      // Something other than an address after addresses: leave the order alone.
      rotateCount = 0;
    }
    at = next;
  }
  return {
    hash: about.hash,
    bytes,
    questionEnd,
    variant: about.variant,
    caseBound: about.caseBound,
    rcode: bytes[3]! & 0xf,
    rotateAt,
    rotateSize,
    rotateCount,
    ttls: life.countDown && ttls.length > 0 ? Uint16Array.from(ttls) : undefined,
    life,
    used: false,
  };
}

/** Whether an entry says that something is not there: NXDOMAIN, or NOERROR without answers. */
export function isNegative(entry: Entry): boolean {
  return entry.rcode === RCODE.NXDOMAIN || (entry.rcode === RCODE.NOERROR && u16(entry.bytes, 6) === 0);
}

function u16(bytes: Uint8Array, at: number): number {
  return (bytes[at]! << 8) | bytes[at + 1]!;
}
