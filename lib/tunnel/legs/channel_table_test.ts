import assert from "node:assert/strict";
import { Buffer } from "node:buffer";
import fc from "fast-check";
import { MeshError, type ReasonCode } from "../../errors.ts";
import {
  CHANNEL,
  CHANNEL_HEADER,
  channelOf,
  encodeClose,
  encodeCredit,
  encodeOpen,
  INITIAL_WINDOW,
  MAX_CHANNEL_DATA,
  MAX_WINDOW,
  setChannel,
} from "../relay/frames.ts";
import { type RelayLimits, RelaySwitch } from "../relay/switch.ts";
import type { ChannelDuplex } from "./channel_duplex.ts";
import { ChannelTable } from "./channel_table.ts";

/** Agents a and b at one switch, all in memory; frames wait in `pending` until the test lets them pass. */
class Mesh {
  readonly arrived: ChannelDuplex[] = [];
  readonly a: ChannelTable;
  readonly b: ChannelTable;
  readonly relay: RelaySwitch;
  readonly pending: (() => void)[] = [];
  /** Frames of each kind that passed from a, and the sizes of its DATA. */
  readonly sent: Uint8Array[] = [];
  full = false;
  now = 0;
  rttMs = 0;

  constructor(limits: Partial<RelayLimits> = {}) {
    this.relay = new RelaySwitch({
      limits,
      emit: (line, frame) => {
        this.pending.push(() => (line === 1 ? this.a : this.b).receive(frame));
        return true;
      },
    });
    const table = (line: number) =>
      new ChannelTable({
        send: (frame) => {
          if (line === 1) this.sent.push(frame.slice());
          this.pending.push(() => this.relay.receive(line, frame, 0));
          return !(line === 1 && this.full);
        },
        onChannel: (leg) => void this.arrived.push(leg),
        now: () => this.now,
        rttMs: () => this.rttMs,
      });
    this.a = table(1);
    this.b = table(2);
    this.relay.connect(1, "a");
    this.relay.connect(2, "b");
  }

  /** Lets everything pass, also what that causes, streams included. */
  async settle(): Promise<void> {
    for (let quiet = 0; quiet < 3;) {
      if (this.pending.length > 0) quiet = 0;
      else quiet++;
      for (const go of this.pending.splice(0)) go();
      await new Promise<void>((resolve) => setImmediate(resolve));
    }
  }

  async pair(): Promise<readonly [ChannelDuplex, ChannelDuplex]> {
    const a = this.a.open("b");
    await this.settle();
    return [a, this.arrived.at(-1)!];
  }
}

function collect(duplex: ChannelDuplex): { bytes(): Uint8Array; ends: (ReasonCode | "end" | "close")[] } {
  const parts: Buffer[] = [];
  const ends: (ReasonCode | "end" | "close")[] = [];
  duplex.on("data", (part: Buffer) => parts.push(Buffer.from(part)));
  duplex.on("end", () => ends.push("end"));
  duplex.on("close", () => ends.push("close"));
  duplex.on("error", (error) => ends.push((error as MeshError).code));
  return { bytes: () => new Uint8Array(Buffer.concat(parts)), ends };
}

Deno.test("what is written before anything came back travels behind the OPEN", async () => {
  const mesh = new Mesh();
  const a = mesh.a.open("b");
  a.write("ClientHello");
  assert.deepEqual(mesh.sent.map((f) => f[0]), [CHANNEL.OPEN, CHANNEL.DATA], "both before a single frame moved");
  await mesh.settle();
  const b = mesh.arrived[0]!;
  assert.equal(b.node, "a");
  const got = collect(b);
  b.write("ServerHello");
  const back = collect(a);
  await mesh.settle();
  assert.equal(new TextDecoder().decode(got.bytes()), "ClientHello");
  assert.equal(new TextDecoder().decode(back.bytes()), "ServerHello");
  a.destroy();
  b.destroy();
});

Deno.test("a refusal is the duplex's error, with the server's reason", async () => {
  const mesh = new Mesh();
  const a = mesh.a.open("nobody");
  const got = collect(a);
  a.write("ClientHello");
  await mesh.settle();
  assert.deepEqual(got.ends, ["PEER_OFFLINE", "close"]);
  assert.equal(mesh.a.size, 0);
});

