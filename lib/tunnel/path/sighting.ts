/**
 * The protocol of the observation port: "where do you see me?", for who knows a nonce that the server gave him over his
 * control connection. Pure bytes. TCP, so that it says where a TCP port is seen; not STUN, whose TCP answers anybody.
 *
 *     request   "EMO1" | nonce 16 bytes
 *     answer    "EMA1" | family u8 (4, 6) | 0 | port u16 | address 16 bytes (IPv4: 4, then zeros)
 *
 * Port and address are XORed with the nonce: NATs that rewrite addresses inside of packets must not find one (RFC 8489
 * does the same). Numbers are big-endian.
 */
import { familyOf, ipBytes, ipFromBytes } from "../../addr.ts";
import type { IpPort } from "../../net.ts";
import { NONCE_BYTES } from "../control/path_message.ts";

export const REQUEST_BYTES = 4 + NONCE_BYTES;
export const ANSWER_BYTES = 24;
const REQUEST_MAGIC = 0x454d4f31;
const ANSWER_MAGIC = 0x454d4131;

/** The request that shows `nonce` (hex). */
export function encodeRequest(nonce: string): Uint8Array {
  const bytes = new Uint8Array(REQUEST_BYTES);
  new DataView(bytes.buffer).setUint32(0, REQUEST_MAGIC);
  bytes.set(nonceBytes(nonce), 4);
  return bytes;
}

/** The nonce (hex) of a request; undefined for anything else. */
export function decodeRequest(bytes: Uint8Array): string | undefined {
  if (bytes.length !== REQUEST_BYTES) return undefined;
  if (new DataView(bytes.buffer, bytes.byteOffset).getUint32(0) !== REQUEST_MAGIC) return undefined;
  return Array.from(bytes.subarray(4), (byte) => byte.toString(16).padStart(2, "0")).join("");
}

/** The answer: where the sender of `nonce` is seen. */
export function encodeAnswer(nonce: string, seen: IpPort): Uint8Array {
  const bytes = new Uint8Array(ANSWER_BYTES);
  const view = new DataView(bytes.buffer);
  view.setUint32(0, ANSWER_MAGIC);
  bytes[4] = familyOf(seen.ip);
  view.setUint16(6, seen.port);
  bytes.set(ipBytes(seen.ip), 8);
  mask(bytes, nonceBytes(nonce));
  return bytes;
}

/** Where we are seen; undefined for anything else than an answer to our request. */
export function decodeAnswer(nonce: string, answer: Uint8Array): IpPort | undefined {
  if (answer.length !== ANSWER_BYTES) return undefined;
  const bytes = answer.slice();
  const view = new DataView(bytes.buffer);
  if (view.getUint32(0) !== ANSWER_MAGIC || bytes[5] !== 0) return undefined;
  mask(bytes, nonceBytes(nonce));
  const family = bytes[4];
  if (family !== 4 && family !== 6) return undefined;
  const port = view.getUint16(6);
  return port === 0 ? undefined : { ip: ipFromBytes(bytes.subarray(8, family === 4 ? 12 : 24)), port };
}

function mask(bytes: Uint8Array, nonce: Uint8Array): void {
  bytes[6]! ^= nonce[0]!;
  bytes[7]! ^= nonce[1]!;
  for (let i = 0; i < 16; i++) bytes[8 + i]! ^= nonce[i]!;
}

function nonceBytes(hex: string): Uint8Array {
  return Uint8Array.from({ length: NONCE_BYTES }, (_, i) => parseInt(hex.slice(2 * i, 2 * i + 2), 16));
}
