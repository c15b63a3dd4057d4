import assert from "node:assert/strict";
import { FakeClock } from "./clock.ts";
import { missingText, Readiness } from "./readiness.ts";

Deno.test("readiness: tasks happen once, checks hold or say why, and a check may fail again", async () => {
  const clock = new FakeClock();
  const readiness = new Readiness(clock);
  const tried = readiness.task("a server");
  let problem: string | undefined = "EPERM";
  readiness.check("kernel rules", () => problem);
  readiness.check("dns", () => undefined);
  assert.deepEqual(readiness.missing.map(missingText), ["a server", "kernel rules: EPERM"]);
  let ready = 0;
  readiness.whenReady().then(() => ready++);
  tried();
  tried();
  await Promise.resolve();
  assert.deepEqual([ready, readiness.missing.map(missingText)], [0, ["kernel rules: EPERM"]]);
  // Nobody says that it holds now: it is asked.
  problem = undefined;
  clock.advance(200);
  await Promise.resolve();
  assert.deepEqual([ready, readiness.ready], [1, true]);
  problem = "EPERM again";
  assert.deepEqual([readiness.ready, readiness.missing], [false, [{ name: "kernel rules", why: "EPERM again" }]]);
  clock.advance(1000);
  assert.equal(ready, 1);
});

Deno.test("readiness: with nothing to wait for it is there at once, and look() does not wait for the clock", async () => {
  const readiness = new Readiness(new FakeClock());
  await readiness.whenReady();
  let problem: string | undefined = "later";
  readiness.check("it", () => problem);
  const ready = readiness.whenReady();
  problem = undefined;
  readiness.look();
  await ready;
});
