import assert from "node:assert/strict";
import { Presence, RETURN_MS } from "./presence.ts";

const peers = (online: readonly string[], offline: readonly string[] = [], full = false) =>
  ({ type: "peers", full, online, offline }) as const;

Deno.test("presence: who came and who left, our own name left out, what is known already not told again", () => {
  const presence = new Presence();
  assert.deepEqual(presence.take(peers(["a", "b", "me"], [], true), "me", 0), { online: ["a", "b"], offline: [] });
  assert.deepEqual(presence.take(peers(["b", "c"], ["a", "x"]), "me", 0), { online: ["c"], offline: ["a"] });
  assert.deepEqual(presence.take(peers(["c"], [], true), "me", 0), { online: [], offline: ["b"] });
  assert.deepEqual([...presence.online], ["c"]);
  assert.deepEqual(presence.clear(0), ["c"]);
  assert.equal(presence.online.size, 0);
});

Deno.test("presence: a node that left is expected back for a while, one that was never there is not", () => {
  const presence = new Presence();
  presence.take(peers(["a"], [], true), "me", 0);
  presence.take(peers([], ["a"]), "me", 10_000);
  const wait = (node: string, now: number, since = 0) => presence.returnsWithin(node, now, since);
  assert.equal(wait("a", 10_000), RETURN_MS);
  assert.equal(wait("a", 10_500), RETURN_MS - 500);
  assert.equal(wait("a", 10_000 + RETURN_MS), 0);
  assert.equal(wait("stranger", 10_000), 0);
  presence.take(peers(["a"]), "me", 20_000);
  assert.equal(wait("a", 60_000), RETURN_MS, "the server says PEER_OFFLINE before it tells that it left");
});

Deno.test("presence: after the server was away, the time counts from our own return", () => {
  const presence = new Presence();
  presence.take(peers(["a"], [], true), "me", 0);
  presence.clear(1_000);
  assert.equal(presence.returnsWithin("a", 60_000, 59_500), RETURN_MS - 500);
  assert.equal(presence.returnsWithin("a", 62_000, 59_500), 0);
});

Deno.test("presence: what is remembered of nodes that left is bounded, the newest stay", () => {
  const presence = new Presence();
  const names = Array.from({ length: 5_000 }, (_, i) => `n${i}`);
  presence.take(peers(names, [], true), "me", 0);
  presence.clear(0);
  assert.equal(presence.returnsWithin("n0", 0, 0), 0);
  assert.equal(presence.returnsWithin("n4999", 0, 0), RETURN_MS);
});
