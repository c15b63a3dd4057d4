/** A rule as nf_tables expressions. Registers are used from the first on; nothing lives longer than its statement. */
import { type Family, parseCidr } from "../../addr.ts";
import { MeshError } from "../../errors.ts";
import { fieldBytes, paddedBytes } from "../../linux/nftables/batch.ts";
import { NFPROTO_IPV4, NFPROTO_IPV6 } from "../../linux/nftables/constants.ts";
import {
  compare,
  CT,
  ct,
  CT_STATUS_DNAT,
  dnat,
  type ExpressionWriter,
  fibType,
  generate,
  hash,
  immediate,
  lookup,
  mask,
  masquerade,
  META,
  meta,
  payload,
  REGISTER_0,
  REGISTERS,
  reject,
  toNetworkOrder,
  update,
  verdict,
} from "../../linux/nftables/expressions.ts";
import { encodeAtom } from "./netlink_atoms.ts";
import type { Action, AtomType, Field, KeyPart, Match, Pick, Rule } from "./ruleset.ts";

/** Routes to addresses of this host (RTN_LOCAL of rtnetlink(7)). */
const RTN_LOCAL = 2;

/** Writes the expressions of a rule. Throws MeshError INTERNAL for a rule that no register file can hold. */
export function writeRule(w: ExpressionWriter, rule: Rule): void {
  if (rule.family !== undefined) {
    meta(w, META.NFPROTO, REGISTER_0);
    compare(w, REGISTER_0, Uint8Array.of(nfproto(rule.family)));
  }
  const family = rule.family ?? rule.within?.family ?? 4;
  for (const match of rule.match) writeMatch(w, match, family);
  writeAction(w, rule.action, family);
}

function writeMatch(w: ExpressionWriter, match: Match, family: Family): void {
  if ("pick" in match) {
    loadPick(w, match.pick, family, REGISTER_0);
    if (match.below === 1) return compare(w, REGISTER_0, host32(0));
    toNetworkOrder(w, REGISTER_0);
    return compare(w, REGISTER_0, network32(match.below), "less");
  }
  if ("fields" in match) {
    const { start } = load(w, match.fields, family);
    return "in" in match ? lookup(w, match.in, start) : lookup(w, match.notIn, start, "absent");
  }
  if ("state" in match) return writeState(w, match.state);
  loadField(w, match.field, family, REGISTER_0);
  const not = "isNot" in match;
  const value = not ? match.isNot : match.is;
  const type = typeOf(match.field, family);
  const cidr = typeof value === "string" && value.includes("/") ? parseCidr(value) : undefined;
  if (cidr) mask(w, REGISTER_0, prefixMask(cidr.bits, fieldBytes(type)));
  compare(w, REGISTER_0, encodeAtom(cidr ? cidr.ip : value, type), not ? "not" : "equal");
}

function writeState(w: ExpressionWriter, state: Extract<Match, { state: unknown }>["state"]): void {
  switch (state) {
    case "to-host":
      fibType(w, "destination", REGISTER_0);
      return compare(w, REGISTER_0, host32(RTN_LOCAL));
    case "to-elsewhere":
      fibType(w, "destination", REGISTER_0);
      return compare(w, REGISTER_0, host32(RTN_LOCAL), "not");
    case "from-host":
      fibType(w, "source", REGISTER_0);
      return compare(w, REGISTER_0, host32(RTN_LOCAL));
    case "from-elsewhere":
      fibType(w, "source", REGISTER_0);
      return compare(w, REGISTER_0, host32(RTN_LOCAL), "not");
    case "dnat":
      ct(w, CT.STATUS, REGISTER_0);
      mask(w, REGISTER_0, host32(CT_STATUS_DNAT));
      return compare(w, REGISTER_0, host32(0), "not");
  }
}

