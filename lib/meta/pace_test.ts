import assert from "node:assert/strict";
import { FakeClock } from "../clock.ts";
import { Pacer } from "./pace.ts";

Deno.test("pace: workers take turns, and no timer is left", async () => {
  const clock = new FakeClock();
  const pacer = new Pacer(clock);
  const order: string[] = [];
  const work = async (name: string) => {
    for (let i = 0; i < 3; i++) {
      await pacer.rest();
      order.push(name);
    }
  };
  const done = Promise.all([work("a"), work("b")]);
  for (let i = 0; i < 6; i++) {
    clock.advance(0);
    for (let j = 0; j < 5; j++) await Promise.resolve();
  }
  await done;
  assert.deepEqual(order, ["a", "b", "a", "b", "a", "b"]);
  assert.equal(clock.pending, 0);
});

Deno.test("pace: tired after a stretch; one that waits takes nothing from the stretch of another", async () => {
  const clock = new FakeClock();
  const pacer = new Pacer(clock);
  assert.ok(!pacer.tired);
  clock.advance(2);
  assert.ok(pacer.tired);
  const rest = pacer.rest();
  clock.advance(0);
  await rest;
  assert.ok(!pacer.tired);
  const other = pacer.rest();
  assert.ok(!pacer.tired);
  clock.advance(0);
  await other;
});

Deno.test("pace: an aborted rest rejects and takes its timer with it", async () => {
  const clock = new FakeClock();
  const pacer = new Pacer(clock);
  const abort = new AbortController();
  const rest = pacer.rest(abort.signal);
  abort.abort(new Error("stop"));
  await assert.rejects(rest, /stop/);
  assert.equal(clock.pending, 0);
  await assert.rejects(pacer.rest(abort.signal), /stop/);
});
