/** Foreign names through the whole server: caching, negative answers, stale answers, restarts, forged records. */
import assert from "node:assert/strict";
import { Buffer } from "node:buffer";
import packet from "dns-packet";
import { DEFAULT_DNS_CONFIG } from "../config.ts";
import type { UdpProgram } from "../fake_network.ts";
import { decode, encodeQuery, recordTexts, TestServer, upstreamProgram } from "../testing.ts";

const UP = { ip: "192.0.2.53", port: 53 };
const A = (name: string, ttl = 60, data = "192.0.2.80"): packet.Answer => ({ name, type: "A", ttl, data });

function start(program: UdpProgram | undefined, config: Partial<typeof DEFAULT_DNS_CONFIG> = {}): TestServer {
  return new TestServer({
    config: { upstreams: [{ at: UP }], ...config },
    prepare: (network) => network.at(UP, program),
  });
}

/** An upstream that answers with whatever `make` returns. */
function scripted(make: (query: packet.DecodedPacket) => Partial<packet.Packet>, asked: string[] = []): UdpProgram {
  return (bytes, _from, reply) => {
    const query = packet.decode(Buffer.from(bytes));
    asked.push(query.questions![0]!.name.toLowerCase());
    const made = make(query);
    reply(
      new Uint8Array(packet.encode({
        type: "response",
        id: query.id ?? 0,
        questions: query.questions ?? [],
        ...made,
        flags: packet.RECURSION_AVAILABLE | (made.flags ?? 0),
      })),
    );
  };
}

const ttlOf = (r: { readonly answers?: readonly packet.Answer[] | undefined }) =>
  (r.answers![0] as { ttl: number }).ttl;

Deno.test("foreign: a cached answer counts its TTL down and is asked again when it is over", async () => {
  const asked: string[] = [];
  const server = start(upstreamProgram({ "a.test/A": [A("a.test", 100)] }, asked));
  assert.equal(ttlOf(await server.ask("a.test")), 100);
  server.clock.advance(40_000);
  assert.equal(ttlOf(await server.ask("a.test")), 60);
  assert.equal(asked.length, 1);
  server.clock.advance(61_000);
  assert.equal(ttlOf(await server.ask("a.test")), 100);
  assert.equal(asked.length, 2);
  await server.close();
});

Deno.test("foreign: an answer in use is fetched anew before it expires, without anybody waiting", async () => {
  const asked: string[] = [];
  const server = start(upstreamProgram({ "a.test/A": [A("a.test", 100)] }, asked));
  await server.ask("a.test");
  server.clock.advance(95_000);
  const [now] = server.send(encodeQuery("a.test", "A"));
  assert.equal(ttlOf(decode(now!)), 5);
  await server.settle();
  assert.equal(asked.length, 2);
  assert.equal(ttlOf(await server.ask("a.test")), 100);
  await server.close();
});

Deno.test("foreign: TTLs above the limit are cut, in the answer too", async () => {
  const server = start(upstreamProgram({ "a.test/A": [A("a.test", 1_000_000)] }), { maxTtl: 600 });
  assert.equal(ttlOf(await server.ask("a.test")), 600);
  await server.close();
});

Deno.test("foreign: NXDOMAIN and NODATA are kept for the smaller of SOA TTL and minimum", async () => {
  const asked: string[] = [];
  const server = start(upstreamProgram({}, asked));
  for (let i = 0; i < 2; i++) {
    const got = await server.ask("no.test");
    assert.equal(got.rcode, "NXDOMAIN");
    assert.equal((got.authorities![0] as { ttl: number }).ttl, 45);
  }
  assert.equal(asked.length, 1);
  server.clock.advance(46_000);
  await server.ask("no.test");
  assert.equal(asked.length, 2);
  await server.close();
});

Deno.test("foreign: a negative answer without SOA, or with a foreign one, is kept for seconds only", async () => {
  const asked: string[] = [];
  const soa: packet.Answer = {
    name: "other.example",
    type: "SOA",
    ttl: 3600,
    data: { mname: "a", rname: "b", serial: 1, refresh: 1, retry: 1, expire: 1, minimum: 3600 },
  };
  const server = start(scripted((q) => ({
    flags: 3,
    authorities: q.questions![0]!.name.toLowerCase() === "b.test" ? [soa] : [],
  }), asked));
  for (const name of ["a.test", "b.test"]) {
    assert.deepEqual((await server.ask(name)).authorities, []);
    server.clock.advance(6000);
    await server.ask(name);
  }
  assert.equal(asked.length, 4);
  await server.close();
});

