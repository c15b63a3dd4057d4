/**
 * The first bytes on a connection between two agents, before TLS. Whoever listens says nothing at all until they are
 * right: a scanner finds a port that accepts and stays mute, and costs no TLS handshake. It is a filter against noise,
 * no secret: the key is made from the authority's public key, and mutual TLS alone decides who is let in.
 *
 *     magic u32 "EMK1" | random 12 bytes | HMAC-SHA256(key, random | node that is meant), first 16 bytes
 *
 * The name of the node that is meant is in it, so that an agent that has another's old address stays mute, too.
 */
import { createHmac, randomBytes, timingSafeEqual } from "node:crypto";

export const KNOCK_BYTES = 32;
const MAGIC = 0x454d4b31;
const RANDOM_END = 16;

const encoder = new TextEncoder();

/** The knock on the door of `node`. `key` is one of those of the mesh; see {@link isKnock}. */
export function makeKnock(key: Uint8Array, node: string): Uint8Array {
  const knock = new Uint8Array(KNOCK_BYTES);
  new DataView(knock.buffer).setUint32(0, MAGIC);
  knock.set(randomBytes(RANDOM_END - 4), 4);
  knock.set(seal(key, knock, node), RANDOM_END);
  return knock;
}

/** Whether these {@link KNOCK_BYTES} bytes are a knock meant for `node`, by any of the mesh's keys. */
export function isKnock(keys: readonly Uint8Array[], knock: Uint8Array, node: string): boolean {
  if (knock.length !== KNOCK_BYTES) return false;
  if (new DataView(knock.buffer, knock.byteOffset).getUint32(0) !== MAGIC) return false;
  return keys.some((key) => timingSafeEqual(seal(key, knock, node), knock.subarray(RANDOM_END)));
}

function seal(key: Uint8Array, knock: Uint8Array, node: string): Uint8Array {
  const hmac = createHmac("sha256", key).update(knock.subarray(4, RANDOM_END)).update(encoder.encode(node));
  return new Uint8Array(hmac.digest()).subarray(0, KNOCK_BYTES - RANDOM_END);
}
