/** From an answer of the cluster's zones to the bytes of a whole response, without OPT and with id 0. */
import { ANY_TTL, FLAG, HEADER_BYTES, RCODE, TYPE } from "../wire/constants.ts";
import type { ClusterAnswer } from "../cluster/answer.ts";
import type { Entry } from "./entry.ts";
import type { Labels } from "../wire/labels.ts";
import { readMessage } from "../wire/reader.ts";
import { type ResourceRecord, textRecord } from "../wire/records.ts";
import { isStale, STALE_TTL } from "./response.ts";
import { soaRecord } from "../cluster/soa.ts";
import type { MessageWriter } from "../wire/writer.ts";

export interface EncodeOptions {
  readonly serial: number;
  /** Seconds, of the SOA. */
  readonly ttl: number;
}

/** Writes a cluster answer into `writer`. Responses are authoritative (RFC 1035 §4.1.1 AA). */
export function encodeCluster(
  writer: MessageWriter,
  question: { readonly name: Labels; readonly type: number },
  answer: ClusterAnswer,
  options: EncodeOptions,
): void {
  writer.begin(FLAG.QR | FLAG.AA | FLAG.RA | answer.rcode, question.name, question.type);
  if (question.type === TYPE.ANY && answer.rcode === RCODE.NOERROR) {
    writer.record("answer", anyRecord(question.name));
    return;
  }
  for (const record of answer.answers) put(writer, record);
  if (answer.soaOf) writer.record("authority", soaRecord(answer.soaOf, options.serial, options.ttl));
  // Additional records are a courtesy: what does not fit is left out.
  for (const record of answer.additionals) if (!writer.record("additional", record)) break;
}

/** A whole answer to ANY for names we ask others about: nothing is asked for it. */
export function anyAnswer(writer: MessageWriter, name: Labels): void {
  writer.begin(FLAG.QR | FLAG.RA, name, TYPE.ANY);
  writer.record("answer", anyRecord(name));
}

/** Writes the aliases that led out of our zones, then the foreign answer with its TTLs as of `now`. */
export function joinChain(
  writer: MessageWriter,
  question: { readonly name: Labels; readonly type: number },
  chain: readonly ResourceRecord[],
  entry: Entry,
  now: number,
): void {
  const foreign = readMessage(entry.bytes);
  const tc = foreign === undefined ? 0 : foreign.flags & FLAG.TC;
  writer.begin(FLAG.QR | FLAG.RA | tc | entry.rcode, question.name, question.type);
  for (const record of chain) put(writer, record);
  const age = entry.ttls === undefined ? 0 : Math.max(0, Math.floor((now - entry.life.storedAt) / 1000));
  const aged = (record: ResourceRecord): ResourceRecord => ({
    ...record,
    ttl: isStale(entry, now) ? STALE_TTL : Math.max(0, record.ttl - age),
  });
  for (const record of foreign?.answers ?? []) put(writer, aged(record));
  for (const record of foreign?.authorities ?? []) writer.record("authority", aged(record));
}

/** RFC 8482 §4.2: one HINFO instead of everything there is. */
export function anyRecord(name: Labels): ResourceRecord {
  return textRecord(name, TYPE.HINFO, ["RFC8482", ""], ANY_TTL);
}

/** Not even TCP takes more than 64 KiB: then the client gets what fits and knows that it is not all (TC). */
function put(writer: MessageWriter, record: ResourceRecord): void {
  if (!writer.record("answer", record)) writer.setFlags(((writer.bytes[2]! << 8) | writer.bytes[3]!) | FLAG.TC);
}

/** Header of an error response to `query[0, questionEnd)`; returns its length in `out`. The question is echoed. */
export function encodeError(
  out: Uint8Array,
  query: Uint8Array,
  options: { readonly questionEnd: number; readonly rcode: number },
): number {
  const { questionEnd, rcode } = options;
  for (let i = 0; i < questionEnd; i++) out[i] = query[i]!;
  const flags = (query[2]! << 8) | query[3]!;
  const reply = FLAG.QR | (flags & 0x7800) | (flags & FLAG.RD) | FLAG.RA | (flags & FLAG.CD) | (rcode & 0xf);
  out[2] = reply >>> 8;
  out[3] = reply;
  out.fill(0, 4, HEADER_BYTES);
  if (questionEnd > HEADER_BYTES) out[5] = 1;
  return questionEnd;
}