Deno.test("bytes of any sizes arrive whole and in order, both ways, through any credit", async () => {
  await fc.assert(
    fc.asyncProperty(fc.array(fc.integer({ min: 1, max: 300_000 }), { minLength: 1, maxLength: 8 }), async (sizes) => {
      const mesh = new Mesh();
      const [a, b] = await mesh.pair();
      const [ga, gb] = [collect(a), collect(b)];
      for (const [i, n] of sizes.entries()) {
        a.write(Buffer.alloc(n, i));
        b.write(Buffer.alloc(n, i + 100));
      }
      await mesh.settle();
      const want = (base: number) => new Uint8Array(Buffer.concat(sizes.map((n, i) => Buffer.alloc(n, i + base))));
      assert.deepEqual(gb.bytes(), want(0));
      assert.deepEqual(ga.bytes(), want(100));
      a.destroy();
      await mesh.settle();
      assert.deepEqual([mesh.a.size, mesh.b.size], [0, 0]);
    }),
    { numRuns: 25 },
  );
});

Deno.test("a reader that does not read stops the writer at the window; reading lets it go on", async () => {
  const mesh = new Mesh();
  const [a, b] = await mesh.pair();
  let taken = 0;
  for (let i = 0; i < 40; i++) a.write(Buffer.alloc(16384), () => (taken += 16384));
  await mesh.settle();
  // Credit is given for what the duplex itself buffers (its high-water mark), and for nothing beyond.
  assert.ok(taken >= INITIAL_WINDOW && taken <= INITIAL_WINDOW + 3 * 65536, `${taken} bytes were taken`);
  assert.ok(b.readableLength <= INITIAL_WINDOW + 65536, `${b.readableLength} bytes wait at the reader`);
  const got = collect(b);
  await mesh.settle();
  assert.equal(got.bytes().length, 40 * 16384);
  assert.equal(taken, 40 * 16384);
  a.destroy();
  b.destroy();
});

Deno.test("a window grows while half of it is used up within a slow round trip, up to its cap, and not otherwise", async () => {
  const mesh = new Mesh();
  const [a, b] = await mesh.pair();
  collect(b);
  for (let i = 0; i < 10; i++) {
    mesh.now += 1_200;
    a.write(Buffer.alloc(INITIAL_WINDOW / 2));
    await mesh.settle();
  }
  assert.equal(mesh.b.windows, INITIAL_WINDOW);
  for (let i = 0; i < 400; i++) a.write(Buffer.alloc(MAX_CHANNEL_DATA));
  await mesh.settle();
  assert.equal(mesh.b.windows, MAX_WINDOW);
  assert.equal(mesh.a.windows, INITIAL_WINDOW, "the other direction carried nothing");
  a.destroy();
  await mesh.settle();
  assert.deepEqual([mesh.a.windows, mesh.b.windows], [0, 0]);
});

Deno.test("on a way of two seconds, too: what counts as slow is measured", async () => {
  // Two round trips of a second between each agent and the server, and half a window with each.
  for (const [rttMs, grows] of [[1_000, true], [500, false], [60_000, false]] as const) {
    const mesh = new Mesh();
    mesh.rttMs = rttMs;
    const [a, b] = await mesh.pair();
    collect(b);
    for (let i = 0; i < 10; i++) {
      mesh.now += rttMs > 5_000 ? 5_000 : 2_000;
      a.write(Buffer.alloc(INITIAL_WINDOW / 2));
      await mesh.settle();
    }
    assert.equal(mesh.b.windows > INITIAL_WINDOW, grows, `${rttMs} ms: ${mesh.b.windows}`);
    a.destroy();
    await mesh.settle();
  }
});

Deno.test("the sum of all windows stops growing at its cap", async () => {
  const mesh = new Mesh();
  const pairs = [];
  for (let i = 0; i < 12; i++) pairs.push(await mesh.pair());
  for (const [a, b] of pairs) {
    collect(b);
    for (let i = 0; i < 200; i++) a.write(Buffer.alloc(MAX_CHANNEL_DATA));
    await mesh.settle();
  }
  assert.ok(mesh.b.windows > 28 * 1024 * 1024 && mesh.b.windows <= 32 * 1024 * 1024, `${mesh.b.windows}`);
  assert.equal(mesh.a.size, 12, "and the server closed none");
  for (const [a] of pairs) a.destroy();
  await mesh.settle();
});

