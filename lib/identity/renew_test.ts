import assert from "node:assert/strict";
import fc from "fast-check";
import { FakeClock } from "../clock.ts";
import { keepFresh, renewalDelay } from "./renew.ts";

const HOUR = 3600 * 1000;
const DAY = 24 * HOUR;

Deno.test("a certificate is due at two thirds of its life, give or take a twentieth", () => {
  const at = (now: number, random: number) => renewalDelay({ notBefore: 0, notAfter: DAY, now, failures: 0, random });
  assert.ok(Math.abs(at(0, 0.5) - 16 * HOUR) < 1);
  assert.ok(Math.abs(at(0, 0) - (16 - 1.2) * HOUR) < 1);
  assert.ok(at(0, 0.999) < (16 + 1.2) * HOUR);
  assert.equal(at(17.3 * HOUR, 0.999), 0);
  assert.equal(at(40 * DAY, 0.5), 0, "also long after it expired");
});

Deno.test("a certificate from the future, of a server whose clock was ahead, is renewed at once", () => {
  const at = (now: number) =>
    renewalDelay({ notBefore: 100 * DAY, notAfter: 101 * DAY, now, failures: 0, random: 0.5 });
  assert.equal(at(0), 0);
  assert.equal(at(100 * DAY - 6 * 60_000), 0);
  assert.ok(at(100 * DAY - 4 * 60_000) > 15 * HOUR);
});

Deno.test("retries start at half a minute at most and end at a quarter of an hour", () => {
  fc.assert(
    fc.property(
      fc.integer({ min: 1, max: 1000 }),
      fc.double({ min: 0, max: 0.999, noNaN: true }),
      (failures, random) => {
        const delay = renewalDelay({ notBefore: 0, notAfter: DAY, now: 0, failures, random });
        assert.ok(delay >= 15_000 && delay <= 15 * 60_000, String(delay));
      },
    ),
  );
});

interface Run {
  clock: FakeClock;
  tries: number[];
  failures: number[];
  stop(): void;
  settle(): Promise<void>;
  fail: boolean;
  now: () => number;
}

function run(now?: (clock: FakeClock) => number): Run {
  const clock = new FakeClock(0, 0);
  const certificate = { notBefore: 0, notAfter: DAY };
  const r: Run = {
    clock,
    tries: [],
    failures: [],
    stop: () => {},
    settle: async () => {
      for (let i = 0; i < 5; i++) await Promise.resolve();
    },
    fail: false,
    now: () => now?.(clock) ?? clock.wall(),
  };
  r.stop = keepFresh({
    clock,
    certificate: () => certificate,
    now: () => r.now(),
    renew: () => {
      r.tries.push(clock.now());
      if (r.fail) return Promise.reject(new Error("offline"));
      certificate.notBefore = clock.wall();
      certificate.notAfter = clock.wall() + DAY;
      return Promise.resolve();
    },
    onFailure: (_, failures) => r.failures.push(failures),
  });
  return r;
}

async function pass(r: Run, ms: number): Promise<void> {
  for (let left = ms; left > 0; left -= 60_000) {
    r.clock.advance(Math.min(left, 60_000));
    await r.settle();
  }
}

Deno.test("keepFresh renews before each end, for days", async () => {
  const r = run();
  await pass(r, 7 * DAY);
  assert.ok(r.tries.length >= 9 && r.tries.length <= 12, String(r.tries.length));
  let end = DAY;
  for (const t of r.tries) {
    assert.ok(t < end, "never later than its end");
    end = t + DAY;
  }
  r.stop();
  assert.equal(r.clock.pending, 0);
});

Deno.test("keepFresh goes on trying while offline, and renews soon after the way is back", async () => {
  const r = run();
  r.fail = true;
  await pass(r, 3 * DAY);
  assert.ok(r.failures.length > 100);
  assert.deepEqual(r.failures.slice(0, 3), [1, 2, 3]);
  const before = r.tries.length;
  r.fail = false;
  await pass(r, 16 * 60_000);
  assert.equal(r.tries.length, before + 1);
  r.stop();
});

Deno.test("keepFresh notices within minutes that a clock was set or a machine slept", async () => {
  let jump = 0;
  const r = run((clock) => clock.wall() + jump);
  await pass(r, HOUR);
  assert.equal(r.tries.length, 0);
  jump = 20 * HOUR;
  await pass(r, 11 * 60_000);
  assert.ok(r.tries.length >= 1);
  r.stop();
});

Deno.test("a clock that makes every new certificate look expired causes no storm", async () => {
  const r = run(() => 1000 * DAY);
  await pass(r, HOUR);
  assert.ok(r.tries.length <= 61, String(r.tries.length));
  r.stop();
});

Deno.test("keepFresh stops while a renewal is under way", async () => {
  const clock = new FakeClock(0, 0);
  let finish = () => {};
  const stop = keepFresh({
    clock,
    certificate: () => ({ notBefore: 0, notAfter: 1000 }),
    now: () => clock.wall(),
    renew: () => new Promise<void>((resolve) => finish = resolve),
    onFailure: () => {},
  });
  clock.advance(60_000);
  stop();
  finish();
  for (let i = 0; i < 5; i++) await Promise.resolve();
  assert.equal(clock.pending, 0);
});
