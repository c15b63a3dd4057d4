import assert from "node:assert/strict";
import { Backoff, FREE_FAILURES, MAX_SOURCES } from "./backoff.ts";

const MINUTE = 60_000;

function failTimes(b: Backoff, source: string, at: { readonly now: number; readonly times: number }): void {
  for (let i = 0; i < at.times; i++) b.fail(source, at.now);
}

Deno.test("ten failures within a minute make a source wait, nine do not", () => {
  const b = new Backoff();
  failTimes(b, "192.0.2.1", { now: 0, times: FREE_FAILURES - 1 });
  assert.equal(b.waitMs("192.0.2.1", 0), 0);
  b.fail("192.0.2.1", 0);
  assert.equal(b.waitMs("192.0.2.1", 0), MINUTE);
  assert.equal(b.waitMs("192.0.2.1", MINUTE - 1), 1);
  assert.equal(b.waitMs("192.0.2.1", MINUTE), 0);
  assert.equal(b.waitMs("192.0.2.2", 0), 0, "others are not touched");
});

Deno.test("failures that are spread out never make anyone wait", () => {
  const b = new Backoff();
  for (let i = 0; i < 1000; i++) {
    b.fail("192.0.2.1", i * 7000);
    assert.equal(b.waitMs("192.0.2.1", i * 7000), 0);
  }
});

Deno.test("each further round doubles the wait up to sixteen minutes; a quiet source starts over", () => {
  const b = new Backoff();
  let now = 0;
  const waits: number[] = [];
  for (let round = 0; round < 7; round++) {
    failTimes(b, "192.0.2.1", { now, times: FREE_FAILURES });
    waits.push(b.waitMs("192.0.2.1", now) / MINUTE);
    now += b.waitMs("192.0.2.1", now);
  }
  assert.deepEqual(waits, [1, 2, 4, 8, 16, 16, 16]);
  now += 17 * MINUTE;
  failTimes(b, "192.0.2.1", { now, times: FREE_FAILURES });
  assert.equal(b.waitMs("192.0.2.1", now), MINUTE);
});

Deno.test("a success clears a source", () => {
  const b = new Backoff();
  failTimes(b, "192.0.2.1", { now: 0, times: FREE_FAILURES - 1 });
  b.succeed("192.0.2.1");
  failTimes(b, "192.0.2.1", { now: 0, times: FREE_FAILURES - 1 });
  assert.equal(b.waitMs("192.0.2.1", 0), 0);
});

Deno.test("one IPv6 host cannot pass for many, and an IPv4 address is one in every spelling", () => {
  const b = new Backoff();
  for (let i = 0; i < FREE_FAILURES; i++) b.fail(`2001:db8:1:2::${i}`, 0);
  assert.equal(b.waitMs("2001:db8:1:2:ffff::1", 0), MINUTE);
  assert.equal(b.waitMs("2001:db8:1:3::1", 0), 0);
  assert.equal(b.size, 1);
});

Deno.test("the number of sources remembered is capped, and the oldest goes first", () => {
  const b = new Backoff();
  failTimes(b, "198.51.100.1", { now: 0, times: FREE_FAILURES });
  for (let i = 0; i < MAX_SOURCES + 5000; i++) b.fail(`10.${i >> 16}.${(i >> 8) & 255}.${i & 255}`, 1);
  assert.equal(b.size, MAX_SOURCES);
  assert.equal(b.waitMs("198.51.100.1", 1), 0);
});
