import assert from "node:assert/strict";
import { MeshError, type ReasonCode } from "../../errors.ts";
import type { Carrier, PathKind } from "../carrier.ts";
import type { PathAgent, PathSink } from "../legs/path_agent.ts";
import { Race } from "./race.ts";

function rig() {
  const pursuit = { trying: true, rank: -1 };
  const told: string[] = [];
  let relay: PathSink | undefined;
  let cancelled = false;
  let connects = 0;
  const agent: PathAgent = {
    connect: (_peer, sink) => {
      connects++;
      relay = sink;
      return { cancel: () => cancelled = true };
    },
  };
  const race = new Race(agent, pursuit, {
    peer: "b",
    sink: {
      onCarrier: (carrier) => told.push(carrier.path),
      onFailed: (error) => told.push(`failed ${error.code}`),
      onNote: (path, text) => told.push(`${path} ${text}`),
    },
  });
  race.start();
  return { race, pursuit, told, relay: relay!, wasCancelled: () => cancelled, connects: () => connects };
}

function carrier(path: PathKind): Carrier & { closed: ReasonCode | undefined } {
  return {
    path,
    peer: { node: "b", keyHash: "k" },
    handler: { onBatch() {}, onDrain() {}, onClose() {} },
    closed: undefined,
    send: () => true,
    close(reason) {
      this.closed = reason;
    },
  };
}

const offline = new MeshError("PEER_OFFLINE", "not there");

Deno.test("the relay's carrier passes, and a better one after it", () => {
  const { race, told, relay } = rig();
  relay.onNote("relay", "slow");
  relay.onCarrier(carrier("relay"));
  race.deliver(carrier("lan"));
  assert.deepEqual(told, ["relay slow", "relay", "lan"]);
});

Deno.test("a relay that comes after something better is closed", () => {
  const { pursuit, told, relay } = rig();
  pursuit.rank = 1;
  const late = carrier("relay");
  relay.onCarrier(late);
  assert.equal(late.closed, "SHUTDOWN");
  assert.deepEqual(told, []);
});

Deno.test("it fails when the relay has failed and nothing else is tried any more, once", () => {
  const { race, pursuit, told, relay } = rig();
  race.rested();
  relay.onFailed(offline);
  assert.deepEqual(told, []);
  pursuit.trying = false;
  race.rested();
  race.rested();
  assert.deepEqual(told, ["failed PEER_OFFLINE"]);
  assert.ok(!race.waiting);
});

Deno.test("what the peer itself refuses fails at once", () => {
  const { told, relay } = rig();
  relay.onFailed(new MeshError("REVOKED", "revoked"));
  assert.deepEqual(told, ["failed REVOKED"]);
});

Deno.test("with another path in use a failed relay is no failure", () => {
  const { race, pursuit, told, relay } = rig();
  pursuit.rank = 2;
  pursuit.trying = false;
  relay.onFailed(offline);
  assert.deepEqual(told, []);
  assert.ok(!race.waiting);
});

Deno.test("after a cancel nothing is told and what comes is closed", () => {
  const { race, told, relay, wasCancelled } = rig();
  race.cancel();
  race.cancel();
  const [late, better] = [carrier("relay"), carrier("direct")];
  relay.onCarrier(late);
  race.deliver(better);
  relay.onFailed(offline);
  relay.onNote("relay", "x");
  assert.deepEqual([late.closed, better.closed, told, wasCancelled()], ["SHUTDOWN", "SHUTDOWN", [], true]);
});

Deno.test("a relay that failed is tried again on news while the search goes on, and only then", () => {
  const { race, pursuit, told, relay, connects } = rig();
  race.again();
  assert.equal(connects(), 1, "the relay is still being connected");
  relay.onFailed(offline);
  race.again();
  assert.equal(connects(), 2);
  race.rested();
  assert.deepEqual(told, [], "the second one may still work");
  pursuit.trying = false;
  race.cancel();
  race.again();
  assert.equal(connects(), 2);
});

Deno.test("news do not bring back a relay that was refused for good", () => {
  const { race, pursuit, told, relay, connects } = rig();
  relay.onFailed(new MeshError("REVOKED", "shut out"));
  race.again();
  assert.equal(connects(), 1);
  assert.deepEqual(told, ["failed REVOKED"]);
  assert.equal(pursuit.trying, true);
});
