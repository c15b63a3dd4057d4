import assert from "node:assert/strict";
import { Buffer } from "node:buffer";
import packet from "dns-packet";
import { MeshError } from "../../errors.ts";
import { explainText } from "./text.ts";
import type { Explanation } from "./explain.ts";
import { presentMessage } from "./message.ts";
import { TestServer, upstreamProgram } from "../testing.ts";
import { endpoint, MemoryMeta, service, slice } from "../testing_meta.ts";

const UP = { ip: "192.0.2.53", port: 53 };
const meta = new MemoryMeta({
  services: [
    service("shop", "web", { clusterIPs: ["10.96.0.7"] }),
    service("shop", "db", { headless: true }),
    service("shop", "out", { type: "ExternalName", externalName: "www.example.test" }),
  ],
  slices: [
    slice({ namespace: "shop", service: "web" }, [endpoint("10.1.0.1", { node: "edge-1", pod: "web-1" })]),
    slice({ namespace: "shop", service: "db" }, [
      endpoint("10.1.0.2", { hostname: "db-0", node: "edge-1", pod: "db-0" }),
      endpoint("10.1.0.3", { hostname: "db-1", node: "edge-2", pod: "db-1", ready: false }),
      endpoint("10.1.0.4", { hostname: "db-2", ready: false, terminating: true }),
    ]),
  ],
});

function start(): TestServer {
  return new TestServer({
    meta,
    config: { upstreams: [{ at: UP }], searchNamespaces: ["shop"] },
    prepare: (network) =>
      network.at(
        UP,
        upstreamProgram({
          "www.example.test/A": [{ name: "www.example.test", type: "A", ttl: 60, data: "192.0.2.80" }],
        }),
      ),
  });
}

/** Explains while time passes. */
async function explain(server: TestServer, name: string, type = "A"): Promise<Explanation> {
  const explaining = server.server.explain(name, type);
  await server.pass(5000);
  return await explaining;
}

Deno.test("explain: a Service, its address, and what is behind it", async () => {
  const server = start();
  const e = await explain(server, "web.shop.svc.cluster.local");
  assert.deepEqual([e.origin, e.zone, e.rcode, e.reason], ["zone", "cluster.local.", "NOERROR", "found"]);
  assert.deepEqual(e.answers, [{ name: "web.shop.svc.cluster.local.", ttl: 5, type: "A", data: "10.96.0.7" }]);
  assert.deepEqual(e.services.map((s) => [s.namespace, s.name, s.kind, s.addresses]), [
    ["shop", "web", "ClusterIP", ["10.96.0.7"]],
  ]);
  assert.deepEqual(e.services[0]!.endpoints, [{
    ip: "10.1.0.1",
    node: "edge-1",
    pod: "web-1",
    name: "10-1-0-1.web.shop.svc.cluster.local",
  }]);
  await server.close();
});

Deno.test("explain: endpoints that were left out, and why", async () => {
  const server = start();
  const all = await explain(server, "db.shop.svc.cluster.local");
  assert.deepEqual(all.services[0]!.endpoints.map((x) => x.ip), ["10.1.0.2"]);
  assert.deepEqual(all.services[0]!.excluded.map((x) => [x.ip, x.why]), [
    ["10.1.0.3", "is not ready"],
    ["10.1.0.4", "is terminating"],
  ]);
  const one = await explain(server, "db-1.db.shop.svc.cluster.local");
  assert.deepEqual([one.rcode, one.reason], ["NXDOMAIN", "no-such-endpoint"]);
  assert.deepEqual(one.services[0]!.excluded.map((x) => x.why), ["is called db-0", "is not ready", "is terminating"]);
  await server.close();
});

Deno.test("explain: upstream, cache, stale and failed are told apart", async () => {
  const server = start();
  const first = await explain(server, "www.example.test");
  assert.deepEqual([first.origin, first.forward!.answeredBy, first.forward!.zone], ["upstream", "192.0.2.53:53", "."]);
  const second = await explain(server, "www.example.test");
  assert.equal(second.origin, "cache");
  assert.ok(second.forward!.cache!.leftSeconds > 30);
  server.network.at(UP, undefined);
  server.clock.advance(100_000);
  const third = await explain(server, "www.example.test");
  assert.deepEqual([third.origin, third.answers[0]!.ttl], ["stale", 30]);
  assert.ok(third.forward!.cache!.leftSeconds < 0);
  const fourth = await explain(server, "unknown.example.test");
  assert.deepEqual([fourth.origin, fourth.rcode], ["failed", "SERVFAIL"]);
  assert.equal(fourth.forward!.upstreams[0]!.state, "down");
  await server.close();
});

Deno.test("explain: an alias out of the cluster names both the Service and who was asked", async () => {
  const server = start();
  const e = await explain(server, "out.shop.svc.cluster.local");
  assert.equal(e.origin, "zone");
  assert.equal(e.services[0]!.externalName, "www.example.test");
  assert.equal(e.forward!.name, "www.example.test.");
  assert.deepEqual(e.answers.map((a) => a.type), ["CNAME", "A"]);
  await server.close();
});

