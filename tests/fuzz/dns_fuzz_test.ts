/**
 * Bytes nobody meant: random ones, and valid messages with bytes changed, against everything in lib/dns that reads
 * them. Holds: no exception, no answer longer than the client takes, every answer readable by an independent codec,
 * no message takes longer than {@link MAX_MS}.
 *
 *     FUZZ_RUNS=1000000 FUZZ_SEED=7 deno test -A tests/fuzz/dns_fuzz_test.ts
 */
import assert from "node:assert/strict";
import { Buffer } from "node:buffer";
import packet from "dns-packet";
import { systemClock } from "../../lib/clock.ts";
import { AnswerCache } from "../../lib/dns/cache/cache.ts";
import { restoreCache } from "../../lib/dns/cache/persist.ts";
import { Query } from "../../lib/dns/wire/query.ts";
import { readMessage } from "../../lib/dns/wire/reader.ts";
import { parseResolvConf } from "../../lib/dns/host/resolvconf.ts";
import { scrub } from "../../lib/dns/upstream/scrub.ts";
import { encodeQuery, TestServer } from "../../lib/dns/testing.ts";
import { endpoint, MemoryMeta, service, slice } from "../../lib/dns/testing_meta.ts";
import { questionMatch } from "../../lib/dns/upstream/messages.ts";
import { MessageWriter } from "../../lib/dns/wire/writer.ts";

const RUNS = Number(Deno.env.get("FUZZ_RUNS") ?? 10_000);
const SEED = Number(Deno.env.get("FUZZ_SEED") ?? 20_261_123);
/** What is looked for is quadratic or endless work. */
const MAX_MS = 20;

/** A small, fast generator whose whole state is the seed (mulberry32). */
function generator(seed: number): (below: number) => number {
  let a = seed >>> 0;
  return (below) => {
    a = (a + 0x6d2b79f5) >>> 0;
    let t = Math.imul(a ^ (a >>> 15), a | 1);
    t ^= t + Math.imul(t ^ (t >>> 7), t | 61);
    return ((t ^ (t >>> 14)) >>> 0) % below;
  };
}

const SEEDS: readonly Uint8Array[] = [
  encodeQuery("web.shop.svc.cluster.local", "A"),
  encodeQuery("_http._tcp.big.shop.svc.cluster.local", "SRV", { edns: 1232, dnssecOk: true }),
  encodeQuery("7.0.96.10.in-addr.arpa", "PTR", { edns: 512 }),
  encodeQuery("www.example.test", "ANY"),
  encodeQuery("a.b.c.d.e.f.g.h.example.test", "AAAA", { edns: 65535 }),
  new Uint8Array(packet.encode({
    type: "response",
    id: 7,
    flags: 0x180,
    questions: [{ type: "A", name: "www.example.test" }],
    answers: [
      { name: "www.example.test", type: "CNAME", ttl: 60, data: "real.example.test" },
      { name: "real.example.test", type: "A", ttl: 60, data: "192.0.2.1" },
      { name: "real.example.test", type: "AAAA", ttl: 60, data: "2001:db8::1" },
      { name: "www.example.test", type: "MX", ttl: 60, data: { preference: 1, exchange: "mail.example.test" } },
      { name: "www.example.test", type: "SRV", ttl: 60, data: { port: 1, target: "t.example.test" } },
      { name: "www.example.test", type: "TXT", ttl: 60, data: ["a", "b"] },
    ],
    authorities: [{
      name: "example.test",
      type: "SOA",
      ttl: 60,
      data: { mname: "a.test", rname: "b.test", serial: 1, refresh: 1, retry: 1, expire: 1, minimum: 1 },
    }],
    additionals: [{ name: "ns.example.test", type: "A", ttl: 60, data: "192.0.2.2" }],
  })),
];
/** Bytes that mean something in DNS, tried more often than others. */
const MAGIC = [0, 1, 12, 0x3f, 0x40, 0x41, 0x5a, 0x80, 0xbf, 0xc0, 0xc1, 0xff, 41, 46];

