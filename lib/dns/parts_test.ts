/** The pure parts: names, reverse names, search lists, resolv.conf, sources, the cache, what is saved of it. */
import assert from "node:assert/strict";
import fc from "fast-check";
import { parseCidr, parseIp } from "../addr.ts";
import { AnswerCache } from "./cache/cache.ts";
import { makeEntry } from "./cache/entry.ts";
import { labelsOf, nameText } from "./wire/labels.ts";
import { SourceTable } from "./limit.ts";
import { dashedIp, parseName, undash, type Zone, zoneOf } from "./cluster/name.ts";
import { restoreCache, saveCache } from "./cache/persist.ts";
import { Query } from "./wire/query.ts";
import { readMessage } from "./wire/reader.ts";
import { addressRecord, nameRecord } from "./wire/records.ts";
import { findUpstreams, parseResolvConf, parseUpstream } from "./host/resolvconf.ts";
import { reverseAddress, reverseZones } from "./cluster/reverse.ts";
import { stormZone } from "./cluster/search.ts";
import { MessageWriter } from "./wire/writer.ts";

const zone: Zone = { labels: ["cluster", "local"], multicluster: false };
const kind = (name: string, z = zone) => parseName(labelsOf(name)!, z);

for (
  const [name, want] of [
    ["cluster.local", { kind: "apex" }],
    ["svc.cluster.local", { kind: "container", of: "svc" }],
    ["shop.svc.cluster.local", { kind: "namespace", of: "svc", namespace: "shop" }],
    ["web.shop.svc.cluster.local", { kind: "service", namespace: "shop", service: "web" }],
    ["a.web.shop.svc.cluster.local", { kind: "endpoint", namespace: "shop", service: "web", host: "a" }],
    ["_http._tcp.web.shop.svc.cluster.local", {
      kind: "port",
      namespace: "shop",
      service: "web",
      port: "http",
      protocol: "tcp",
    }],
    ["_tcp.web.shop.svc.cluster.local", { kind: "protocol", namespace: "shop", service: "web", protocol: "tcp" }],
    ["http.tcp.web.shop.svc.cluster.local", { kind: "none" }],
    ["a.b.c.web.shop.svc.cluster.local", { kind: "none" }],
    ["web.shop.pood.cluster.local", { kind: "none" }],
    ["1-2-3-4.shop.pod.cluster.local", { kind: "pod", namespace: "shop", ip: "1.2.3.4" }],
    ["x.1-2-3-4.shop.pod.cluster.local", { kind: "none" }],
    ["1-2-3-256.shop.pod.cluster.local", { kind: "pod", namespace: "shop", ip: undefined }],
    ["01-2-3-4.shop.pod.cluster.local", { kind: "pod", namespace: "shop", ip: undefined }],
    ["a.dns-version.cluster.local", { kind: "none" }],
  ] as const
) {
  Deno.test(`name: ${name} → ${want.kind}`, () => assert.deepEqual(kind(name), want));
}

Deno.test("name: in a zone of many clusters two labels before the service are host and cluster", () => {
  const many: Zone = { labels: ["clusterset", "local"], multicluster: true };
  assert.deepEqual(kind("a.east.web.shop.svc.clusterset.local", many), {
    kind: "endpoint",
    namespace: "shop",
    service: "web",
    host: "a",
    cluster: "east",
  });
});

Deno.test("name: a label that holds a dot is no way into another name", () => {
  assert.deepEqual(parseName(["web.shop", "svc", "cluster", "local"], zone), {
    kind: "namespace",
    of: "svc",
    namespace: "web.shop",
  });
  assert.equal(zoneOf(["x", "cluster.local"], [zone]), undefined);
});

Deno.test("name: the longest of nested zones answers", () => {
  const inner: Zone = { labels: ["eu", "cluster", "local"], multicluster: false };
  assert.equal(zoneOf(["a", "eu", "cluster", "local"], [zone, inner]), inner);
  assert.equal(zoneOf(["a", "eu", "cluster", "local"], [inner, zone]), inner);
});

