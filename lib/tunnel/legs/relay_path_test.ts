import assert from "node:assert/strict";
import { FakeClock } from "../../clock.ts";
import { MeshError, type ReasonCode } from "../../errors.ts";
import { nullLogger } from "../../log.ts";
import type { Carrier } from "../carrier.ts";
import type { CarrierEngine } from "../carriers/engine.ts";
import type { ControlClient } from "../control/client.ts";
import type { ChannelDuplex } from "./channel_duplex.ts";
import { RelayPath } from "./relay_path.ts";

/** A relay path over servers whose channels end as the test says. */
function rig(names: readonly string[]) {
  const clock = new FakeClock();
  const probed: string[] = [];
  const calls: PromiseWithResolvers<Carrier>[] = [];
  const notes: string[] = [];
  const ended: (Carrier | ReasonCode)[] = [];
  const servers = names.map((url) =>
    ({ url, probe: () => probed.push(url), openChannel: () => ({ destroy() {} }) }) as unknown as ControlClient
  );
  const engine: CarrierEngine<ChannelDuplex> = {
    name: "portable",
    connect: () => {
      calls.push(Promise.withResolvers<Carrier>());
      return calls.at(-1)!.promise;
    },
    accept: () => Promise.reject(new Error("nobody calls")),
  };
  const path = new RelayPath({
    engine,
    clock,
    log: nullLogger,
    servers: { candidates: () => servers, connecting: false, lastError: "", returnsWithin: () => 0 },
    onCarrier() {},
  });
  path.connect("b", {
    onCarrier: (carrier) => ended.push(carrier),
    onFailed: (error: MeshError) => ended.push(error.code),
    onNote: (_path, text) => notes.push(text),
  });
  return { clock, probed, calls, notes, ended };
}

/** Lets promises settle. */
const settle = () => new Promise<void>((resolve) => queueMicrotask(() => queueMicrotask(resolve)));
const carrier = { path: "relay", peer: { node: "b", keyHash: "k" } } as unknown as Carrier;

Deno.test("relay path: a call without an answer puts the server's connection in doubt, one with an answer does not", async () => {
  const silent = rig(["wss://one"]);
  await settle();
  silent.clock.advance(999);
  assert.deepEqual(silent.probed, []);
  silent.clock.advance(1);
  assert.deepEqual(silent.probed, ["wss://one"]);

  const quick = rig(["wss://one"]);
  await settle();
  quick.calls[0]!.resolve(carrier);
  await settle();
  await settle();
  quick.clock.advance(10_000);
  assert.deepEqual([quick.probed, quick.ended], [[], [carrier]]);
});

Deno.test("relay path: what one server cannot do the next is asked for, and the first reason is told", async () => {
  const t = rig(["wss://one", "wss://two"]);
  await settle();
  t.calls[0]!.reject(new MeshError("PEER_OFFLINE", "not here"));
  while (t.calls.length < 2) await settle();
  t.calls[1]!.reject(new MeshError("SERVER_UNREACHABLE", "gone"));
  while (t.ended.length === 0) await settle();
  assert.deepEqual(t.ended, ["PEER_OFFLINE"]);
  assert.deepEqual(t.notes, ["wss://one: PEER_OFFLINE", "wss://two: SERVER_UNREACHABLE"]);
});

Deno.test("relay path: a peer that is not the one that was meant is final", async () => {
  const t = rig(["wss://one", "wss://two"]);
  await settle();
  t.calls[0]!.reject(new MeshError("NODE_KEY_MISMATCH", "another key"));
  while (t.ended.length === 0) await settle();
  assert.deepEqual([t.ended, t.calls.length], [["NODE_KEY_MISMATCH"], 1]);
});
