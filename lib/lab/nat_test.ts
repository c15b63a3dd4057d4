import assert from "node:assert/strict";
import { isRouted, NAT_KINDS, type NatKind, natRules } from "./nat.ts";

const BASE = { wanAddress: "203.0.113.10", wan: "wan", lan: "lan*" } as const;

/** What distinguishes each kind in the text; the kernel's behaviour is tested in tests/lab. */
const SIGNS: Record<NatKind, readonly RegExp[]> = {
  public: [/chain input \{[^}]*policy accept/, /ct status dnat accept\n {4}accept\n/],
  fw: [
    /policy drop;\n {4}ct state established,related accept\n {4}iifname "lan\*" accept\n {4}ct status dnat accept\n {2}\}/,
  ],
  fwrst: [/chain forward \{[^}]*reject with tcp reset\n {2}\}/],
  cone: [/oifname "wan" masquerade\n/, /chain input \{[^}]*policy drop/],
  conerst: [/oifname "wan" masquerade\n/, /chain input \{[^}]*policy accept/],
  owrt: [/chain input \{[^}]*reject with tcp reset\n {4}meta l4proto udp reject/],
  adf: [
    /type ipv4_addr \. inet_service : ipv4_addr \. inet_service/,
    /dnat ip to ip saddr \. tcp dport map @tcp_mapped/,
  ],
  fullcone: [/type inet_service : ipv4_addr \. inet_service/, /dnat ip to udp dport map @udp_mapped/],
  eimrand: [/snat to 203\.0\.113\.10 : jhash ip saddr \. tcp sport mod 25000/],
  symrand: [/oifname "wan" masquerade random\n/],
  symseq: [/numgen inc mod 4000 map \{ 0 : 30000, 1 : 30001, /],
  "cone-udpblock": [/meta l4proto udp drop\n/],
  "https-only": [/meta l4proto udp drop\n {4}iifname "lan\*" tcp dport != 443 drop\n/],
};

for (const kind of Object.keys(NAT_KINDS) as NatKind[]) {
  Deno.test(`rules of NAT kind ${kind} have what makes it that kind`, () => {
    const text = natRules({ ...BASE, kind });
    for (const sign of SIGNS[kind]) assert.match(text, sign);
  });
}

Deno.test("kinds without NAT rewrite nothing", () => {
  for (const kind of Object.keys(NAT_KINDS) as NatKind[]) {
    assert.equal(/masquerade|snat|dnat ip/.test(natRules({ ...BASE, kind })), !isRouted(kind), kind);
  }
});

Deno.test("rules replace themselves: each table is deleted in the transaction that makes it", () => {
  const text = natRules({ ...BASE, kind: "cone" });
  for (const table of ["ip lab_nat", "ip lab_filter", "ip6 lab_filter6"]) {
    assert.ok(text.includes(`add table ${table}\ndelete table ${table}\ntable ${table} {`), table);
  }
});

Deno.test("hairpinning rewrites the source, and needs a table of mappings", () => {
  const text = natRules({ ...BASE, kind: "fullcone", hairpin: true });
  assert.match(text, /iifname "lan\*" ip daddr 203\.0\.113\.10 dnat ip to tcp dport map @tcp_mapped/);
  assert.match(text, /iifname "lan\*" oifname "lan\*" ct status dnat snat to 203\.0\.113\.10/);
  assert.throws(() => natRules({ ...BASE, kind: "cone", hairpin: true }), { code: "CONFIG_INVALID" });
});

Deno.test("a forwarded port leads to its host, and only the router's own address has it", () => {
  const text = natRules({ ...BASE, kind: "cone", forwards: [{ port: 20006, to: { ip: "192.168.1.2", port: 7 } }] });
  assert.match(text, /iifname "wan" ip daddr 203\.0\.113\.10 tcp dport 20006 dnat ip to 192\.168\.1\.2:7\n/);
});

Deno.test("isolated networks are kept apart before anything is accepted", () => {
  const text = natRules({ ...BASE, kind: "cone", isolated: true });
  assert.match(text, /policy drop;\n {4}iifname "lan\*" oifname "lan\*" ct status and dnat == 0 drop\n {4}ct state/);
});

Deno.test("IPv6 is off, filtered or open, whatever the IPv4 kind", () => {
  const v6 = (policy: "none" | "fw" | "open") =>
    natRules({ ...BASE, kind: "cone", ipv6: policy }).split("ip6 lab_filter6 {")[1]!;
  assert.doesNotMatch(v6("none"), /accept/);
  assert.match(v6("fw"), /ct state established,related accept\n {4}iifname "lan\*" accept\n {4}icmpv6/);
  assert.match(v6("open"), /policy drop;\n {4}accept\n/);
});
