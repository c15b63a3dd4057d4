/**
 * The frame codec of PROTOCOL.md §3: pure functions between values and bytes. Encoders write at a position of a given
 * array and return the number of payload bytes; decoders get exactly one payload and return undefined when it breaks
 * the layout. Only HELLO and OPEN, which come once per carrier and stream, make objects.
 */
import { ipBytes, ipFromBytes } from "../addr.ts";
import type { ServiceTarget } from "../net.ts";
import { FRAME_HEADER, MAX_BUILD, MAX_NAME, MAX_OFFSET } from "./constants.ts";

/** A frame with this bit is not part of the session's byte count and is never sent again. */
export const UNCOUNTED = 0x40;
/** A frame with this bit is skipped by a receiver that does not know its type; without it, it is a PROTOCOL error. */
export const IGNORABLE = 0x80;

/** Frame types. The two bits above are part of the number. */
export const TYPE = {
  OPEN: 0x01,
  OPEN_OK: 0x02,
  DATA: 0x03,
  CREDIT: 0x04,
  FIN: 0x05,
  RST: 0x06,
  FLOW_CLOSE: 0x07,
  HELLO: 0x40,
  RESUME: 0x41,
  ACK: 0x42,
  PING: 0x43,
  PONG: 0x44,
  GOAWAY: 0x45,
  DGRAM: 0x46,
} as const;

export const OFFSET_SIZE = 8;
export const REASON_SIZE = 2;
export const PING_SIZE = 16;
export const GOAWAY_SIZE = 3;
/** u16 datagram number, u16 length of the whole datagram, u16 offset of this piece. */
export const DGRAM_HEADER = 6;
const HELLO_FIXED = 45;
const OPEN_FIXED = 13;

export interface Hello {
  readonly versionMin: number;
  readonly versionMax: number;
  /** The sender has the initiator's role (odd stream ids, decides about carriers). */
  readonly initiator: boolean;
  /** The sender takes no new streams. */
  readonly draining: boolean;
  /** Number of this carrier, given by the initiator, rising; 0 from the acceptor. */
  readonly generation: number;
  /** Random number of the sender's session object: another number means that it lost its state. */
  readonly instance: number;
  /** The instance of the receiver as the sender knows it; 0 = not yet heard of. */
  readonly peerInstance: number;
  /** Counted bytes the sender has received from `peerInstance`. */
  readonly received: number;
  readonly maxStreams: number;
  readonly maxFlows: number;
  /** Bytes the sender keeps until acknowledged: acknowledge at least each quarter of it. */
  readonly retention: number;
  readonly build: string;
}

export interface Open {
  /** A flow of datagrams instead of a stream. */
  readonly flow: boolean;
  readonly target: ServiceTarget;
  /** Bytes of the other direction the opener can take before it sends CREDIT. */
  readonly window: number;
}

/** Writes a frame header at `at`; five plain arguments because it runs for each frame. */
export function putHeader(b: Uint8Array, at: number, type: number, id: number, length: number): void {
  b[at] = type;
  b[at + 1] = length >>> 16;
  b[at + 2] = length >>> 8;
  b[at + 3] = length;
  put32(b, at + 4, id);
}

export function put16(b: Uint8Array, at: number, n: number): void {
  b[at] = n >>> 8;
  b[at + 1] = n;
}

export function put32(b: Uint8Array, at: number, n: number): void {
  b[at] = n >>> 24;
  b[at + 1] = n >>> 16;
  b[at + 2] = n >>> 8;
  b[at + 3] = n;
}

/** Writes an integer below 2^53 as u64. */
export function put64(b: Uint8Array, at: number, n: number): void {
  put32(b, at, Math.floor(n / 0x1_0000_0000));
  put32(b, at + 4, n >>> 0);
}

export function get16(b: Uint8Array, at: number): number {
  return (b[at]! << 8) | b[at + 1]!;
}

export function get24(b: Uint8Array, at: number): number {
  return (b[at]! << 16) | (b[at + 1]! << 8) | b[at + 2]!;
}

export function get32(b: Uint8Array, at: number): number {
  return ((b[at]! << 24) | (b[at + 1]! << 16) | (b[at + 2]! << 8) | b[at + 3]!) >>> 0;
}

/** Reads a u64; -1 when it is 2^53 or more, which no valid frame holds. */
export function get64(b: Uint8Array, at: number): number {
  const n = get32(b, at) * 0x1_0000_0000 + get32(b, at + 4);
  return n > MAX_OFFSET ? -1 : n;
}

/** Bytes a HELLO payload takes. */
export function helloSize(hello: Hello): number {
  return HELLO_FIXED + buildBytes(hello.build).length;
}

export function encodeHello(b: Uint8Array, at: number, hello: Hello): number {
  const build = buildBytes(hello.build);
  b[at] = hello.versionMin;
  b[at + 1] = hello.versionMax;
  b[at + 2] = (hello.initiator ? 1 : 0) | (hello.draining ? 2 : 0);
  b[at + 3] = 0;
  put32(b, at + 4, hello.generation);
  put64(b, at + 8, hello.instance);
  put64(b, at + 16, hello.peerInstance);
  put64(b, at + 24, hello.received);
  put32(b, at + 32, hello.maxStreams);
  put32(b, at + 36, hello.maxFlows);
  put32(b, at + 40, hello.retention);
  b[at + 44] = build.length;
  b.set(build, at + HELLO_FIXED);
  return HELLO_FIXED + build.length;
}

