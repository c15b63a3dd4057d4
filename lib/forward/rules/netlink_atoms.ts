/** Keys and values of sets as bytes: each field padded to whole 4-byte registers, as the packet path reads them. */
import { ipBytes, ipFromBytes } from "../../addr.ts";
import { fieldBytes, paddedBytes } from "../../linux/nftables/batch.ts";
import type { Atom, AtomType } from "./ruleset.ts";

const PROTOCOLS: Readonly<Record<string, number>> = { icmp: 1, tcp: 6, udp: 17 };
const PROTOCOL_NAMES: Readonly<Record<number, string>> = { 1: "icmp", 6: "tcp", 17: "udp" };

/** IANA's number of a protocol's name. */
export function protocolNumber(name: Atom): number {
  return PROTOCOLS[String(name)] ?? Number(name);
}

export function encodeAtoms(atoms: readonly Atom[], types: readonly AtomType[]): Uint8Array {
  if (types.length === 1) return encodeAtom(atoms[0]!, types[0]!);
  const out = new Uint8Array(types.reduce((sum, type) => sum + paddedBytes(type), 0));
  let at = 0;
  types.forEach((type, i) => {
    out.set(encodeAtom(atoms[i]!, type), at);
    at += paddedBytes(type);
  });
  return out;
}

/** The text form of elementKey and elementValue. */
export function decodeAtoms(bytes: Uint8Array, types: readonly AtomType[]): string {
  let at = 0;
  return types.map((type) => {
    const atom = decodeAtom(bytes.subarray(at, at + fieldBytes(type)), type);
    at += paddedBytes(type);
    return atom;
  }).join(" . ");
}

export function encodeAtom(atom: Atom, type: AtomType): Uint8Array {
  switch (type) {
    case "ipv4":
    case "ipv6":
      return ipBytes(String(atom));
    case "proto":
      return Uint8Array.of(protocolNumber(atom));
    case "port":
      return Uint8Array.of(Number(atom) >> 8, Number(atom) & 0xff);
    case "ifname": {
      const out = new Uint8Array(fieldBytes(type));
      out.set(new TextEncoder().encode(String(atom)).subarray(0, out.length - 1));
      return out;
    }
  }
}

function decodeAtom(bytes: Uint8Array, type: AtomType): string {
  switch (type) {
    case "ipv4":
    case "ipv6":
      return ipFromBytes(bytes);
    case "proto":
      return PROTOCOL_NAMES[bytes[0]!] ?? String(bytes[0]);
    case "port":
      return String(bytes[0]! << 8 | bytes[1]!);
    case "ifname": {
      const end = bytes.indexOf(0);
      return new TextDecoder().decode(end < 0 ? bytes : bytes.subarray(0, end));
    }
  }
}
