import assert from "node:assert/strict";
import fc from "fast-check";
import { isKnock, KNOCK_BYTES, makeKnock } from "./knock.ts";

const key = new Uint8Array(32).fill(7);
const other = new Uint8Array(32).fill(8);

Deno.test("a knock opens the door of the node it names, by any key of the mesh, and no other", () => {
  const knock = makeKnock(key, "edge-1");
  assert.equal(knock.length, KNOCK_BYTES);
  assert.ok(isKnock([key], knock, "edge-1"));
  assert.ok(isKnock([other, key], knock, "edge-1"));
  assert.ok(!isKnock([key], knock, "edge-2"));
  assert.ok(!isKnock([other], knock, "edge-1"));
  assert.ok(!isKnock([], knock, "edge-1"));
  assert.notDeepEqual(makeKnock(key, "edge-1"), knock);
});

Deno.test("its layout is fixed", () => {
  const knock = makeKnock(key, "edge-1");
  assert.deepEqual([...knock.subarray(0, 4)], [..."EMK1"].map((c) => c.charCodeAt(0)));
  // Twelve zero bytes of random; the rest as Python's hmac module computes it.
  const golden = "454d4b31" + "00".repeat(12) + "a0e5431e4bcc6c5c7aef88683c6805ab";
  assert.ok(isKnock([key], Uint8Array.from(golden.match(/../g)!, (byte) => parseInt(byte, 16)), "edge-1"));
});

Deno.test("a changed bit, other bytes and other lengths are no knock", () => {
  const knock = makeKnock(key, "edge-1");
  for (let bit = 0; bit < KNOCK_BYTES * 8; bit++) {
    const changed = knock.slice();
    changed[bit >> 3]! ^= 1 << (bit & 7);
    assert.ok(!isKnock([key], changed, "edge-1"), `bit ${bit}`);
  }
  fc.assert(fc.property(fc.uint8Array({ maxLength: 64 }), (bytes) => !isKnock([key], bytes, "edge-1")));
});
