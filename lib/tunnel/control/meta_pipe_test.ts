import assert from "node:assert/strict";
import fc from "fast-check";
import { decodeControl, META_CHUNK } from "./message.ts";
import { MAX_META, MetaReceiver, MetaSender } from "./meta_pipe.ts";

function receive(receiver: MetaReceiver, frame: Uint8Array): Uint8Array | undefined {
  const m = decodeControl(frame);
  assert.ok(m.type === "meta");
  return receiver.push(m.bytes, m.last);
}

Deno.test("property: messages of any size, cut into frames, arrive equal and in order", () => {
  const size = fc.oneof(
    fc.integer({ min: 0, max: 100 }),
    fc.constantFrom(META_CHUNK - 1, META_CHUNK, META_CHUNK + 1, 3 * META_CHUNK),
  );
  fc.assert(
    fc.property(fc.array(size, { maxLength: 8 }), fc.integer({ min: 1, max: 5 }), (sizes, room) => {
      const got: Uint8Array[] = [];
      const receiver = new MetaReceiver();
      let left = room;
      const sender = new MetaSender((frame) => {
        const message = receive(receiver, frame);
        if (message) got.push(message.slice());
        return --left > 0;
      });
      const messages = sizes.map((n, i) => new Uint8Array(n).fill(i + 1));
      for (const message of messages) sender.push(message);
      for (let turns = 0; !sender.pump(); turns++) {
        assert.ok(turns < 1000);
        left = room;
      }
      assert.deepEqual(got, messages);
      assert.deepEqual([sender.queued, sender.empty], [0, true]);
    }),
  );
});

Deno.test("one turn sends few frames, and stops where the connection is full", () => {
  let frames = 0;
  const sender = new MetaSender(() => ++frames !== 6);
  sender.push(new Uint8Array(20 * META_CHUNK));
  assert.equal(sender.pump(), false);
  assert.equal(frames, 4);
  assert.equal(sender.pump(), false);
  assert.equal(frames, 6, "the sixth frame filled the connection");
  assert.equal(sender.queued, 14 * META_CHUNK);
});

Deno.test("caps: one message, the queue, and what a receiver puts together", () => {
  const sender = new MetaSender(() => true);
  const big = new Uint8Array(MAX_META);
  assert.throws(() => sender.push(new Uint8Array(MAX_META + 1)), { code: "LIMIT" });
  sender.push(big);
  sender.push(Uint8Array.of(1));
  assert.throws(() => sender.push(Uint8Array.of(2)), { code: "LIMIT" });
  const receiver = new MetaReceiver();
  const chunk = new Uint8Array(META_CHUNK);
  for (let n = 0; n < MAX_META; n += chunk.length) receiver.push(chunk, false);
  assert.throws(() => receiver.push(Uint8Array.of(1), true), { code: "LIMIT" });
});

Deno.test("parts do not depend on the buffers they came in", () => {
  const receiver = new MetaReceiver();
  const buffer = Uint8Array.of(1, 2, 3);
  receiver.push(buffer, false);
  buffer.fill(9);
  assert.deepEqual(receiver.push(Uint8Array.of(4), true), Uint8Array.of(1, 2, 3, 4));
});
