/**
 * IP addresses and CIDRs as text in one canonical form. Everything that enters the product (metadata, configuration,
 * wire) passes {@link parseIp} once; from there on equal addresses are equal strings.
 */
import ipaddr from "ipaddr.js";

export type Family = 4 | 6;

/**
 * Canonical text of an address, or undefined if it is none. IPv4 must be four plain decimal parts without leading
 * zeros (CVE-2021-28918: other forms mean different addresses to different programs); IPv4-mapped IPv6 becomes IPv4.
 */
export function parseIp(text: string): string | undefined {
  if (ipaddr.IPv4.isValidFourPartDecimal(text)) {
    return text.split(".").some((part) => part.length > 1 && part.startsWith("0")) ? undefined : text;
  }
  if (!text.includes(":") || text.includes("%") || !ipaddr.IPv6.isValid(text)) return undefined;
  const v6 = ipaddr.IPv6.parse(text);
  return v6.isIPv4MappedAddress() ? v6.toIPv4Address().toString() : v6.toRFC5952String();
}

/** Family of a canonical address. */
export function familyOf(ip: string): Family {
  return ip.includes(":") ? 6 : 4;
}

/** The address's bytes in network order: 4 or 16. */
export function ipBytes(ip: string): Uint8Array {
  if (familyOf(ip) === 6) return Uint8Array.from(ipaddr.parse(ip).toByteArray());
  // By hand: this is asked per connection and, when rules are written, tens of thousands of times.
  const bytes = new Uint8Array(4);
  let part = 0;
  for (let i = 0; i < ip.length; i++) {
    const c = ip.charCodeAt(i);
    if (c === DOT) part++;
    else bytes[part] = bytes[part]! * 10 + c - ZERO;
  }
  return bytes;
}

const DOT = 46;
const ZERO = 48;

/** Canonical text of 4 or 16 bytes in network order. */
export function ipFromBytes(bytes: Uint8Array): string {
  if (bytes.length === 4) return `${bytes[0]}.${bytes[1]}.${bytes[2]}.${bytes[3]}`;
  const v6 = ipaddr.fromByteArray([...bytes]) as ipaddr.IPv6;
  return v6.isIPv4MappedAddress() ? v6.toIPv4Address().toString() : v6.toRFC5952String();
}

/** A network: its address with all host bits zero, and the length of the prefix. */
export interface Cidr {
  readonly ip: string;
  readonly bits: number;
}

/** Parses `10.96.0.0/12`; undefined if it is not a network (bad address, bad length, host bits set). */
export function parseCidr(text: string): Cidr | undefined {
  const slash = text.lastIndexOf("/");
  if (slash < 0) return undefined;
  const ip = parseIp(text.slice(0, slash));
  const length = text.slice(slash + 1);
  if (ip === undefined || !/^(0|[1-9]\d{0,2})$/.test(length)) return undefined;
  const bits = Number(length);
  if (bits > (familyOf(ip) === 4 ? 32 : 128)) return undefined;
  const bytes = ipBytes(ip);
  for (let i = 0; i < bytes.length; i++) {
    const keep = Math.max(0, Math.min(8, bits - i * 8));
    if (((bytes[i]! << keep) & 0xff) !== 0) return undefined;
  }
  return { ip, bits };
}

export function cidrText(cidr: Cidr): string {
  return `${cidr.ip}/${cidr.bits}`;
}

/** Whether a canonical address lies in a network. Different families never match. */
export function cidrContains(cidr: Cidr, ip: string): boolean {
  if (familyOf(cidr.ip) !== familyOf(ip)) return false;
  const net = ipBytes(cidr.ip);
  const bytes = ipBytes(ip);
  for (let i = 0; i * 8 < cidr.bits; i++) {
    const keep = Math.min(8, cidr.bits - i * 8);
    if ((net[i]! >> (8 - keep)) !== (bytes[i]! >> (8 - keep))) return false;
  }
  return true;
}

/** Whether an address can ever be an endpoint of somebody else: not loopback, link-local, multicast, unspecified, broadcast. */
export function isUnicastEndpoint(ip: string): boolean {
  const range = ipaddr.parse(ip).range();
  return range !== "loopback" && range !== "linkLocal" && range !== "multicast" && range !== "unspecified" &&
    range !== "broadcast";
}

/** Whether an address is from private space (RFC 1918, RFC 6598, ULA): it means something else on each site. */
export function isPrivate(ip: string): boolean {
  const range = ipaddr.parse(ip).range();
  return range === "private" || range === "uniqueLocal" || range === "carrierGradeNat";
}

/** `1.2.3.4:80`, `[fd00::1]:80`. */
export function hostPort(at: { readonly ip: string; readonly port: number }): string {
  return familyOf(at.ip) === 6 ? `[${at.ip}]:${at.port}` : `${at.ip}:${at.port}`;
}

/** Parses what {@link hostPort} prints; undefined if it is not that. */
export function parseHostPort(text: string): { ip: string; port: number } | undefined {
  const m = /^(?:\[([0-9a-fA-F:.]+)\]|([0-9.]+)):(\d{1,5})$/.exec(text);
  if (!m) return undefined;
  const ip = parseIp((m[1] ?? m[2])!);
  const port = Number(m[3]);
  return ip === undefined || port > 65535 || (m[1] !== undefined) !== (familyOf(ip) === 6) ? undefined : { ip, port };
}

const NODE_NAME = /^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?$/;

/** Whether a text is a node name: one RFC 1123 label. */
export function isNodeName(text: string): boolean {
  return NODE_NAME.test(text);
}
