import assert from "node:assert/strict";
import fc from "fast-check";
import { DelayLine, PacketRing } from "./delay_line.ts";

Deno.test("a packet leaves after the delay, never before an earlier one", () => {
  const line = new DelayLine({ delayMs: 20, jitterMs: 0, loss: 0 }, 1);
  assert.equal(line.admit(100), 120);
  line.shape = { delayMs: 5, jitterMs: 0, loss: 0 };
  assert.equal(line.admit(101), 120, "a shorter delay does not overtake");
  assert.equal(line.admit(130), 135);
});

Deno.test("jitter adds between nothing and its bound, in order", () => {
  const line = new DelayLine({ delayMs: 10, jitterMs: 4, loss: 0 }, 7);
  let last = 0;
  let spread = 0;
  // Far enough apart that no packet waits for the one before.
  for (let now = 0; now < 100_000; now += 100) {
    const due = line.admit(now);
    assert.ok(due >= now + 10 && due < now + 14, `${due - now} ms`);
    assert.ok(due >= last);
    last = due;
    spread = Math.max(spread, due - now - 10);
  }
  assert.ok(spread > 3.5, `jitter reached only ${spread} ms`);
});

Deno.test("loss is the given part of the packets, and the same part for the same seed", () => {
  const run = (seed: number) => {
    const line = new DelayLine({ delayMs: 1, jitterMs: 0, loss: 0.1 }, seed);
    return Array.from({ length: 10_000 }, (_, i) => line.admit(i) < 0);
  };
  const lost = run(3).filter(Boolean).length;
  assert.ok(lost > 900 && lost < 1100, `${lost} of 10000`);
  assert.deepEqual(run(3), run(3));
  assert.notDeepEqual(run(3), run(4));
});

Deno.test("a packet ring keeps order, places and bytes like a list does", () => {
  const CAPACITY = 64;
  const SLOTS = 6;
  const action = fc.oneof(
    fc.record({ push: fc.integer({ min: 1, max: 20 }) }),
    fc.constant({ pop: true as const }),
  );
  fc.assert(fc.property(fc.array(action, { maxLength: 200 }), (actions) => {
    const ring = new PacketRing(CAPACITY, SLOTS);
    const model: { offset: number; length: number; due: number }[] = [];
    let due = 0;
    for (const a of actions) {
      if ("push" in a) {
        // Reserved for the largest packet, used for a smaller one: as the box does.
        const offset = ring.reserve(20);
        if (offset >= 0) {
          assert.ok(offset + 20 <= CAPACITY);
          for (const kept of model) {
            assert.ok(offset + 20 <= kept.offset || offset >= kept.offset + kept.length, "room overlaps a packet");
          }
          ring.push(offset, a.push, ++due);
          model.push({ offset, length: a.push, due });
        } else {
          assert.ok(model.length === SLOTS || model.length > 0, "an empty ring has room");
        }
      } else if (model.length > 0) {
        ring.pop();
        model.shift();
      }
      assert.equal(ring.count, model.length);
      assert.equal(ring.due, model[0]?.due ?? Infinity);
      if (model[0]) assert.deepEqual([ring.offset, ring.length], [model[0].offset, model[0].length]);
    }
  }));
});

Deno.test("a packet ring that is emptied holds its full capacity again", () => {
  const ring = new PacketRing(100, 10);
  ring.push(ring.reserve(60), 60, 1);
  assert.equal(ring.reserve(60), -1);
  ring.pop();
  assert.equal(ring.reserve(100), 0);
});
