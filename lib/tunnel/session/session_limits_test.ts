/** What a session holds at most, who is made to wait, and that everything comes back. */
import assert from "node:assert/strict";
import { bytesOf, rawFrame, rawOpen, RawPeer } from "../../../tests/fixtures/raw_peer.ts";
import { acceptAll, acceptFlows, open, openFlow, Owner, TARGET, World } from "../../../tests/fixtures/sessions.ts";
import type { IncomingStream } from "./session_types.ts";
import { FLOOR_CREDIT } from "../constants.ts";
import { TYPE } from "../frame.ts";
import { segmentPool } from "./send_log.ts";
import { largeChunks, smallChunks } from "./unread.ts";

const bulk = new Uint8Array(1 << 20).fill(1);

/** Writes as much as is taken, and goes on when told. */
function pour(owner: Owner, total: number): { readonly sent: number } {
  const state = { sent: 0 };
  const push = () => {
    while (state.sent < total) {
      const want = Math.min(bulk.length, total - state.sent);
      const n = owner.stream.write(bulk, 0, want);
      state.sent += n;
      if (n < want) return;
    }
    owner.stream.closeWrite();
  };
  owner.onWritableDo = push;
  push();
  return state;
}

Deno.test("after 1000 streams opened and closed nothing is left of them", () => {
  const world = new World();
  const before = [segmentPool.taken, smallChunks.taken, largeChunks.taken];
  const owners = acceptAll(world.b);
  world.connect();
  for (let i = 0; i < 1000; i++) {
    const client = open(world.a, `request ${i}`);
    world.run();
    const server = owners.pop()!;
    // Every way a stream can end.
    if (i % 4 === 0) client.stream.reset("RESET");
    else if (i % 4 === 1) server.stream.reset("RESET");
    else {
      server.send(`answer ${i}`);
      server.stream.closeWrite();
      client.stream.closeWrite();
    }
    world.run();
    assert.ok(client.closed || i % 4 === 0);
  }
  world.pass(100);
  for (const { session } of [world.a, world.b]) {
    const { streams, flows, entries, waiting, retained, unread, windowFree } = session.stats();
    assert.deepEqual({ streams, flows, entries, waiting, retained, unread, windowFree }, {
      streams: 0,
      flows: 0,
      entries: 0,
      waiting: 0,
      retained: 0,
      unread: 0,
      windowFree: 32 * 1024 * 1024,
    });
  }
  assert.deepEqual([segmentPool.taken, smallChunks.taken, largeChunks.taken], before);
  world.close();
});

Deno.test("T12: a slow reader stops only its own sender", () => {
  const world = new World();
  const lazy = new Owner();
  const owners = acceptAll(world.b, () => owners.length === 0 ? lazy : new Owner());
  lazy.reading = false;
  world.connect();
  const stuck = open(world.a);
  const poured = pour(stuck, 64 << 20);
  world.run();
  assert.ok(poured.sent <= 256 * 1024, `${poured.sent} bytes were taken for a reader that does not read`);
  const { unread, retained } = world.b.session.stats();
  assert.ok(unread <= 256 * 1024);
  assert.equal(retained <= 64, true);
  for (let i = 0; i < 20; i++) {
    const client = open(world.a, "quick");
    world.run();
    owners.at(-1)!.send("yes");
    world.run();
    assert.equal(client.text, "yes");
  }
  const busy = open(world.a);
  busy.keep = false;
  world.run();
  owners.at(-1)!.keep = false;
  pour(busy, 32 << 20);
  world.pass(50);
  assert.equal(owners.at(-1)!.received, 32 << 20);
  lazy.keep = false;
  lazy.reading = true;
  lazy.pull();
  world.pass(50);
  assert.equal(lazy.received, 64 << 20);
  assert.ok(lazy.ended);
  world.close();
});

