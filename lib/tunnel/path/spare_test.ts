import assert from "node:assert/strict";
import { FakeClock } from "../../clock.ts";
import { MeshError, type ReasonCode } from "../../errors.ts";
import type { Carrier } from "../carrier.ts";
import type { PathSink } from "../legs/path_agent.ts";
import { Spare } from "./spare.ts";

class Rig {
  readonly clock = new FakeClock();
  readonly sinks: PathSink[] = [];
  readonly delivered: Carrier[] = [];
  silent = true;
  over = 0;
  cancelled = 0;
  readonly spare = new Spare({
    clock: this.clock,
    peer: "b",
    relay: {
      connect: (_peer, sink) => {
        this.sinks.push(sink);
        return { cancel: () => this.cancelled++ };
      },
      onState() {},
    },
    wanted: () => this.silent,
    onCarrier: (carrier) => this.delivered.push(carrier),
    onNote() {},
    onOver: () => this.over++,
  });

  constructor() {
    this.spare.start();
  }

  fail(): void {
    this.sinks.at(-1)!.onFailed(new MeshError("SERVER_UNREACHABLE", "no server"));
  }
}

const carrier = (): Carrier & { closed?: ReasonCode } => ({
  path: "relay",
  peer: { node: "b", keyHash: "k" },
  handler: { onBatch() {}, onDrain() {}, onClose() {} },
  send: () => true,
  close(reason) {
    this.closed = reason;
  },
});

Deno.test("spare: a relay that fails is tried again until it stands", () => {
  const rig = new Rig();
  for (let i = 1; i <= 3; i++) {
    assert.equal(rig.sinks.length, i);
    rig.fail();
    rig.clock.advance(99);
    assert.equal(rig.sinks.length, i);
    rig.clock.advance(1);
  }
  const made = carrier();
  rig.sinks.at(-1)!.onCarrier(made);
  assert.deepEqual([rig.delivered, rig.over, rig.clock.pending], [[made], 1, 0]);
});

Deno.test("spare: a path that answers again ends it, and what comes late is closed", () => {
  const rig = new Rig();
  rig.silent = false;
  const late = carrier();
  rig.sinks[0]!.onCarrier(late);
  assert.deepEqual([rig.delivered, late.closed, rig.over], [[], "SHUTDOWN", 1]);
  const retried = new Rig();
  retried.fail();
  retried.silent = false;
  retried.clock.advance(100);
  assert.deepEqual([retried.sinks.length, retried.over, retried.clock.pending], [1, 1, 0]);
});

Deno.test("spare: after a cancel nothing is tried", () => {
  const rig = new Rig();
  rig.fail();
  rig.spare.cancel();
  rig.clock.advance(1_000);
  assert.deepEqual([rig.sinks.length, rig.cancelled, rig.over], [1, 1, 0]);
});
