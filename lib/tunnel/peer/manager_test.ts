import assert from "node:assert/strict";
import { MeshError } from "../../errors.ts";
import { MAX_PATH_EVENTS } from "./path_events.ts";
import { FakeCarrier, FakeStream, ManagerRig } from "../testing.ts";

Deno.test("the first dial makes a session and one search; later ones share both", () => {
  const rig = new ManagerRig("edge-a");
  rig.dial("edge-b");
  rig.dial("edge-b");
  assert.deepEqual([rig.sessions.length, rig.paths.attempts.length, rig.session.streams.length], [1, 1, 2]);
  assert.equal(rig.session.parts.role, "initiator");
  assert.equal(new ManagerRig("edge-z").dial("edge-b") && rig.status("edge-b").state, "connecting");
  rig.paths.last.sink.onCarrier(new FakeCarrier("edge-b"));
  rig.session.up();
  const status = rig.status("edge-b");
  assert.deepEqual([status.state, status.path, status.keyHash, status.rttMs], ["up", "relay", "key of edge-b", 7]);
  rig.dial("edge-b");
  assert.deepEqual([rig.sessions.length, rig.paths.attempts.length, rig.session.streams.length], [1, 1, 3]);
});

Deno.test("a search that fails closes the waiting streams with its reason, and spares the next second's dials the way", async () => {
  const rig = new ManagerRig("edge-a");
  const first = rig.dial("edge-b");
  rig.paths.last.sink.onFailed(new MeshError("PEER_OFFLINE", "Node edge-b is not connected"));
  assert.deepEqual(first.closes, ["PEER_OFFLINE"]);
  assert.equal(rig.status("edge-b").lastError, "Node edge-b is not connected");
  const second = rig.dial("edge-b");
  assert.deepEqual(second.closes, [], "never from inside the call");
  await Promise.resolve();
  assert.deepEqual([second.closes, rig.paths.attempts.length], [["PEER_OFFLINE"], 1]);
  rig.clock.advance(1000);
  rig.dial("edge-b");
  assert.equal(rig.paths.attempts.length, 2);
  rig.paths.last.sink.onFailed(new MeshError("PEER_OFFLINE", "again"));
  rig.manager.reachable(["edge-b"]);
  rig.dial("edge-b");
  assert.equal(rig.paths.attempts.length, 3, "the server said it is back");
});

Deno.test("a dial without a way ends at the deadline, with the best known reason", () => {
  const rig = new ManagerRig("edge-a");
  const { closes } = rig.dial("edge-b");
  rig.clock.advance(4999);
  assert.deepEqual(closes, []);
  rig.clock.advance(1);
  assert.deepEqual([closes, rig.session.closed, rig.paths.last.cancelled], [["TIMEOUT"], "TIMEOUT", true]);
  rig.clock.advance(1000);
  const second = rig.dial("edge-b");
  rig.paths.last.sink.onCarrier(new FakeCarrier("edge-b"));
  rig.session.parts.events.onDown("LIMIT");
  rig.clock.advance(5000);
  assert.deepEqual(second.closes, ["LIMIT"]);
});

Deno.test("a peer that refuses us for good is not asked again until the deadline", () => {
  for (const reason of ["REVOKED", "CERT_UNTRUSTED", "CERT_EXPIRED", "NODE_KEY_MISMATCH", "VERSION"] as const) {
    const rig = new ManagerRig("edge-a");
    const { closes } = rig.dial("edge-b");
    rig.paths.last.sink.onCarrier(new FakeCarrier("edge-b"));
    rig.session.parts.events.onDown(reason);
    assert.deepEqual([closes, rig.status("edge-b").state], [[reason], "idle"]);
  }
});

Deno.test("a carrier from the peer makes a session too, and one that comes during our search counts", () => {
  const rig = new ManagerRig("edge-b");
  rig.manager.accept(new FakeCarrier("edge-a"));
  assert.deepEqual([rig.session.parts.role, rig.paths.attempts.length], ["acceptor", 0]);
  rig.session.up();
  assert.equal(rig.status("edge-a").state, "up");

  const both = new ManagerRig("edge-b");
  const { closes } = both.dial("edge-a");
  both.manager.accept(new FakeCarrier("edge-a"));
  both.paths.last.sink.onFailed(new MeshError("PEER_OFFLINE", "late news"));
  assert.deepEqual(closes, [], "the peer's own carrier may still come up");
  both.session.up();
  assert.equal(both.sessions.length, 1);
});

Deno.test("once up, the acceptor stops its own search and the initiator does not", () => {
  for (const [self, peer, stops] of [["edge-b", "edge-a", true], ["edge-a", "edge-b", false]] as const) {
    const rig = new ManagerRig(self);
    rig.dial(peer);
    rig.manager.accept(new FakeCarrier(peer));
    rig.session.up();
    assert.equal(rig.paths.last.cancelled, stops, self);
    const late = new FakeCarrier(peer);
    rig.paths.last.sink.onCarrier(late);
    assert.equal(late.closed, stops ? "SHUTDOWN" : undefined);
    assert.equal(rig.session.carriers.length, stops ? 1 : 2);
  }
});

