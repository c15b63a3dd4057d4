import assert from "node:assert/strict";
import { MeshError } from "../errors.ts";
import { parseCidr } from "../addr.ts";
import { DEFAULT_DNS_CONFIG } from "./config.ts";
import { encodeQuery, recordTexts, TestServer, upstreamProgram } from "./testing.ts";
import { endpoint, MemoryMeta, port, service, slice } from "./testing_meta.ts";
import { FakeNetwork } from "./fake_network.ts";
import { DnsServer } from "./server.ts";
import { FakeClock } from "../clock.ts";
import { nullLogger } from "../log.ts";

const UP = { ip: "192.0.2.53", port: 53 };

const shop = new MemoryMeta({
  services: [
    service("shop", "web", { clusterIPs: ["10.96.0.7", "fd00::7"], ports: [port("http", 80), port("dns", 53, "UDP")] }),
    service("shop", "db", { headless: true, ports: [port("pg", 5432)] }),
    service("shop", "out", { type: "ExternalName", externalName: "www.example.test" }),
    service("shop", "alias", { type: "ExternalName", externalName: "web.shop.svc.cluster.local" }),
    service("shop", "loop-a", { type: "ExternalName", externalName: "loop-b.shop.svc.cluster.local" }),
    service("shop", "loop-b", { type: "ExternalName", externalName: "loop-a.shop.svc.cluster.local" }),
    service("shop", "gone", { type: "ExternalName", externalName: "nowhere.shop.svc.cluster.local" }),
    service("shop", "ip", { type: "ExternalName", externalName: "192.0.2.9" }),
    service("shop", "big", { headless: true, ports: [port("http", 80)] }),
    service("shop", "cold", { headless: true }),
    service("shop", "warm", { headless: true, publishNotReadyAddresses: true }),
  ],
  slices: [
    slice({ namespace: "shop", service: "db" }, [
      endpoint("10.1.0.1", { hostname: "db-0" }),
      endpoint("10.1.0.2", { hostname: "db-1" }),
      endpoint("10.1.0.3", { hostname: "db-2", ready: false }),
    ], [port("pg", 5432)]),
    slice(
      { namespace: "shop", service: "big" },
      Array.from({ length: 120 }, (_, i) => endpoint(`10.2.0.${i + 1}`)),
      [port("http", 80)],
    ),
    slice({ namespace: "shop", service: "cold" }, [endpoint("10.1.0.9", { ready: false })]),
    slice({ namespace: "shop", service: "warm" }, [endpoint("10.1.0.10", { ready: false })]),
  ],
});

function start(options: ConstructorParameters<typeof TestServer>[0] = {}, asked: string[] = []): TestServer {
  return new TestServer({
    meta: shop,
    ...options,
    config: { upstreams: [{ at: UP }], ...options.config },
    prepare: (network) => {
      network.at(
        UP,
        upstreamProgram({
          "www.example.test/A": [{ name: "www.example.test", type: "A", ttl: 60, data: "192.0.2.80" }],
          "short.test/A": [{ name: "short.test", type: "A", ttl: 0, data: "192.0.2.81" }],
          "8.8.8.8.in-addr.arpa/PTR": [{ name: "8.8.8.8.in-addr.arpa", type: "PTR", ttl: 9, data: "dns.test" }],
        }, asked),
      );
      options.prepare?.(network);
    },
  });
}

const rcodeOf = (r: { readonly rcode: string }) => r.rcode;