Deno.test("T12: many readers that do not read: what they make us hold is bounded by the sum, not by their number", () => {
  const sum = 4 << 20;
  const world = new World({ limits: { windowSum: sum } });
  const owners = acceptAll(world.b, () => Object.assign(new Owner(), { reading: false }));
  world.connect();
  const count = 500;
  for (let i = 0; i < count; i++) pour(open(world.a), 8 << 20);
  world.pass(50);
  assert.equal(owners.length, count);
  const { unread } = world.b.session.stats();
  assert.ok(unread <= sum + count * FLOOR_CREDIT, `${unread} bytes held`);
  assert.ok(unread >= count * FLOOR_CREDIT, "the floor is for everybody");
  world.close();
});

Deno.test("one stream of many on a busy carrier: each gets its quantum in turn", () => {
  const world = new World();
  const owners = acceptAll(world.b, () => Object.assign(new Owner(), { keep: false }));
  const [near] = world.connect({ capacity: 64 * 1024 });
  world.run();
  near.hold();
  const clients = Array.from({ length: 10 }, () => open(world.a));
  world.run();
  for (const client of clients) pour(client, 4 << 20);
  world.run();
  near.release();
  // Batch by batch: after each, nobody is more than a few quanta ahead of anybody else.
  let spread = 0;
  near.hold();
  for (let i = 0; i < 600; i++) {
    near.step();
    world.run();
    const got = owners.map((o) => o.received);
    if (Math.min(...got) > 256 * 1024 && Math.max(...got) < 2 << 20) {
      spread = Math.max(spread, Math.max(...got) - Math.min(...got));
    }
  }
  assert.ok(spread > 0, "nothing was measured");
  assert.ok(spread <= 8 * 16_384, `one stream was ${spread} bytes ahead of another`);
  world.close();
});

Deno.test("a small request does not wait behind a bulk stream's megabytes", () => {
  const world = new World();
  const owners = acceptAll(world.b, () => Object.assign(new Owner(), { keep: false }));
  const [near] = world.connect({ capacity: 128 * 1024 });
  const big = open(world.a);
  pour(big, 64 << 20);
  world.scheduler.later(() => {});
  near.hold();
  for (let i = 0; i < 50; i++) {
    near.step();
    near.release();
    near.hold();
  }
  const before = near.inFlight;
  const rpc = open(world.a, "rpc");
  const small = () => owners.some((o) => o.received === 3);
  let batches = 0;
  while (!small() && batches < 100) {
    near.release();
    world.scheduler.later(() => near.hold());
    world.run();
    near.step();
    batches++;
  }
  assert.ok(small(), "the request never arrived");
  assert.ok(batches <= before + 4, `the request waited for ${batches} batches`);
  assert.equal(rpc.closed, false);
  world.close();
});

Deno.test("streams beyond the peer's limit are refused with LIMIT, by both sides", () => {
  const world = new World({ limits: {}, limitsB: { maxStreams: 3 } });
  acceptAll(world.b);
  world.connect();
  world.run();
  const clients = Array.from({ length: 4 }, () => open(world.a));
  world.run();
  assert.deepEqual(clients.map((c) => c.reason), [undefined, undefined, undefined, "LIMIT"]);
  // A peer that does not count is told.
  const rude = new RawPeer(world, world.b.session);
  rude.greet({ initiator: true, generation: 9, instance: 99 });
  for (let i = 0; i < 5; i++) rude.send(rawOpen(2 * i + 1));
  assert.deepEqual(rude.got(TYPE.RST).map((f) => [f.id, ...f.payload]), [[7, 0, 6], [9, 0, 6]]);
  assert.equal(world.b.session.state, "up");
  // A place that becomes free can be taken.
  rude.send(rawFrame(TYPE.RST, 1, bytesOf([16, 13])), rawOpen(11));
  assert.equal(rude.got(TYPE.OPEN_OK).at(-1)!.id, 11);
  world.close();
});

Deno.test("streams that wait for accept are limited on their own, and a refused one makes room", () => {
  const world = new World({ limits: { maxPending: 2 } });
  const waiting: IncomingStream[] = [];
  world.b.onStream = (incoming) => waiting.push(incoming);
  world.connect();
  world.run();
  const clients = [open(world.a), open(world.a), open(world.a)];
  world.run();
  assert.deepEqual(clients.map((c) => c.reason), [undefined, undefined, "LIMIT"]);
  waiting[0]!.refuse("DIAL_TIMEOUT");
  waiting[1]!.accept(Object.assign(new Owner()));
  world.run();
  const more = [open(world.a), open(world.a)];
  world.run();
  assert.deepEqual(clients.map((c) => c.calls), [["close DIAL_TIMEOUT"], ["open"], ["close LIMIT"]]);
  assert.deepEqual(more.map((c) => c.reason), [undefined, undefined]);
  world.close();
});

