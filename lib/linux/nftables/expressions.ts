/**
 * The expressions of rules that the product uses, each as one function over an {@link ExpressionWriter} inside a rule's
 * expression list. Registers are the 4-byte ones of the kernel: a value of n bytes takes ⌈n/4⌉ from its first.
 */
import { DATA, EXPR, LIST_ELEM, VERDICT, VERDICTS } from "./constants.ts";
import type { MessageBuilder } from "../netlink_message.ts";

/** Where expressions are written: inside a rule's expression list. */
export type ExpressionWriter = MessageBuilder;

/** NFT_REG32_00: sixteen 4-byte registers follow each other. */
export const REGISTER_0 = 8;
export const REGISTERS = 16;
const REGISTER_VERDICT = 0;

/** Keys of `meta`. */
export const META = { IIFNAME: 6, OIFNAME: 7, NFPROTO: 15, L4PROTO: 16 } as const;
/** Keys of `ct`; the addresses and ports are of the original direction. */
export const CT = { STATUS: 2, PROTO_DST: 12, DST_IP: 20, DST_IP6: 22 } as const;
/** IPS_DST_NAT of conntrack's status bits. */
export const CT_STATUS_DNAT = 1 << 5;

export type PayloadBase = "network" | "transport";

export function meta(w: ExpressionWriter, key: number, register: number): void {
  expression(w, "meta", () => {
    w.be32(1, register);
    w.be32(2, key);
  });
}

/** Bytes of the packet's network or transport header. */
export function payload(
  w: ExpressionWriter,
  from: { readonly base: PayloadBase; readonly offset: number; readonly length: number },
  register: number,
): void {
  expression(w, "payload", () => {
    w.be32(1, register);
    w.be32(2, from.base === "network" ? 1 : 2);
    w.be32(3, from.offset);
    w.be32(4, from.length);
  });
}

export function ct(w: ExpressionWriter, key: number, register: number): void {
  expression(w, "ct", () => {
    w.be32(1, register);
    w.be32(2, key);
    // Addresses and ports exist per direction; 0 is the original one. Status exists once.
    if (key !== CT.STATUS) w.u8(3, 0);
  });
}

/** The type of the route to one of the packet's addresses (RTN_*). */
export function fibType(w: ExpressionWriter, of: "source" | "destination", register: number): void {
  expression(w, "fib", () => {
    w.be32(1, register);
    w.be32(2, 3);
    w.be32(3, of === "source" ? 1 : 2);
  });
}

const COMPARISONS = { equal: 0, not: 1, less: 2 } as const;

/** Goes on only if the register compares so with the value. "less" compares bytes: numbers in network order. */
export function compare(
  w: ExpressionWriter,
  register: number,
  value: Uint8Array,
  how: keyof typeof COMPARISONS = "equal",
): void {
  expression(w, "cmp", () => {
    w.be32(1, register);
    w.be32(2, COMPARISONS[how]);
    w.nest(3, () => w.attr(DATA.VALUE, value));
  });
}

/** Turns a 4-byte number in a register from host to network order. */
export function toNetworkOrder(w: ExpressionWriter, register: number): void {
  expression(w, "byteorder", () => {
    w.be32(1, register);
    w.be32(2, register);
    w.be32(3, 1);
    w.be32(4, 4);
    w.be32(5, 4);
  });
}

/** Puts a value into registers from this one on. */
export function immediate(w: ExpressionWriter, value: Uint8Array, register: number): void {
  expression(w, "immediate", () => {
    w.be32(1, register);
    w.nest(2, () => w.attr(DATA.VALUE, value));
  });
}

/** register = register & mask. */
export function mask(w: ExpressionWriter, register: number, bits: Uint8Array): void {
  expression(w, "bitwise", () => {
    w.be32(1, register);
    w.be32(2, register);
    w.be32(3, bits.length);
    w.nest(4, () => w.attr(DATA.VALUE, bits));
    w.nest(5, () => w.attr(DATA.VALUE, new Uint8Array(bits.length)));
  });
}

/**
 * Goes on only if the set has the key; with `into`, its value goes to that register, "verdict" executes it. "absent":
 * goes on only if the set does not have it.
 */
export function lookup(w: ExpressionWriter, set: string, key: number, into?: number | "verdict" | "absent"): void {
  expression(w, "lookup", () => {
    w.text(1, set);
    w.be32(2, key);
    if (into === "absent") w.be32(5, 1);
    else if (into !== undefined) w.be32(3, into === "verdict" ? REGISTER_VERDICT : into);
  });
}

/** Adds key → value to a set filled by packets, or renews it; it ends so long after the last time. */
export function update(
  w: ExpressionWriter,
  set: string,
  of: { readonly key: number; readonly value: number; readonly timeoutMs: number },
): void {
  expression(w, "dynset", () => {
    w.text(1, set);
    w.be32(3, 1);
    w.be32(4, of.key);
    w.be32(5, of.value);
    w.attr(6, be64(of.timeoutMs));
  });
}

/** A number below `modulus`: counting up per rule, or random. */
export function generate(w: ExpressionWriter, modulus: number, random: boolean, register: number): void {
  expression(w, "numgen", () => {
    w.be32(1, register);
    w.be32(2, modulus);
    w.be32(3, random ? 1 : 0);
  });
}

/** A number below `modulus` that depends on `length` bytes from register `from` (Jenkins' hash). */
export function hash(
  w: ExpressionWriter,
  of: { readonly from: number; readonly length: number; readonly modulus: number; readonly seed: number },
  register: number,
): void {
  expression(w, "hash", () => {
    w.be32(1, of.from);
    w.be32(2, register);
    w.be32(3, of.length);
    w.be32(4, of.modulus);
    w.be32(5, of.seed);
    w.be32(7, 0);
  });
}

/** Rewrites the destination to the address and port in two registers. */
export function dnat(w: ExpressionWriter, family: number, address: number, port: number): void {
  expression(w, "nat", () => {
    w.be32(1, 1);
    w.be32(2, family);
    w.be32(3, address);
    w.be32(5, port);
  });
}

export function masquerade(w: ExpressionWriter): void {
  expression(w, "masq", () => {});
}

/** TCP reset, or ICMP port unreachable of the packet's family. */
export function reject(w: ExpressionWriter, how: "reset" | "unreachable"): void {
  expression(w, "reject", () => {
    w.be32(1, how === "reset" ? 1 : 2);
    w.u8(2, how === "reset" ? 0 : 1);
  });
}

export function verdict(w: ExpressionWriter, code: keyof typeof VERDICTS, chain?: string): void {
  expression(w, "immediate", () => {
    w.be32(1, REGISTER_VERDICT);
    w.nest(2, () => verdictData(w, code, chain));
  });
}

/** A verdict as the value of a map's element. */
export function verdictData(w: ExpressionWriter, code: keyof typeof VERDICTS, chain?: string): void {
  w.nest(DATA.VERDICT, () => {
    w.be32(VERDICT.CODE, VERDICTS[code]);
    if (chain !== undefined) w.text(VERDICT.CHAIN, chain);
  });
}

function be64(value: number): Uint8Array {
  const bytes = new Uint8Array(8);
  new DataView(bytes.buffer).setBigUint64(0, BigInt(value), false);
  return bytes;
}

function expression(w: ExpressionWriter, name: string, data: () => void): void {
  w.nest(LIST_ELEM, () => {
    w.text(EXPR.NAME, name);
    w.nest(EXPR.DATA, data);
  });
}