for (
  const [name, type, rcode, answers] of [
    ["web.shop.svc.cluster.local", "A", "NOERROR", ["web.shop.svc.cluster.local 5 A 10.96.0.7"]],
    ["web.shop.svc.cluster.local", "AAAA", "NOERROR", ["web.shop.svc.cluster.local 5 AAAA fd00::7"]],
    ["web.shop.svc.cluster.local", "MX", "NOERROR", []],
    ["_dns._udp.web.shop.svc.cluster.local", "SRV", "NOERROR", [
      "_dns._udp.web.shop.svc.cluster.local 5 SRV 0 50 53 web.shop.svc.cluster.local",
    ]],
    ["_udp.web.shop.svc.cluster.local", "A", "NOERROR", []],
    ["_sctp.web.shop.svc.cluster.local", "A", "NXDOMAIN", []],
    ["_http._udp.web.shop.svc.cluster.local", "SRV", "NXDOMAIN", []],
    ["db.shop.svc.cluster.local", "A", "NOERROR", [
      "db.shop.svc.cluster.local 5 A 10.1.0.1",
      "db.shop.svc.cluster.local 5 A 10.1.0.2",
    ]],
    ["db-1.db.shop.svc.cluster.local", "A", "NOERROR", ["db-1.db.shop.svc.cluster.local 5 A 10.1.0.2"]],
    ["db-2.db.shop.svc.cluster.local", "A", "NXDOMAIN", []],
    ["cold.shop.svc.cluster.local", "A", "NXDOMAIN", []],
    ["warm.shop.svc.cluster.local", "A", "NOERROR", ["warm.shop.svc.cluster.local 5 A 10.1.0.10"]],
    ["out.shop.svc.cluster.local", "A", "NOERROR", [
      "out.shop.svc.cluster.local 5 CNAME www.example.test",
      "www.example.test 60 A 192.0.2.80",
    ]],
    ["out.shop.svc.cluster.local", "CNAME", "NOERROR", ["out.shop.svc.cluster.local 5 CNAME www.example.test"]],
    ["alias.shop.svc.cluster.local", "A", "NOERROR", [
      "alias.shop.svc.cluster.local 5 CNAME web.shop.svc.cluster.local",
      "web.shop.svc.cluster.local 5 A 10.96.0.7",
    ]],
    ["gone.shop.svc.cluster.local", "A", "NXDOMAIN", [
      "gone.shop.svc.cluster.local 5 CNAME nowhere.shop.svc.cluster.local",
    ]],
    ["ip.shop.svc.cluster.local", "A", "NXDOMAIN", []],
    ["dns-version.cluster.local", "TXT", "NOERROR", ["dns-version.cluster.local 28800 TXT 1.1.0"]],
    ["ns.dns.cluster.local", "A", "NOERROR", ["ns.dns.cluster.local 5 A 169.254.96.16"]],
    ["dns.cluster.local", "A", "NOERROR", []],
    ["cluster.local", "NS", "NOERROR", ["cluster.local 5 NS ns.dns.cluster.local"]],
    ["10-1-0-5.shop.pod.cluster.local", "A", "NOERROR", ["10-1-0-5.shop.pod.cluster.local 5 A 10.1.0.5"]],
    ["7.0.96.10.in-addr.arpa", "PTR", "NOERROR", ["7.0.96.10.in-addr.arpa 5 PTR web.shop.svc.cluster.local"]],
    ["2.0.1.10.in-addr.arpa", "PTR", "NOERROR", ["2.0.1.10.in-addr.arpa 5 PTR db-1.db.shop.svc.cluster.local"]],
    ["8.8.8.8.in-addr.arpa", "PTR", "NOERROR", ["8.8.8.8.in-addr.arpa 9 PTR dns.test"]],
    ["localhost", "A", "NOERROR", ["localhost 60 A 127.0.0.1"]],
    ["x.invalid", "A", "NXDOMAIN", []],
    ["www.example.test", "A", "NOERROR", ["www.example.test 60 A 192.0.2.80"]],
    ["short.test", "A", "NOERROR", ["short.test 0 A 192.0.2.81"]],
    ["nothing.test", "A", "NXDOMAIN", []],
  ] as const
) {
  Deno.test(`server: ${type} ${name} → ${rcode}`, async () => {
    const server = start();
    for (const edns of [undefined, 1232]) {
      const got = await server.ask(name, type, edns === undefined ? {} : { edns });
      assert.equal(got.rcode, rcode);
      assert.deepEqual(recordTexts(got.answers), [...answers].sort());
      assert.equal(got.id, 0x4242);
      assert.deepEqual([got.flag_qr, got.flag_ra, got.flag_rd, got.flag_tc], [true, true, true, false]);
      if (answers.length === 0) assert.equal(got.authorities!.filter((r) => r.type === "SOA").length, 1);
      assert.equal(got.additionals!.filter((r) => r.type === "OPT").length, edns === undefined ? 0 : 1);
    }
    await server.close();
  });
}

Deno.test("server: an alias that leads in circles ends in SERVFAIL", async () => {
  const server = start();
  assert.equal(rcodeOf(await server.ask("loop-a.shop.svc.cluster.local")), "SERVFAIL");
  await server.close();
});

