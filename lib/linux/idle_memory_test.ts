import assert from "node:assert/strict";
import "./preload.ts";
import { FakeClock } from "../clock.ts";
import { IdleMemory, keepMemoryLow } from "./idle_memory.ts";

const MB = 1_000_000;

/** Feeds looks, five seconds apart: busy so many ms of processor time, so many MB, and what a collection leaves. */
function watched() {
  const idle = new IdleMemory();
  let cpuMs = 0;
  const look = (busyMs: number, resident: number) => ({ cpuMs: cpuMs += busyMs, resident: resident * MB });
  return (busyMs: number, resident: number, left = resident) => {
    const before = look(busyMs, resident);
    const now = idle.due(before);
    if (now) idle.done(before, look(40, left));
    return now;
  };
}

Deno.test("memory is given back once the process has been calm for a while, and not again for nothing", () => {
  const due = watched();
  assert.equal(due(0, 100), false, "one look does not tell whether it is calm");
  assert.equal(due(2000, 150), false, "busy");
  assert.equal(due(10, 150), false, "perhaps only a pause");
  assert.equal(due(10, 150, 100), true);
  assert.equal(due(10, 100, 99.9), true, "what the collection finalized");
  assert.equal(due(10, 99.9), false, "the last one freed nothing");
  assert.equal(due(10, 102), false, "too little for a pause");
  assert.equal(due(10, 103.1, 100), true, "growth without a busy time");
  assert.equal(due(10, 100), true);
  assert.equal(due(10, 90), false);
  assert.equal(due(10, 95), true, "memory that went by itself counts from where it went to");
  assert.equal(due(10, 95.1), false, "what is in use is not tried again and again");
});

Deno.test("after every busy time memory is given back, however little has grown", () => {
  const due = watched();
  for (const busyMs of [0, 10, 10]) due(busyMs, 100);
  for (let round = 0; round < 3; round++) {
    assert.equal(due(2000, 101), false);
    assert.equal(due(10, 101), false);
    assert.equal(due(10, 101), true, "half-empty pages of every round would add up to what is worth a collection");
    assert.equal(due(10, 101), false);
  }
});

Deno.test("a process that is hardly ever calm is left alone, and one that fills memory while it is calm is not stopped for ever", () => {
  const due = watched();
  for (let i = 0; i < 20; i++) assert.equal(due(i % 2 === 0 ? 2000 : 10, 100 + i), false);
  assert.equal(due(10, 120), true);
  const filling = watched();
  const rounds = Array.from({ length: 8 }, () => filling(10, 102, 100));
  assert.deepEqual(rounds, [false, false, true, true, true, false, false, false]);
});

Deno.test("the watch looks every few seconds, trims before it collects, and ends when it is told to", () => {
  const clock = new FakeClock();
  let trimmed = 0;
  const stop = keepMemoryLow(clock, () => [undefined, { trim: () => trimmed++ }]);
  for (let i = 0; i < 5; i++) clock.advance(5_000);
  assert.equal(clock.pending, 1);
  assert.ok(trimmed > 0, "calm, and never given back since the start");
  stop();
  assert.equal(clock.pending, 0);
});
