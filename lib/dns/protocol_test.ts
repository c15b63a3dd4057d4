/** What the protocol itself asks for: RFC 1035, 2181, 2308, 6891, 8482, and ISC's list of things servers get wrong. */
import assert from "node:assert/strict";
import { decode, encodeQuery, TestServer, upstreamProgram } from "./testing.ts";
import { endpoint, MemoryMeta, service, slice } from "./testing_meta.ts";

const UP = { ip: "192.0.2.53", port: 53 };
const NAME = "web.shop.svc.cluster.local";

function start(): TestServer {
  const meta = new MemoryMeta({
    services: [
      service("shop", "web", { clusterIPs: ["10.96.0.7"] }),
      service("shop", "big", { headless: true }),
      service("shop", "huge", { headless: true }),
    ],
    slices: [
      slice({ namespace: "shop", service: "big" }, Array.from({ length: 60 }, (_, i) => endpoint(`10.2.0.${i + 1}`))),
      slice(
        { namespace: "shop", service: "huge" },
        Array.from({ length: 5000 }, (_, i) => endpoint(`10.${3 + (i >> 14)}.${(i >> 8) & 63}.${i & 255}`)),
      ),
    ],
  });
  return new TestServer({
    meta,
    config: { upstreams: [{ at: UP }] },
    prepare: (network) =>
      network.at(
        UP,
        upstreamProgram({
          "www.example.test/A": [{ name: "www.example.test", type: "A", ttl: 60, data: "192.0.2.80" }],
          "odd.example.test/UNKNOWN_65280": [],
        }),
      ),
  });
}

interface Seen {
  readonly rcode: number;
  readonly flags: number;
  readonly opt: { readonly version: number; readonly size: number; readonly do: boolean } | undefined;
  readonly question: boolean;
  readonly length: number;
}

/** Header and OPT read by hand: tests about flags should not depend on a codec's opinion of them. */
function see(bytes: Uint8Array): Seen {
  const additional = (bytes[10]! << 8) | bytes[11]!;
  const at = bytes.length - 11;
  const isOpt = additional > 0 && bytes[at] === 0 && bytes[at + 2] === 41;
  return {
    rcode: (bytes[3]! & 0xf) | (isOpt ? bytes[at + 5]! << 4 : 0),
    flags: ((bytes[2]! << 8) | bytes[3]!) & 0xfff0,
    opt: isOpt
      ? { version: bytes[at + 6]!, size: (bytes[at + 3]! << 8) | bytes[at + 4]!, do: (bytes[at + 7]! & 0x80) !== 0 }
      : undefined,
    question: bytes[5] === 1,
    length: bytes.length,
  };
}

const QR_AA_RA = 0x8480;
const plain = (type = "A", flags = 0) => encodeQuery(NAME, type, { flags });
const withEdns = (edns = 1232, dnssecOk = false) => encodeQuery(NAME, "A", { edns, dnssecOk, flags: 0 });
const patched = (bytes: Uint8Array, ...changes: readonly (readonly [number, number])[]) => {
  for (const [at, value] of changes) bytes[at < 0 ? bytes.length + at : at] = value;
  return bytes;
};
/** A query with one EDNS option. */
const withOption = (code: number, data: readonly number[]) => {
  const bytes = withEdns();
  const option = [code >> 8, code & 0xff, data.length >> 8, data.length & 0xff, ...data];
  patched(bytes, [-1, option.length]);
  return Uint8Array.from([...bytes, ...option]);
};

