/** Streams survive their carriers: upgrades, outages, crossed messages, and a peer that forgot everything. */
import assert from "node:assert/strict";
import { HELLO, rawHello, rawOpen, RawPeer } from "../../tests/fixtures/raw_peer.ts";
import { acceptAll, acceptFlows, open, openFlow, World } from "../../tests/fixtures/sessions.ts";
import { HELLO_TIMEOUT_MS } from "./constants.ts";
import { TYPE } from "./frame.ts";

/** A world with one open stream in the middle of a conversation. */
function talking() {
  const world = new World();
  const owners = acceptAll(world.b);
  const [near, far] = world.connect({ path: "relay" });
  const client = open(world.a, "one ");
  world.run();
  const server = owners[0]!;
  const talk = (word: string) => {
    client.send(word);
    server.send(word.toUpperCase());
    world.run();
  };
  return { world, client, server, owners, near, far, talk };
}

Deno.test("an outage is invisible to the streams", () => {
  const { world, client, server, near, talk } = talking();
  talk("two ");
  near.cut();
  world.run();
  assert.deepEqual(world.a.events.slice(-2), ["lost relay PEER_GONE", "down PEER_GONE"]);
  assert.equal(world.a.session.state, "down");
  talk("three ");
  assert.equal(server.text, "one two ");
  world.connect({ path: "lan" });
  world.run();
  talk("four ");
  assert.equal(server.text, "one two three four ");
  assert.equal(client.text, "TWO THREE FOUR ");
  assert.equal(world.a.events.at(-1), "up lan");
  assert.deepEqual([client.calls, server.calls], [["open"], ["open"]]);
  world.close();
});

Deno.test("what was on the way when the carrier broke is sent again, what arrived is not", () => {
  const { world, client, server, near, far } = talking();
  near.hold();
  for (const word of ["two ", "three "]) {
    client.send(word);
    world.run();
  }
  assert.ok(near.step());
  world.run();
  assert.equal(server.text, "one two ");
  far.hold();
  server.send("ANSWER");
  world.run();
  near.cut();
  world.run();
  world.connect();
  world.run();
  assert.equal(server.text, "one two three ");
  assert.equal(client.text, "ANSWER");
  world.close();
});

Deno.test("an upgrade: the old carrier works until both sides said HELLO on the new one, and is closed then", () => {
  const { world, client, server, near, far, talk } = talking();
  const [upgradeA, upgradeB] = world.carriers({ path: "lan" });
  upgradeA.hold();
  upgradeB.hold();
  world.a.session.attach(upgradeA);
  world.b.session.attach(upgradeB);
  world.run();
  talk("two ");
  assert.equal(server.text, "one two ");
  assert.equal(world.a.session.carrier?.path, "relay");
  upgradeA.release();
  upgradeB.release();
  talk("three ");
  world.run();
  assert.equal(server.text, "one two three ");
  assert.equal(client.text, "TWO THREE ");
  assert.deepEqual([world.a.session.carrier?.path, world.b.session.carrier?.path], ["lan", "lan"]);
  assert.ok(near.closed && far.closed);
  // Nobody was told that anything was lost.
  assert.deepEqual(world.a.events, ["up relay", "up lan"]);
  assert.deepEqual(world.b.events, ["up relay", "up lan"]);
  world.close();
});

Deno.test("frames that still arrive on the old carrier after the switch are ignored", () => {
  const { world, client, server, near, talk } = talking();
  near.hold();
  talk("two ");
  world.connect({ path: "lan" });
  world.run();
  assert.equal(server.text, "one two ");
  near.release();
  talk("three ");
  assert.equal(server.text, "one two three ");
  assert.equal(client.text, "TWO THREE ");
  world.close();
});

