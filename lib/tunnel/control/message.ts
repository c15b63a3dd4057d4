/**
 * Messages of the control connection between an agent and a server: bytes ↔ values, nothing else. One WebSocket binary
 * message holds one of them: a type byte, then the body. Layouts and limits: PROTOCOL.md, "Control connection and
 * relay". Channel frames (types 0x10–0x13) are the relay's and are read in relay/frames.ts without making objects.
 *
 * The rare messages have a JSON body so that a version can add a member that an older one ignores; members that are
 * known are checked for shape and size here, by hand, because a decoder at the border of trust must be readable.
 */
import { MeshError, type ReasonCode, reasonCode, reasonNumber } from "../../errors.ts";
import { isNodeName, parseIp } from "../../addr.ts";
import type { IpPort } from "../../net.ts";
import { type AuthoritiesMessage, MAX_AUTHORITIES_BODY, readAuthorities } from "./authority_message.ts";
import { type LegMessage, MAX_LEG_BODY, readLegMessage } from "./leg_message.ts";
import { MAX_PATH_BODY, type PathMessage, type PathMessageType, readPathMessage } from "./path_message.ts";

/** Version of the control protocol. A server speaks to agents of the same version only; HELLO is how both know. */
export const CONTROL_VERSION = 1;

/** Type byte of each message. Numbers are never reused. */
export const CONTROL = {
  HELLO: 0x01,
  WELCOME: 0x02,
  PEERS: 0x03,
  META: 0x04,
  RENEW: 0x05,
  RENEWED: 0x06,
  REVOCATIONS: 0x07,
  PING: 0x08,
  PONG: 0x09,
  GOAWAY: 0x0a,
  CANDIDATES: 0x0b,
  OBSERVE: 0x0c,
  MEET: 0x0d,
  ADDRESSES: 0x0e,
  PUNCH: 0x0f,
  UNMET: 0x20,
  LEG_ASK: 0x21,
  LEG: 0x22,
  AUTHORITIES: 0x23,
} as const;

const PATH_TYPES: Readonly<Record<PathMessageType, number>> = {
  candidates: CONTROL.CANDIDATES,
  observe: CONTROL.OBSERVE,
  meet: CONTROL.MEET,
  addresses: CONTROL.ADDRESSES,
  punch: CONTROL.PUNCH,
  unmet: CONTROL.UNMET,
};
const PATH_NAMES = new Map(Object.entries(PATH_TYPES).map(([name, type]) => [type, name as PathMessageType]));

/** Largest body of a message with a JSON body: 4 000 node names fit into one PEERS; more are sent in several. */
export const MAX_JSON = 262_144;
/** Largest body of REVOCATIONS: the identity module allows 10 000 entries, about 1.5 MB. */
export const MAX_REVOCATIONS_BYTES = 2 * 1024 * 1024;
/** Payload of one META frame; a longer message is sent in several, so that pings and channels get between them. */
export const META_CHUNK = 16_384;
/** Largest body of RENEW and RENEWED: what the identity module reads as an answer. */
export const MAX_RENEW = 65_536;
/** Names in one PEERS message. */
export const MAX_PEERS = 4096;
/** Names in `features`, and the longest of them. */
const MAX_FEATURES = 32;
const MAX_TEXT = 512;

export interface Hello {
  readonly type: "hello";
  readonly protocol: number;
  readonly node: string;
  /** Product version, for status and logs. */
  readonly version: string;
  /** Random per start of the agent: tells a restart from a second machine of the same name. */
  readonly boot: string;
  /** Optional parts of the protocol that the agent speaks; messages of a part go only to who named it. */
  readonly features: readonly string[];
}

export interface Welcome {
  readonly type: "welcome";
  readonly protocol: number;
  /** The server's own name. */
  readonly server: string;
  /** Product version of the server. */
  readonly version: string;
  /** Server's wall clock in milliseconds. */
  readonly time: number;
  /** Where the server sees this connection come from. */
  readonly observed: IpPort;
  /** What the server sets for its agents; checked by whoever uses it. */
  readonly config: Readonly<Record<string, unknown>>;
  /** Optional parts of the protocol that the server speaks. */
  readonly features: readonly string[];
}

/** Who is connected to the server, of those the agent may see. `full`: nobody else is. */
export interface Peers {
  readonly type: "peers";
  readonly full: boolean;
  readonly online: readonly string[];
  readonly offline: readonly string[];
}

export type ControlMessage =
  | Hello
  | Welcome
  | Peers
  | { readonly type: "meta"; readonly last: boolean; readonly bytes: Uint8Array }
  | { readonly type: "renew"; readonly id: number; readonly body: string }
  | { readonly type: "renewed"; readonly id: number; readonly body: string }
  | { readonly type: "revocations"; readonly list: unknown }
  | { readonly type: "ping"; readonly stamp: number }
  | { readonly type: "pong"; readonly stamp: number; readonly time: number }
  | { readonly type: "goaway"; readonly code: ReasonCode; readonly message: string }
  | PathMessage
  | LegMessage
  | AuthoritiesMessage;

