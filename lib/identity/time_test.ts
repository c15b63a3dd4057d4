import assert from "node:assert/strict";
import { FakeClock } from "../clock.ts";
import { BUILD_TIME_MS } from "../version.ts";
import { MAX_TIME_SOURCES, TrustedTime } from "./time.ts";

const DAY = 24 * 3600 * 1000;
const TRUE_NOW = BUILD_TIME_MS + 100 * DAY;

Deno.test("without servers the time is the latest of clock, persisted time and build", () => {
  const at = (wall: number, floors: number[]) => new TrustedTime(new FakeClock(0, wall), floors).now();
  assert.equal(at(TRUE_NOW, []).ms, TRUE_NOW);
  assert.equal(at(0, []).ms, BUILD_TIME_MS);
  assert.equal(at(0, [TRUE_NOW - DAY]).ms, TRUE_NOW - DAY);
  assert.equal(at(TRUE_NOW + 7 * DAY, [TRUE_NOW]).ms, TRUE_NOW + 7 * DAY);
  assert.equal(at(0, [BUILD_TIME_MS - DAY, 5]).ms, BUILD_TIME_MS);
  assert.equal(at(TRUE_NOW, []).attested, false);
});

Deno.test("the floor is what clock and persisted time agree is past, and at least the build", () => {
  const at = (wall: number, floors: number[]) => new TrustedTime(new FakeClock(0, wall), floors).now().floor;
  assert.equal(at(TRUE_NOW + 900 * DAY, [TRUE_NOW]), TRUE_NOW, "a clock ahead raises nothing");
  assert.equal(at(TRUE_NOW, [TRUE_NOW + 900 * DAY]), TRUE_NOW, "nor does a time that a wrong server once stated");
  assert.equal(at(0, [TRUE_NOW]), BUILD_TIME_MS);
});

Deno.test("a clock that stands at 1970 still lets time pass", () => {
  const clock = new FakeClock(0, 0);
  const time = new TrustedTime(clock, [TRUE_NOW]);
  clock.advance(3 * DAY);
  assert.equal(time.now().ms, TRUE_NOW + 3 * DAY);
});

Deno.test("a server's time corrects a clock that is ahead or behind, and half the round trip is added", () => {
  for (const wall of [0, TRUE_NOW + 7 * DAY, TRUE_NOW - 3600_000]) {
    const clock = new FakeClock(1000, wall);
    const time = new TrustedTime(clock);
    clock.advance(200);
    time.learn("s", TRUE_NOW, 1000);
    assert.deepEqual(time.now(), { ms: TRUE_NOW + 100, floor: TRUE_NOW + 100, attested: true });
    clock.advance(5 * DAY);
    assert.equal(time.now().ms, TRUE_NOW + 100 + 5 * DAY);
    assert.equal(time.skew(), wall + 200 - (TRUE_NOW + 100));
    assert.equal(time.persistable(), TRUE_NOW + 100 + 5 * DAY);
  }
});

Deno.test("when the clock jumps after a server spoke, certainty ends until it speaks again", () => {
  const clock = new FakeClock(0, TRUE_NOW);
  const time = new TrustedTime(clock);
  time.learn("s", TRUE_NOW, 0);
  clock.setWall(TRUE_NOW + 60_000);
  assert.equal(time.now().attested, true, "NTP's small steps do not count");
  clock.setWall(TRUE_NOW + 3 * DAY); // A suspend of three days looks like this: the monotonic clock stood still.
  assert.deepEqual(time.now(), { ms: TRUE_NOW + 3 * DAY, floor: TRUE_NOW, attested: false });
  assert.equal(time.persistable(), undefined);
  time.learn("s", TRUE_NOW + 3 * DAY, clock.now());
  assert.equal(time.now().attested, true);
  clock.setWall(0);
  assert.equal(time.now().ms, TRUE_NOW + 3 * DAY, "backwards jumps lower nothing");
});

Deno.test("a server that fell silent before a jump does not hold up the certainty of the others", () => {
  const clock = new FakeClock(0, TRUE_NOW);
  const time = new TrustedTime(clock);
  time.learn("silent", TRUE_NOW, 0);
  time.learn("s", TRUE_NOW, 0);
  clock.setWall(TRUE_NOW + 3 * DAY);
  assert.equal(time.now().attested, false);
  time.learn("s", TRUE_NOW + 3 * DAY, clock.now());
  assert.deepEqual(time.now(), { ms: TRUE_NOW + 3 * DAY, floor: TRUE_NOW + 3 * DAY, attested: true });
});

Deno.test("servers that disagree end the certainty; the lower median is taken", () => {
  const clock = new FakeClock(0, TRUE_NOW);
  const time = new TrustedTime(clock);
  time.learn("one", TRUE_NOW, 0);
  time.learn("two", TRUE_NOW + 1000, 0);
  assert.equal(time.now().attested, true);
  time.learn("two", TRUE_NOW + 3000 * DAY, 0);
  assert.deepEqual(time.now(), { ms: TRUE_NOW, floor: TRUE_NOW, attested: false });
  time.learn("three", TRUE_NOW + 2000, 0);
  assert.equal(time.now().ms, TRUE_NOW + 2000);
  time.learn("two", TRUE_NOW, 0);
  assert.equal(time.now().attested, true);
});

Deno.test("a persisted time from a server that was years ahead is corrected by the next server", () => {
  const poisoned = TRUE_NOW + 3000 * DAY;
  const time = new TrustedTime(new FakeClock(0, TRUE_NOW), [poisoned]);
  assert.equal(time.now().ms, poisoned);
  time.learn("s", TRUE_NOW, 0);
  assert.deepEqual(time.now(), { ms: TRUE_NOW, floor: TRUE_NOW, attested: true });
  assert.equal(time.persistable(), TRUE_NOW);
});

Deno.test("before any server spoke nothing is persisted and no skew is known", () => {
  const time = new TrustedTime(new FakeClock(0, TRUE_NOW + 7 * DAY));
  assert.equal(time.persistable(), undefined);
  assert.equal(time.skew(), undefined);
});

Deno.test("samples of a bounded number of servers are kept, newest last", () => {
  const clock = new FakeClock(0, TRUE_NOW);
  const time = new TrustedTime(clock);
  time.learn("wrong", TRUE_NOW + 999 * DAY, 0);
  for (let i = 0; i < MAX_TIME_SOURCES; i++) time.learn(`s${i}`, TRUE_NOW, 0);
  assert.equal(time.now().attested, true, "the wrong one was the oldest and is gone");
});