function writeAction(w: ExpressionWriter, action: Action, family: Family): void {
  if (action === "masquerade") return masquerade(w);
  if (action === "drop") return verdict(w, "DROP");
  if (action === "accept") return verdict(w, "ACCEPT");
  if ("jump" in action) return verdict(w, "JUMP", action.jump);
  if ("goto" in action) return verdict(w, "GOTO", action.goto);
  if ("reject" in action) return reject(w, action.reject);
  if ("vmap" in action) return lookup(w, action.map, load(w, action.vmap, family).start, "verdict");
  if ("learn" in action) {
    const key = load(w, action.learn, family);
    const value = load(w, action.value, family, key.end);
    return update(w, action.map, { key: key.start, value: value.start, timeoutMs: action.seconds * 1000 });
  }
  const port = REGISTER_0 + paddedBytes(family === 4 ? "ipv4" : "ipv6") / 4;
  if ("to" in action) {
    immediate(w, encodeAtom(action.to.ip, family === 4 ? "ipv4" : "ipv6"), REGISTER_0);
    immediate(w, encodeAtom(action.to.port, "port"), port);
  } else {
    // The value overwrites the key, which is not needed any more: an address, then a port in the next free register.
    lookup(w, action.map, load(w, action.dnat, family).start, REGISTER_0);
  }
  dnat(w, nfproto(family), REGISTER_0, port);
}

/** Loads values one behind the other; `end` is the first register that is free. */
function load(
  w: ExpressionWriter,
  parts: readonly KeyPart[],
  family: Family,
  start = REGISTER_0,
): { readonly start: number; readonly end: number } {
  let at = start;
  for (let i = 0; i < parts.length; i++) {
    const part = parts[i]!;
    if (typeof part === "string") {
      loadField(w, part, family, at);
      at += paddedBytes(typeOf(part, family)) / 4;
    } else if (typeof part === "number") {
      // Numbers that follow each other are one value: an expression less for each of thousands of rules.
      const numbers = [part];
      while (typeof parts[i + 1] === "number") numbers.push(parts[++i] as number);
      immediate(w, host32(...numbers), at);
      at += numbers.length;
    } else {
      loadPick(w, part, family, at);
      at++;
    }
  }
  if (at > REGISTER_0 + REGISTERS) throw new MeshError("INTERNAL", `A key of ${at - start} registers does not fit`);
  return { start, end: at };
}

function loadPick(w: ExpressionWriter, pick: Pick, family: Family, register: number): void {
  if (pick.by !== "source") return generate(w, pick.mod, pick.by === "random", register);
  const type = typeOf("saddr", family);
  loadField(w, "saddr", family, register);
  hash(w, { from: register, length: fieldBytes(type), modulus: pick.mod, seed: pick.seed }, register);
}

function loadField(w: ExpressionWriter, field: Field, family: Family, register: number): void {
  const address = fieldBytes(typeOf("saddr", family));
  switch (field) {
    case "saddr":
      return payload(w, { base: "network", offset: family === 4 ? 12 : 8, length: address }, register);
    case "daddr":
      return payload(w, { base: "network", offset: family === 4 ? 16 : 24, length: address }, register);
    case "proto":
      return meta(w, META.L4PROTO, register);
    case "dport":
      return payload(w, { base: "transport", offset: 2, length: 2 }, register);
    case "iifname":
      return meta(w, META.IIFNAME, register);
    case "oifname":
      return meta(w, META.OIFNAME, register);
    case "ct-daddr":
      return ct(w, family === 4 ? CT.DST_IP : CT.DST_IP6, register);
    case "ct-dport":
      return ct(w, CT.PROTO_DST, register);
  }
}

function typeOf(field: Field, family: Family): AtomType {
  switch (field) {
    case "saddr":
    case "daddr":
    case "ct-daddr":
      return family === 4 ? "ipv4" : "ipv6";
    case "proto":
      return "proto";
    case "dport":
    case "ct-dport":
      return "port";
    case "iifname":
    case "oifname":
      return "ifname";
  }
}

function nfproto(family: Family): number {
  return family === 4 ? NFPROTO_IPV4 : NFPROTO_IPV6;
}

/** Numbers as registers hold them: host order, little endian on both machine types. */
function host32(...values: number[]): Uint8Array {
  const out = new Uint8Array(4 * values.length);
  const view = new DataView(out.buffer);
  values.forEach((value, i) => view.setUint32(4 * i, value, true));
  return out;
}

function network32(value: number): Uint8Array {
  const out = new Uint8Array(4);
  new DataView(out.buffer).setUint32(0, value, false);
  return out;
}

function prefixMask(bits: number, length: number): Uint8Array {
  return Uint8Array.from({ length }, (_, i) => 0xff << Math.max(0, 8 - Math.max(0, bits - i * 8)) & 0xff);
}