Deno.test("channels share a full connection round robin, one record at a time", async () => {
  const mesh = new Mesh();
  const first = mesh.a.open("b");
  const second = mesh.a.open("b");
  await mesh.settle();
  mesh.full = true;
  mesh.sent.length = 0;
  first.write(Buffer.alloc(200_000));
  second.write(Buffer.alloc(200_000));
  for (let i = 0; i < 8; i++) mesh.a.drained();
  const order = mesh.sent.map((f) => [channelOf(f), f.length - CHANNEL_HEADER]);
  assert.deepEqual(order.slice(2, 8), [[3, 16384], [1, 16384], [3, 16384], [1, 16384], [3, 16384], [1, 16384]]);
  first.destroy();
  second.destroy();
});

Deno.test("data before the close is still read; the reason comes after it", async () => {
  const mesh = new Mesh();
  const [a, b] = await mesh.pair();
  a.write("the last words");
  await mesh.settle();
  a.destroy(new MeshError("REVOKED", "no"));
  await mesh.settle();
  const got = collect(b);
  await mesh.settle();
  assert.equal(new TextDecoder().decode(got.bytes()), "the last words");
  assert.deepEqual(got.ends.filter((e) => e !== "end"), ["REVOKED", "close"]);
  assert.deepEqual([mesh.a.size, mesh.b.size], [0, 0]);
});

Deno.test("an end on purpose has no error", async () => {
  const mesh = new Mesh();
  const [a, b] = await mesh.pair();
  const got = collect(b);
  a.destroy();
  await mesh.settle();
  assert.deepEqual(got.ends.filter((e) => e !== "end"), ["close"]);
});

Deno.test("the connection's end ends every channel, and later ones at once", async () => {
  const mesh = new Mesh();
  const [a] = await mesh.pair();
  const got = collect(a);
  mesh.a.close("SERVER_UNREACHABLE");
  await mesh.settle();
  assert.deepEqual(got.ends, ["SERVER_UNREACHABLE", "close"]);
  const late = collect(mesh.a.open("b"));
  await mesh.settle();
  assert.deepEqual(late.ends, ["SERVER_UNREACHABLE", "close"]);
});

Deno.test("a channel nobody listens to may fail without ending the process", async () => {
  const mesh = new Mesh();
  mesh.a.open("nobody");
  await mesh.settle();
  assert.equal(mesh.a.size, 0);
});

Deno.test("a server that breaks the protocol is found out", () => {
  const data = (channel: number, n: number) => {
    const frame = new Uint8Array(CHANNEL_HEADER + n);
    frame[0] = CHANNEL.DATA;
    setChannel(frame, channel);
    return frame;
  };
  const bad: Record<string, readonly Uint8Array[]> = {
    "data for a channel never opened": [data(1, 5)],
    "data for one never announced": [data(2, 5)],
    "an announcement with an odd number": [encodeOpen(3, "b")],
    "an announcement twice": [encodeOpen(2, "b"), encodeOpen(2, "b")],
    "an announcement out of order": [encodeOpen(4, "b"), encodeOpen(2, "b")],
    "more data than was granted": [encodeOpen(2, "b"), ...Array.from({ length: 5 }, () => data(2, MAX_CHANNEL_DATA))],
    "a frame of unknown type": [Uint8Array.of(0x1e, 0, 0, 0, 1)],
  };
  for (const [name, frames] of Object.entries(bad)) {
    const table = new ChannelTable({
      send: () => true,
      onChannel: (leg) => void leg.pause(),
      now: () => 0,
      rttMs: () => 0,
    });
    assert.throws(() => frames.forEach((frame) => table.receive(frame)), { code: "PROTOCOL" }, name);
  }
});

Deno.test("late frames of ended channels are dropped", async () => {
  const mesh = new Mesh();
  const [a] = await mesh.pair();
  a.destroy();
  mesh.a.receive(encodeCredit(1, 5));
  mesh.a.receive(encodeClose(1, undefined));
  await mesh.settle();
});

Deno.test("more channels than allowed are closed with LIMIT", () => {
  const sent: Uint8Array[] = [];
  const legs: ChannelDuplex[] = [];
  const table = new ChannelTable({
    send: (frame) => sent.push(frame) > 0,
    onChannel: (leg) => legs.push(leg),
    now: () => 0,
    rttMs: () => 0,
  });
  for (let i = 1; i <= 257; i++) table.receive(encodeOpen(2 * i, "b"));
  assert.deepEqual([table.size, legs.length, sent.length], [256, 256, 1]);
  assert.deepEqual([sent[0]![0], channelOf(sent[0]!)], [CHANNEL.CLOSE, 514]);
  table.close("SHUTDOWN");
});
