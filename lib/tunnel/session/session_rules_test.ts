/** Promises that are easy to break and hard to notice. */
import assert from "node:assert/strict";
import { bytesOf, join, rawFrame, rawOpen, RawPeer } from "../../../tests/fixtures/raw_peer.ts";
import { acceptAll, acceptFlows, open, Owner, World } from "../../../tests/fixtures/sessions.ts";
import { FLOOR_CREDIT, QUANTUM, RETIRED_MS } from "../constants.ts";
import { TYPE } from "../frame.ts";

const bulk = new Uint8Array(1 << 20).fill(5);
const openOk = (id: number, limit = 10_000_000) => rawFrame(TYPE.OPEN_OK, id, bytesOf([64, limit]));
const ack = (offset: number) => rawFrame(TYPE.ACK, 0, bytesOf([64, offset]));
const counted = (peer: RawPeer) =>
  peer.frames.filter((f) => f.type < 0x40).reduce((n, f) => n + 8 + f.payload.length, 0);
const instanceOf = (peer: RawPeer) => Number(new DataView(peer.got(TYPE.HELLO)[0]!.payload.buffer).getBigUint64(8));

function greeted(): { world: World; peer: RawPeer } {
  const world = new World();
  const peer = new RawPeer(world, world.a.session);
  peer.greet();
  return { world, peer };
}

Deno.test("an ACK that spares bytes about to be sent again is followed by another RESUME", () => {
  const world = new World();
  const first = new RawPeer(world, world.a.session);
  first.greet();
  const client = open(world.a);
  world.run();
  first.send(openOk(1));
  for (let i = 0; i < 4; i++) {
    client.send(bulk.subarray(0, 10_000));
    world.run();
  }
  // Where frames begin.
  const borders = [0];
  for (const f of first.frames.filter((f) => f.type < 0x40)) borders.push(borders.at(-1)! + 8 + f.payload.length);
  first.carrier.cut();
  world.run();
  // A carrier that is full after each batch: there is time for an ACK between RESUME and the bytes behind it.
  const second = new RawPeer(world, world.a.session, { capacity: 1 });
  world.run();
  second.near.hold();
  second.greet({ peerInstance: instanceOf(second), received: borders[2]! });
  second.send(ack(borders[4]!));
  second.near.release();
  world.run();
  const resumes = second.got(TYPE.RESUME).map((f) => Number(new DataView(f.payload.buffer).getBigUint64(0)));
  assert.deepEqual(resumes, [borders[2], borders[4]]);
  let position = -1;
  const sent: number[] = [];
  for (const frame of second.frames) {
    if (frame.type === TYPE.RESUME) position = Number(new DataView(frame.payload.buffer).getBigUint64(0));
    if (frame.type >= 0x40) continue;
    sent.push(position);
    position += 8 + frame.payload.length;
  }
  assert.deepEqual(sent, borders.slice(4, -1));
  world.close();
});

Deno.test("nobody passes those who wait for an acknowledgement", () => {
  const world = new World({ limits: { retention: 100_000 } });
  const peer = new RawPeer(world, world.a.session);
  peer.greet();
  const [first, second] = [open(world.a), open(world.a)];
  world.run();
  peer.send(openOk(1), openOk(3));
  assert.ok(first.send(bulk) > 60_000);
  world.run();
  let writable = 0;
  second.onWritableDo = () => writable++;
  // A little room comes back: not enough for a turn of the first one, and the second must not take it.
  peer.send(ack(8 + peer.got(TYPE.OPEN)[0]!.payload.length));
  assert.equal(second.send("me first"), 0);
  peer.send(ack(counted(peer)));
  assert.equal(writable, 1);
  assert.equal(second.send("now"), 3);
  world.close();
});

