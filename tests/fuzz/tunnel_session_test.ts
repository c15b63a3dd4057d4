/**
 * Sessions against random lives and random bytes. FUZZ_RUNS sets the number of seeds (10 000 unless said otherwise),
 * FUZZ_SEED the first one: a failure prints the seed that repeats it.
 */
import assert from "node:assert/strict";
import { cpuUsage } from "node:process";
import { MAX_BATCH } from "../../lib/tunnel/carrier.ts";
import { DEFAULT_LIMITS } from "../../lib/tunnel/constants.ts";
import { TYPE } from "../../lib/tunnel/frame.ts";
import { randomFrom } from "../contract/harness.ts";
import { bytesOf, join, rawFrame, rawOpen, RawPeer } from "../fixtures/raw_peer.ts";
import { chaos } from "../fixtures/session_chaos.ts";
import { FlowOwner, open, openFlow, Owner, World } from "../fixtures/sessions.ts";

const RUNS = Number(Deno.env.get("FUZZ_RUNS") ?? 10_000);
const FIRST = Number(Deno.env.get("FUZZ_SEED") ?? 1);
/** A life takes milliseconds where a batch takes microseconds: one of them for so many batches. */
const LIVES = Math.ceil(RUNS / 20);
/** CPU time one batch may take; wall time would measure the machine. Compiling and collecting are part of it. */
const MAX_EVENT_MS = 50;

type Random = (below: number) => number;

function seeds(count: number, run: (seed: number) => void): void {
  for (let seed = FIRST; seed < FIRST + count; seed++) {
    try {
      run(seed);
    } catch (error) {
      throw new Error(`seed ${seed}`, { cause: error });
    }
  }
}

Deno.test(`${LIVES} random lives of two sessions`, () => seeds(LIVES, (seed) => chaos(seed)));

Deno.test(`T11: ${RUNS} random conversations with a peer that breaks rules`, () => {
  let slowest = 0;
  let closed = 0;
  const bystander = new World();
  bystander.connect();
  bystander.run();
  seeds(RUNS, (seed) => {
    const random = randomFrom(seed * 2_654_435_761 + 1);
    const world = new World();
    const peer = new RawPeer(world, world.a.session);
    world.a.onStream = (incoming) => {
      const owner = new Owner();
      owner.keep = false;
      if (random(4) === 0) return incoming.refuse("NO_SERVICE");
      if (random(8) === 0) throw new Error("an owner's error");
      if (random(4) === 0) return;
      owner.stream = incoming.accept(owner);
      if (random(3) === 0) owner.send("hello");
    };
    world.a.onFlow = (incoming) => {
      if (random(4) === 0) return;
      const owner = new FlowOwner();
      owner.flow = incoming.accept(owner);
      owner.send("hello");
    };
    if (random(8) > 0) peer.greet();
    for (let i = random(3); i > 0; i--) open(world.a, "first");
    for (let i = random(2); i > 0; i--) openFlow(world.a).send("first");
    world.run();
    for (let batches = 1 + random(6); batches > 0; batches--) {
      // A carrier refuses more than a batch itself.
      const batch = badBatch(random).subarray(0, MAX_BATCH);
      if (batch.length === 0) continue;
      const { user } = cpuUsage();
      peer.send(batch);
      slowest = Math.max(slowest, (cpuUsage().user - user) / 1000);
      if (random(4) === 0) world.clock.advance(random(3000));
    }
    const { state, events, session } = { ...world.a, state: world.a.session.state };
    if (state === "closed") {
      closed++;
      const last = events.findLast((e) => e.startsWith("closed"))!;
      assert.match(last, /^closed (PROTOCOL|VERSION|SHUTDOWN|[A-Z_]+: closed by the peer|[A-Z_]+: .+)/);
      const { streams, flows, entries, retained } = session.stats();
      assert.deepEqual({ flows, entries, retained }, { flows: 0, entries: 0, retained: 0 });
      // Only a stream that ended cleanly, and whose owner has not read it, may outlive its session.
      assert.ok(streams <= 3);
    }
    world.close();
    assert.equal(world.clock.pending, 0);
    assert.equal(session.stats().windowFree <= DEFAULT_LIMITS.windowSum, true);
  });
  assert.ok(closed > RUNS / 4, `only ${closed} of ${RUNS} peers were caught: the fuzzer has lost its teeth`);
  assert.ok(closed < RUNS, "no peer got through: the fuzzer reaches nothing");
  assert.ok(slowest < MAX_EVENT_MS, `an event took ${slowest} ms`);
  bystander.run();
  assert.equal(bystander.a.session.state, "up");
  bystander.close();
});

/** Frames that are mostly valid for the situation, with a few bytes changed, cut off, doubled or swapped. */
function badBatch(random: Random): Uint8Array {
  const frames = Array.from({ length: 1 + random(5) }, () => someFrame(random));
  if (random(6) === 0) frames.push(frames[random(frames.length)]!);
  let batch = join(...frames);
  if (random(2) === 0) return batch;
  switch (random(4)) {
    case 0:
      for (let i = 1 + random(4); i > 0; i--) batch[random(batch.length)] = random(256);
      return batch;
    case 1:
      batch[random(batch.length)]! ^= 1 << random(8);
      return batch;
    case 2:
      batch = batch.subarray(0, random(batch.length + 1));
      return batch;
    default:
      return join(batch, Uint8Array.from({ length: random(30) }, () => random(256)));
  }
}

function someFrame(random: Random): Uint8Array {
  const id = random(6) === 0 ? random(0xffff_ffff) : random(8);
  const payload = (n: number) => Uint8Array.from({ length: n }, () => random(256));
  const size = () => [0, 1, 2, 8, 100, 16_384][random(6)]!;
  switch (random(14)) {
    case 0:
    case 1:
    case 2:
      return rawOpen(id & ~1, { flow: random(3) === 0, window: random(1 << 20) });
    case 3:
      return rawFrame(TYPE.OPEN_OK, id, bytesOf([64, random(1 << 20)]));
    case 4:
    case 5:
      return rawFrame(TYPE.DATA, id, payload(size()));
    case 6:
      return rawFrame(TYPE.CREDIT, id, bytesOf([64, random(1 << 30)]));
    case 7:
      return rawFrame(TYPE.FIN, id);
    case 8:
      return rawFrame(random(2) === 0 ? TYPE.RST : TYPE.FLOW_CLOSE, id, bytesOf([16, random(40)]));
    case 9: {
      const total = random(4) === 0 ? random(65_536) : random(50);
      const length = random(total + 1);
      return rawFrame(
        TYPE.DGRAM,
        id,
        join(
          bytesOf([16, random(3)], [16, total], [16, random(3) === 0 ? random(total + 1) : 0]),
          payload(Math.min(length, 16_000)),
        ),
      );
    }
    case 10:
      return rawFrame([TYPE.ACK, TYPE.RESUME][random(2)]!, 0, bytesOf([64, random(60)]));
    case 11:
      return rawFrame([TYPE.PING, TYPE.PONG][random(2)]!, 0, bytesOf([64, random(3)], [64, random(1000)]));
    case 12:
      return rawFrame(TYPE.GOAWAY, 0, bytesOf([16, random(40)], [8, random(8) === 0 ? 1 : 0]));
    default:
      return rawFrame(random(256), id, payload(random(40)));
  }
}