Deno.test("both sides dial at once: one of the carriers wins on both sides", () => {
  for (const order of [[0, 1, 0, 1], [0, 1, 1, 0], [1, 0, 0, 1]] as const) {
    const world = new World();
    const owners = acceptAll(world.b);
    const pairs = [world.carriers({ path: "lan" }), world.carriers({ path: "direct" })] as const;
    const client = open(world.a, "hello");
    world.a.session.attach(pairs[order[0]]![0]);
    world.a.session.attach(pairs[order[1]]![0]);
    world.b.session.attach(pairs[order[2]]![1]);
    world.b.session.attach(pairs[order[3]]![1]);
    world.run();
    assert.equal(world.a.session.carrier?.path, world.b.session.carrier?.path);
    assert.equal(owners.length, 1);
    assert.equal(owners[0]!.text, "hello");
    owners[0]!.send("yes");
    world.run();
    assert.equal(client.text, "yes");
    world.close();
    assert.equal(world.clock.pending, 0);
  }
});

Deno.test("a HELLO with an old generation closes its carrier only", () => {
  const world = new World();
  const first = new RawPeer(world, world.b.session);
  const second = new RawPeer(world, world.b.session);
  second.greet({ initiator: true, generation: 2 });
  first.greet({ initiator: true, generation: 1 });
  assert.equal(world.b.session.state, "up");
  assert.equal(first.closed, "clean");
  assert.equal(second.closed, undefined);
  assert.equal(world.b.session.stats().generation, 2);
  world.close();
});

Deno.test("a HELLO of a process that was replaced meanwhile does not bring it back", () => {
  const world = new World();
  const old = new RawPeer(world, world.b.session);
  const fresh = new RawPeer(world, world.b.session);
  const owners = acceptAll(world.b);
  fresh.greet({ initiator: true, generation: 1, instance: 5000 });
  fresh.send(rawOpen(1));
  old.greet({ initiator: true, generation: 9, instance: 4000 });
  assert.equal(old.closed, "clean");
  assert.deepEqual(owners[0]!.calls, ["open"]);
  world.close();
});

Deno.test("a peer that restarted: its streams end with PEER_GONE, new ones work", () => {
  const { world, client, owners, near, talk } = talking();
  talk("two ");
  acceptFlows(world.b);
  const flow = openFlow(world.a);
  world.run();
  near.cut();
  world.run();
  world.restart(world.b);
  world.run();
  world.b.events.length = 0;
  client.send("never to be seen");
  world.connect();
  world.run();
  assert.equal(client.reason, "PEER_GONE");
  assert.deepEqual(flow.calls, ["close PEER_GONE"]);
  assert.equal(world.a.session.state, "up");
  const again = open(world.a, "fresh");
  world.run();
  assert.equal(owners.at(-1)!.text, "fresh");
  owners.at(-1)!.send("yes");
  world.run();
  assert.equal(again.text, "yes");
  world.pass(100);
  assert.equal(world.a.session.stats().streams, 1);
  world.close();
});

Deno.test("a stream opened while the peer was away is not lost to its restart if nothing of it was sent", () => {
  const world = new World();
  const owners = acceptAll(world.b);
  const client = open(world.a, "patient");
  world.run();
  world.restart(world.b);
  world.connect();
  world.run();
  assert.equal(owners[0]!.text, "patient");
  assert.deepEqual(client.calls, ["open"]);
  world.close();
});

Deno.test("a peer that restarted gets the streams that were opened while it was away, and no others", () => {
  const { world, client, owners, near } = talking();
  acceptFlows(world.b);
  near.hold();
  const halfway = open(world.a, "sent, but did it arrive?");
  world.run();
  near.cut();
  world.run();
  const patient = open(world.a, "POST /order");
  patient.send(" item=1");
  client.send("to the old one");
  const given = open(world.a, "changed my mind");
  given.stream.reset("RESET");
  const large = open(world.a, new Uint8Array(100_000));
  const flow = openFlow(world.a);
  patient.send(" item=2");
  patient.stream.closeWrite();
  world.run();
  owners.length = 0;
  world.restart(world.b);
  world.connect();
  world.run();
  assert.deepEqual([client.reason, halfway.reason, patient.reason, flow.calls], [
    "PEER_GONE",
    "PEER_GONE",
    undefined,
    [],
  ]);
  assert.deepEqual(owners.map((o) => o.text.slice(0, 30)), ["POST /order item=1 item=2", "\0".repeat(30)]);
  assert.equal(owners[1]!.received, 100_000);
  assert.ok(owners[0]!.ended);
  owners[0]!.send("201");
  owners[0]!.stream.closeWrite();
  world.run();
  assert.equal(patient.text, "201");
  assert.ok(patient.closed && !large.closed);
  world.pass(100);
  assert.equal(world.a.session.stats().retained, 0);
  world.close();
});

