/**
 * Messages as text for people: the only place for npm:dns-packet, loaded when somebody asks for a type we do not spell
 * ourselves. It is kept behind a guard, because it accepts what it should not (data shorter than the type needs,
 * labels that hold dots) and writes without compression: structure, names and lengths are checked by our own reader
 * first, and only the data of one record is ever handed to it.
 */
import { Buffer } from "node:buffer";
import { ipFromBytes } from "../../addr.ts";
import { FLAG, rcodeName, TYPE, typeName } from "../wire/constants.ts";
import { nameText } from "../wire/labels.ts";
import { readMessage } from "../wire/reader.ts";
import type { RData, ResourceRecord } from "../wire/records.ts";

export interface PresentedRecord {
  readonly name: string;
  /** Seconds. */
  readonly ttl: number;
  readonly type: string;
  /** Presentation form; RFC 3597's where the type has none here. */
  readonly data: string;
}

export interface PresentedMessage {
  readonly rcode: string;
  readonly flags: { readonly aa: boolean; readonly tc: boolean; readonly ra: boolean; readonly ad: boolean };
  readonly answers: readonly PresentedRecord[];
  readonly authorities: readonly PresentedRecord[];
  readonly additionals: readonly PresentedRecord[];
}

/** A response as text; undefined when it is malformed. */
export async function presentMessage(bytes: Uint8Array): Promise<PresentedMessage | undefined> {
  const message = readMessage(bytes);
  if (message === undefined) return undefined;
  const { flags } = message;
  const all = (records: readonly ResourceRecord[]) => Promise.all(records.map(presentRecord));
  return {
    rcode: rcodeName(flags & 0xf),
    flags: {
      aa: (flags & FLAG.AA) !== 0,
      tc: (flags & FLAG.TC) !== 0,
      ra: (flags & FLAG.RA) !== 0,
      ad: (flags & FLAG.AD) !== 0,
    },
    answers: await all(message.answers),
    authorities: await all(message.authorities),
    additionals: await all(message.additionals),
  };
}

async function presentRecord(record: ResourceRecord): Promise<PresentedRecord> {
  return {
    name: nameText(record.name),
    ttl: record.ttl,
    type: typeName(record.type),
    data: await presentData(record.type, record.data),
  };
}

async function presentData(type: number, data: RData): Promise<string> {
  switch (data.kind) {
    case "address":
      return data.ip;
    case "name":
      return nameText(data.target);
    case "srv":
      return `${data.priority} ${data.weight} ${data.port} ${nameText(data.target)}`;
    case "text":
      return data.strings.map(quote).join(" ");
    case "soa":
      return [
        nameText(data.mname),
        nameText(data.rname),
        data.serial,
        data.refresh,
        data.retry,
        data.expire,
        data.minimum,
      ]
        .join(" ");
    case "raw":
      return await presentRaw(type, data.bytes);
  }
}

async function presentRaw(type: number, bytes: Uint8Array): Promise<string> {
  if ((type === TYPE.A && bytes.length === 4) || (type === TYPE.AAAA && bytes.length === 16)) return ipFromBytes(bytes);
  if (type === TYPE.TXT || type === TYPE.HINFO) return strings(bytes) ?? generic(bytes);
  const spell = SPELLED.get(type);
  if (spell === undefined || bytes.length < spell.least) return generic(bytes);
  try {
    const { default: packet } = await import("dns-packet");
    const codec = (packet as unknown as Codecs).record(typeName(type));
    // The codecs read a length and then data; this message holds nothing else they could wander into.
    const framed = Buffer.alloc(bytes.length + 2);
    framed.writeUInt16BE(bytes.length, 0);
    framed.set(bytes, 2);
    const fields = codec.decode(framed, 0);
    // What was understood must say the same again: otherwise it was misread.
    if (!framed.equals(codec.encode(fields))) return generic(bytes);
    return spell.text(fields as Fields);
  } catch {
    return generic(bytes);
  }
}

interface Codecs {
  record(type: string): { decode(buffer: Buffer, offset: number): unknown; encode(fields: unknown): Buffer };
}
/** What a codec made of the data; each field is turned into text by what its type is known to be. */
type Fields = Readonly<Record<string, unknown>>;

const hex = (b: unknown): string => Buffer.from(b as Uint8Array).toString("hex").toUpperCase();
const base64 = (b: unknown): string => Buffer.from(b as Uint8Array).toString("base64");

/** Types that dns-packet reads well, the least their data can have, and how each is written (its own RFC). */
const SPELLED = new Map<number, { readonly least: number; readonly text: (f: Fields) => string }>([
  [TYPE.MX, { least: 3, text: (f) => `${f.preference} ${dot(f.exchange)}` }],
  [35, {
    least: 7,
    text: (f) =>
      `${f.order} ${f.preference} ${quote(f.flags)} ${quote(f.services)} ${quote(f.regexp)} ${dot(f.replacement)}`,
  }],
  [43, { least: 4, text: (f) => `${f.keyTag} ${f.algorithm} ${f.digestType} ${hex(f.digest)}` }],
  [44, { least: 2, text: (f) => `${f.algorithm} ${f.hash} ${String(f.fingerprint).toUpperCase()}` }],
  [46, {
    least: 18,
    text: (f) =>
      `${f.typeCovered} ${f.algorithm} ${f.labels} ${f.originalTTL} ${f.expiration} ${f.inception} ${f.keyTag} ` +
      `${dot(f.signersName)} ${base64(f.signature)}`,
  }],
  [48, { least: 4, text: (f) => `${f.flags} 3 ${f.algorithm} ${base64(f.key)}` }],
  [257, { least: 2, text: (f) => `${f.flags} ${f.tag} ${quote(f.value)}` }],
]);

function dot(name: unknown): string {
  const text = String(name);
  return text.endsWith(".") ? text : `${text}.`;
}

/** RFC 3597 §5. */
function generic(bytes: Uint8Array): string {
  return `\\# ${bytes.length}${bytes.length > 0 ? ` ${hex(bytes)}` : ""}`;
}

function quote(text: unknown): string {
  let out = "";
  for (const c of String(text)) {
    const code = c.charCodeAt(0);
    if (c === '"' || c === "\\") out += `\\${c}`;
    else if (code < 0x20 || code > 0x7e) out += `\\${String(code & 0xff).padStart(3, "0")}`;
    else out += c;
  }
  return `"${out}"`;
}

/** Character strings with their lengths; undefined when they do not fill the data exactly. */
function strings(bytes: Uint8Array): string | undefined {
  const texts: string[] = [];
  let at = 0;
  while (at < bytes.length) {
    const end = at + 1 + bytes[at]!;
    if (end > bytes.length) return undefined;
    texts.push(quote(String.fromCharCode(...bytes.subarray(at + 1, end))));
    at = end;
  }
  return texts.join(" ");
}