for (
  const [name, type, origin, reason] of [
    ["web", "A", "short-name", "found"],
    ["web.shop", "A", "short-name", "found"],
    ["7.0.96.10.in-addr.arpa", "PTR", "reverse", "found"],
    ["a.b.svc.cluster.local.lan", "A", "search-storm", "no-such-shape"],
    ["localhost", "A", "special", "found"],
    ["nope.shop.svc.cluster.local", "A", "zone", "no-service"],
    ["web.nowhere.svc.cluster.local", "A", "zone", "no-namespace"],
    ["_x._tcp.web.shop.svc.cluster.local", "SRV", "zone", "no-such-port"],
    ["web.shop.svc.cluster.local", "AAAA", "zone", "no-records-of-type"],
    ["x.pood.cluster.local", "A", "zone", "no-such-shape"],
  ] as const
) {
  Deno.test(`explain: ${type} ${name} → ${origin}, ${reason}`, async () => {
    const server = start();
    const e = await explain(server, name, type);
    assert.deepEqual([e.origin, e.reason], [origin, reason]);
    assert.ok(e.why.length > 0);
    await server.close();
  });
}

Deno.test("explain: nonsense is refused with what would be right", async () => {
  const server = start();
  for (const [name, type] of [["a..b", "A"], ["web", "NOTYPE"], ["x".repeat(64), "A"], ["web", "TYPE99999"]] as const) {
    await assert.rejects(
      server.server.explain(name, type),
      (e) => e instanceof MeshError && e.code === "CONFIG_INVALID",
    );
  }
  await server.close();
});

Deno.test("explain: the text holds the answer, the reasons, the Service and the upstream", async () => {
  const server = start();
  const text = explainText(await explain(server, "out.shop.svc.cluster.local"));
  for (
    const part of [
      "out.shop.svc.cluster.local. A: NOERROR",
      "CNAME www.example.test.",
      "www.example.test. 60 A 192.0.2.80",
      "service  shop/out ExternalName, www.example.test",
      "asked    www.example.test. of the upstreams for everything",
      "upstream 192.0.2.53:53 up",
      "gave this answer",
    ]
  ) assert.ok(text.includes(part), `${part} in\n${text}`);
  const db = explainText(await explain(server, "db.shop.svc.cluster.local"));
  assert.ok(db.includes("endpoint 10.1.0.2 on edge-1 pod db-0  db-0.db.shop.svc.cluster.local"), db);
  assert.ok(db.includes("left out 10.1.0.3 on edge-2 pod db-1  is not ready"), db);
  await server.close();
});

Deno.test("messages as text: known types as their RFCs write them, others as RFC 3597 does", async () => {
  const bytes = packet.encode({
    type: "response",
    id: 1,
    flags: 0x180,
    questions: [{ type: "A", name: "x.test" }],
    answers: [
      { name: "x.test", type: "MX", ttl: 1, data: { preference: 10, exchange: "mail.x.test" } },
      { name: "x.test", type: "TXT", ttl: 1, data: ['say "hi"', "b\\c\n"] },
      {
        name: "x.test",
        type: "CAA",
        ttl: 1,
        data: { flags: 128, tag: "issue", value: "ca.test", issuerCritical: true },
      },
      { name: "x.test", type: "AAAA", ttl: 1, data: "2001:db8::1" },
      {
        name: "x.test",
        type: "DS",
        ttl: 1,
        data: { keyTag: 7, algorithm: 8, digestType: 2, digest: Buffer.from("00ff", "hex") },
      },
      {
        name: "x.test",
        type: "NAPTR",
        ttl: 1,
        data: { order: 1, preference: 2, flags: "u", services: "E2U+sip", regexp: "!^.*$!sip:x!", replacement: "." },
      },
      { name: "x.test", type: "HINFO", ttl: 1, data: { cpu: "RFC8482", os: "" } },
      { name: "x.test", type: "UNKNOWN_65280" as "NULL", ttl: 1, data: Buffer.from([1, 2]) },
    ],
  });
  const message = await presentMessage(new Uint8Array(bytes));
  assert.deepEqual(message!.answers.map((a) => `${a.type} ${a.data}`), [
    "MX 10 mail.x.test.",
    'TXT "say \\"hi\\"" "b\\\\c\\010"',
    'CAA 128 issue "ca.test"',
    "AAAA 2001:db8::1",
    "DS 7 8 2 00FF",
    'NAPTR 1 2 "u" "E2U+sip" "!^.*$!sip:x!" .',
    'HINFO "RFC8482" ""',
    "TYPE65280 \\# 2 0102",
  ]);
});

Deno.test("messages as text: data that dns-packet would misread never reaches it", async () => {
  const make = (type: number, data: readonly number[]) =>
    Uint8Array.from([
      ...[0, 1, 0x81, 0x80, 0, 1, 0, 1, 0, 0, 0, 0],
      ...[1, 120, 0, 0, 1, 0, 1],
      ...[0xc0, 12, type >> 8, type & 0xff, 0, 1, 0, 0, 0, 9, 0, data.length, ...data],
    ]);
  assert.equal(await presentMessage(make(1, [1, 2, 3])), undefined, "an A record of three bytes");
  const text = async (type: number, data: readonly number[]) =>
    (await presentMessage(make(type, data)))!.answers[0]!.data;
  assert.equal(await text(16, [9, 65]), "\\# 2 0941");
  assert.equal(await text(257, [0, 200, 1]), "\\# 3 00C801");
  assert.equal(await text(35, [0, 1, 0, 1, 255, 1, 1]), "\\# 7 00010001FF0101");
  assert.equal(await text(43, []), "\\# 0");
});