Deno.test("a stream that survived one restart by waiting does not survive the next one after it was sent", () => {
  const world = new World();
  const owners = acceptAll(world.b);
  const crash = () => {
    near.cut();
    world.run();
    world.restart(world.b);
    world.run();
  };
  let [near] = world.connect();
  for (let i = 0; i < 50; i++) open(world.a, "something to count");
  world.run();
  crash();
  const patient = open(world.a, "POST /order");
  world.run();
  [near] = world.connect();
  world.run();
  assert.equal(owners.at(-1)!.text, "POST /order");
  crash();
  world.connect();
  world.run();
  assert.equal(patient.reason, "PEER_GONE");
  assert.equal(world.a.session.state, "up");
  world.close();
});

Deno.test("early bytes on a carrier that died unanswered are never carried out twice", () => {
  const world = new World();
  const client = open(world.a, "POST /pay");
  const first = new RawPeer(world, world.a.session);
  world.run();
  assert.equal(first.got(TYPE.OPEN).length, 1);
  first.carrier.cut();
  world.run();
  // Another process answers: it cannot know what the first one did.
  const second = new RawPeer(world, world.a.session);
  second.greet({ instance: 4711 });
  assert.equal(second.got(TYPE.OPEN).length, 0);
  assert.equal(client.reason, "PEER_GONE");
  world.close();
});

Deno.test("early bytes on a carrier that died go on where the peer says they arrived", () => {
  const world = new World();
  const client = open(world.a, "GET /");
  const first = new RawPeer(world, world.a.session);
  world.run();
  const sent = first.frames.filter((f) => f.type < 0x40).reduce((n, f) => n + 8 + f.payload.length, 0);
  const instance = Number(new DataView(first.got(TYPE.HELLO)[0]!.payload.buffer).getBigUint64(8));
  first.carrier.cut();
  world.run();
  const second = new RawPeer(world, world.a.session);
  second.greet({ peerInstance: instance, received: sent });
  client.send("more");
  world.run();
  assert.deepEqual(second.frames.filter((f) => f.type < 0x40).map((f) => new TextDecoder().decode(f.payload)), [
    "more",
  ]);
  assert.deepEqual(client.calls, []);
  world.close();
});

Deno.test("a session without a carrier keeps its streams for the hold time, then ends", () => {
  const { world, client, server, near, talk } = talking();
  talk("two ");
  near.cut();
  world.run();
  world.pass(59_900, 100);
  assert.equal(client.closed, false);
  world.pass(200, 100);
  assert.equal(client.reason, "PEER_GONE");
  assert.equal(server.reason, "PEER_GONE");
  assert.equal(world.a.events.at(-1), "closed PEER_GONE: no carrier in time");
  assert.equal(world.clock.pending, 0);
  const after = open(world.a);
  world.run();
  assert.deepEqual(after.calls, ["close PEER_GONE"]);
  const [late] = world.carriers();
  world.a.session.attach(late);
  assert.ok(late.closed);
});

Deno.test("a session that never had a carrier ends with TIMEOUT", () => {
  const world = new World({ limits: { holdMs: 1000 } });
  const client = open(world.a);
  world.pass(1100, 100);
  assert.equal(client.reason, "TIMEOUT");
  assert.deepEqual(world.a.events, ["closed TIMEOUT: no carrier in time"]);
});

Deno.test("a carrier that never says HELLO is closed, and does not prolong the hold time", () => {
  const world = new World({ limits: { holdMs: HELLO_TIMEOUT_MS + 1000 } });
  const peer = new RawPeer(world, world.a.session);
  world.pass(HELLO_TIMEOUT_MS + 500, 100);
  assert.equal(peer.closed, "clean");
  assert.deepEqual(world.a.events, ["lost direct TIMEOUT", "down TIMEOUT"]);
  world.pass(1000, 100);
  assert.equal(world.a.session.state, "closed");
  assert.equal(world.clock.pending, 0);
});

