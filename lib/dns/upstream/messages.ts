/** Messages to upstream resolvers, and whether what comes back belongs to them. */
import { FLAG, HEADER_BYTES, OPT_BYTES, RCODE } from "../wire/constants.ts";
import { appendOpt } from "../cache/response.ts";

/** What is asked of upstream resolvers. */
export interface UpstreamQuestion {
  /** Name, type and class on the wire, lower case. */
  readonly wire: Uint8Array;
  readonly dnssecOk: boolean;
  readonly checkingDisabled: boolean;
}

type Random = (into: Uint8Array) => void;

/** A query with a random id, RD, and an OPT record that offers 1232 bytes. */
export function writeQuestion(question: UpstreamQuestion, edns: boolean, random: Random): Uint8Array {
  const plain = HEADER_BYTES + question.wire.length;
  const bytes = new Uint8Array(plain + (edns ? OPT_BYTES : 0));
  random(bytes.subarray(0, 2));
  const flags = FLAG.RD | (question.checkingDisabled ? FLAG.CD : 0) | (question.dnssecOk ? FLAG.AD : 0);
  bytes[2] = flags >>> 8;
  bytes[3] = flags;
  bytes[5] = 1;
  bytes.set(question.wire, HEADER_BYTES);
  if (edns) appendOpt(bytes, plain, question.dnssecOk, 0);
  return bytes;
}

/** Gives every letter of the question a random case: up to one more bit to guess per letter. */
export function mixCase(message: Uint8Array, random: Random): void {
  const end = nameEnd(message);
  const coins = new Uint8Array((end - HEADER_BYTES + 7) >> 3);
  random(coins);
  for (let at = HEADER_BYTES; at < end; at++) {
    const c = message[at]!;
    const i = at - HEADER_BYTES;
    // Length bytes are below 64 and so never taken for letters.
    if (c >= 0x61 && c <= 0x7a && (coins[i >> 3]! & (1 << (i & 7))) !== 0) message[at] = c - 0x20;
  }
}

/**
 * How a message relates to the one sent. `headless`: an error without a question, as old servers send it; it can do
 * no more harm than to make us ask again.
 */
export function questionMatch(sent: Uint8Array, got: Uint8Array): "same" | "case" | "headless" | "other" {
  if (got.length < HEADER_BYTES || got[0] !== sent[0] || got[1] !== sent[1]) return "other";
  const flags = (got[2]! << 8) | got[3]!;
  if ((flags & FLAG.QR) === 0 || (flags & 0x7800) !== 0) return "other";
  const rcode = flags & 0xf;
  if (got[4] === 0 && got[5] === 0) return rcode === RCODE.FORMERR || rcode === RCODE.NOTIMP ? "headless" : "other";
  if (got[4] !== 0 || got[5] !== 1) return "other";
  const end = nameEnd(sent) + 4;
  if (got.length < end) return "other";
  let exact = true;
  for (let i = HEADER_BYTES; i < end; i++) {
    if (got[i] === sent[i]) continue;
    if (i >= end - 4 || lower(got[i]!) !== lower(sent[i]!)) return "other";
    exact = false;
  }
  return exact ? "same" : "case";
}

/** Offset after the name of our own question. */
function nameEnd(message: Uint8Array): number {
  let at = HEADER_BYTES;
  while (message[at]! !== 0) at += message[at]! + 1;
  return at + 1;
}

function lower(c: number): number {
  return c >= 0x41 && c <= 0x5a ? c + 0x20 : c;
}