Deno.test("while the carrier is busy, one stream adds a quantum to the next batch and no more", () => {
  const world = new World();
  const owners = acceptAll(world.b);
  const [near] = world.connect({ capacity: 30_000 });
  const clients = [open(world.a), open(world.a)];
  world.run();
  near.hold();
  clients[0]!.send(bulk.subarray(0, 40_000));
  world.run();
  assert.equal(near.inFlight, 1);
  const taken = [0, 0];
  for (let i = 0; i < 10; i++) {
    for (const c of [0, 1]) taken[c]! += clients[c]!.send(bulk.subarray(0, 5_000));
    world.run();
  }
  assert.deepEqual(taken, [QUANTUM, QUANTUM]);
  assert.equal(near.inFlight, 1);
  near.release();
  world.run();
  assert.equal(owners[1]!.received, QUANTUM);
  world.close();
});

Deno.test("each direction has the floor credit, whatever OPEN and OPEN_OK say", () => {
  const { world, peer } = greeted();
  const owners = acceptAll(world.a);
  peer.send(rawOpen(2, { window: 0 }));
  assert.equal(owners[0]!.send(bulk), FLOOR_CREDIT);
  const client = open(world.a);
  world.run();
  peer.send(openOk(1, 0));
  assert.equal(client.send(bulk), FLOOR_CREDIT);
  world.close();
});

Deno.test("flows beyond the limit are refused with LIMIT", () => {
  const world = new World({ limits: { maxFlows: 2 } });
  const peer = new RawPeer(world, world.a.session);
  peer.greet();
  acceptFlows(world.a);
  for (const id of [2, 4, 6]) peer.send(rawOpen(id, { flow: true }));
  assert.deepEqual(peer.got(TYPE.FLOW_CLOSE).map((f) => [f.id, ...f.payload]), [[6, 0, 6]]);
  peer.send(rawFrame(TYPE.FLOW_CLOSE, 2, bytesOf([16, 4])), rawOpen(8, { flow: true }));
  assert.equal(world.a.session.stats().flows, 2);
  world.close();
});

Deno.test("a last word is not answered with another", () => {
  const { world, peer } = greeted();
  peer.send(rawFrame(TYPE.GOAWAY, 0, bytesOf([16, 4], [8, 1])));
  assert.equal(world.a.events.at(-1), "closed SHUTDOWN: closed by the peer");
  assert.deepEqual(peer.got(TYPE.GOAWAY), []);
});

Deno.test("a broken stream never looks like one that ended", () => {
  const { world, peer } = greeted();
  const owners = acceptAll(world.a);
  const seen: number[] = [];
  const buffer = new Uint8Array(100);
  peer.send(rawOpen(2), rawOpen(4));
  // The first owner reads the second stream, which was reset in the same batch and does not know it yet.
  owners[0]!.pull = () => seen.push(owners[1]!.stream.read(buffer));
  peer.send(
    rawFrame(TYPE.DATA, 4, bulk.subarray(0, 10)),
    rawFrame(TYPE.DATA, 2, bulk.subarray(0, 10)),
    rawFrame(TYPE.RST, 4, bytesOf([16, 13])),
  );
  assert.deepEqual(owners[1]!.calls, ["open", "close RESET"]);
  seen.push(owners[1]!.stream.read(buffer));
  assert.deepEqual(seen, [-1, -1]);
  world.close();
});

Deno.test("no CREDIT is sent for a direction that has ended", () => {
  const { world, peer } = greeted();
  const owners = acceptAll(world.a, () => Object.assign(new Owner(), { reading: false }));
  peer.send(rawOpen(2));
  for (let i = 0; i < 12; i++) peer.send(rawFrame(TYPE.DATA, 2, bulk.subarray(0, 16_384)));
  peer.send(rawFrame(TYPE.FIN, 2));
  owners[0]!.pull();
  world.run();
  assert.equal(owners[0]!.received, 12 * 16_384);
  assert.deepEqual(peer.got(TYPE.CREDIT), []);
  world.close();
});

