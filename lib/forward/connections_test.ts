import assert from "node:assert/strict";
import { FakeClock } from "../clock.ts";
import type { ReasonCode } from "../errors.ts";
import { Connections, type Tracked } from "./connections.ts";

class One implements Tracked {
  bytes = 0;
  halfClosed = false;
  idleMs?: number;
  ended: ReasonCode | undefined;

  constructor(readonly table: Connections) {
    table.add(this);
  }

  reset(code: ReasonCode): void {
    this.ended = code;
    this.table.delete(this);
  }
}

Deno.test("connections: without limits they may stand idle for ever", () => {
  const clock = new FakeClock();
  const table = new Connections(clock, 10, { idleMs: 0, halfClosedMs: 1000 });
  const one = new One(table);
  clock.advance(86_400_000);
  assert.equal(one.ended, undefined);
  table.close("SHUTDOWN");
  assert.equal(one.ended, "SHUTDOWN");
  assert.equal(clock.pending, 0);
});

Deno.test("connections: idle ones end within a sweep of their limit, busy ones do not", () => {
  const clock = new FakeClock();
  const table = new Connections(clock, 10, { idleMs: 60_000, halfClosedMs: 20_000 });
  const [quiet, busy, half, flow] = [new One(table), new One(table), new One(table), new One(table)];
  half!.halfClosed = true;
  flow!.idleMs = 30_000;
  const endedAt = new Map<One, number>();
  for (let second = 1; second <= 120; second++) {
    busy!.bytes++;
    clock.advance(1000);
    for (const one of [quiet!, busy!, half!, flow!]) {
      if (one.ended !== undefined && !endedAt.has(one)) endedAt.set(one, second);
    }
  }
  const at = (one: One | undefined) => endedAt.get(one!) ?? 0;
  assert.equal(busy!.ended, undefined);
  for (const [one, limit] of [[quiet, 60], [half, 20], [flow, 30]] as const) {
    assert.equal(one!.ended, "TIMEOUT");
    // The first look starts the clock, and looks come every five seconds.
    assert.ok(at(one) >= limit && at(one) <= limit + 10, `${at(one)} s for a limit of ${limit} s`);
  }
  table.close("SHUTDOWN");
});

Deno.test("connections: the cap, and nothing is taken after the end", () => {
  const clock = new FakeClock();
  const table = new Connections(clock, 2);
  new One(table);
  assert.equal(table.full, false);
  const second = new One(table);
  assert.equal(table.full, true);
  second.reset("RESET");
  assert.deepEqual([table.full, table.size], [false, 1]);
  table.close("SHUTDOWN");
  assert.equal(new One(table).ended, "SHUTDOWN");
  assert.equal(clock.pending, 0);
});