const rows: readonly (readonly [string, Uint8Array, Partial<Seen> & { readonly noOpt?: true }])[] = [
  ["a plain query", plain(), { rcode: 0, flags: QR_AA_RA, noOpt: true, question: true }],
  ["a plain SOA query", plain("SOA"), { rcode: 0, flags: QR_AA_RA, noOpt: true }],
  ["a query for an unknown type", patched(plain(), [-4, 255], [-3, 0]), { rcode: 0, flags: QR_AA_RA }],
  ["RD is echoed", plain("A", 0x100), { rcode: 0, flags: QR_AA_RA | 0x100 }],
  ["CD is echoed", plain("A", 0x10), { rcode: 0, flags: QR_AA_RA | 0x10 }],
  ["AD is not set by us", plain("A", 0x20), { rcode: 0, flags: QR_AA_RA }],
  ["AA, TC and RA of a query mean nothing", plain("A", 0x0680), { rcode: 0, flags: QR_AA_RA }],
  ["Z of a query is not echoed", plain("A", 0x40), { rcode: 0, flags: QR_AA_RA }],
  ["opcode 15", plain("A", 0x7800), { rcode: 4, flags: 0x8080 | 0x7800, question: false }],
  ["EDNS", withEdns(), { rcode: 0, opt: { version: 0, size: 1232, do: false } }],
  ["EDNS with DO", withEdns(1232, true), { rcode: 0, opt: { version: 0, size: 1232, do: true } }],
  ["EDNS of 512 bytes", withEdns(512), { rcode: 0, opt: { version: 0, size: 1232, do: false } }],
  ["EDNS version 1", patched(withEdns(), [-5, 1]), { rcode: 16, opt: { version: 0, size: 1232, do: false } }],
  ["EDNS version 1 with an unknown option", patched(withOption(100, [1]), [-10, 1]), {
    rcode: 16,
    opt: { version: 0, size: 1232, do: false },
  }],
  ["EDNS with an unknown option", withOption(100, [1, 2, 3]), { rcode: 0, opt: { version: 0, size: 1232, do: false } }],
  ["EDNS with a cookie", withOption(10, [1, 2, 3, 4, 5, 6, 7, 8]), {
    rcode: 0,
    opt: { version: 0, size: 1232, do: false },
  }],
  ["EDNS with a client subnet", withOption(8, [0, 1, 0, 0]), { rcode: 0, opt: { version: 0, size: 1232, do: false } }],
  ["EDNS with an unknown flag", patched(withEdns(), [-3, 0x40]), {
    rcode: 0,
    opt: { version: 0, size: 1232, do: false },
  }],
  ["class CHAOS", patched(plain("TXT"), [-1, 3]), { rcode: 5, question: true }],
  ["class ANY", patched(plain(), [-1, 255]), { rcode: 5 }],
  ["a zone transfer", patched(plain(), [-3, 252]), { rcode: 5 }],
  ["an incremental transfer", patched(plain(), [-3, 251]), { rcode: 5 }],
  ["no question at all", patched(plain().slice(0, 12), [5, 0]), { rcode: 1, question: false }],
];

for (const [what, query, want] of rows) {
  Deno.test(`protocol: ${what}`, async () => {
    const server = start();
    const [answer] = server.send(query);
    assert.ok(answer, "an answer");
    assert.deepEqual([answer[0], answer[1]], [0x42, 0x42]);
    const got = see(answer);
    for (const [key, value] of Object.entries(want)) {
      if (key === "noOpt") assert.equal(got.opt, undefined);
      else assert.deepEqual(got[key as keyof Seen], value, key);
    }
    await server.close();
  });
}

Deno.test("protocol: responses and fragments of headers get no answer", async () => {
  const server = start();
  assert.deepEqual(server.send(patched(plain(), [2, 0x80])), []);
  for (let n = 0; n < 12; n++) assert.deepEqual(server.send(plain().slice(0, n)), []);
  await server.close();
});

Deno.test("protocol: a query cut anywhere gets FORMERR or nothing", async () => {
  const server = start();
  const query = withEdns();
  for (let n = 12; n < query.length; n++) {
    const [answer] = server.send(query.slice(0, n));
    assert.equal(answer && see(answer).rcode, 1, `cut at ${n}`);
  }
  await server.close();
});

for (
  const [edns, max, tc] of [[undefined, 512, true], [512, 512, true], [800, 800, true], [1232, 1232, false], [
    65535,
    1232,
    false,
  ]] as const
) {
  Deno.test(`protocol: 60 addresses over UDP for a client that takes ${edns ?? "no EDNS"}`, async () => {
    const server = start();
    const [bytes] = server.send(encodeQuery("big.shop.svc.cluster.local", "A", edns ? { edns } : {}));
    const answer = decode(bytes!);
    assert.ok(bytes!.length <= max, `${bytes!.length} bytes`);
    assert.equal(answer.flag_tc, tc);
    assert.equal(answer.answers!.length === 60, !tc);
    // As many as fit: one more would not.
    if (tc) assert.ok(bytes!.length + 16 > max);
    await server.close();
  });
}