Deno.test("who resets after the clean end hears nothing of that end", () => {
  const { world, peer } = greeted();
  const owners = acceptAll(world.a);
  peer.send(rawOpen(2));
  const owner = owners[0]!;
  owner.stream.closeWrite();
  owner.pull = () => {
    assert.equal(owner.stream.read(new Uint8Array(10)), 0);
    owner.stream.reset("RESET");
  };
  peer.send(rawFrame(TYPE.FIN, 2));
  assert.deepEqual(owner.calls, ["open"]);
  // The stream had ended both ways: there is nothing to reset at the peer.
  assert.deepEqual(peer.got(TYPE.RST), []);
  world.close();
});

Deno.test("onWritable never comes before onOpen", () => {
  const world = new World({ limits: { retention: 60_000 } });
  const peer = new RawPeer(world, world.a.session);
  peer.greet();
  const first = open(world.a);
  world.run();
  peer.send(openOk(1));
  first.send(bulk.subarray(0, 50_000));
  const second = open(world.a);
  second.onWritableDo = () => second.calls.push("writable");
  assert.ok(second.send(bulk.subarray(0, 10_000)) < 10_000);
  world.run();
  peer.send(ack(counted(peer)));
  assert.deepEqual(second.calls, []);
  peer.send(openOk(3));
  assert.deepEqual(second.calls, ["open", "writable"]);
  world.close();
});

Deno.test("a datagram that an outage cut in two is whole if no piece was lost, and of one process", () => {
  const piece = (offset: number) =>
    rawFrame(TYPE.DGRAM, 1, join(bytesOf([16, 1], [16, 20], [16, offset]), bulk.subarray(0, 10)));
  for (const instance of [50, 51]) {
    const world = new World();
    const served = acceptFlows(world.b);
    const first = new RawPeer(world, world.b.session);
    first.greet({ initiator: true, generation: 1, instance: 50 });
    first.send(rawOpen(1, { flow: true }), piece(0));
    first.carrier.cut();
    world.run();
    const second = new RawPeer(world, world.b.session);
    world.run();
    second.greet({ initiator: true, generation: 2, instance, peerInstance: instanceOf(second) });
    if (instance === 51) second.send(rawOpen(1, { flow: true }));
    second.send(piece(10));
    assert.deepEqual(served.map((f) => f.datagrams.length), instance === 50 ? [1] : [0, 0]);
    second.send(piece(0), piece(10));
    assert.equal(served.at(-1)!.datagrams.length, instance === 50 ? 2 : 1);
    world.close();
  }
});

Deno.test("pieces of datagrams on two carriers do not mix: what began on the one that was left ends there", () => {
  const piece = (number: number, offset: number) =>
    rawFrame(TYPE.DGRAM, 1, join(bytesOf([16, number], [16, 20], [16, offset]), bulk.subarray(0, 10)));
  const world = new World();
  const served = acceptFlows(world.b);
  const first = new RawPeer(world, world.b.session);
  first.greet({ initiator: true, generation: 1, instance: 50 });
  first.send(rawOpen(1, { flow: true }), piece(1, 0));
  const second = new RawPeer(world, world.b.session);
  world.run();
  second.greet({ initiator: true, generation: 2, instance: 50, peerInstance: instanceOf(second) });
  second.send(piece(2, 0));
  first.send(piece(1, 10), piece(3, 0));
  assert.equal(served[0]!.datagrams.length, 1);
  second.send(piece(2, 10));
  assert.equal(served[0]!.datagrams.length, 2);
  // The third one is not finished when its carrier is closed: it counts as lost.
  world.pass(RETIRED_MS + 50);
  assert.equal(world.b.session.stats().datagramsDropped, 1);
  world.close();
});

Deno.test("many calls ask for one turn", () => {
  const world = new World();
  acceptAll(world.b);
  world.connect();
  const client = open(world.a);
  world.run();
  let asked = 0;
  const later = world.scheduler.later.bind(world.scheduler);
  world.scheduler.later = (task) => {
    asked++;
    later(task);
  };
  for (let i = 0; i < 100; i++) client.send("x");
  assert.equal(asked, 1);
  world.run();
  world.close();
});