Deno.test("property: dashed addresses lead back to the address", () => {
  const ips = fc.oneof(fc.ipV4(), fc.ipV6()).map((text) => parseIp(text)).filter((ip) => ip !== undefined);
  fc.assert(fc.property(ips, (ip) => {
    assert.equal(undash(dashedIp(ip)), ip);
    assert.ok(!dashedIp(ip).endsWith("-"));
  }));
});

Deno.test("reverse: names and addresses", () => {
  const at = (name: string) => reverseAddress(labelsOf(name)!);
  assert.equal(at("4.3.2.1.in-addr.arpa"), "1.2.3.4");
  assert.equal(at("1.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.d.f.ip6.arpa"), "fd00::1");
  for (const bad of ["3.2.1.in-addr.arpa", "4.3.2.256.in-addr.arpa", "04.3.2.1.in-addr.arpa", "x.3.2.1.in-addr.arpa"]) {
    assert.equal(at(bad), undefined, bad);
  }
});

Deno.test("reverse: zones of networks stand on label boundaries", () => {
  const zones = (cidr: string) => reverseZones(parseCidr(cidr)!).map((z) => z.join("."));
  assert.deepEqual(zones("10.96.0.0/16"), ["96.10.in-addr.arpa"]);
  assert.equal(zones("10.96.0.0/12").length, 16);
  assert.equal(zones("10.96.0.0/12").at(-1), "111.10.in-addr.arpa");
  assert.deepEqual(zones("0.0.0.0/0"), ["in-addr.arpa"]);
  assert.deepEqual(zones("fd00:10:96::/48"), ["6.9.0.0.0.1.0.0.0.0.d.f.ip6.arpa"]);
  assert.deepEqual(zones("fd00:10:94::/46"), [4, 5, 6, 7].map((n) => `${n}.9.0.0.0.1.0.0.0.0.d.f.ip6.arpa`));
});

Deno.test("search: storms are recognised by a whole cluster name inside another", () => {
  const storm = (name: string) => stormZone(labelsOf(name)!, [zone])?.join(".");
  assert.equal(storm("a.b.svc.cluster.local.corp.example"), "cluster.local.corp.example");
  assert.equal(storm("a.b.svc.cluster.local"), undefined);
  assert.equal(storm("cluster.local.example"), undefined);
  assert.equal(storm("www.cluster.local.example"), undefined);
  assert.equal(storm("svc.cluster.local.example"), "cluster.local.example");
});

Deno.test("resolv.conf: what glibc reads, and what it skips", () => {
  const conf = parseResolvConf(
    "# comment\n; other\nsearch A.example b.example.\nnameserver 192.0.2.1 # home\n  nameserver\t2001:db8::1\n" +
      "nameserver fe80::1%eth0\nnameserver 300.1.1.1\nnameserver 010.0.0.1\noptions timeout:2 ndots:5\ndomain last.example\n",
  );
  assert.deepEqual(conf.nameservers.map((n) => n.ip), ["192.0.2.1", "2001:db8::1"]);
  assert.deepEqual([conf.search, conf.ndots], [["last.example"], 5]);
});

Deno.test("resolv.conf: ourselves are refused with a sentence, a stub is looked behind, a missing file is said", () => {
  const ours = [{ ip: "169.254.96.16", port: 53 }];
  const read = (files: Record<string, string>) => (path: string) => files[path];
  const found = findUpstreams("/r", read({ "/r": "nameserver 169.254.96.16\nnameserver 192.0.2.1" }), ours);
  assert.deepEqual(found.upstreams, [{ at: { ip: "192.0.2.1", port: 53 } }]);
  assert.deepEqual(found.refused, ["/r names 169.254.96.16:53, which is this resolver itself"]);
  const behind = findUpstreams(
    "/r",
    read({ "/r": "nameserver 127.0.0.53", "/run/systemd/resolve/resolv.conf": "nameserver 192.0.2.9" }),
    ours,
  );
  assert.equal(behind.upstreams[0]!.at.ip, "192.0.2.9");
  assert.deepEqual(findUpstreams("/r", read({}), ours).refused, ["/r cannot be read"]);
  const any = findUpstreams("/r", read({ "/r": "nameserver 127.0.0.1" }), [{ ip: "0.0.0.0", port: 53 }]);
  assert.equal(any.upstreams.length, 0, "a listener on every address is also 127.0.0.1");
});

