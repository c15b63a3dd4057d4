import assert from "node:assert/strict";
import { ClockOffset } from "./clock_offset.ts";

Deno.test("the sample with the shortest round trip decides the offset", () => {
  const offset = new ClockOffset();
  assert.equal(offset.offsetMs, undefined);
  // The server is 1000 ms ahead; the second answer was held up for 100 ms on its way back.
  offset.sample({ sentAt: 0, now: 20, wall: 5_020, server: 6_010 });
  assert.equal(offset.offsetMs, 1000);
  offset.sample({ sentAt: 100, now: 220, wall: 5_220, server: 6_110 });
  assert.equal(offset.offsetMs, 1000);
  offset.sample({ sentAt: 300, now: 302, wall: 5_302, server: 6_303 });
  assert.equal(offset.offsetMs, 1002);
  assert.equal(Math.round(offset.rttMs!), Math.round(20 + (120 - 20) / 8 - (32.5 - 2) / 8));
});

Deno.test("old samples leave, answers that cannot be are refused", () => {
  const offset = new ClockOffset();
  offset.sample({ sentAt: 0, now: 1, wall: 1, server: 100 });
  for (let i = 1; i <= 8; i++) {
    offset.sample({ sentAt: i * 10, now: i * 10 + 5, wall: i * 10 + 5, server: i * 10 + 2.5 });
  }
  assert.equal(offset.offsetMs, 0, "the first sample no longer counts");
  assert.equal(offset.sample({ sentAt: 10, now: 5, wall: 5, server: 5 }), false);
  assert.equal(offset.sample({ sentAt: -4e6, now: 5, wall: 5, server: 5 }), false);
  assert.equal(offset.sample({ sentAt: NaN, now: 5, wall: 5, server: 5 }), false);
});