/** Bytes after the known fields belong to later versions and are ignored. */
export function decodeHello(p: Uint8Array): Hello | undefined {
  if (p.length < HELLO_FIXED) return undefined;
  const buildLength = p[44]!;
  const instance = get64(p, 8);
  const peerInstance = get64(p, 16);
  const received = get64(p, 24);
  if (p.length < HELLO_FIXED + buildLength || buildLength > MAX_BUILD) return undefined;
  if (instance <= 0 || peerInstance < 0 || received < 0 || p[0]! > p[1]!) return undefined;
  return {
    versionMin: p[0]!,
    versionMax: p[1]!,
    initiator: (p[2]! & 1) !== 0,
    draining: (p[2]! & 2) !== 0,
    generation: get32(p, 4),
    instance,
    peerInstance,
    received,
    maxStreams: get32(p, 32),
    maxFlows: get32(p, 36),
    retention: get32(p, 40),
    build: text(p, HELLO_FIXED, buildLength),
  };
}

/** Bytes an OPEN payload takes; undefined if a name or address cannot be written. */
export function openSize(target: ServiceTarget): number | undefined {
  const names = target.namespace.length + target.service.length;
  if (!isName(target.namespace) || !isName(target.service)) return undefined;
  return OPEN_FIXED + (target.endpoint.ip.includes(":") ? 16 : 4) + names;
}

/** Encodes an OPEN whose target {@link openSize} accepted. */
export function encodeOpen(b: Uint8Array, at: number, open: Open): number {
  const { target } = open;
  const ip = ipBytes(target.endpoint.ip);
  let o = at;
  b[o] = open.flow ? 1 : 0;
  b[o + 1] = target.protocol === "TCP" ? 6 : 17;
  put16(b, o + 2, target.port);
  put16(b, o + 4, target.endpoint.port);
  put32(b, o + 6, open.window);
  b[o + 10] = ip.length;
  b.set(ip, o + 11);
  o = putName(b, o + 11 + ip.length, target.namespace);
  return putName(b, o, target.service) - at;
}

/**
 * Bytes after the known fields belong to later versions and are ignored. `node` becomes the target's node: an OPEN
 * always means an endpoint at its receiver.
 */
export function decodeOpen(p: Uint8Array, node: string | undefined): Open | undefined {
  if (p.length < OPEN_FIXED) return undefined;
  const flow = p[0]!;
  const ipLength = p[10]!;
  const protocol = p[1] === 6 ? "TCP" : p[1] === 17 ? "UDP" : undefined;
  const port = get16(p, 2);
  const endpointPort = get16(p, 4);
  if (flow > 1 || protocol === undefined || (ipLength !== 4 && ipLength !== 16)) return undefined;
  if ((flow === 1) !== (protocol === "UDP") || port === 0 || endpointPort === 0) return undefined;
  const namespace = getName(p, 11 + ipLength);
  if (namespace === undefined) return undefined;
  const service = getName(p, 12 + ipLength + namespace.length);
  if (service === undefined) return undefined;
  return {
    flow: flow === 1,
    window: get32(p, 6),
    target: {
      namespace,
      service,
      protocol,
      port,
      node,
      endpoint: { ip: ipFromBytes(p.subarray(11, 11 + ipLength)), port: endpointPort },
    },
  };
}

/** Whether a type is one of {@link TYPE}. */
export function isKnownType(type: number): boolean {
  return KNOWN[type] === 1;
}

/** A whole frame in an array of its own: for handshakes and tests, not for the hot path. */
export function frameBytes(type: number, id: number, payload: Uint8Array): Uint8Array {
  const b = new Uint8Array(FRAME_HEADER + payload.length);
  putHeader(b, 0, type, id, payload.length);
  b.set(payload, FRAME_HEADER);
  return b;
}

const KNOWN = new Uint8Array(256);
for (const type of Object.values(TYPE)) KNOWN[type] = 1;

function buildBytes(build: string): Uint8Array {
  return new TextEncoder().encode(build).subarray(0, MAX_BUILD);
}

function text(b: Uint8Array, at: number, length: number): string {
  return new TextDecoder().decode(b.subarray(at, at + length));
}

/** Names on the wire are visible ASCII, 1 to 253 bytes; what they mean is for the receiver's metadata to say. */
function isName(name: string): boolean {
  return name.length <= MAX_NAME && /^[\x21-\x7e]+$/.test(name);
}

function putName(b: Uint8Array, at: number, name: string): number {
  b[at] = name.length;
  for (let i = 0; i < name.length; i++) b[at + 1 + i] = name.charCodeAt(i);
  return at + 1 + name.length;
}

function getName(p: Uint8Array, at: number): string | undefined {
  const length = p[at];
  if (length === undefined || length === 0 || at + 1 + length > p.length) return undefined;
  let name = "";
  for (let i = at + 1; i <= at + length; i++) name += String.fromCharCode(p[i]!);
  return isName(name) ? name : undefined;
}