Deno.test("upstreams in configuration: forms and refusals", () => {
  assert.deepEqual(parseUpstream("1.1.1.1"), { at: { ip: "1.1.1.1", port: 53 } });
  assert.deepEqual(parseUpstream("1.1.1.1:5353"), { at: { ip: "1.1.1.1", port: 5353 } });
  assert.deepEqual(parseUpstream("2001:DB8::1"), { at: { ip: "2001:db8::1", port: 53 } });
  assert.deepEqual(parseUpstream("tcp://[2001:db8::1]:54"), { at: { ip: "2001:db8::1", port: 54 }, tcp: true });
  for (const bad of ["", "dns.example", "1.1.1.1:0", "1.1.1.1:99999", "tls://1.1.1.1"]) {
    assert.equal(parseUpstream(bad), undefined, bad);
  }
});

Deno.test("sources: the table is bounded and forgets rather than grows", () => {
  const table = new SourceTable(10);
  table.use({ hostIps: [], networks: [parseCidr("10.0.0.0/8")!] });
  const first = table.get("10.0.0.1");
  for (let i = 0; i < 5000; i++) table.get(`10.1.${i >> 8}.${i & 255}`);
  assert.notEqual(table.get("10.0.0.1"), first);
});

function entryOf(name: string, life: { stored: number; ttl: number; stale: number }, variant = 0) {
  const writer = new MessageWriter();
  const labels = labelsOf(name)!;
  writer.begin(0x8180, labels, 1);
  writer.record("answer", addressRecord(labels, "192.0.2.1", life.ttl));
  const expiresAt = life.stored + life.ttl * 1000;
  const query = new Query();
  query.fill(labels, 1, variant);
  const entry = makeEntry(writer.copy(), { hash: query.hash, variant, caseBound: false }, {
    storedAt: life.stored,
    expiresAt,
    staleUntil: expiresAt + life.stale * 1000,
    countDown: true,
    from: "192.0.2.53:53",
  });
  return { query, entry };
}

Deno.test("cache: bounded by entries and bytes; what is used stays, what is not goes", () => {
  const cache = new AnswerCache({ maxEntries: 100, maxBytes: 1 << 20 });
  const hot = entryOf("hot.test", { stored: 0, ttl: 60, stale: 0 });
  cache.set(hot.entry);
  for (let i = 0; i < 1000; i++) {
    const { entry } = entryOf(`n${i}.test`, { stored: 0, ttl: 60, stale: 0 });
    cache.set(entry);
    assert.ok(cache.get(hot.query), `after ${i} others`);
  }
  assert.equal(cache.stats.entries, 100);
  assert.equal(cache.stats.evicted, 901);
  const small = new AnswerCache({ maxEntries: 1000, maxBytes: 4000 });
  for (let i = 0; i < 100; i++) {
    const { entry } = entryOf(`n${i}.test`, { stored: 0, ttl: 60, stale: 0 });
    small.set(entry);
  }
  assert.ok(small.stats.bytes <= 4000 && small.stats.entries >= 8);
  small.clear();
  assert.deepEqual([small.stats.entries, small.stats.bytes], [0, 0]);
});

Deno.test("cache: another question with the same hash is no hit", () => {
  const cache = new AnswerCache({ maxEntries: 100, maxBytes: 1 << 20 });
  const a = entryOf("a.test", { stored: 0, ttl: 60, stale: 0 });
  const b = entryOf("b.test", { stored: 0, ttl: 60, stale: 0 });
  cache.set({ ...a.entry, hash: b.query.hash });
  assert.equal(cache.get(b.query), undefined);
});

