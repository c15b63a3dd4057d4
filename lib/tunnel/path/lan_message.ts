/**
 * Datagrams by which agents of one LAN find each other without a server. Pure bytes. They are believed no further than
 * that somebody there may be worth dialling: mutual TLS proves who it is. Names do not travel: each is an HMAC under a
 * key of the mesh, so that others on the LAN learn neither which nodes there are nor whose.
 *
 *     magic u32 "EMD1" | count u8 | 0 u8 | port u16 | tag of the sender 16 bytes | count × tag of a node that is sought
 *
 * Every datagram says where its sender listens; port 0 = nowhere. Numbers are big-endian.
 */
import { createHmac } from "node:crypto";

const MAGIC = 0x454d4431;
const HEADER = 8;
export const TAG_BYTES = 16;
/** Nodes sought by one datagram. */
export const MAX_SOUGHT = 16;
export const MAX_LAN_MESSAGE = HEADER + TAG_BYTES * (1 + MAX_SOUGHT);

export interface LanMessage {
  /** Where the sender's listener is; 0: it has none. */
  readonly port: number;
  /** Tags as hex. */
  readonly from: string;
  readonly sought: readonly string[];
}

/** The tag of a node under a key of the mesh, as hex. */
export function tagOf(key: Uint8Array, node: string): string {
  return createHmac("sha256", key).update(`edgemesh lan ${node}`).digest("hex").slice(0, 2 * TAG_BYTES);
}

export function encodeLan(m: LanMessage): Uint8Array {
  const bytes = new Uint8Array(HEADER + TAG_BYTES * (1 + m.sought.length));
  const view = new DataView(bytes.buffer);
  view.setUint32(0, MAGIC);
  bytes[4] = m.sought.length;
  view.setUint16(6, m.port);
  for (const [i, tag] of [m.from, ...m.sought].entries()) {
    for (let k = 0; k < TAG_BYTES; k++) {
      bytes[HEADER + i * TAG_BYTES + k] = parseInt(tag.slice(2 * k, 2 * k + 2), 16);
    }
  }
  return bytes;
}

/** Reads the first `length` bytes; undefined for anything else than such a datagram. */
export function decodeLan(bytes: Uint8Array, length: number): LanMessage | undefined {
  if (length < HEADER + TAG_BYTES || length > MAX_LAN_MESSAGE || bytes[5] !== 0) return undefined;
  const view = new DataView(bytes.buffer, bytes.byteOffset, length);
  const count = bytes[4]!;
  if (view.getUint32(0) !== MAGIC || length !== HEADER + TAG_BYTES * (1 + count)) return undefined;
  const tags = Array.from({ length: 1 + count }, (_, i) => hex(bytes, HEADER + i * TAG_BYTES));
  return { port: view.getUint16(6), from: tags[0]!, sought: tags.slice(1) };
}

function hex(bytes: Uint8Array, at: number): string {
  let text = "";
  for (let i = at; i < at + TAG_BYTES; i++) text += bytes[i]!.toString(16).padStart(2, "0");
  return text;
}