Deno.test("protocol: SRV over UDP leaves additional records out before it truncates", async () => {
  const server = start();
  const [bytes] = server.send(encodeQuery("_http._tcp.big.shop.svc.cluster.local", "SRV", { edns: 1232 }));
  const answer = decode(bytes!);
  assert.ok(bytes!.length <= 1232);
  assert.equal(answer.flag_tc, true);
  assert.equal(answer.additionals!.filter((r) => r.type !== "OPT").length, 0);
  await server.close();
});

Deno.test("protocol: 5000 addresses do not fit anywhere: TC and as many as fit", async () => {
  const server = start();
  const [bytes] = server.send(encodeQuery("huge.shop.svc.cluster.local", "A", { edns: 4096 }));
  const answer = decode(bytes!);
  assert.equal(answer.flag_tc, true);
  assert.ok(bytes!.length <= 1232 && bytes!.length > 1200);
  await server.close();
});

Deno.test("protocol: addresses of a Service rotate, each is first once, none is lost", async () => {
  const server = start();
  const firsts = new Set<string>();
  for (let i = 0; i < 60; i++) {
    const [bytes] = server.send(encodeQuery("big.shop.svc.cluster.local", "A", { edns: 1232 }));
    const ips = decode(bytes!).answers!.map((r) => (r as { data: string }).data);
    assert.equal(new Set(ips).size, 60);
    firsts.add(ips[0]!);
  }
  assert.equal(firsts.size, 60);
  await server.close();
});

Deno.test("protocol: ANY gets one HINFO (RFC 8482), of names here and elsewhere, and asks nobody", async () => {
  const server = start();
  for (const name of [NAME, "www.example.test", "big.shop.svc.cluster.local"]) {
    const [bytes] = server.send(encodeQuery(name, "ANY", { edns: 4096 }));
    const answer = decode(bytes!);
    assert.deepEqual(answer.answers!.map((r) => r.type), ["HINFO"]);
    assert.ok(bytes!.length < 120, "no amplification");
  }
  const [none] = server.send(encodeQuery("none.shop.svc.cluster.local", "ANY"));
  assert.equal(decode(none!).rcode, "NXDOMAIN");
  assert.equal(server.network.sent.filter((d) => d.to.ip === UP.ip).length, 0);
  await server.close();
});

Deno.test("protocol: names compress, so that 10 addresses take less than 250 bytes", async () => {
  const server = start();
  const [bytes] = server.send(encodeQuery("big.shop.svc.cluster.local", "A", { edns: 300 }));
  assert.ok(decode(bytes!).answers!.length >= 12, "12 records within 300 bytes");
  await server.close();
});

Deno.test("protocol: SRV targets are written in full (RFC 2782)", async () => {
  const server = start();
  const [bytes] = server.send(encodeQuery(NAME, "SRV"));
  const text = new TextDecoder("latin1").decode(bytes!);
  assert.equal(text.split("\x03web\x04shop\x03svc\x07cluster\x05local").length - 1, 2, "question and target");
  await server.close();
});

Deno.test("protocol: a foreign answer of an unknown type passes through byte for byte (RFC 3597)", async () => {
  const data = Uint8Array.from({ length: 40 }, (_, i) => i * 7);
  const server = new TestServer({
    config: { upstreams: [{ at: UP }] },
    prepare: (network) =>
      network.at(UP, (query, _from, reply) => {
        const end = query.length - (query[11] === 1 ? 11 : 0);
        const record = [0xc0, 12, 0xff, 0x01, 0, 1, 0, 0, 0, 60, 0, data.length, ...data];
        const answer = Uint8Array.from([...query.slice(0, end), ...record]);
        answer[2] = 0x81;
        answer[3] = 0x80;
        answer[7] = 1;
        answer[11] = 0;
        reply(answer);
      }),
  });
  const query = encodeQuery("odd.example.test", "A");
  query[query.length - 4] = 0xff;
  query[query.length - 3] = 0x01;
  const answer = await server.askBytes(query);
  assert.deepEqual(answer!.slice(-40), data);
  await server.close();
});