function mutate(random: (below: number) => number): Uint8Array {
  if (random(10) === 0) return Uint8Array.from({ length: random(80) }, () => random(256));
  const bytes = SEEDS[random(SEEDS.length)]!.slice();
  let out = bytes;
  for (let n = 1 + random(6); n > 0; n--) {
    const at = random(out.length || 1);
    switch (random(6)) {
      case 0:
      case 1:
        out[at] = random(256);
        break;
      case 2:
        out[at] = MAGIC[random(MAGIC.length)]!;
        break;
      case 3:
        // A pointer to anywhere.
        out[at] = 0xc0 | random(2);
        if (at + 1 < out.length) out[at + 1] = random(out.length);
        break;
      case 4:
        out = out.slice(0, random(out.length + 1));
        break;
      case 5: {
        const from = random(out.length || 1);
        const piece = out.slice(from, from + random(20));
        out = Uint8Array.from([...out.slice(0, at), ...piece, ...out.slice(at)]);
        break;
      }
    }
    if (out.length === 0) break;
  }
  return out;
}

function quickly(what: string, bytes: Uint8Array, run: () => void): void {
  // A busy machine may stop us at any time; work that is slow by itself is slow each time.
  let ms = Infinity;
  for (let tries = 0; tries < 5 && ms > MAX_MS; tries++) {
    const start = systemClock.now();
    try {
      run();
    } catch (error) {
      throw new Error(`${what} of ${Buffer.from(bytes).toString("hex")} threw`, { cause: error });
    }
    ms = Math.min(ms, systemClock.now() - start);
  }
  assert.ok(ms <= MAX_MS, `${what} of ${Buffer.from(bytes).toString("hex")} took ${ms} ms`);
}

const meta = new MemoryMeta({
  services: [service("shop", "web", { clusterIPs: ["10.96.0.7"] }), service("shop", "big", { headless: true })],
  slices: [
    slice({ namespace: "shop", service: "big" }, Array.from({ length: 99 }, (_, i) => endpoint(`10.2.0.${i + 1}`))),
  ],
});

Deno.test(`fuzz: ${RUNS} messages to the server, seed ${SEED}`, async () => {
  const random = generator(SEED);
  const server = new TestServer({ meta, config: { maxQueriesPerSecond: 0, maxPendingPerSource: 64 } });
  let answered = 0;
  for (let i = 0; i < RUNS; i++) {
    const bytes = mutate(random);
    quickly("handling", bytes, () => {
      const [answer] = server.send(bytes);
      if (answer === undefined) return;
      answered++;
      assert.ok(answer.length <= 1232, `${answer.length} bytes`);
      assert.deepEqual([answer[0], answer[1]], [bytes[0], bytes[1]]);
      assert.equal(answer[2]! & 0x80, 0x80);
      packet.decode(Buffer.from(answer));
    });
    if (i % 1000 === 0) server.clock.advance(100);
  }
  assert.ok(answered > RUNS / 20, `only ${answered} of ${RUNS} were answered: the mutations are too wild`);
  assert.equal((await server.ask("web.shop.svc.cluster.local")).answers!.length, 1);
  await server.close();
});

Deno.test(`fuzz: ${RUNS} answers of upstreams, seed ${SEED}`, () => {
  const random = generator(SEED + 1);
  const writer = new MessageWriter();
  const query = new Query();
  const times = { maxTtl: 3600, maxNegativeTtl: 300, staleFor: 86400 };
  const question = { name: ["www", "example", "test"], type: 1 };
  let kept = 0;
  for (let i = 0; i < RUNS; i++) {
    const bytes = mutate(random);
    quickly("reading", bytes, () => {
      readMessage(bytes);
      query.parse(bytes, bytes.length);
      if (bytes.length > 0) questionMatch(SEEDS[i % SEEDS.length]!, bytes);
      const entry = scrub(bytes, { hash: i, question, variant: i & 3, now: 0, from: "x" }, times, writer);
      if (entry === undefined) return;
      kept++;
      // What is kept is well-formed, whatever came.
      const read = readMessage(entry.bytes);
      assert.ok(read);
      // Data of types without names passes through as it is (RFC 3597), also when it is nonsense to who knows the type.
      const records = [...read.answers, ...read.authorities, ...read.additionals];
      if (records.every((r) => r.data.kind !== "raw" || r.type === 1 || r.type === 28)) {
        packet.decode(Buffer.from(entry.bytes));
      }
    });
  }
  assert.ok(kept > RUNS / 50, `only ${kept} of ${RUNS} were kept`);
});

Deno.test(`fuzz: saved caches and resolv.conf, seed ${SEED}`, () => {
  const random = generator(SEED + 2);
  for (let i = 0; i < RUNS / 10; i++) {
    const bytes = mutate(random);
    quickly("parsing", bytes, () => {
      parseResolvConf(new TextDecoder("latin1").decode(bytes));
      restoreCache(new AnswerCache({ maxEntries: 9, maxBytes: 9999 }), bytes, { now: 0, wall: 0 });
    });
  }
});
