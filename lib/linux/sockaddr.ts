/** `struct sockaddr_in` and `sockaddr_in6`: between the kernel's bytes and {@link IpPort}. */
import { familyOf, ipBytes, ipFromBytes } from "../addr.ts";
import { MeshError } from "../errors.ts";
import type { IpPort } from "../net.ts";
import { AF_INET, AF_INET6, STRUCT } from "./structs.ts";

const V4 = STRUCT.sockaddr_in;
const V6 = STRUCT.sockaddr_in6;

/** Room for any address: the larger of the two, rounded up to a multiple of 4. */
export const SOCKADDR_MAX = V6.size;

/** The address family of a canonical IP address. */
export function addressFamily(ip: string): typeof AF_INET | typeof AF_INET6 {
  return familyOf(ip) === 6 ? AF_INET6 : AF_INET;
}

/** Writes `to` into `bytes` at `offset`; returns its length there. */
export function putSockaddr(bytes: Uint8Array, offset: number, to: IpPort): number {
  const ip = ipBytes(to.ip);
  const layout = ip.length === 4 ? V4 : V6;
  bytes.fill(0, offset, offset + layout.size);
  bytes[offset] = ip.length === 4 ? AF_INET : AF_INET6;
  bytes[offset + layout.at.port] = to.port >>> 8;
  bytes[offset + layout.at.port + 1] = to.port & 255;
  bytes.set(ip, offset + layout.at.addr);
  return layout.size;
}

/** Reads an address; throws MeshError INTERNAL when it is of another family. */
export function getSockaddr(bytes: Uint8Array, offset = 0): IpPort {
  const family = bytes[offset]!;
  if (family !== AF_INET && family !== AF_INET6) throw new MeshError("INTERNAL", `Unknown address family ${family}`);
  const layout = family === AF_INET ? V4 : V6;
  const port = (bytes[offset + layout.at.port]! << 8) | bytes[offset + layout.at.port + 1]!;
  const at = offset + layout.at.addr;
  return { ip: family === AF_INET ? textOf4(bytes, at) : ipFromBytes(bytes.subarray(at, at + 16)), port };
}

/** Clients come again: their text is made once, and tables that are asked for it need not hash it anew. */
const TEXTS_MAX = 1024;
const texts4 = new Map<number, string>();

function textOf4(bytes: Uint8Array, at: number): string {
  const word = bytes[at]! << 24 | bytes[at + 1]! << 16 | bytes[at + 2]! << 8 | bytes[at + 3]!;
  let text = texts4.get(word);
  if (text === undefined) {
    if (texts4.size === TEXTS_MAX) texts4.clear();
    texts4.set(word, text = `${word >>> 24}.${word >>> 16 & 255}.${word >>> 8 & 255}.${word & 255}`);
  }
  return text;
}
