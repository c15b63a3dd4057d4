/** What a session does when time passes: acknowledgements, pings, dead carriers, windows that fit the round trip. */
import assert from "node:assert/strict";
import { bytesOf, rawFrame, rawOpen, RawPeer } from "../../../tests/fixtures/raw_peer.ts";
import { acceptAll, open, openFlow, Owner, World } from "../../../tests/fixtures/sessions.ts";
import { TYPE } from "../frame.ts";

Deno.test("an ACK rides with the answer; alone it waits 25 ms", () => {
  const world = new World();
  const peer = new RawPeer(world, world.a.session);
  peer.greet();
  const owners = acceptAll(world.a);
  peer.clear();
  peer.send(rawOpen(2));
  // OPEN_OK goes back at once, and the ACK of the OPEN with it.
  assert.deepEqual(peer.frames.map((f) => f.type), [TYPE.ACK, TYPE.OPEN_OK]);
  peer.clear();
  peer.send(rawFrame(TYPE.DATA, 2, new Uint8Array(100)));
  assert.equal(owners[0]!.received, 100);
  assert.equal(peer.frames.map((f) => f.type).join(), "");
  world.clock.advance(24);
  world.run();
  assert.equal(peer.frames.map((f) => f.type).join(), "");
  world.clock.advance(1);
  world.run();
  assert.deepEqual(peer.frames.map((f) => f.type), [TYPE.ACK]);
  const offset = new DataView(peer.frames[0]!.payload.buffer).getBigUint64(0);
  assert.equal(Number(offset), rawOpen(2).length + 108);
  world.pass(5000, 50);
  assert.equal(peer.got(TYPE.ACK).length, 1, "an ACK is not acknowledged");
  world.close();
});

Deno.test("an ACK goes at once when a quarter of what the peer can keep is unacknowledged", () => {
  const world = new World();
  const peer = new RawPeer(world, world.a.session);
  peer.greet({ retention: 40_000 });
  world.a.onStream = () => {};
  peer.send(rawOpen(2));
  peer.clear();
  peer.send(rawFrame(TYPE.DATA, 2, new Uint8Array(9_000)));
  assert.deepEqual(peer.got(TYPE.ACK), []);
  peer.send(rawFrame(TYPE.DATA, 2, new Uint8Array(1_500)));
  assert.equal(peer.got(TYPE.ACK).length, 1);
  world.close();
});

Deno.test("pings: at once, then by how busy the session is; the answer echoes token and time", () => {
  const world = new World();
  const peer = new RawPeer(world, world.a.session);
  peer.greet();
  const answered = new Set<number>();
  const answer = () => {
    for (const ping of peer.got(TYPE.PING)) {
      const token = Number(new DataView(ping.payload.buffer).getBigUint64(0));
      if (!answered.has(token)) peer.send(rawFrame(TYPE.PONG, 0, ping.payload));
      answered.add(token);
    }
  };
  for (let t = 0; t < 60_000; t += 100) {
    world.clock.advance(100);
    world.run();
    answer();
  }
  assert.equal(peer.got(TYPE.PING).length, 4);
  peer.clear();
  answered.clear();
  open(world.a, "busy");
  for (let t = 0; t < 9_000; t += 100) {
    world.clock.advance(100);
    world.run();
    answer();
  }
  assert.ok(peer.got(TYPE.PING).length >= 5, `${peer.got(TYPE.PING).length} pings`);
  peer.clear();
  peer.send(rawFrame(TYPE.PING, 0, bytesOf([64, 7], [64, 8])), rawFrame(TYPE.PING, 0, bytesOf([64, 9], [64, 10])));
  assert.deepEqual(peer.got(TYPE.PONG).map((f) => f.payload), [bytesOf([64, 9], [64, 10])]);
  world.close();
});