Deno.test("after a loss the initiator searches at once, the acceptor after a moment; both go on with backoff", () => {
  for (const [self, peer, delay] of [["edge-a", "edge-b", 0], ["edge-b", "edge-a", 300]] as const) {
    const rig = new ManagerRig(self);
    const session = rig.connected(peer);
    session.counts.streams = 1;
    session.parts.events.onDown("PEER_GONE");
    assert.equal(rig.status(peer).state, "down");
    rig.clock.advance(delay);
    assert.equal(rig.paths.attempts.length, 2, self);
    for (const wait of [100, 200, 400, 800]) {
      rig.paths.last.sink.onFailed(new MeshError("PEER_OFFLINE", "x"));
      const before: number = rig.paths.attempts.length;
      rig.clock.advance(wait - 1);
      assert.equal(rig.paths.attempts.length, before);
      rig.clock.advance(1);
      assert.equal(rig.paths.attempts.length, before + 1);
    }
    rig.paths.last.sink.onCarrier(new FakeCarrier(peer));
    session.up();
    assert.deepEqual([rig.status(peer).state, rig.sessions.length], ["up", 1]);
  }
});

Deno.test("streams opened while the way is lost fail with the search, or at their deadline; held ones wait on", () => {
  const rig = new ManagerRig("edge-a");
  const session = rig.connected("edge-b");
  const held = rig.dial("edge-b");
  session.streams.at(-1)!.state = "open";
  session.counts.streams = 1;
  session.parts.events.onDown("PEER_GONE");
  const waiting = rig.dial("edge-b");
  const given = rig.dial("edge-b");
  given.stream.reset("RESET");
  rig.paths.last.sink.onFailed(new MeshError("SERVER_UNREACHABLE", "no server"));
  assert.deepEqual([held.closes, waiting.closes, given.closes], [[], ["SERVER_UNREACHABLE"], []]);
  assert.deepEqual((waiting.stream as FakeStream).resets, ["SERVER_UNREACHABLE"]);
  rig.clock.advance(1100);
  const late = rig.dial("edge-b");
  rig.clock.advance(4999);
  assert.deepEqual(late.closes, []);
  rig.clock.advance(1);
  assert.deepEqual(late.closes, ["SERVER_UNREACHABLE"]);
  assert.equal(rig.status("edge-b").state, "down");
  assert.deepEqual(held.closes, []);
});

Deno.test("streams that wait are not failed once the way is back", () => {
  const rig = new ManagerRig("edge-a");
  const session = rig.connected("edge-b");
  session.counts.streams = 1;
  session.parts.events.onDown("PEER_GONE");
  const waiting = rig.dial("edge-b");
  rig.paths.last.sink.onCarrier(new FakeCarrier("edge-b"));
  session.up();
  rig.clock.advance(20_000);
  assert.deepEqual(waiting.closes, []);
});

Deno.test("a lost session that nothing used is dropped", () => {
  const rig = new ManagerRig("edge-a");
  const session = rig.connected("edge-b");
  session.parts.events.onDown("PEER_GONE");
  assert.deepEqual([rig.status("edge-b").state, session.closed], ["idle", "PEER_GONE"]);
  assert.equal(rig.paths.attempts.length, 1);
});

Deno.test("idle sessions are closed, the initiator's first; used ones are not", () => {
  const [a, b] = [new ManagerRig("edge-a"), new ManagerRig("edge-b")];
  const [ours, theirs] = [a.connected("edge-b"), b.connected("edge-a")];
  const busy = a.connected("edge-c");
  busy.counts.flows = 1;
  for (const rig of [a, b]) rig.clock.advance(5 * 60_000 + 31_000);
  assert.deepEqual([ours.closed, theirs.closed, busy.closed], ["SHUTDOWN", undefined, undefined]);
  b.clock.advance(5 * 60_000);
  assert.equal(theirs.closed, "SHUTDOWN");
  assert.equal(a.status("edge-b").state, "idle");
});

Deno.test("revocation closes sessions of proven peers, and nothing else", () => {
  const rig = new ManagerRig("edge-a");
  const [b, c] = [rig.connected("edge-b"), rig.connected("edge-c")];
  rig.dial("edge-d");
  rig.manager.revoke((peer) => peer.keyHash !== "key of edge-c");
  assert.deepEqual([b.closed, c.closed, rig.session.closed], ["REVOKED", undefined, undefined]);
});

Deno.test("a peer that was enrolled anew gets a new session", () => {
  const rig = new ManagerRig("edge-a");
  const old = rig.connected("edge-b");
  rig.manager.accept(new FakeCarrier("edge-b", "relay", "another key"));
  assert.equal(old.closed, "PEER_GONE");
  assert.notEqual(rig.session, old);
  assert.equal(rig.session.parts.peer.keyHash, "another key");
});

