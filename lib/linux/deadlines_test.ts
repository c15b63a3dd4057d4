import { strict as assert } from "node:assert";
import { FakeClock } from "../clock.ts";
import { Deadlines } from "./deadlines.ts";

function setUp() {
  const clock = new FakeClock();
  const faults: unknown[] = [];
  const deadlines = new Deadlines(clock, (e) => faults.push(e));
  const fired: string[] = [];
  const item = (name: string, then: () => void = () => {}) => ({
    onDeadline() {
      fired.push(`${name}@${clock.now()}`);
      then();
    },
  });
  return { clock, deadlines, fired, faults, item };
}

Deno.test("each fires at its time, whatever the order they were set in", () => {
  const { clock, deadlines, fired, item } = setUp();
  deadlines.set(item("c"), 300);
  deadlines.set(item("a"), 100);
  deadlines.set(item("b"), 200);
  clock.advance(99);
  assert.deepEqual(fired, []);
  clock.advance(1000);
  assert.deepEqual(fired, ["a@100", "b@200", "c@300"]);
  assert.equal(clock.pending, 0);
});

Deno.test("a deleted one does not fire, a replaced one fires once at its new time", () => {
  const { clock, deadlines, fired, item } = setUp();
  const [gone, moved] = [item("gone"), item("moved")];
  deadlines.set(gone, 100);
  deadlines.set(moved, 100);
  deadlines.delete(gone);
  deadlines.set(moved, 500);
  clock.advance(1000);
  assert.deepEqual(fired, ["moved@500"]);
});

Deno.test("thousands of near deadlines share few timer runs, each at most 5 ms late", () => {
  const { clock, deadlines, fired, item } = setUp();
  for (let i = 0; i < 5000; i++) deadlines.set(item(`${i}`), 1000 + i / 10);
  let armed = 0;
  const timer = clock.timer.bind(clock);
  clock.timer = (ms, fire) => (armed++, timer(ms, fire));
  clock.advance(2000);
  assert.equal(fired.length, 5000);
  assert(armed <= 101, `${armed} timers`);
  for (const text of fired) {
    const [i, at] = text.split("@").map(Number) as [number, number];
    assert(at >= 1000 + i / 10 && at <= 1005 + i / 10, text);
  }
});

Deno.test("one that throws is reported and stops nobody; one may set another", () => {
  const { clock, deadlines, fired, faults, item } = setUp();
  deadlines.set(
    item("bad", () => {
      throw new Error("bug");
    }),
    10,
  );
  deadlines.set(item("chain", () => deadlines.set(item("next"), 50)), 10);
  clock.advance(100);
  assert.deepEqual(fired, ["bad@10", "chain@10", "next@60"]);
  assert.equal(faults.length, 1);
});

Deno.test("closing forgets all and leaves no timer", () => {
  const { clock, deadlines, fired, item } = setUp();
  deadlines.set(item("a"), 10);
  deadlines.close();
  assert.equal(clock.pending, 0);
  clock.advance(100);
  assert.deepEqual(fired, []);
});
