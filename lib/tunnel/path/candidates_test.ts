import assert from "node:assert/strict";
import { dialable, type DialRules, type HostAddress, judge, MAX_DIALS, ownCandidates, pathFrom } from "./candidates.ts";

const host: readonly HostAddress[] = [
  { ip: "192.168.1.2", bits: 24, link: 2 },
  { ip: "fd00:1::2", bits: 64, link: 2 },
  { ip: "203.0.113.3", bits: 32, link: 3 },
];
const rules: DialRules = {
  host,
  observed: ["198.51.100.7", "2001:db8:2::9"],
  self: "198.51.100.1",
  allowed: [{ ip: "10.9.0.0", bits: 16 }],
};

Deno.test("an address is dialled on our own networks, where the server saw the peer, or where config allows it", () => {
  const cases: Record<string, string> = {
    "192.168.1.9": "lan",
    "fd00:1::9": "lan",
    "198.51.100.7": "direct",
    "2001:db8:2::9": "direct",
    "10.9.1.1": "direct",
    // Never: ours, others' private networks, what nobody saw, what is no host.
    "192.168.1.2": "ours",
    "203.0.113.3": "ours",
    "192.168.2.9": "private",
    "10.8.1.1": "private",
    "100.64.1.1": "private",
    "fd00:2::1": "private",
    "198.51.100.8": "no server",
    "203.0.113.4": "no server",
    "127.0.0.1": "no address",
    "169.254.169.254": "no address",
    "fe80::1": "no address",
    "224.0.0.1": "no address",
    "255.255.255.255": "no address",
    "0.0.0.0": "no address",
    "::1": "no address",
    "ff02::1": "no address",
  };
  for (const [ip, wanted] of Object.entries(cases)) {
    const verdict = judge({ ip, port: 20006 }, rules);
    const got = "path" in verdict ? verdict.path : verdict.refused;
    assert.ok(got.includes(wanted), `${ip}: ${got}`);
  }
  assert.ok("refused" in judge({ ip: "192.168.1.9", port: 0 }, rules));
});

Deno.test("a private address that the server saw counts only where it sees us on private ground, too", () => {
  const at = { ip: "10.0.0.1", port: 20006 };
  assert.ok("refused" in judge(at, { ...rules, observed: ["10.0.0.1"] }));
  assert.ok("refused" in judge(at, { ...rules, observed: ["10.0.0.1"], self: undefined }));
  assert.ok("refused" in judge(at, { ...rules, self: "10.1.0.1" }));
  assert.deepEqual(judge(at, { ...rules, observed: ["10.0.0.1"], self: "10.1.0.1" }), { path: "direct" });
});

Deno.test("the LAN goes first, then IPv6, each address once and never more than the cap", () => {
  const at = (ip: string, port = 20006) => ({ ip, port });
  const { dial, refused } = dialable([
    at("198.51.100.7"),
    at("2001:db8:2::9"),
    at("192.168.1.9"),
    at("fd00:1::9"),
    at("198.51.100.7"),
    at("10.0.0.1"),
  ], rules);
  assert.deepEqual(dial.map((d) => d.at.ip), ["fd00:1::9", "192.168.1.9", "2001:db8:2::9", "198.51.100.7"]);
  assert.deepEqual(refused, ["10.0.0.1:20006: it is private and in no network of this host"]);
  const many = Array.from({ length: 50 }, (_, i) => at("192.168.1.9", 1000 + i));
  assert.equal(dialable(many, rules).dial.length, MAX_DIALS);
});

Deno.test("what we tell others: addresses of families we listen on, never link-local or lonely private ones", () => {
  const own = [...host, { ip: "fe80::1", bits: 64, link: 2 }, { ip: "172.20.0.1", bits: 32, link: 4 }];
  const advertise = [{ ip: "198.51.100.1", port: 4000 }];
  const all = ownCandidates(own, { port: 20006, families: [4, 6] }, { advertise, max: 16 });
  assert.deepEqual(all.map((c) => `${c.ip} ${c.port}`), [
    "198.51.100.1 4000",
    "192.168.1.2 20006",
    "fd00:1::2 20006",
    "203.0.113.3 20006",
  ]);
  assert.deepEqual(ownCandidates(own, undefined, { advertise, max: 16 }), advertise);
  const only4 = ownCandidates(own, { port: 1, families: [4] }, { advertise: [], max: 1 });
  assert.deepEqual(only4, [{ ip: "192.168.1.2", port: 1 }]);
});

Deno.test("an incoming connection is named after where it comes from", () => {
  assert.equal(pathFrom("192.168.1.77", host), "lan");
  assert.equal(pathFrom("203.0.113.3", host), "lan");
  assert.equal(pathFrom("203.0.113.4", host), "direct");
});
