import assert from "node:assert/strict";
import "./preload.ts";
import { FakeClock } from "../clock.ts";
import { IdleMemory, keepMemoryLow } from "./idle_memory.ts";

const MB = 1_000_000;

Deno.test("memory is given back when the process is calm and holds more than before, and not again for nothing", () => {
  const idle = new IdleMemory();
  let cpuMs = 0;
  const look = (busyMs: number, resident: number) => ({ cpuMs: cpuMs += busyMs, resident: resident * MB });
  const due = (busyMs: number, resident: number, left = resident) => {
    const before = look(busyMs, resident);
    const now = idle.due(before);
    if (now) idle.done(before, look(40, left));
    return now;
  };
  assert.equal(due(0, 100), false, "one look does not tell whether it is calm");
  assert.equal(due(2000, 150), false, "busy");
  assert.equal(due(10, 150, 120), true);
  assert.equal(due(10, 120, 100), true, "what the first collection finalized");
  assert.equal(due(10, 100, 99.9), true, "until one frees nothing");
  assert.equal(due(10, 99.9), false, "nothing grew");
  assert.equal(due(10, 102), false, "too little for a pause");
  assert.equal(due(2000, 180), false, "busy again");
  assert.equal(due(10, 180), true);
  assert.equal(due(10, 180), true, "twice at least: connections may have been about to end");
  assert.equal(due(10, 181), false, "what is in use is not tried again and again");
  assert.equal(due(10, 90), false);
  assert.equal(due(10, 95), true, "memory that went by itself counts from where it went to");
});

Deno.test("the watch looks every few seconds and ends when it is told to", () => {
  const clock = new FakeClock();
  const stop = keepMemoryLow(clock);
  for (let i = 0; i < 5; i++) clock.advance(5_000);
  assert.equal(clock.pending, 1);
  stop();
  assert.equal(clock.pending, 0);
});