Deno.test("what comes before accept is bounded by the floor credit, and read after it", () => {
  const world = new World();
  let offered: IncomingStream | undefined;
  world.b.onStream = (incoming) => offered = incoming;
  world.connect();
  const client = open(world.a, bulk.subarray(0, 100_000));
  world.run();
  assert.equal(world.b.session.stats().unread, FLOOR_CREDIT);
  assert.equal(client.send("more"), 0, "bytes passed the first ones");
  const server = new Owner();
  server.stream = offered!.accept(server);
  world.run();
  client.send("!");
  client.stream.closeWrite();
  world.run();
  assert.equal(server.received, 100_001);
  assert.ok(server.ended);
  world.close();
});

Deno.test("an offered stream that is gone tells its owner when it is taken", () => {
  const world = new World();
  let offered: IncomingStream | undefined;
  world.b.onStream = (incoming) => offered = incoming;
  world.connect();
  const client = open(world.a, "never mind");
  world.run();
  client.stream.reset("TIMEOUT");
  world.run();
  const server = new Owner();
  server.stream = offered!.accept(server);
  assert.deepEqual(server.calls, []);
  world.run();
  assert.deepEqual(server.calls, ["close TIMEOUT"]);
  assert.equal(world.b.session.stats().streams, 0);
  world.close();
});

Deno.test("while no carrier is up, what can be opened and written is bounded by the retention", () => {
  const world = new World({ limits: { retention: 100_000 } });
  const owners = acceptAll(world.b);
  let taken = 0;
  const clients: Owner[] = [];
  for (let i = 0; i < 300; i++) {
    const client = open(world.a);
    clients.push(client);
    taken += client.send(bulk.subarray(0, 1000));
  }
  world.run();
  assert.ok(taken < 100_000);
  const refused = clients.filter((c) => c.reason === "LIMIT").length;
  assert.ok(refused > 0 && refused < 250, `${refused} refused`);
  world.connect();
  world.run();
  assert.equal(owners.length, 300 - refused);
  assert.equal(owners.reduce((n, o) => n + o.received, 0), taken);
  world.close();
});

Deno.test("unacknowledged bytes stop the writers, an acknowledgement lets them go on", () => {
  const world = new World({ limits: { retention: 200_000 } });
  const peer = new RawPeer(world, world.a.session);
  peer.greet();
  const client = open(world.a);
  world.run();
  peer.send(rawFrame(TYPE.OPEN_OK, 1, bytesOf([64, 10_000_000])));
  const poured = pour(client, 1_000_000);
  world.run();
  assert.ok(poured.sent < 200_000 && poured.sent > 150_000, `${poured.sent}`);
  const counted = peer.frames.filter((f) => f.type < 0x40).reduce((n, f) => n + 8 + f.payload.length, 0);
  peer.send(rawFrame(TYPE.ACK, 0, bytesOf([64, counted])));
  assert.ok(poured.sent > 300_000);
  world.close();
});

Deno.test("flows: at most so many, at most so many bytes each and in sum, the oldest give way", () => {
  const world = new World({ limits: { flowQueue: 10_000, flowQueueSum: 15_000 }, limitsB: { maxFlows: 2 } });
  const served = acceptFlows(world.b);
  const [near] = world.connect({ capacity: 70_000 });
  world.run();
  const flows = [openFlow(world.a), openFlow(world.a), openFlow(world.a)];
  world.run();
  assert.deepEqual(flows.map((f) => f.calls), [[], [], ["close LIMIT"]]);
  near.hold();
  // Fill the carrier and the batch behind it; from there on datagrams wait in their queues.
  for (let i = 0; i < 70; i++) flows[0]!.send(new Uint8Array(1000).fill(1));
  world.run();
  for (let i = 0; i < 70; i++) flows[0]!.send(new Uint8Array(1000).fill(2));
  for (let i = 0; i < 12; i++) flows[0]!.send(new Uint8Array(1000).fill(100 + i));
  const before = world.a.session.stats().datagramsDropped;
  for (let i = 0; i < 9; i++) assert.ok(flows[1]!.send(new Uint8Array(1000).fill(200 + i)));
  assert.ok(world.a.session.stats().datagramsDropped > before);
  near.release();
  world.run();
  assert.deepEqual(served[0]!.datagrams.slice(-9).map((d) => d[0]), [103, 104, 105, 106, 107, 108, 109, 110, 111]);
  assert.deepEqual(served[1]!.datagrams.map((d) => d[0]).at(-1), 208);
  world.close();
});

