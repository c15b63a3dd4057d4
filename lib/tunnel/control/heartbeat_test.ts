import assert from "node:assert/strict";
import { FakeClock } from "../../clock.ts";
import { Heartbeat } from "./heartbeat.ts";

/** A heartbeat whose other end answers after `rttMs` until `alive` is false. */
function rig(rttMs: number) {
  const clock = new FakeClock();
  const at: number[] = [];
  const end = { alive: true, dead: undefined as number | undefined };
  const heartbeat: Heartbeat = new Heartbeat({
    clock,
    rttMs: () => rttMs,
    ping: () => {
      at.push(clock.now());
      clock.timer(rttMs, () => end.alive && heartbeat.heard());
    },
    onDead: () => end.dead = clock.now(),
  });
  return { clock, heartbeat, at, end };
}

Deno.test("heartbeat: a ping every 15 s while all is well", () => {
  const { clock, heartbeat, at, end } = rig(40);
  heartbeat.start();
  clock.advance(61_000);
  assert.deepEqual(at.map((t) => t - at[0]!), [0, 15_000, 30_000, 45_000]);
  assert.equal(end.dead, undefined);
  heartbeat.stop();
});

Deno.test("heartbeat: an end that falls silent is dead within 30 s, and nothing follows", () => {
  const { clock, heartbeat, at, end } = rig(40);
  heartbeat.start();
  end.alive = false;
  const from = clock.now();
  clock.advance(29_999);
  assert.equal(end.dead, undefined);
  clock.advance(1);
  assert.equal(end.dead! - from, 30_000);
  const sent = at.length;
  clock.advance(60_000);
  assert.equal(at.length, sent);
});

Deno.test("heartbeat: in doubt a silent end is dead after two short waits, a living one is believed again", () => {
  for (
    const [rttMs, deadAfterMs] of [[1, 500], [40, 500], [80, 800], [300, 1000], [600, 1800], [2000, 6000]] as const
  ) {
    const { clock, heartbeat, end } = rig(rttMs);
    heartbeat.start();
    clock.advance(1000);
    heartbeat.doubt();
    clock.advance(10_000);
    assert.equal(end.dead, undefined, `alive at ${rttMs} ms`);
    end.alive = false;
    heartbeat.doubt();
    const from = clock.now();
    clock.advance(10_000);
    assert.equal(end.dead! - from, deadAfterMs, `round trip ${rttMs} ms`);
  }
});

Deno.test("heartbeat: whatever is heard counts, not only answers; before the start and after the stop nothing is asked", () => {
  const { clock, heartbeat, at, end } = rig(40);
  heartbeat.doubt();
  clock.advance(60_000);
  assert.equal(at.length, 0);
  heartbeat.start();
  end.alive = false;
  for (let t = 0; t < 120; t++) {
    clock.advance(1000);
    heartbeat.heard();
  }
  assert.equal(end.dead, undefined);
  heartbeat.stop();
  const sent = at.length;
  heartbeat.doubt();
  clock.advance(60_000);
  assert.equal(at.length, sent);
});
