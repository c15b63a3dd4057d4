import assert from "node:assert/strict";
import fc from "fast-check";
import { LineSplitter } from "./line_splitter.ts";
import { ListSplitter } from "./list_splitter.ts";

const encoder = new TextEncoder();
const decoder = new TextDecoder();

/** Bytes cut into chunks at the given places. */
function chunks(text: string, cuts: readonly number[]): Uint8Array[] {
  const bytes = encoder.encode(text);
  const places = [...new Set(cuts.map((c) => c % (bytes.length + 1)))].sort((a, b) => a - b);
  return [0, ...places].map((from, i) => bytes.subarray(from, places[i] ?? bytes.length));
}

function split(parts: Iterable<Uint8Array>, max?: number) {
  const items: unknown[] = [];
  let oversized = 0;
  const splitter = new ListSplitter({
    item: (bytes) => items.push(JSON.parse(decoder.decode(bytes))),
    oversized: () => oversized++,
  }, max);
  for (const part of parts) splitter.push(part);
  return { items, oversized, envelope: splitter.finish() };
}

/** Objects as they are once they were JSON: -0, which a generator makes, is written as 0. */
const object = fc.dictionary(fc.string(), fc.jsonValue(), { maxKeys: 4, noNullPrototype: true })
  .map((value) => JSON.parse(JSON.stringify(value)) as Record<string, unknown>);

Deno.test("list splitter: any list in any pieces gives its items and its envelope", () => {
  fc.assert(fc.property(fc.array(object), object, fc.array(fc.nat()), fc.nat(2), (items, metadata, cuts, indent) => {
    const list = { kind: "ServiceList", metadata, items, 'after"[{': { items: [1] } };
    const result = split(chunks(JSON.stringify(list, null, indent), cuts));
    assert.deepEqual(result.items, items);
    assert.deepEqual((result.envelope as { kind: string }).kind, "ServiceList");
    assert.deepEqual((result.envelope as { items: unknown }).items, []);
    assert.equal(result.oversized, 0);
  }));
});

Deno.test("list splitter: any rubbish in any pieces ends in no envelope or an object, never an exception", () => {
  fc.assert(
    fc.property(fc.string({ unit: fc.constantFrom(...'{}[]":,\\ items0') }), fc.array(fc.nat()), (text, cuts) => {
      const pieces: string[] = [];
      const splitter = new ListSplitter({ item: (b) => pieces.push(decoder.decode(b)), oversized: () => {} });
      for (const part of chunks(text, cuts)) splitter.push(part);
      const envelope = splitter.finish();
      assert.ok(envelope === undefined || typeof envelope === "object");
    }),
  );
});

Deno.test("list splitter: cut short, not a list, null items, items elsewhere", () => {
  const whole = JSON.stringify({ metadata: { resourceVersion: "5" }, items: [{ a: 1 }, { a: 2 }] });
  for (let cut = 0; cut < whole.length; cut++) {
    assert.equal(split([encoder.encode(whole.slice(0, cut))]).envelope, undefined, `cut at ${cut}`);
  }
  assert.equal(split([encoder.encode("k8s\0\n\x0c")]).envelope, undefined);
  assert.equal(split([encoder.encode("[1,2]")]).envelope, undefined);
  assert.deepEqual(split([encoder.encode('{"items":null,"metadata":{}}')]).envelope, { items: null, metadata: {} });
  const nested = split([encoder.encode('{"metadata":{"items":[{"x":1}]},"items":[{"y":2}]}')]);
  assert.deepEqual(nested.items, [{ y: 2 }]);
  assert.deepEqual(nested.envelope, { metadata: { items: [{ x: 1 }] }, items: [] });
});

Deno.test("list splitter: an item that is too large is left out, the others come", () => {
  const list = JSON.stringify({ items: [{ a: 1 }, { big: "x".repeat(500) }, { b: 2 }] });
  for (const cuts of [[], [60], [20, 40, 90, 300], Array.from({ length: list.length }, (_, i) => i)]) {
    const result = split(chunks(list, cuts), 100);
    assert.deepEqual(result.items, [{ a: 1 }, { b: 2 }]);
    assert.equal(result.oversized, 1);
    assert.ok(result.envelope);
  }
});

Deno.test("line splitter: any lines in any pieces", () => {
  const line = fc.string({ minLength: 1 }).filter((s) => !s.includes("\n"));
  fc.assert(fc.property(fc.array(line), fc.array(fc.nat()), line, (lines, cuts, rest) => {
    const got: string[] = [];
    const splitter = new LineSplitter();
    for (const part of chunks(lines.map((l) => l + "\n").join("\n") + rest, cuts)) {
      splitter.push(part, (b) => got.push(decoder.decode(b)), () => assert.fail());
    }
    assert.deepEqual(got, lines);
    assert.equal(splitter.pending, encoder.encode(rest).length);
  }));
});

Deno.test("line splitter: a line that is too long is told once and skipped, the next one comes", () => {
  for (const cuts of [[], [5, 30, 60, 100], Array.from({ length: 140 }, (_, i) => i)]) {
    const got: string[] = [];
    let oversized = 0;
    const splitter = new LineSplitter(20);
    for (const part of chunks(`short\n${"x".repeat(100)}\nnext\n`, cuts)) {
      splitter.push(part, (b) => got.push(decoder.decode(b)), () => oversized++);
    }
    assert.deepEqual(got, ["short", "next"]);
    assert.equal(oversized, 1);
  }
});