Deno.test("foreign: one question upstream, however many ask it at once", async () => {
  const asked: string[] = [];
  const server = start(upstreamProgram({ "a.test/A": [A("a.test")] }, asked));
  const from = (i: number) => ({ ip: `10.1.0.${i}`, port: 5000 + i });
  const replies: number[] = [];
  for (let i = 1; i <= 20; i++) {
    server.network.at(from(i), () => void replies.push(i));
    server.network.deliver(encodeQuery("A.test", "A"), from(i), server.address);
  }
  await server.settle();
  assert.equal(asked.length, 1);
  assert.equal(replies.length, 20);
  await server.close();
});

Deno.test("foreign: records that nobody asked for are not passed on and not kept", async () => {
  const asked: string[] = [];
  const server = start(scripted((q) => {
    const name = q.questions![0]!.name;
    return {
      answers: [
        { name, type: "CNAME", ttl: 60, data: "real.test" },
        A("real.test"),
        A("bank.example", 60, "203.0.113.66"),
        { name: "real.test", type: "TXT", ttl: 60, data: "x" },
      ],
      authorities: [{ name: "example", type: "NS", ttl: 60, data: "evil.test" }],
      additionals: [A("evil.test", 60, "203.0.113.66")],
    };
  }, asked));
  const got = await server.ask("www.test");
  assert.deepEqual(recordTexts(got.answers), ["real.test 60 A 192.0.2.80", "www.test 60 CNAME real.test"]);
  assert.deepEqual([got.authorities!.length, got.additionals!.length], [0, 0]);
  await server.ask("bank.example");
  assert.deepEqual(asked, ["www.test", "bank.example"]);
  await server.close();
});

Deno.test("foreign: a chain of aliases that closes in on itself ends", async () => {
  const server = start(scripted(() => ({
    answers: [
      { name: "a.test", type: "CNAME", ttl: 60, data: "b.test" },
      { name: "b.test", type: "CNAME", ttl: 60, data: "a.test" },
    ],
  })));
  const got = await server.ask("a.test");
  assert.equal(got.answers!.length, 2);
  await server.close();
});

Deno.test("foreign: a malformed answer is none: SERVFAIL, and asked again after seconds", async () => {
  const server = start((bytes, _from, reply) => {
    const answer = bytes.slice();
    answer[2] = 0x81;
    answer[3] = 0x80;
    answer[7] = 1; // an answer is counted, the OPT of the query stands in its place
    answer[11] = 0;
    reply(answer.slice(0, answer.length - 1));
  });
  assert.equal((await server.ask("a.test")).rcode, "SERVFAIL");
  server.network.at(UP, upstreamProgram({ "a.test/A": [A("a.test")] }));
  assert.equal((await server.ask("a.test")).rcode, "SERVFAIL");
  server.clock.advance(5100);
  assert.equal((await server.ask("a.test")).rcode, "NOERROR");
  await server.close();
});

Deno.test("stale: an expired answer is served with TTL 30 while no upstream answers, for 24 hours and no longer", async () => {
  const server = start(upstreamProgram({ "a.test/A": [A("a.test", 60)] }));
  await server.ask("a.test");
  server.network.at(UP, undefined);
  server.clock.advance(61_000);
  const before = server.clock.now();
  const first = await server.ask("a.test");
  assert.deepEqual([first.rcode, ttlOf(first)], ["NOERROR", 30]);
  assert.ok(
    server.clock.now() - before <= 400,
    `${server.clock.now() - before} ms: two silences of a quick server are enough`,
  );
  server.clock.advance(60_000);
  const again = server.clock.now();
  const second = await server.ask("a.test");
  assert.equal(ttlOf(second), 30);
  assert.ok(server.clock.now() - again <= 10, "known to be down: at once");
  server.clock.advance(86_400_000 - 130_000);
  assert.equal((await server.ask("a.test")).rcode, "NOERROR");
  server.clock.advance(100_000);
  assert.equal((await server.ask("a.test")).rcode, "SERVFAIL");
  await server.close();
});

