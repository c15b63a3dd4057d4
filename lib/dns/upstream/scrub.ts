/**
 * From an upstream's answer to one worth keeping: only records that answer the question (or the alias chain from it),
 * TTLs within bounds, written anew with our compression and without what concerns only the two of us (OPT). What an
 * upstream volunteers beyond the question is not believed (RFC 5452 §6).
 */
import { FLAG, RCODE, TYPE } from "../wire/constants.ts";
import { type Entry, makeEntry } from "../cache/entry.ts";
import { endsWith, type Labels, lowerLabels } from "../wire/labels.ts";
import { type Message, readMessage } from "../wire/reader.ts";
import type { AllowRecord } from "./rebind.ts";
import type { ResourceRecord } from "../wire/records.ts";
import type { MessageWriter } from "../wire/writer.ts";

export interface ScrubRules extends CacheTimes {
  /** Undefined = every record. */
  readonly allow?: AllowRecord;
}

export interface CacheTimes {
  /** Seconds: longer TTLs are cut to this. */
  readonly maxTtl: number;
  /** Seconds: negative answers are kept at most this long (RFC 2308 §5 suggests hours; devices move between networks). */
  readonly maxNegativeTtl: number;
  /** Seconds that expired answers are kept for times without upstream; 0 = none. */
  readonly staleFor: number;
}

/** RFC 2308 §7.1 and RFC 9520: failures are remembered, but never for long. Seconds. */
export const FAILURE_TTL = 5;
/** A negative answer without SOA must not be cached (RFC 2308 §5); this much still breaks storms. Seconds. */
const NO_SOA_TTL = 5;

const DNSSEC_PROOFS = new Set<number>([TYPE.NSEC, 50, /* NSEC3 */ TYPE.RRSIG]);

export interface Received {
  readonly hash: number;
  readonly question: { readonly name: Labels; readonly type: number };
  readonly variant: number;
  readonly now: number;
  readonly from: string;
}

/** Makes a cache entry of an upstream's answer; undefined when the message is malformed. */
export function scrub(
  bytes: Uint8Array,
  asked: Received,
  times: ScrubRules,
  writer: MessageWriter,
): Entry | undefined {
  const message = readMessage(bytes);
  if (message === undefined) return undefined;
  const rcode = message.flags & 0xf;
  const { question, variant, now } = asked;
  const flags = FLAG.QR | FLAG.RA | (message.flags & FLAG.AD) | (message.flags & FLAG.TC) | rcode;
  writer.begin(flags, question.name, question.type);
  const dnssec = (variant & 1) !== 0;
  const { answers, last } = relevantAnswers(message, question, dnssec);
  let ttl = times.maxTtl;
  const spelled = spelling(question.name, answers);
  const cut = (record: ResourceRecord): ResourceRecord => {
    const capped = Math.min(record.ttl, times.maxTtl);
    ttl = Math.min(ttl, capped);
    return { ...record, name: spelled(record.name), ttl: capped };
  };
  for (const record of answers) {
    if (times.allow && !times.allow(question.name, record)) continue;
    if (!writer.record("answer", cut(record))) return undefined;
  }
  const complete = answers.some((r) => r.type === question.type || question.type === TYPE.ANY);
  if (rcode === RCODE.NXDOMAIN || (rcode === RCODE.NOERROR && !complete)) {
    ttl = Math.min(ttl, negative(message, { last, dnssec, writer, max: times.maxNegativeTtl }));
  } else if (rcode !== RCODE.NOERROR) ttl = FAILURE_TTL;
  // Cut off, and the rest could not be had over TCP: perhaps the next time.
  if ((message.flags & FLAG.TC) !== 0) ttl = Math.min(ttl, FAILURE_TTL);
  const failed = rcode !== RCODE.NOERROR && rcode !== RCODE.NXDOMAIN;
  const expiresAt = now + ttl * 1000;
  return makeEntry(writer.copy(), { hash: asked.hash, variant, caseBound: false }, {
    storedAt: now,
    expiresAt,
    staleUntil: failed ? expiresAt : expiresAt + times.staleFor * 1000,
    countDown: true,
    from: asked.from,
  });
}

/** A SERVFAIL of our own, remembered for {@link FAILURE_TTL}. */
export function failureEntry(asked: Received, writer: MessageWriter): Entry {
  writer.begin(FLAG.QR | FLAG.RA | RCODE.SERVFAIL, asked.question.name, asked.question.type);
  const expiresAt = asked.now + FAILURE_TTL * 1000;
  return makeEntry(writer.copy(), { hash: asked.hash, variant: asked.variant, caseBound: false }, {
    storedAt: asked.now,
    expiresAt,
    staleUntil: expiresAt,
    countDown: false,
    from: asked.from,
  });
}

/**
 * Owner names as the client will see them: the question's own (it was sent in random case, and comes back so), and
 * alias targets as the alias spells them.
 */
function spelling(asked: Labels, answers: readonly ResourceRecord[]): (name: Labels) => Labels {
  const names = new Map<string, Labels>();
  for (const { data } of answers) {
    if (data.kind === "name") names.set(lowerLabels(data.target).join("\u0100"), data.target);
  }
  names.set(asked.join("\u0100"), asked);
  return (name) => names.get(lowerLabels(name).join("\u0100")) ?? name;
}

/** Records at the question's name and at the names its aliases lead to; the last of these names. */
function relevantAnswers(
  message: Message,
  question: { readonly name: Labels; readonly type: number },
  dnssec: boolean,
): { answers: ResourceRecord[]; last: Labels } {
  const key = (labels: Labels) => labels.join("\u0100");
  let last = lowerLabels(question.name);
  const chain = new Set([key(last)]);
  const aliases = new Map<string, Labels>();
  for (const r of message.answers) {
    if (r.type === TYPE.CNAME && r.data.kind === "name") aliases.set(key(lowerLabels(r.name)), r.data.target);
  }
  if (question.type !== TYPE.CNAME) {
    for (;;) {
      const target = aliases.get(key(last));
      if (target === undefined) break;
      last = lowerLabels(target);
      if (chain.has(key(last))) break;
      chain.add(key(last));
    }
  }
  const wanted = (r: ResourceRecord): boolean => {
    const owner = lowerLabels(r.name);
    if (r.type === TYPE.DNAME) return [...chain].some((name) => endsWith(name.split("\u0100"), owner));
    if (r.type === TYPE.RRSIG && !dnssec) return question.type === TYPE.RRSIG && chain.has(key(owner));
    if (!chain.has(key(owner))) return dnssec && r.type === TYPE.RRSIG;
    return r.type === question.type || r.type === TYPE.CNAME || r.type === TYPE.RRSIG || question.type === TYPE.ANY;
  };
  return { answers: message.answers.filter(wanted), last };
}

/** Writes what makes a negative answer cacheable; returns for how long it is. */
function negative(
  message: Message,
  how: { readonly last: Labels; readonly dnssec: boolean; readonly writer: MessageWriter; readonly max: number },
): number {
  let ttl = Math.min(NO_SOA_TTL, how.max);
  for (const record of message.authorities) {
    if (record.type === TYPE.SOA && record.data.kind === "soa" && endsWith(how.last, lowerLabels(record.name))) {
      // RFC 2308 §5: the smaller of both, shown to the client as the record's TTL.
      ttl = Math.min(record.ttl, record.data.minimum, how.max);
      how.writer.record("authority", { ...record, ttl });
    } else if (how.dnssec && DNSSEC_PROOFS.has(record.type)) {
      how.writer.record("authority", { ...record, ttl: Math.min(record.ttl, how.max) });
    }
  }
  return ttl;
}