Deno.test("server: before the metadata is known nothing is denied; a new snapshot is seen at once", async () => {
  const server = start({ meta: new MemoryMeta({ synced: false }) });
  assert.equal(rcodeOf(await server.ask("web.shop.svc.cluster.local")), "SERVFAIL");
  assert.equal(rcodeOf(await server.ask("svc.cluster.local")), "NOERROR");
  server.meta = shop;
  assert.equal(rcodeOf(await server.ask("web.shop.svc.cluster.local")), "NOERROR");
  server.meta = new MemoryMeta({});
  assert.equal(rcodeOf(await server.ask("web.shop.svc.cluster.local")), "NXDOMAIN");
  await server.close();
});

Deno.test("server: the question comes back in the case it was asked, and so do owner and zone", async () => {
  const server = start();
  for (let i = 0; i < 2; i++) {
    const got = await server.ask("WeB.ShOp.sVc.ClUsTeR.lOcAl");
    assert.equal(got.questions![0]!.name, "WeB.ShOp.sVc.ClUsTeR.lOcAl");
    assert.equal(got.answers![0]!.name, "WeB.ShOp.sVc.ClUsTeR.lOcAl");
    const not = await server.ask("no.ShOp.sVc.ClUsTeR.lOcAl");
    assert.equal(not.authorities![0]!.name, "ClUsTeR.lOcAl");
    const srv = await server.ask("_hTTp._tCP.WeB.ShOp.sVc.ClUsTeR.lOcAl", "SRV");
    assert.deepEqual(srv.answers!.map((r) => [r.name, (r as { data: { target: string } }).data.target]), [
      ["_hTTp._tCP.WeB.ShOp.sVc.ClUsTeR.lOcAl", "web.shop.svc.ClUsTeR.lOcAl"],
    ]);
    const plain = await server.ask("_http._tcp.web.shop.svc.cluster.local", "SRV");
    assert.equal((plain.answers![0] as { data: { target: string } }).data.target, "web.shop.svc.cluster.local");
    const foreign = await server.ask("WWW.eXample.test");
    assert.equal(foreign.answers![0]!.name, "WWW.eXample.test");
  }
  await server.close();
});

Deno.test("server: names inside the zones never reach an upstream, nor do storms of a search list", async () => {
  const asked: string[] = [];
  const server = start({}, asked);
  const storm = [
    "db.prod.svc.cluster.local.default.svc.cluster.local",
    "db.prod.svc.cluster.local.svc.cluster.local",
    "db.prod.svc.cluster.local.cluster.local",
    "db.prod.svc.cluster.local.corp.example",
    "db.prod.svc.cluster.local.lan",
    "www.example.test.default.svc.cluster.local",
    "x.pod.cluster.local.corp.example",
  ];
  for (const name of storm) {
    const got = await server.ask(name);
    assert.equal(got.rcode, "NXDOMAIN", name);
    assert.equal(got.authorities!.length, 1, name);
  }
  assert.deepEqual(asked, []);
  await server.close();
});

Deno.test("server: short names for this host's processes, in namespaces of local configuration only", async () => {
  const host = { from: { ip: "192.0.2.1", port: 999 } };
  const asked: string[] = [];
  const server = start({ config: { searchNamespaces: ["shop"] } }, asked);
  for (const name of ["web", "web.shop", "web.shop.svc", "WEB.shop"]) {
    const got = await server.ask(name, "A", host);
    assert.deepEqual(
      recordTexts(got.answers),
      [
        `${name} 5 CNAME web.shop.svc.cluster.local`,
        "web.shop.svc.cluster.local 5 A 10.96.0.7",
      ].sort(),
    );
  }
  assert.deepEqual(asked, []);
  assert.equal(rcodeOf(await server.ask("web.other", "A", host)), "NXDOMAIN");
  assert.equal(rcodeOf(await server.ask("web.shop", "A")), "NXDOMAIN");
  assert.deepEqual(asked, ["web.other/A", "web.shop/A"]);
  // What a pod's question left in the cache does not answer the host.
  assert.equal((await server.ask("web.shop", "A", host)).answers!.length, 2);
  await server.close();
});

Deno.test("server: a pushed Service cannot define a name outside the zones", async () => {
  const asked: string[] = [];
  const evil = new MemoryMeta({ services: [service("com", "google", { clusterIPs: ["10.96.6.6"] })] });
  const server = start({ meta: evil, config: { searchNamespaces: ["shop"] } }, asked);
  const got = await server.ask("google.com", "A", { from: { ip: "192.0.2.1", port: 999 } });
  assert.equal(got.rcode, "NXDOMAIN");
  assert.deepEqual(asked, ["google.com/A"]);
  await server.close();
});