Deno.test("stale: a name never seen is SERVFAIL, and soon once the upstream is known to be down", async () => {
  const server = start(undefined);
  assert.equal((await server.ask("a.test")).rcode, "SERVFAIL");
  const before = server.clock.now();
  assert.equal((await server.ask("b.test")).rcode, "SERVFAIL");
  assert.ok(server.clock.now() - before <= 1600, `${server.clock.now() - before} ms`);
  const kept = server.clock.now();
  assert.equal((await server.ask("b.test")).rcode, "SERVFAIL");
  assert.equal(server.clock.now(), kept, "the failure itself is kept for seconds");
  await server.close();
});

Deno.test("stale: without a route SERVFAIL comes at once", async () => {
  const server = start(undefined);
  server.network.unreachable.add("192.0.2.53:53");
  const before = server.clock.now();
  assert.equal((await server.ask("a.test")).rcode, "SERVFAIL");
  assert.ok(server.clock.now() - before <= 20, `${server.clock.now() - before} ms`);
  await server.close();
});

Deno.test("stale: fresh answers are back as soon as the upstream is", async () => {
  const server = start(upstreamProgram({ "a.test/A": [A("a.test", 60)] }));
  await server.ask("a.test");
  server.network.at(UP, undefined);
  server.clock.advance(61_000);
  await server.ask("a.test");
  server.network.at(UP, upstreamProgram({ "a.test/A": [A("a.test", 60, "192.0.2.99")] }));
  await server.pass(10_000);
  const got = await server.ask("a.test");
  assert.match(recordTexts(got.answers)[0]!, /^a.test (4|5)\d A 192.0.2.99$/);
  await server.close();
});

Deno.test("stale: off when configured off", async () => {
  const server = start(upstreamProgram({ "a.test/A": [A("a.test", 60)] }), { serveStale: 0 });
  await server.ask("a.test");
  server.network.at(UP, undefined);
  server.clock.advance(61_000);
  assert.equal((await server.ask("a.test")).rcode, "SERVFAIL");
  await server.close();
});

Deno.test("restart: what was known is served stale by the next process; the clock may have been lost meanwhile", async () => {
  for (const wallShift of [3_600_000, -1_000_000_000_000]) {
    let saved: Uint8Array | undefined;
    const store = {
      load: () => saved,
      save: (bytes: Uint8Array) => {
        saved = bytes;
        return Promise.resolve();
      },
    };
    const first = new TestServer({
      config: { upstreams: [{ at: UP }] },
      store,
      prepare: (n) => n.at(UP, upstreamProgram({ "a.test/A": [A("a.test", 60)], "l.test/A": [A("l.test", 100_000)] })),
    });
    await first.ask("a.test");
    await first.ask("l.test");
    await first.ask("never.test");
    await first.server.close();
    assert.ok(saved);
    const second = new TestServer({ config: { upstreams: [{ at: UP }] }, store, wall: first.clock.wall() + wallShift });
    assert.equal(ttlOf(await second.ask("a.test")), 30);
    assert.equal((await second.ask("never.test")).rcode, "NXDOMAIN");
    assert.equal((await second.ask("unknown.test")).rcode, "SERVFAIL");
    await second.server.close();
  }
});

Deno.test("restart: saved every ten minutes while something is learned, and not otherwise", async () => {
  let saves = 0;
  const store = { load: () => undefined, save: () => Promise.resolve(void saves++) };
  const server = new TestServer({
    config: { upstreams: [{ at: UP }] },
    store,
    prepare: (n) => n.at(UP, upstreamProgram({ "a.test/A": [A("a.test")] })),
  });
  server.clock.advance(3_600_000);
  assert.equal(saves, 0);
  await server.ask("a.test");
  server.clock.advance(600_000);
  assert.equal(saves, 1);
  server.clock.advance(3_600_000);
  await server.server.close();
  assert.equal(saves, 1);
});