Deno.test("events of a session that is over change nothing", () => {
  const rig = new ManagerRig("edge-a");
  const old = rig.connected("edge-b");
  rig.manager.revoke(() => true);
  rig.dial("edge-b");
  const { session } = rig;
  old.parts.events.onClosed("PEER_GONE", "late");
  old.parts.events.onDown("PEER_GONE");
  old.parts.events.onUp(new FakeCarrier("edge-b"));
  assert.deepEqual([rig.status("edge-b").state, session.closed], ["connecting", undefined]);
});

Deno.test("a session that ends by itself frees the peer; the next dial begins anew", () => {
  const rig = new ManagerRig("edge-a");
  const old = rig.connected("edge-b");
  old.parts.events.onClosed("PROTOCOL", "OPEN of a forbidden form");
  const status = rig.status("edge-b");
  assert.deepEqual([status.state, status.lastError], ["idle", "OPEN of a forbidden form"]);
  rig.dial("edge-b");
  assert.equal(rig.sessions.length, 2);
});

Deno.test("ping makes the way where there is none, and fails with the reason", async () => {
  const rig = new ManagerRig("edge-a");
  const answer = rig.manager.ping("edge-b");
  rig.paths.last.sink.onCarrier(new FakeCarrier("edge-b"));
  rig.session.up();
  rig.session.pings[0]!.resolve(12);
  assert.deepEqual(await answer, { rttMs: 12, path: "relay" });
  const failed = rig.manager.ping("edge-c");
  rig.paths.last.sink.onFailed(new MeshError("UNKNOWN_NODE", "wss://s knows no node named edge-c"));
  await assert.rejects(failed, { code: "UNKNOWN_NODE", message: "wss://s knows no node named edge-c" });
  await assert.rejects(rig.manager.ping("edge-c"), { code: "UNKNOWN_NODE" });
  await assert.rejects(rig.manager.ping("edge-a"), { code: "NOT_ALLOWED" });
});

Deno.test("endpoints that are not on another node never enter the tunnel", async () => {
  const rig = new ManagerRig("edge-a");
  const closes = [rig.dial("edge-a").closes, rig.dial(undefined).closes];
  await Promise.resolve();
  assert.deepEqual(closes, [["NOT_ALLOWED"], ["NOT_ALLOWED"]]);
  assert.equal(rig.sessions.length, 0);
  const own = new FakeCarrier("edge-a");
  rig.manager.accept(own);
  assert.equal(own.closed, "NOT_ALLOWED");
});

Deno.test("sessions and remembered peers are capped", async () => {
  const rig = new ManagerRig("edge-a");
  for (let i = 0; i < 1024; i++) rig.connected(`n${i}`);
  const over = rig.dial("one-more");
  await Promise.resolve();
  assert.deepEqual(over.closes, ["LIMIT"]);
  const late = new FakeCarrier("another");
  rig.manager.accept(late);
  assert.equal(late.closed, "LIMIT");
  rig.manager.revoke(() => true);
  rig.dial("one-more");
  assert.ok(rig.manager.status().peers.length <= 257, "idle peers are forgotten beyond a number");
  assert.equal(rig.manager.status().sessions, 1);
});

Deno.test("the ring keeps the last events, oldest first", () => {
  const rig = new ManagerRig("edge-a");
  for (let i = 0; i < 100; i++) {
    rig.dial("edge-b");
    rig.paths.last.sink.onFailed(new MeshError("PEER_OFFLINE", `try ${i}`));
    rig.clock.advance(1000);
  }
  const { events } = rig.status("edge-b");
  assert.equal(events.length, MAX_PATH_EVENTS);
  assert.deepEqual(events.slice(-3).map((e) => [e.kind, e.reason]), [["dial", undefined], ["failed", "PEER_OFFLINE"], [
    "closed",
    "PEER_OFFLINE",
  ]]);
  assert.equal(events.at(-2)!.text, "try 99");
  assert.ok(events.every((e, i) => i === 0 || e.at >= events[i - 1]!.at));
});

Deno.test("close ends everything, answers later dials, and leaves no timer", async () => {
  const rig = new ManagerRig("edge-a");
  const session = rig.connected("edge-b");
  session.counts.streams = 1;
  rig.dial("edge-c");
  const down = rig.connected("edge-d");
  down.counts.streams = 1;
  down.parts.events.onDown("PEER_GONE");
  rig.dial("edge-d");
  rig.manager.close();
  const late = rig.dial("edge-b");
  const carrier = new FakeCarrier("edge-e");
  rig.manager.accept(carrier);
  await Promise.resolve();
  assert.deepEqual([session.closed, late.closes, carrier.closed], ["SHUTDOWN", ["SHUTDOWN"], "SHUTDOWN"]);
  assert.equal(rig.clock.pending, 0);
});