Deno.test("server: pushed endpoints give no public address a name", async () => {
  const meta = new MemoryMeta({
    services: [service("shop", "db", { headless: true })],
    slices: [slice({ namespace: "shop", service: "db" }, [endpoint("8.8.8.8")])],
  });
  const server = start({ meta });
  const got = await server.ask("8.8.8.8.in-addr.arpa", "PTR");
  assert.deepEqual(recordTexts(got.answers), ["8.8.8.8.in-addr.arpa 9 PTR dns.test"]);
  await server.close();
});

Deno.test("server: hosts overrides win over everything, wildcards included", async () => {
  const asked: string[] = [];
  const hosts = { "web.shop.svc.cluster.local": ["10.9.9.9"], "*.dev.test": ["10.9.9.8", "fd00::8"], "off.test": [] };
  const server = start({ config: { hosts } }, asked);
  const texts = async (name: string, type = "A") => recordTexts((await server.ask(name, type)).answers);
  assert.deepEqual(await texts("web.shop.svc.cluster.local"), ["web.shop.svc.cluster.local 60 A 10.9.9.9"]);
  assert.deepEqual(await texts("a.b.dev.test"), ["a.b.dev.test 60 A 10.9.9.8"]);
  assert.deepEqual(await texts("a.dev.test", "AAAA"), ["a.dev.test 60 AAAA fd00::8"]);
  assert.deepEqual(await texts("off.test"), []);
  assert.deepEqual(asked, []);
  assert.equal(rcodeOf(await server.ask("dev.test")), "NXDOMAIN");
  assert.deepEqual(asked, ["dev.test/A"]);
  await server.close();
  assert.throws(
    () => new TestServer({ config: { hosts: { "a..b": ["10.0.0.1"] } } }),
    (e) => e instanceof MeshError && e.code === "CONFIG_INVALID",
  );
});

Deno.test("server: a zone with its own upstream is asked there, also inside a cluster zone", async () => {
  const other = { ip: "192.0.2.54", port: 53 };
  const asked: string[] = [];
  const server = start({
    config: {
      forwards: [{ zone: "corp.example", upstreams: [{ at: other }] }, {
        zone: "consul.cluster.local",
        upstreams: [{ at: other }],
      }],
    },
    prepare: (network) =>
      network.at(
        other,
        upstreamProgram({
          "git.corp.example/A": [{ name: "git.corp.example", type: "A", ttl: 9, data: "10.8.0.1" }],
          "x.consul.cluster.local/A": [{ name: "x.consul.cluster.local", type: "A", ttl: 9, data: "10.8.0.2" }],
        }, asked),
      ),
  });
  assert.equal((await server.ask("git.corp.example")).answers!.length, 1);
  assert.equal((await server.ask("x.consul.cluster.local")).answers!.length, 1);
  assert.equal((await server.ask("web.shop.svc.cluster.local")).answers!.length, 1);
  assert.deepEqual(asked, ["git.corp.example/A", "x.consul.cluster.local/A"]);
  await server.close();
});

Deno.test("server: only this host and its pods are answered; the rest gets silence", async () => {
  const server = start({ config: { allowFrom: ["10.77.0.0/16"] } });
  const query = encodeQuery("web.shop.svc.cluster.local", "A");
  const answers = (ip: string) => server.send(query, { ip, port: 5353 }).length;
  assert.deepEqual(
    ["127.0.0.1", "192.0.2.1", "10.1.9.9", "10.77.0.1", "10.2.0.1", "203.0.113.5", "fd00::1"].map(answers),
    [1, 1, 1, 1, 0, 0, 0],
  );
  assert.equal(server.server.stats().denied, 3);
  server.setSources({ hostIps: [], networks: [parseCidr("10.2.0.0/16")!] });
  assert.deepEqual(["10.1.9.9", "10.2.0.1"].map(answers), [0, 1]);
  await server.close();
});

Deno.test("server: a source over its rate is not answered, others are, and it recovers", async () => {
  const server = start({ config: { maxQueriesPerSecond: 10 } });
  const query = encodeQuery("web.shop.svc.cluster.local", "A");
  const burst = (ip: string, n: number) => {
    let answered = 0;
    for (let i = 0; i < n; i++) answered += server.send(query, { ip, port: 5353 }).length;
    return answered;
  };
  assert.equal(burst("10.1.0.1", 100), 20);
  assert.equal(burst("10.1.0.2", 5), 5);
  server.clock.advance(1000);
  assert.equal(burst("10.1.0.1", 100), 10);
  assert.equal(server.server.stats().limited, 170);
  assert.equal(server.sink.lines.filter((l) => l.includes("more than it may")).length, 1);
  await server.close();
});

