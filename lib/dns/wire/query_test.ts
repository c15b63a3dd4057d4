import assert from "node:assert/strict";
import packet from "dns-packet";
import fc from "fast-check";
import { labelsOf } from "./labels.ts";
import { Query } from "./query.ts";

/** A query as an independent implementation writes it. */
function encode(name: string, type = "A", options: { readonly edns?: number; readonly do?: boolean } = {}): Uint8Array {
  return new Uint8Array(packet.encode({
    type: "query",
    id: 0x1234,
    flags: packet.RECURSION_DESIRED,
    questions: [{ type: type as packet.RecordType, name }],
    additionals: options.edns === undefined ? [] : [{
      type: "OPT",
      name: ".",
      udpPayloadSize: options.edns,
      extendedRcode: 0,
      ednsVersion: 0,
      flags: options.do ? packet.DNSSEC_OK : 0,
      flag_do: options.do ?? false,
      options: [],
    }],
  }));
}

Deno.test("a plain query is read as it was written", () => {
  const q = new Query();
  const bytes = encode("Web.Shop.svc.cluster.local");
  assert.equal(q.parse(bytes, bytes.length), "query");
  assert.deepEqual([q.id, q.type, q.qclass, q.edns, q.udpSize, q.hasUpper, q.labelCount], [
    0x1234,
    1,
    1,
    false,
    512,
    true,
    5,
  ]);
  assert.deepEqual(q.labels(bytes), ["Web", "Shop", "svc", "cluster", "local"]);
  assert.deepEqual(q.lowerLabels(), ["web", "shop", "svc", "cluster", "local"]);
});

Deno.test("questions that differ only in case have one hash; type, DO and CD change it", () => {
  const hash = (bytes: Uint8Array) => {
    const q = new Query();
    assert.equal(q.parse(bytes, bytes.length), "query");
    return q.hash;
  };
  const base = hash(encode("a.example"));
  assert.equal(hash(encode("A.eXample")), base);
  assert.notEqual(hash(encode("a.example", "AAAA")), base);
  assert.notEqual(hash(encode("b.example")), base);
  assert.equal(hash(encode("a.example", "A", { edns: 1232 })), base);
  assert.notEqual(hash(encode("a.example", "A", { edns: 1232, do: true })), base);
});

Deno.test("EDNS: size below 512 means 512, DO is seen", () => {
  const q = new Query();
  for (const [size, want] of [[1, 512], [512, 512], [1232, 1232], [4096, 4096]] as const) {
    const bytes = encode("x", "A", { edns: size, do: size > 1000 });
    assert.equal(q.parse(bytes, bytes.length), "query");
    assert.deepEqual([q.edns, q.udpSize, q.dnssecOk], [true, want, size > 1000]);
  }
});

const header = (flags: number, counts: readonly number[] = [1, 0, 0, 0]) => [
  0,
  7,
  flags >> 8,
  flags & 0xff,
  ...counts.flatMap((n) => [n >> 8, n & 0xff]),
];
const root = [0, 0, 1, 0, 1];
const opt = (version = 0) => [0, 0, 41, 4, 208, 0, version, 0, 0, 0, 0];