Deno.test("saved cache: entries come back with their age; damaged, cut or foreign files yield nothing", () => {
  const cache = new AnswerCache({ maxEntries: 100, maxBytes: 1 << 20 });
  for (const [name, variant] of [["a.test", 0], ["b.test", 1]] as const) {
    const { entry } = entryOf(name, { stored: 1000, ttl: 60, stale: 3600 }, variant);
    cache.set(entry);
  }
  const saved = saveCache(cache, { now: 31_000, wall: 1_000_000 });
  const into = () => new AnswerCache({ maxEntries: 100, maxBytes: 1 << 20 });
  const back = into();
  // The next process starts its monotonic clock anew, 10 s of wall time later.
  assert.equal(restoreCache(back, saved, { now: 5, wall: 1_010_000 }), 2);
  const { query } = entryOf("b.test", { stored: 0, ttl: 60, stale: 0 }, 1);
  const entry = back.get(query)!;
  assert.deepEqual([entry.life.expiresAt, entry.life.staleUntil, entry.life.from], [
    20_005,
    3_620_005,
    "192.0.2.53:53",
  ]);
  for (let i = 0; i < saved.length; i++) {
    assert.equal(restoreCache(into(), saved.slice(0, i), { now: 5, wall: 1_010_000 }), 0, `cut at ${i}`);
    const flipped = saved.slice();
    flipped[i] = flipped[i]! ^ 0x10;
    assert.equal(restoreCache(into(), flipped, { now: 5, wall: 1_010_000 }), 0, `flipped at ${i}`);
  }
  assert.equal(restoreCache(into(), saved, { now: 5, wall: 1_000_000 + 86_400_000 }), 0, "too old to serve");
});

Deno.test("labels: presentation form escapes what would mislead", () => {
  assert.equal(nameText(["a.b", "x y", "\0", "\xe9"]), "a\\.b.x\\032y.\\000.\\233.");
  assert.equal(nameText([]), ".");
  for (const bad of ["a..b", ".a", "x".repeat(64), `${"a.".repeat(127)}aa`, "ā"]) {
    assert.equal(labelsOf(bad), undefined, bad);
  }
  assert.equal(labelsOf("a.".repeat(127))!.length, 127);
});

Deno.test("writer: a name that repeats its own labels never points into itself", () => {
  const writer = new MessageWriter();
  const write = (name: string) => {
    const labels = labelsOf(name)!;
    writer.begin(0x8180, labels, 1);
    writer.record("answer", addressRecord(labels, "192.0.2.1", 1));
    return readMessage(writer.copy());
  };
  // What an earlier message left in the buffer must not look like the rest of a name.
  for (
    const name of ["h.example.test", "h.example.h.example.test", "a.a.a.a", "h.example.h.example.h.example.test", "a.a"]
  ) {
    const read = write(name);
    assert.deepEqual(read?.question.name, name.split("."), name);
    assert.deepEqual(read?.answers[0]?.name, name.split("."), name);
  }
});

Deno.test("property: whatever names are written together come back as they were", () => {
  const label = fc.constantFrom("a", "b", "ab", "A", "x".repeat(63));
  const name = fc.array(label, { maxLength: 3 });
  const writer = new MessageWriter();
  fc.assert(fc.property(name, fc.array(fc.tuple(name, name), { maxLength: 8 }), (question, pairs) => {
    writer.begin(0x8180, question, 5);
    for (const [owner, target] of pairs) assert.ok(writer.record("answer", nameRecord(owner, 5, target, 1)));
    const read = readMessage(writer.copy());
    assert.deepEqual(read?.question.name, question);
    assert.deepEqual(read?.answers.map((r) => [r.name, (r.data as { target: unknown }).target]), pairs);
  }));
});