const encoder = new TextEncoder();
const decoder = new TextDecoder("utf-8", { fatal: true });

/** The bytes of a message. Throws MeshError LIMIT when a body is above its cap. */
export function encodeControl(m: ControlMessage): Uint8Array {
  switch (m.type) {
    case "hello": {
      const { type: _, ...body } = m;
      return json(CONTROL.HELLO, body, MAX_JSON);
    }
    case "welcome": {
      const { type: _, ...body } = m;
      return json(CONTROL.WELCOME, body, MAX_JSON);
    }
    case "peers": {
      const { type: _, ...body } = m;
      return json(CONTROL.PEERS, body, MAX_JSON);
    }
    case "meta":
      return frame(CONTROL.META, 1, m.bytes, META_CHUNK, (v) => v.setUint8(1, m.last ? 1 : 0));
    case "renew":
      return frame(CONTROL.RENEW, 4, encoder.encode(m.body), MAX_RENEW, (v) => v.setUint32(1, m.id));
    case "renewed":
      return frame(CONTROL.RENEWED, 4, encoder.encode(m.body), MAX_RENEW, (v) => v.setUint32(1, m.id));
    case "revocations":
      return json(CONTROL.REVOCATIONS, m.list, MAX_REVOCATIONS_BYTES);
    case "ping":
      return frame(CONTROL.PING, 8, NOTHING, 0, (v) => v.setFloat64(1, m.stamp));
    case "pong":
      return frame(CONTROL.PONG, 16, NOTHING, 0, (v) => {
        v.setFloat64(1, m.stamp);
        v.setFloat64(9, m.time);
      });
    case "goaway":
      return frame(CONTROL.GOAWAY, 2, cut(m.message), MAX_TEXT, (v) => {
        v.setUint16(1, reasonNumber(m.code));
      });
    case "candidates":
    case "observe":
    case "meet":
    case "addresses":
    case "unmet":
    case "punch": {
      const { type, ...body } = m;
      return json(PATH_TYPES[type], body, MAX_PATH_BODY);
    }
    case "authorities": {
      const { type: _, ...body } = m;
      return json(CONTROL.AUTHORITIES, body, MAX_AUTHORITIES_BODY);
    }
    case "leg-ask":
    case "leg": {
      const { type, ...body } = m;
      return json(type === "leg" ? CONTROL.LEG : CONTROL.LEG_ASK, body, MAX_LEG_BODY);
    }
  }
}

/** Reads one message. Views into `bytes` are handed out. Throws MeshError PROTOCOL for anything else than a message. */
export function decodeControl(bytes: Uint8Array): ControlMessage {
  const v = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  switch (bytes[0]) {
    case CONTROL.HELLO:
      return hello(members(bytes, MAX_JSON));
    case CONTROL.WELCOME:
      return welcome(members(bytes, MAX_JSON));
    case CONTROL.PEERS:
      return peers(members(bytes, MAX_JSON));
    case CONTROL.META: {
      const body = rest(bytes, 2, META_CHUNK);
      if (bytes[1]! > 1) throw bad("META with unknown flags");
      return { type: "meta", last: bytes[1] === 1, bytes: body };
    }
    case CONTROL.RENEW:
    case CONTROL.RENEWED: {
      const body = text(rest(bytes, 5, MAX_RENEW));
      return { type: bytes[0] === CONTROL.RENEW ? "renew" : "renewed", id: v.getUint32(1), body };
    }
    case CONTROL.REVOCATIONS:
      return { type: "revocations", list: parse(bytes, MAX_REVOCATIONS_BYTES) };
    case CONTROL.PING:
      exactly(bytes, 9);
      return { type: "ping", stamp: finite(v.getFloat64(1)) };
    case CONTROL.PONG:
      exactly(bytes, 17);
      return { type: "pong", stamp: finite(v.getFloat64(1)), time: finite(v.getFloat64(9)) };
    case CONTROL.GOAWAY: {
      const message = text(rest(bytes, 3, MAX_TEXT));
      return { type: "goaway", code: reasonCode(v.getUint16(1)), message };
    }
    case CONTROL.CANDIDATES:
    case CONTROL.OBSERVE:
    case CONTROL.MEET:
    case CONTROL.ADDRESSES:
    case CONTROL.PUNCH:
    case CONTROL.UNMET:
      return readPathMessage(PATH_NAMES.get(bytes[0])!, members(bytes, MAX_PATH_BODY));
    case CONTROL.AUTHORITIES:
      return readAuthorities(members(bytes, MAX_AUTHORITIES_BODY));
    case CONTROL.LEG_ASK:
    case CONTROL.LEG:
      return readLegMessage(bytes[0] === CONTROL.LEG ? "leg" : "leg-ask", members(bytes, MAX_LEG_BODY));
    default:
      throw bad(bytes.length === 0 ? "an empty message" : `a message of type 0x${bytes[0]!.toString(16)}`);
  }
}

