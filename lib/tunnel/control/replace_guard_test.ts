import assert from "node:assert/strict";
import { FakeClock } from "../../clock.ts";
import { replaceGuard } from "./replace_guard.ts";

Deno.test("ten replacements a minute are free; then the one that is connected stays until the minute is over", () => {
  const clock = new FakeClock();
  const guard = replaceGuard(clock);
  for (let i = 0; i < 10; i++) {
    assert.equal(guard.waitMs("edge-1"), 0);
    guard.replaced("edge-1");
    clock.advance(1000);
  }
  assert.equal(guard.waitMs("edge-1"), 50_000);
  assert.equal(guard.waitMs("edge-2"), 0);
  clock.advance(50_000);
  assert.equal(guard.waitMs("edge-1"), 0);
  guard.replaced("edge-1");
  assert.equal(guard.waitMs("edge-1"), 1000, "the window slides");
});

Deno.test("a fleet of names does not grow it without end", () => {
  const clock = new FakeClock();
  const guard = replaceGuard(clock);
  for (let i = 0; i < 10; i++) guard.replaced("first");
  for (let i = 0; i < 4096; i++) guard.replaced(`n${i}`);
  assert.equal(guard.waitMs("first"), 0, "the one replaced longest ago was forgotten");
});