Deno.test("server: an upstream that is this server is left out with a line, and the rest goes on", async () => {
  const files = { "/etc/resolv.conf": "nameserver 169.254.96.16\nnameserver 192.0.2.53\n" };
  const server = start({ config: { upstreams: [] }, files });
  assert.ok(server.sink.lines.some((l) => l.includes("169.254.96.16:53, which is this resolver itself")));
  assert.equal((await server.ask("www.example.test")).answers!.length, 1);
  await server.close();
  const alone = start({ config: { upstreams: [] }, files: { "/etc/resolv.conf": "nameserver 169.254.96.16\n" } });
  assert.equal(rcodeOf(await alone.ask("www.example.test")), "SERVFAIL");
  assert.equal(rcodeOf(await alone.ask("web.shop.svc.cluster.local")), "NOERROR");
  assert.ok(alone.sink.lines.some((l) => l.includes("No upstream resolver is known")));
  await alone.close();
});

Deno.test("server: systemd-resolved's stub is looked behind", async () => {
  const files = {
    "/etc/resolv.conf": "nameserver 127.0.0.53\noptions edns0 trust-ad\n",
    "/run/systemd/resolve/resolv.conf": "nameserver 192.0.2.53\n",
  };
  const server = start({ config: { upstreams: [] }, files });
  assert.equal((await server.ask("www.example.test")).answers!.length, 1);
  await server.close();
});

Deno.test("server: upstreams come and go while it runs", async () => {
  const files: Record<string, string> = { "/etc/resolv.conf": "" };
  const server = start({ config: { upstreams: [] }, files });
  assert.equal(rcodeOf(await server.ask("www.example.test")), "SERVFAIL");
  files["/etc/resolv.conf"] = "nameserver 192.0.2.53\n";
  server.server.reloadUpstreams();
  server.clock.advance(6000);
  assert.equal(rcodeOf(await server.ask("www.example.test")), "NOERROR");
  await server.close();
});

Deno.test("server: a resolv.conf that changed is noticed when somebody has to be asked, without a timer", async () => {
  const files: Record<string, string> = { "/etc/resolv.conf": "nameserver 198.51.100.9\n" };
  const server = start({ config: { upstreams: [] }, files });
  assert.equal(rcodeOf(await server.ask("www.example.test")), "SERVFAIL");
  files["/etc/resolv.conf"] = "nameserver 192.0.2.53\n";
  server.clock.advance(6000);
  assert.equal(rcodeOf(await server.ask("www.example.test")), "NOERROR");
  server.clock.advance(200_000);
  assert.equal(server.clock.pending, 0);
  await server.close();
});

Deno.test("server: an address that is taken is an error with the address in it, and nothing stays open", () => {
  const network = new FakeNetwork();
  network.listenTcp({ ip: "127.0.0.1", port: 53 }, () => {});
  const before = network.size;
  assert.throws(() =>
    DnsServer.start({
      loop: network,
      clock: new FakeClock(),
      log: nullLogger,
      listen: [{ ip: "127.0.0.1", port: 53 }],
      meta: () => shop,
      config: DEFAULT_DNS_CONFIG,
      sources: () => ({ hostIps: [], networks: [] }),
      readText: () => undefined,
    }), (e) => e instanceof MeshError && e.code === "KERNEL");
  assert.equal(network.size, before);
});

Deno.test("server: statistics say what happened", async () => {
  const server = start();
  await server.ask("web.shop.svc.cluster.local");
  await server.ask("web.shop.svc.cluster.local");
  await server.ask("www.example.test");
  await server.ask("www.example.test");
  server.send(Uint8Array.of(1, 2, 3));
  const stats = server.server.stats();
  assert.deepEqual(
    [stats.queries, stats.local, stats.clusterHits, stats.forwarded, stats.foreignHits, stats.malformed],
    [4, 1, 1, 1, 1, 1],
  );
  assert.deepEqual(stats.rcodes, { NOERROR: 4 });
  assert.equal(stats.upstreams[0]!.server, "192.0.2.53:53");
  assert.equal(stats.upstreams[0]!.answered, 1);
  await server.close();
  assert.equal(server.clock.pending, 0);
});