const NOTHING = new Uint8Array(0);
const ELLIPSIS: Uint8Array = encoder.encode("…");

function frame(type: number, head: number, body: Uint8Array, max: number, fill: (v: DataView) => void): Uint8Array {
  if (body.length > max) throw tooLong(type, body.length, max);
  const out = new Uint8Array(1 + head + body.length);
  out[0] = type;
  fill(new DataView(out.buffer));
  out.set(body, 1 + head);
  return out;
}

function json(type: number, value: unknown, max: number): Uint8Array {
  return frame(type, 0, encoder.encode(JSON.stringify(value)), max, () => {});
}

/** As much of the text as may be sent, whole characters only; an ellipsis says that more was said. */
function cut(message: string): Uint8Array {
  const whole = encoder.encode(message);
  if (whole.length <= MAX_TEXT) return whole;
  const room = new Uint8Array(MAX_TEXT);
  const { written } = encoder.encodeInto(message, room.subarray(0, MAX_TEXT - ELLIPSIS.length));
  room.set(ELLIPSIS, written);
  return room.subarray(0, written + ELLIPSIS.length);
}

function tooLong(type: number, length: number, max: number): MeshError {
  return new MeshError("LIMIT", `Control message 0x${type.toString(16)} has ${length} bytes, ${max} are allowed`);
}

function bad(what: string): MeshError {
  return new MeshError("PROTOCOL", `Control connection got ${what}`);
}

function exactly(bytes: Uint8Array, length: number): void {
  if (bytes.length !== length) throw bad(`a message 0x${bytes[0]!.toString(16)} of ${bytes.length} bytes`);
}

function rest(bytes: Uint8Array, head: number, max: number): Uint8Array {
  if (bytes.length < head || bytes.length - head > max) {
    throw bad(`a message 0x${bytes[0]!.toString(16)} of ${bytes.length} bytes`);
  }
  return bytes.subarray(head);
}

function text(bytes: Uint8Array): string {
  try {
    return decoder.decode(bytes);
  } catch {
    throw bad("text that is not UTF-8");
  }
}

function finite(n: number): number {
  if (!Number.isFinite(n)) throw bad("a time that is not a number");
  return n;
}

function parse(bytes: Uint8Array, max: number): unknown {
  const body = text(rest(bytes, 1, max));
  try {
    return JSON.parse(body);
  } catch {
    throw bad("a body that is not JSON");
  }
}

type Members = Readonly<Record<string, unknown>>;

function members(bytes: Uint8Array, max: number): Members {
  return record(parse(bytes, max), "body");
}

function record(value: unknown, name: string): Members {
  if (typeof value !== "object" || value === null || Array.isArray(value)) throw bad(`${name} that is not an object`);
  return value as Members;
}

function hello(m: Members): Hello {
  return {
    type: "hello",
    protocol: whole(m, "protocol", 65535),
    node: nodeName(m["node"]),
    version: shortText(m, "version"),
    boot: shortText(m, "boot"),
    features: features(m),
  };
}

function welcome(m: Members): Welcome {
  const observed = record(m["observed"], "observed");
  const ip = typeof observed["ip"] === "string" ? parseIp(observed["ip"]) : undefined;
  if (ip === undefined) throw bad("an observed address that is none");
  return {
    type: "welcome",
    protocol: whole(m, "protocol", 65535),
    server: nodeName(m["server"]),
    version: shortText(m, "version"),
    time: whole(m, "time", Number.MAX_SAFE_INTEGER),
    observed: { ip, port: whole(observed, "port", 65535) },
    config: record(m["config"], "config"),
    features: features(m),
  };
}

/** Absent in builds that had none. */
function features(m: Members): readonly string[] {
  const value = m["features"] ?? [];
  if (!Array.isArray(value) || value.length > MAX_FEATURES) throw bad("features that are no list, or too many");
  if (!value.every((f) => typeof f === "string" && f.length <= 64)) throw bad("a feature that is no short text");
  return value as string[];
}

function peers(m: Members): Peers {
  if (typeof m["full"] !== "boolean") throw bad("PEERS without full");
  return { type: "peers", full: m["full"], online: names(m["online"]), offline: names(m["offline"]) };
}

function names(value: unknown): readonly string[] {
  if (!Array.isArray(value) || value.length > MAX_PEERS) throw bad("a list of peers that is none or too long");
  return value.map(nodeName);
}

function nodeName(value: unknown): string {
  if (typeof value !== "string" || !isNodeName(value)) throw bad("a name that is not a node's");
  return value;
}

function shortText(m: Members, name: string): string {
  const value = m[name];
  if (typeof value !== "string" || value.length > 64) throw bad(`${name} that is no short text`);
  return value;
}

function whole(m: Members, name: string, max: number): number {
  const value = m[name];
  if (typeof value !== "number" || !Number.isSafeInteger(value) || value < 0 || value > max) {
    throw bad(`${name} that is no number from 0 to ${max}`);
  }
  return value;
}