Deno.test("ping() tells the round trip, and rejects when the carrier goes away", async () => {
  const world = new World();
  await assert.rejects(
    () => {
      const asked = world.a.session.ping();
      world.run();
      return asked;
    },
    { code: "PEER_GONE" },
  );
  const [near] = world.connect({ delay: { clock: world.clock, ms: 20 } });
  world.pass(100);
  const asked = world.a.session.ping();
  world.pass(100, 1);
  assert.equal(await asked, 40);
  assert.equal(world.a.session.stats().rttMs, 40);
  // Answered ones make room for others.
  for (let i = 0; i < 100; i++) {
    const next = world.a.session.ping();
    world.pass(50, 10);
    assert.equal(await next, 40);
  }
  const lost = world.a.session.ping();
  near.cut();
  world.run();
  await assert.rejects(() => lost, { code: "PEER_GONE" });
  world.close();
});

Deno.test("T16: a cable that was pulled: idle sessions notice within 20 s, busy ones within 8, and resume elsewhere", () => {
  for (const busy of [false, true]) {
    const world = new World();
    const owners = acceptAll(world.b);
    const [near, far] = world.connect({ path: "lan" });
    const client = open(world.a, "before ");
    world.pass(30_000, 100);
    near.hold();
    far.hold();
    if (busy) client.send("during ");
    let took = 0;
    while (world.a.session.state === "up" && took < 60_000) {
      world.pass(100, 100);
      took += 100;
    }
    assert.equal(world.a.events.at(-1), "down PEER_GONE");
    assert.ok(took <= (busy ? 8_000 : 20_000), `${took} ms`);
    assert.ok(near.closed);
    world.connect({ path: "relay" });
    client.send("after");
    world.run();
    assert.equal(owners[0]!.text, busy ? "before during after" : "before after");
    world.close();
  }
});

Deno.test("a carrier that is slow but delivers is not taken for dead", () => {
  const world = new World();
  const owners = acceptAll(world.b);
  const [near, far] = world.connect({ capacity: 64 * 1024 });
  const client = open(world.a);
  world.run();
  near.hold();
  far.hold();
  client.onWritableDo = () => void client.send(new Uint8Array(500_000));
  client.onWritableDo();
  // One batch in five seconds: 100 kbit/s.
  for (let i = 0; i < 20; i++) {
    world.pass(5_000, 100);
    near.step();
    far.step();
    world.run();
  }
  assert.equal(world.a.session.state, "up");
  assert.equal(world.b.session.state, "up");
  assert.ok(owners[0]!.received > 100_000);
  world.close();
});

Deno.test("a window grows with the round trip until the wire is full, and not on a short way", () => {
  const rate = (ms: number) => {
    const world = new World({ limits: { retention: 64 << 20 } });
    const owners = acceptAll(world.b, () => Object.assign(new Owner(), { keep: false }));
    world.connect({ delay: { clock: world.clock, ms }, capacity: 64 << 20 });
    world.pass(10 * ms + 10, 1);
    const client = open(world.a);
    const bulk = new Uint8Array(8 << 20);
    client.onWritableDo = () => void client.send(bulk);
    world.pass(4 * ms, 1);
    client.onWritableDo();
    const before = world.b.session.stats().windowFree;
    world.pass(40 * ms, 1);
    const perRoundTrip = owners[0]!.received / 20;
    const grown = before - world.b.session.stats().windowFree;
    world.close();
    return { perRoundTrip, grown };
  };
  const far = rate(50);
  // From 256 KiB: without growth 40 round trips would carry 256 KiB each.
  assert.ok(far.perRoundTrip > 1_500_000, `${far.perRoundTrip} bytes per round trip`);
  assert.ok(far.grown > 3 << 20);
});

Deno.test("no timer outlives its session, none is armed anew for each batch", () => {
  const world = new World();
  const owners = acceptAll(world.b);
  world.connect();
  const client = open(world.a);
  const flow = openFlow(world.a);
  for (let i = 0; i < 100; i++) {
    client.send("x");
    flow.send("y");
    world.run();
    assert.ok(world.clock.pending <= 2, `${world.clock.pending} timers`);
  }
  assert.equal(owners[0]!.received, 100);
  world.close();
  assert.equal(world.clock.pending, 0);
});
