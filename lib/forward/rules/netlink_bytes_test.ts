import assert from "node:assert/strict";
import fc from "fast-check";
import { cidrContains, cidrText, ipFromBytes, parseCidr, parseIp } from "../../addr.ts";
import { decodeAtoms, encodeAtoms } from "./netlink_atoms.ts";
import { intervalElements, networksOf } from "./netlink_intervals.ts";
import { type Atom, type AtomType, elementKey } from "./ruleset.ts";

const ipv4 = fc.uint8Array({ minLength: 4, maxLength: 4 }).map(ipFromBytes);
const ipv6 = fc.ipV6().map((text) => parseIp(text)!).filter((ip) => ip?.includes(":"));
const atoms: Record<AtomType, fc.Arbitrary<Atom>> = {
  ipv4,
  ipv6,
  proto: fc.constantFrom("tcp", "udp", "icmp"),
  port: fc.integer({ min: 0, max: 65535 }),
  u32: fc.integer({ min: 0, max: 0xffffffff }),
  ifname: fc.stringMatching(/^[a-z][a-z0-9.-]{0,14}$/),
};

Deno.test("netlink: keys of every kind survive the way to the kernel and back", () => {
  const types = fc.array(fc.constantFrom(...Object.keys(atoms) as AtomType[]), { minLength: 1, maxLength: 4 });
  const key = types.chain((list) => fc.tuple(fc.constant(list), fc.tuple(...list.map((type) => atoms[type]))));
  fc.assert(fc.property(key, ([list, values]) => {
    const bytes = encodeAtoms(values, list);
    assert.equal(decodeAtoms(bytes, list), elementKey(values));
    if (list.length > 1) assert.equal(bytes.length % 4, 0);
  }));
});

/** Networks that do not overlap, in any order. */
const networks = fc.array(fc.tuple(fc.oneof(ipv4, ipv6), fc.nat(128)), { maxLength: 8 }).map((list) => {
  const out: { readonly ip: string; readonly bits: number }[] = [];
  const family = list[0]?.[0].includes(":") ?? false;
  for (const [ip, wanted] of list) {
    if (ip.includes(":") !== family) continue;
    const bits = Math.min(wanted, family ? 128 : 32);
    const cidr = parseCidr(cidrText({ ip, bits })) ?? parseCidr(cidrText({ ip, bits: family ? 128 : 32 }))!;
    if (!out.some((other) => cidrContains(other, cidr.ip) || cidrContains(cidr, other.ip))) out.push(cidr);
  }
  return out;
});

function listing(cidrs: readonly { readonly ip: string; readonly bits: number }[]) {
  return cidrs.flatMap((cidr) => [...intervalElements(cidr)]).map((e) => ({
    key: e.key,
    intervalEnd: e.intervalEnd ?? false,
  }));
}

Deno.test("netlink: networks survive the way through an interval set, in any order of its listing", () => {
  fc.assert(fc.property(networks, fc.boolean(), (cidrs, backwards) => {
    const listed = listing(cidrs);
    if (backwards) listed.reverse();
    assert.deepEqual(networksOf(listed).sort(), cidrs.map(cidrText).sort());
  }));
});

Deno.test("netlink: networks at the edges, side by side, and ranges that are none", () => {
  for (
    const texts of [["0.0.0.0/0"], ["::/0"], ["255.255.255.255/32"], ["0.0.0.0/32"], ["10.0.0.0/9", "10.128.0.0/9"]]
  ) {
    assert.deepEqual(networksOf(listing(texts.map((text) => parseCidr(text)!))).sort(), texts);
  }
  const odd = [{ key: Uint8Array.of(10, 0, 0, 1), intervalEnd: false }, {
    key: Uint8Array.of(10, 0, 0, 9),
    intervalEnd: true,
  }];
  assert.deepEqual(networksOf(odd), ["10.0.0.1-10.0.0.9"]);
});
