/**
 * The metadata protocol between server and agent, carried as opaque messages on the control connection (which keeps
 * their order and boundaries). Version 1:
 *
 * ```
 * agent → server   1 HELLO    JSON {v, have?: [source, epoch, number]}      once, first
 * server → agent   2 WELCOME  JSON {v, s: source, e: epoch}                 once, answer to HELLO
 * server → agent   3 UNIT     flags (1 first, 2 last part), bytes           parts of one unit, in order
 * agent → server   4 ACK      u32 count of UNIT messages processed so far   credit and progress
 * ```
 *
 * A unit is JSON. The first unit of an update says what it is: `{k:"f", t}` a complete state with number t, or
 * `{k:"d", f, t}` the difference from number f to t; `i` holds items; `m:1` says that the update goes on in the next
 * unit. Items: `[kind, object]` put, `[kind, key]` removed, `[kind, key, patch]` a slice changed in part. Numbers are
 * within the source and epoch of WELCOME. Unknown members, kinds and trailing positions are ignored by readers.
 */
import { MeshError } from "../../errors.ts";
import type { MetaVersion } from "../model.ts";

/** Version of this protocol; HELLO and WELCOME carry it, the lower one is spoken. */
export const META_PROTOCOL = 1;
/** Largest message: as much as fits a frame of the control connection beside its header. */
export const MAX_META_MESSAGE = 16 * 1024 - 64;
/** Largest unit. One object must fit: a route of 256 KiB or a slice of 1 000 endpoints. */
export const MAX_UNIT = 1024 * 1024;
/** UNIT messages the server may have sent beyond the last ACK: what a slow agent holds in flight at most. */
export const WINDOW_MESSAGES = 16;
/** An agent acknowledges at the end of an update and at least after this many messages. */
export const ACK_EVERY = 4;
/** Shortest time between the starts of two updates to one agent. */
export const COALESCE_MS = 100;

export type MetaMessage =
  | { readonly type: "hello"; readonly protocol: number; readonly have: MetaVersion | undefined }
  | { readonly type: "welcome"; readonly protocol: number; readonly source: string; readonly epoch: string }
  | { readonly type: "unit"; readonly first: boolean; readonly last: boolean; readonly bytes: Uint8Array }
  | { readonly type: "ack"; readonly messages: number };

const TYPE = { hello: 1, welcome: 2, unit: 3, ack: 4 } as const;
const FIRST = 1;
const LAST = 2;
const UNIT_HEADER = 2;
const MAX_ID = 128;

const encoder = new TextEncoder();
const decoder = new TextDecoder("utf-8", { fatal: true });

export function encodeHello(have: MetaVersion | undefined): Uint8Array {
  const known = have && have.source !== "" ? [have.source, have.epoch, have.number] : undefined;
  return control(TYPE.hello, { v: META_PROTOCOL, have: known });
}

export function encodeWelcome(source: string, epoch: string): Uint8Array {
  return control(TYPE.welcome, { v: META_PROTOCOL, s: source, e: epoch });
}

export function encodeAck(messages: number): Uint8Array {
  const out = new Uint8Array(5);
  out[0] = TYPE.ack;
  new DataView(out.buffer).setUint32(1, messages >>> 0);
  return out;
}

/** Cuts a unit's text into messages. */
export function encodeUnit(text: string): Uint8Array[] {
  const bytes = encoder.encode(text);
  const out: Uint8Array[] = [];
  const room = MAX_META_MESSAGE - UNIT_HEADER;
  for (let from = 0; from === 0 || from < bytes.length; from += room) {
    const part = bytes.subarray(from, from + room);
    const message = new Uint8Array(UNIT_HEADER + part.length);
    message[0] = TYPE.unit;
    message[1] = (from === 0 ? FIRST : 0) | (from + room >= bytes.length ? LAST : 0);
    message.set(part, UNIT_HEADER);
    out.push(message);
  }
  return out;
}

/** Reads a message; undefined for a type of a later version. Throws MeshError PROTOCOL for one that breaks the rules. */
export function decodeMessage(bytes: Uint8Array): MetaMessage | undefined {
  if (bytes.length === 0 || bytes.length > MAX_META_MESSAGE) throw broken(`a message of ${bytes.length} bytes`);
  switch (bytes[0]) {
    case TYPE.hello: {
      const body = parse(bytes.subarray(1));
      return { type: "hello", protocol: number(body.v), have: versionOf(body.have) };
    }
    case TYPE.welcome: {
      const body = parse(bytes.subarray(1));
      return { type: "welcome", protocol: number(body.v), source: id(body.s), epoch: id(body.e) };
    }
    case TYPE.unit: {
      if (bytes.length < UNIT_HEADER) throw broken("a unit without flags");
      const flags = bytes[1]!;
      return {
        type: "unit",
        first: (flags & FIRST) !== 0,
        last: (flags & LAST) !== 0,
        bytes: bytes.subarray(UNIT_HEADER),
      };
    }
    case TYPE.ack: {
      if (bytes.length !== 5) throw broken("an acknowledgement of wrong length");
      return { type: "ack", messages: new DataView(bytes.buffer, bytes.byteOffset).getUint32(1) };
    }
    default:
      return undefined;
  }
}

/** What a unit says, items still raw. */
export interface Unit {
  /** Only in the first unit of an update. */
  readonly begin: { readonly full: boolean; readonly from: number; readonly to: number } | undefined;
  readonly items: readonly unknown[];
  readonly more: boolean;
}

export function decodeUnit(bytes: Uint8Array): Unit {
  const body = parse(bytes);
  if (!Array.isArray(body.i)) throw broken("a unit without items");
  const begin = body.k === undefined
    ? undefined
    : body.k === "f"
    ? { full: true, from: 0, to: number(body.t) }
    : body.k === "d"
    ? { full: false, from: number(body.f), to: number(body.t) }
    : undefined;
  if (body.k !== undefined && !begin) throw broken(`an update of kind ${JSON.stringify(body.k)}`);
  return { begin, items: body.i, more: body.m === 1 };
}

/** The error for a peer that breaks the metadata protocol. */
export function broken(what: string): MeshError {
  return new MeshError("PROTOCOL", `Metadata peer sent ${what}`);
}

function control(type: number, body: unknown): Uint8Array {
  const json = encoder.encode(JSON.stringify(body));
  const out = new Uint8Array(1 + json.length);
  out[0] = type;
  out.set(json, 1);
  return out;
}

function parse(bytes: Uint8Array): Record<string, unknown> {
  let value: unknown;
  try {
    value = JSON.parse(decoder.decode(bytes));
  } catch {
    throw broken("text that is not JSON");
  }
  if (typeof value !== "object" || value === null || Array.isArray(value)) throw broken("JSON that is not an object");
  return value as Record<string, unknown>;
}

function number(value: unknown): number {
  if (typeof value === "number" && Number.isSafeInteger(value) && value >= 0) return value;
  throw broken("a number that is none");
}

function id(value: unknown): string {
  if (typeof value === "string" && value.length > 0 && value.length <= MAX_ID) return value;
  throw broken("an identifier that is none");
}

function versionOf(value: unknown): MetaVersion | undefined {
  if (value === undefined || value === null) return undefined;
  if (!Array.isArray(value)) throw broken("a version that is none");
  return { source: id(value[0]), epoch: id(value[1]), number: number(value[2]) };
}
