/** Streams survive their carriers: upgrades, outages, crossed messages, and a peer that forgot everything. */
import assert from "node:assert/strict";
import { HELLO, rawFrame, rawHello, rawOpen, RawPeer, unhex } from "../../../tests/fixtures/raw_peer.ts";
import { acceptAll, acceptFlows, type FlowOwner, open, openFlow, World } from "../../../tests/fixtures/sessions.ts";
import { HELLO_TIMEOUT_MS, RETIRED_MS } from "../constants.ts";
import { TYPE } from "../frame.ts";

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

Deno.test("an upgrade: the old carrier works until both sides said HELLO on the new one, and is closed soon after", () => {
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
  world.pass(RETIRED_MS - 50);
  assert.ok(!near.closed && !far.closed, "datagrams may be on their way");
  world.pass(100);
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
  assert.equal(second.closed, undefined);
  world.pass(RETIRED_MS);
  assert.equal(first.closed, "clean");
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

/** Flows on a relay, each direction of which is held with so many datagrams on the way. */
function flowsInFlight(size: number, count: number) {
  const world = new World();
  const served = acceptFlows(world.b);
  const pair = world.connect({ path: "relay" });
  const client = openFlow(world.a);
  client.send("first");
  world.run();
  for (const end of pair) end.hold();
  for (let i = 0; i < count; i++) {
    client.send(new Uint8Array(size).fill(i));
    served[0]!.send(new Uint8Array(size).fill(i));
    world.run();
  }
  served[0]!.datagrams.length = 0;
  const numbers = (owner: FlowOwner) => owner.datagrams.filter((d) => d.length === size).map((d) => d[0]!);
  return { world, pair, client, served: served[0]!, numbers };
}

Deno.test("datagrams on their way at a change of carrier arrive, whole and once, beside those on the new one", () => {
  for (const size of [200, 16_000, 65_507]) {
    // More than the carrier takes: the last one of those that need two batches is cut in two, others wait in the queue.
    const count = size === 65_507 ? 6 : 10;
    const { world, pair, client, served, numbers } = flowsInFlight(size, count);
    world.connect({ path: "lan" });
    world.run();
    client.send("over the new one");
    served.send("and back");
    world.run();
    assert.deepEqual([served.texts.includes("over the new one"), client.texts.includes("and back")], [true, true]);
    const early = numbers(served);
    assert.ok(early.length < count, `${size}: nothing was on the way`);
    // Late ones come a piece at a time, in between those of the new carrier.
    for (let steps = 0; pair.some((end) => end.step()); steps++) {
      client.send(new Uint8Array(40_000).fill(steps));
      world.run();
    }
    const all = Array.from({ length: count }, (_, i) => i);
    assert.deepEqual(numbers(served).sort((a, b) => a - b), all, `${size} bytes`);
    assert.deepEqual(numbers(client).sort((a, b) => a - b), all, `${size} bytes, back`);
    for (const d of [...served.datagrams, ...client.datagrams]) {
      if (d.length === size || d.length === 40_000) assert.ok(d.every((byte) => byte === d[0]), "altered");
    }
    assert.equal(world.a.session.stats().datagramsDropped + world.b.session.stats().datagramsDropped, 0);
    world.close();
  }
});

Deno.test("datagrams on their way when a third carrier takes over arrive, too; of four the oldest is given up", () => {
  const { world, pair: [relay, back], client, served } = flowsInFlight(200, 1);
  const held = [relay, back];
  for (const [i, path] of (["relay", "direct", "lan"] as const).entries()) {
    const next = world.connect({ path });
    world.run();
    for (const end of next) end.hold();
    held.push(...next);
    client.send(`on carrier ${i + 2}`);
    world.run();
  }
  for (const end of held) end.release();
  world.run();
  // The first one and its datagram were given up for the third to be left.
  assert.deepEqual(served.texts, ["on carrier 2", "on carrier 3", "on carrier 4"]);
  assert.ok(relay.closed);
  world.close();
  assert.equal(world.clock.pending, 0);
});

Deno.test("what comes on a carrier longer after it was left is not waited for", () => {
  const { world, pair, served, numbers } = flowsInFlight(200, 2);
  world.connect({ path: "lan" });
  world.pass(RETIRED_MS + 100);
  for (const end of pair) end.release();
  world.run();
  assert.deepEqual(numbers(served), []);
  assert.ok(pair[0].closed && pair[1].closed);
  assert.deepEqual(world.a.events, ["up relay", "up lan"]);
  world.close();
});

Deno.test("datagrams on the carrier of a process that was replaced are not those of the new one", () => {
  const world = new World();
  const flows = acceptFlows(world.b);
  const old = new RawPeer(world, world.b.session);
  old.greet({ initiator: true, generation: 1, instance: 4000 });
  old.send(rawOpen(1, { flow: true }));
  const fresh = new RawPeer(world, world.b.session);
  fresh.greet({ initiator: true, generation: 1, instance: 5000 });
  fresh.send(rawOpen(1, { flow: true }));
  assert.equal(old.closed, "clean");
  old.send(rawFrame(TYPE.DGRAM, 1, unhex("0001 0002 0000 6869")));
  assert.deepEqual(flows.map((flow) => flow.texts), [[], []]);
  world.close();
});

Deno.test("a peer of the release before closes the old carrier at once: no outage, its datagrams before that arrive", () => {
  const world = new World();
  const flows = acceptFlows(world.b);
  const first = new RawPeer(world, world.b.session);
  first.greet({ initiator: true, generation: 1 });
  first.send(rawOpen(1, { flow: true }));
  first.carrier.send(rawFrame(TYPE.DGRAM, 1, unhex("0001 0002 0000 6869")));
  const second = new RawPeer(world, world.b.session);
  second.carrier.send(rawHello({ ...HELLO, initiator: true, generation: 2 }));
  world.run();
  first.carrier.close("SHUTDOWN");
  world.run();
  assert.deepEqual(flows[0]!.texts, ["hi"]);
  assert.deepEqual(world.b.events, ["up direct", "up direct"]);
  world.pass(RETIRED_MS + 100);
  assert.deepEqual(world.b.events, ["up direct", "up direct"]);
  world.close();
  assert.equal(world.clock.pending, 0);
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