for (
  const [what, bytes, want] of [
    ["11 bytes", header(0).slice(0, 11), "drop"],
    ["a response", [...header(0x8180), ...root], "drop"],
    ["opcode 15", [...header(0x7800), ...root], "notimp"],
    ["opcode NOTIFY", [...header(0x2000), ...root], "notimp"],
    ["no question", header(0, [0, 0, 0, 0]), "formerr"],
    ["65535 questions", [...header(0, [65535, 0, 0, 0]), ...root], "formerr"],
    ["two questions", [...header(0, [2, 0, 0, 0]), ...root, ...root], "formerr"],
    ["a count of answers", [...header(0, [1, 1, 0, 0]), ...root], "formerr"],
    ["the root", [...header(0), ...root], "query"],
    ["a cut type", [...header(0), ...root.slice(0, 3)], "formerr"],
    ["a pointer as name", [...header(0), 0xc0, 12, 0, 1, 0, 1], "formerr"],
    ["a label type of 0x40", [...header(0), 0x41, 97, 0, 0, 1, 0, 1], "formerr"],
    ["a label that ends beyond the packet", [...header(0), 63, 97, 0, 0, 1, 0, 1], "formerr"],
    ["a name of 256 bytes", [
      ...header(0),
      ...[1, 2, 3, 4].flatMap(() => [63, ...new Array(63).fill(97)]),
      0,
      0,
      1,
      0,
      1,
    ], "formerr"],
    ["a name of 255 bytes", [
      ...header(0),
      ...[1, 2, 3].flatMap(() => [63, ...new Array(63).fill(97)]),
      61,
      ...new Array(61).fill(97),
      0,
      0,
      1,
      0,
      1,
    ], "query"],
    ["OPT", [...header(0, [1, 0, 0, 1]), ...root, ...opt()], "query"],
    ["OPT twice", [...header(0, [1, 0, 0, 2]), ...root, ...opt(), ...opt()], "formerr"],
    ["EDNS version 1", [...header(0, [1, 0, 0, 1]), ...root, ...opt(1)], "badvers"],
    ["OPT not at the root", [...header(0, [1, 0, 0, 1]), ...root, 1, 97, ...opt()], "formerr"],
    ["OPT whose option lies about its length", [
      ...header(0, [1, 0, 0, 1]),
      ...root,
      ...opt().slice(0, 9),
      0,
      4,
      0,
      10,
      0,
      9,
    ], "formerr"],
    ["OPT with an unknown option", [
      ...header(0, [1, 0, 0, 1]),
      ...root,
      ...opt().slice(0, 9),
      0,
      6,
      255,
      1,
      0,
      2,
      9,
      9,
    ], "query"],
    ["an additional record that is cut", [...header(0, [1, 0, 0, 1]), ...root, 0, 0, 250, 0], "formerr"],
  ] as const
) {
  Deno.test(`query with ${what} → ${want}`, () => {
    const packet = Uint8Array.from(bytes);
    assert.equal(new Query().parse(packet, packet.length), want);
  });
}

Deno.test("dots and NULs inside labels stay inside them", () => {
  const bytes = Uint8Array.from([...header(0), 3, 97, 46, 98, 2, 0, 120, 0, 0, 1, 0, 1]);
  const q = new Query();
  assert.equal(q.parse(bytes, bytes.length), "query");
  assert.deepEqual(q.labels(bytes), ["a.b", "\0x"]);
  assert.equal(labelsOf("a.b")!.length, 2);
});

Deno.test("property: what is read is what an independent encoder wrote", () => {
  const label = fc.stringMatching(/^[a-zA-Z0-9_-]{1,20}$/);
  fc.assert(fc.property(fc.array(label, { minLength: 1, maxLength: 8 }), fc.boolean(), (labels, edns) => {
    const bytes = encode(labels.join("."), "A", edns ? { edns: 1400 } : {});
    const q = new Query();
    assert.equal(q.parse(bytes, bytes.length), "query");
    assert.deepEqual(q.labels(bytes), labels);
    const copy = new Query();
    copy.fill(q.lowerLabels(), q.type, q.variant);
    assert.equal(copy.hash, q.hash);
    assert.deepEqual(copy.lower.slice(0, copy.questionEnd - 12), q.lower.slice(0, q.questionEnd - 12));
  }));
});

Deno.test("a question filled by ourselves finds what a client's question stored, also with DO and CD", () => {
  for (const [variant, flags, doBit] of [[0, 0, false], [1, 0, true], [2, 0x10, false], [3, 0x10, true]] as const) {
    const bytes = encode("x.example", "A", { edns: 1232, do: doBit });
    bytes[3] = bytes[3]! | flags;
    const q = new Query();
    q.parse(bytes, bytes.length);
    assert.equal(q.variant, variant);
    const own = new Query();
    own.fill(["x", "example"], 1, variant);
    assert.deepEqual([own.hash, own.variant], [q.hash, q.variant]);
  }
});