Deno.test("more waiting carriers than allowed: the oldest gives way", () => {
  const world = new World();
  const peers = Array.from({ length: 5 }, () => new RawPeer(world, world.a.session));
  world.run();
  assert.deepEqual(peers.map((p) => p.closed), ["clean", undefined, undefined, undefined, undefined]);
  world.close();
});

Deno.test("a failed upgrade leaves the carrier in use alone", () => {
  const { world, talk, server } = talking();
  const failing = new RawPeer(world, world.a.session, { path: "lan" });
  failing.send(rawOpen(2));
  talk("two ");
  assert.equal(server.text, "one two ");
  assert.deepEqual(world.a.events, ["up relay", "lost lan PROTOCOL"]);
  world.close();
});

Deno.test("each close of the active carrier while another waits is not an outage", () => {
  const { world, near, server, client, talk } = talking();
  const [upgradeA, upgradeB] = world.carriers({ path: "lan" });
  upgradeB.hold();
  world.a.session.attach(upgradeA);
  world.b.session.attach(upgradeB);
  world.run();
  near.cut();
  world.run();
  assert.ok(!world.a.events.some((e) => e.startsWith("down")), world.a.events.join());
  upgradeB.release();
  talk("two ");
  assert.equal(server.text, "one two ");
  assert.equal(client.text, "TWO ");
  world.close();
});

Deno.test("a carrier that leads to somebody else is refused", () => {
  const world = new World();
  const [stranger] = world.carriers({ b: { node: "node-c", keyHash: "cc" } });
  assert.throws(() => world.a.session.attach(stranger), { code: "CERT_UNTRUSTED" });
  assert.ok(stranger.closed);
  const [otherKey] = world.carriers({ b: { node: "node-b", keyHash: "b2" } });
  assert.throws(() => world.a.session.attach(otherKey), { code: "CERT_UNTRUSTED" });
  world.close();
});

Deno.test("datagrams are never sent again, not even after an outage", () => {
  const world = new World();
  const served = acceptFlows(world.b);
  const [near] = world.connect();
  const client = openFlow(world.a);
  client.send("1");
  world.run();
  near.hold();
  client.send("2");
  world.run();
  near.cut();
  world.run();
  client.send("3");
  world.connect();
  client.send("4");
  world.run();
  assert.deepEqual(served[0]!.texts, ["1", "3", "4"]);
  world.close();
});

Deno.test("datagrams that waited too long for a carrier are dropped", () => {
  const world = new World();
  const served = acceptFlows(world.b);
  const [near] = world.connect();
  const client = openFlow(world.a);
  client.send("1");
  world.run();
  near.cut();
  world.run();
  client.send("old");
  world.pass(3000, 100);
  client.send("new enough");
  world.connect();
  world.run();
  client.send("2");
  world.run();
  // Age is that of the outage: one bound for all keeps the queue free of time stamps.
  assert.deepEqual(served[0]!.texts, ["1", "2"]);
  world.close();
});

Deno.test("a final GOAWAY ends both sides at once, with its reason", () => {
  const { world, client, server } = talking();
  world.a.session.close("REVOKED");
  world.run();
  assert.deepEqual([client.reason, server.reason], ["REVOKED", "REVOKED"]);
  assert.equal(world.b.events.at(-1), "closed REVOKED: closed by the peer");
  assert.equal(world.clock.pending, 0);
});

Deno.test("draining: what is open goes on, nothing new begins on either side", () => {
  const { world, client, server, talk } = talking();
  world.b.session.drain();
  world.run();
  assert.equal(world.a.events.at(-1), "draining SHUTDOWN");
  const refused = [open(world.a), open(world.b)];
  world.run();
  assert.deepEqual(refused.map((o) => o.reason), ["SHUTDOWN", "SHUTDOWN"]);
  talk("two ");
  assert.equal(server.text, "one two ");
  assert.equal(client.text, "TWO ");
  world.close();
});

Deno.test("draining is told again after a change of carrier, in HELLO", () => {
  const world = new World();
  const peer = new RawPeer(world, world.a.session);
  peer.send(rawHello({ ...HELLO, draining: true }));
  assert.equal(world.a.events.at(-1), "draining SHUTDOWN");
  world.close();
});