Deno.test("foreign: truncated over UDP is fetched over TCP and fits a client that takes it", async () => {
  const server = start(scripted(() => ({ flags: packet.TRUNCATED_RESPONSE })));
  const answers = Array.from({ length: 70 }, (_, i) => A("big.test", 60, `10.9.0.${i}`));
  server.network.listenTcp(UP, ({ stream }) => {
    const buffer = new Uint8Array(4096);
    stream.handler = {
      ...stream.handler,
      onReadable: () => {
        const n = stream.read(buffer);
        if (n <= 0) return;
        const query = packet.decode(Buffer.from(buffer.slice(2, n)));
        const answer = packet.encode({
          type: "response",
          id: query.id ?? 0,
          flags: 0x180,
          questions: query.questions ?? [],
          answers,
        });
        const framed = new Uint8Array(answer.length + 2);
        framed.set([answer.length >> 8, answer.length & 0xff]);
        framed.set(answer, 2);
        stream.write(framed, 0, framed.length);
      },
    };
  });
  const small = await server.ask("big.test");
  assert.equal(small.flag_tc, true);
  const big = await server.ask("big.test", "A", { edns: 1232 });
  assert.equal(big.answers!.length, 70);
  assert.equal(server.network.dials, 1);
  await server.close();
});

Deno.test("foreign: truncated, and TCP refused: what there is, marked as truncated, and asked again soon", async () => {
  const asked: string[] = [];
  const server = start(
    scripted((q) => ({ flags: packet.TRUNCATED_RESPONSE, answers: [A(q.questions![0]!.name)] }), asked),
  );
  const got = await server.ask("big.test", "A", { edns: 1232 });
  assert.deepEqual([got.rcode, got.flag_tc, got.answers!.length], ["NOERROR", true, 1]);
  const before = asked.length;
  server.clock.advance(5100);
  await server.ask("big.test", "A", { edns: 1232 });
  assert.ok(asked.length > before);
  await server.close();
});

Deno.test("rebinding: addresses of this network are stripped from public names where switched on, except where allowed", async () => {
  const zone: Record<string, packet.Answer[]> = {};
  for (const ip of ["10.0.0.1", "127.0.0.1", "169.254.169.254", "192.168.1.1", "100.64.0.1", "0.0.0.0", "192.0.2.80"]) {
    zone["evil.test/A"] = [...zone["evil.test/A"] ?? [], A("evil.test", 60, ip)];
    zone["nas.lan.test/A"] = [...zone["nas.lan.test/A"] ?? [], A("nas.lan.test", 60, ip)];
  }
  zone["six.test/AAAA"] = ["::1", "fe80::1", "fd00::1", "2001:db8::1"].map((data) => ({
    name: "six.test",
    type: "AAAA",
    ttl: 60,
    data,
  }));
  const ips = (r: Awaited<ReturnType<TestServer["ask"]>>) => r.answers!.map((x) => (x as { data: string }).data).sort();
  const on = start(upstreamProgram(zone), { rebindProtection: true, rebindAllow: ["lan.test"] });
  assert.deepEqual(ips(await on.ask("evil.test", "A", { edns: 1232 })), ["192.0.2.80"]);
  assert.equal(ips(await on.ask("nas.lan.test", "A", { edns: 1232 })).length, 7);
  assert.deepEqual(ips(await on.ask("six.test", "AAAA", { edns: 1232 })), ["2001:db8::1"]);
  await on.close();
  const off = start(upstreamProgram(zone));
  assert.equal(ips(await off.ask("evil.test", "A", { edns: 1232 })).length, 7);
  await off.close();
});

Deno.test("foreign: an upstream that asks us back goes in no circles", async () => {
  let asked = 0;
  // A stub on this host whose own upstream is us: every question comes back, from an allowed address.
  const server: TestServer = start((bytes) => {
    asked++;
    server.network.deliver(bytes, { ip: "127.0.0.1", port: 5300 }, server.address);
  });
  const got = await server.ask("a.test");
  assert.equal(got.rcode, "SERVFAIL");
  assert.ok(asked <= 6, `${asked} questions for one name`);
  await server.close();
});

Deno.test("foreign: a source with too many questions under way is refused, others are not", async () => {
  const server = start(undefined, { maxPendingPerSource: 3 });
  const from = { ip: "10.1.0.1", port: 5000 };
  for (let i = 0; i < 3; i++) assert.equal(server.send(encodeQuery(`n${i}.test`, "A"), from).length, 0);
  const [refused] = server.send(encodeQuery("n9.test", "A"), from);
  assert.equal(decode(refused!).rcode, "REFUSED");
  assert.equal(server.send(encodeQuery("n9.test", "A"), { ip: "10.1.0.2", port: 5000 }).length, 0);
  await server.close();
});
