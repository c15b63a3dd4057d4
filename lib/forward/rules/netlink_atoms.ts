/** Keys and values of sets as bytes: each field padded to whole 4-byte registers, as the packet path reads them. */
import { ipBytes, ipFromBytes } from "../../addr.ts";
import { fieldBytes, paddedBytes } from "../../linux/nftables/batch.ts";
import type { Atom, AtomType } from "./ruleset.ts";

const PROTOCOLS: Readonly<Record<string, number>> = { icmp: 1, tcp: 6, udp: 17 };
const PROTOCOL_NAMES: Readonly<Record<number, string>> = { 1: "icmp", 6: "tcp", 17: "udp" };

function protocolNumber(name: Atom): number {
  return PROTOCOLS[String(name)] ?? Number(name);
}

export function encodeAtoms(atoms: readonly Atom[], types: readonly AtomType[]): Uint8Array {
  if (types.length === 1) return encodeAtom(atoms[0]!, types[0]!);
  let size = 0;
  for (const type of types) size += paddedBytes(type);
  const out = new Uint8Array(size);
  let at = 0;
  for (let i = 0; i < types.length; i++) {
    put(out, at, atoms[i]!, types[i]!);
    at += paddedBytes(types[i]!);
  }
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
  const out = new Uint8Array(fieldBytes(type));
  put(out, 0, atom, type);
  return out;
}

function put(out: Uint8Array, at: number, atom: Atom, type: AtomType): void {
  switch (type) {
    case "ipv4":
    case "ipv6":
      return out.set(ipBytes(String(atom)), at);
    case "proto":
      out[at] = protocolNumber(atom);
      return;
    case "port":
      out[at] = Number(atom) >> 8;
      out[at + 1] = Number(atom) & 0xff;
      return;
    case "u32": {
      // What numgen leaves in a register is in host order, least significant byte first.
      const value = Number(atom);
      for (let i = 0; i < 4; i++) out[at + i] = value >>> (8 * i) & 0xff;
      return;
    }
    case "ifname":
      new TextEncoder().encodeInto(String(atom), out.subarray(at, at + fieldBytes(type) - 1));
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
    case "u32":
      return String(new DataView(bytes.buffer, bytes.byteOffset).getUint32(0, true));
    case "ifname": {
      const end = bytes.indexOf(0);
      return new TextDecoder().decode(end < 0 ? bytes : bytes.subarray(0, end));
    }
  }
}