Deno.test("datagrams before accept are kept up to a limit, then follow in order", () => {
  const world = new World({ limits: { flowEarly: 3000 } });
  const heard: number[] = [];
  let accept = () => {};
  world.b.onFlow = (incoming) => {
    accept = () => void incoming.accept({ onDatagram: (b) => heard.push(b[0]!), onClose() {} });
  };
  world.connect();
  const client = openFlow(world.a);
  for (let i = 1; i <= 5; i++) client.send(new Uint8Array(900).fill(i));
  world.run();
  accept();
  assert.deepEqual(heard, []);
  world.run();
  assert.deepEqual(heard, [3, 4, 5]);
  world.close();
});

Deno.test("datagrams of every size around the borders arrive whole", () => {
  const world = new World();
  const served = acceptFlows(world.b);
  world.connect({ capacity: 1 << 20 });
  const client = openFlow(world.a);
  const sizes = [0, 1, 16_377, 16_378, 16_379, 32_756, 32_757, 65_479, 65_480, 65_506, 65_507];
  for (const size of sizes) {
    const bytes = Uint8Array.from({ length: size }, (_, i) => i * 7 + size);
    assert.ok(client.send(bytes));
    world.run();
    assert.deepEqual(served[0]!.datagrams.at(-1), bytes, `${size} bytes`);
  }
  assert.equal(client.send(new Uint8Array(65_508)), false);
  // All at once: many of them in one batch, the large ones across two.
  for (const size of sizes) client.send(new Uint8Array(size).fill(3));
  world.run();
  assert.deepEqual(served[0]!.datagrams.slice(sizes.length).map((d) => d.length), sizes);
  world.close();
});

Deno.test("an owner that throws loses its stream, and nobody else theirs", () => {
  const world = new World();
  const owners = acceptAll(world.b);
  world.connect();
  const good = open(world.a, "good");
  const bad = open(world.a, "bad");
  world.run();
  owners[1]!.pull = () => {
    throw new Error("a bug in the owner");
  };
  bad.send("boom");
  good.send(" news");
  world.run();
  assert.equal(bad.reason, "INTERNAL");
  assert.equal(owners[0]!.text, "good news");
  assert.deepEqual(world.b.faults.map((f) => (f as Error).message), ["a bug in the owner"]);
  good.onWritableDo = () => {
    throw new Error("a bug in writing");
  };
  while (good.send(bulk) > 0);
  world.run();
  assert.equal(owners[0]!.reason, "INTERNAL");
  assert.deepEqual(world.a.faults.map((f) => (f as Error).message), ["a bug in writing"]);
  world.b.onStream = () => {
    throw new Error("a bug in accept");
  };
  const third = open(world.a);
  world.run();
  assert.equal(third.reason, "INTERNAL");
  assert.equal(world.b.session.state, "up");
  world.close();
});

Deno.test("targets that cannot be said are refused before anything is sent", () => {
  const world = new World();
  world.connect();
  for (const target of [{ ...TARGET, service: "" }, { ...TARGET, protocol: "UDP" as const }]) {
    const owner = new Owner();
    owner.stream = world.a.session.openStream(target, undefined, owner);
    assert.deepEqual(owner.calls, []);
    world.run();
    assert.deepEqual(owner.calls, ["close INTERNAL"]);
  }
  assert.equal(world.a.session.stats().written, 0);
  world.close();
});
