/** The small parts of a session, each against its rule or a naive model. */
import assert from "node:assert/strict";
import fc from "fast-check";
import { BufferPool } from "../buffer_pool.ts";
import { type Carrier, MAX_BATCH } from "../carrier.ts";
import { DEFAULT_LIMITS, FLOOR_CREDIT } from "../constants.ts";
import { Fifo } from "./fair.ts";
import { DatagramQueue } from "./flow.ts";
import { Incoming, type PieceOwner } from "./incoming.ts";
import { Link } from "./link.ts";
import { Liveness } from "./liveness.ts";
import { Reassembly } from "./reassembly.ts";
import { Receiver } from "./receiver.ts";
import { largeChunks, smallChunks, Unread } from "./unread.ts";
import { ReceiveWindow, WindowPool } from "./window.ts";

Deno.test("a pool hands out what was given back, and keeps only so many", () => {
  const pool = new BufferPool(8, 2);
  const taken = [pool.take(), pool.take(), pool.take()];
  assert.equal(pool.taken, 3);
  for (const buffer of taken) pool.give(buffer);
  assert.equal(pool.taken, 0);
  assert.deepEqual([pool.take(), pool.take()].map((b) => taken.indexOf(b)), [1, 0]);
  assert.equal(taken.indexOf(pool.take()), -1);
  for (const buffer of taken) pool.give(buffer);
  pool.trim();
  assert.equal(taken.indexOf(pool.take()), -1, "it was let go");
});

Deno.test("property: a Fifo is a list", () => {
  fc.assert(fc.property(fc.array(fc.option(fc.nat(), { freq: 3 }), { maxLength: 200 }), (steps) => {
    const fifo = new Fifo<number>();
    const list: number[] = [];
    for (const s of steps) {
      if (s === null) assert.equal(fifo.shift(), list.shift());
      else {
        fifo.push(s);
        list.push(s);
      }
      assert.equal(fifo.size, list.length);
      assert.equal(fifo.peek(), list[0]);
    }
  }));
});

Deno.test("property: unread bytes come out as they went in, and the memory goes back", () => {
  const before = [smallChunks.taken, largeChunks.taken];
  fc.assert(fc.property(fc.array(fc.tuple(fc.boolean(), fc.nat(30_000)), { maxLength: 40 }), (steps) => {
    const unread = new Unread();
    const source = Uint8Array.from({ length: 40_000 }, (_, i) => i * 31);
    let written = 0;
    let read = 0;
    for (const [isWrite, n] of steps) {
      if (isWrite) {
        unread.push(source, written % 1000, n);
        // Bytes are those of a stream of positions: remember where each came from.
        model.push({ from: written % 1000, length: n });
        written += n;
      } else {
        const into = new Uint8Array(n + 3);
        const got = unread.read(into, 3);
        assert.equal(got, Math.min(n, written - read));
        for (let i = 0; i < got; i++) assert.equal(into[3 + i], source[next()]);
        read += got;
      }
      assert.equal(unread.length, written - read);
    }
    unread.clear();
    model.length = 0;
    taken = 0;
    assert.deepEqual([smallChunks.taken, largeChunks.taken], before);
  }));
});
const model: { from: number; length: number }[] = [];
let taken = 0;
function next(): number {
  while (model[0]!.length === taken) {
    model.shift();
    taken = 0;
  }
  return model[0]!.from + taken++;
}

Deno.test("a batch's pieces are read in order, and kept for whoever did not read", () => {
  const kept: number[] = [];
  const make = (): PieceOwner => ({
    firstPiece: -1,
    lastPiece: -1,
    keep: (from, offset, length) => kept.push(...from.subarray(offset, offset + length)),
  });
  const [a, b] = [make(), make()];
  const incoming = new Incoming();
  incoming.begin(Uint8Array.from({ length: 300 }, (_, i) => i));
  // More pieces than the first table holds.
  for (let i = 0; i < 150; i++) incoming.add(i % 2 === 0 ? a : b, 2 * i, 2);
  const into = new Uint8Array(7);
  assert.equal(incoming.read(a, into, 0), 7);
  assert.deepEqual([...into], [0, 1, 4, 5, 8, 9, 12]);
  assert.equal(incoming.read(a, into, 6), 1);
  assert.equal(into[6], 13);
  incoming.end();
  assert.equal(kept.length, 300 - 8);
  assert.equal(kept[0], 16);
  assert.equal(incoming.read(a, into, 0), 0);
  incoming.begin(Uint8Array.of(9));
  incoming.add(a, 0, 1);
  assert.equal(incoming.read(a, into, 0), 1);
  incoming.end();
});

Deno.test("a batch of no bytes, or of more than a carrier may bring, is a violation", () => {
  const receiver = new Receiver({ counted: () => undefined, uncounted: () => undefined });
  const link = new Link({} as Carrier, { order: 1, generation: 1, deadline: 0 });
  link.greeted = true;
  link.position = 0;
  const frames = new Uint8Array(MAX_BATCH + 8);
  // Ignorable frames of 8 bytes each.
  for (let at = 0; at < frames.length; at += 8) frames[at] = 0x80;
  assert.equal(receiver.read(link, frames.subarray(0, MAX_BATCH)), undefined);
  assert.equal(receiver.received, MAX_BATCH);
  assert.equal(receiver.read(link, frames), "batch of a forbidden size");
  assert.equal(receiver.read(link, frames.subarray(0, 0)), "batch of a forbidden size");
});

Deno.test("windows: the sum is never exceeded, the floor is always there, and all comes back", () => {
  const pool = new WindowPool({ ...DEFAULT_LIMITS, windowSum: 1 << 20 });
  const windows = Array.from({ length: 500 }, () => new ReceiveWindow(pool));
  for (const w of windows) assert.ok(w.start(0) >= FLOOR_CREDIT);
  assert.equal(windows[0]!.size, FLOOR_CREDIT + (1 << 20) / 16);
  const sum = windows.reduce((n, w) => n + w.size - FLOOR_CREDIT, 0);
  assert.ok(sum <= 1 << 20);
  assert.equal(pool.free, (1 << 20) - sum);
  for (const w of windows) w.release();
  assert.equal(pool.free, 1 << 20);
});

Deno.test("a window doubles while the reader empties it within two round trips, up to its cap", () => {
  const pool = new WindowPool(DEFAULT_LIMITS);
  const window = new ReceiveWindow(pool);
  const rtt = 20;
  let now = 0;
  window.start(now);
  assert.equal(window.size, DEFAULT_LIMITS.initialWindow);
  for (let round = 0; round < 20; round++) {
    // The sender fills the window each round trip, the reader takes it at once.
    now += rtt;
    for (let took = 0; took < window.size; took += 65_536) {
      if (window.consume(65_536)) window.grant(now, rtt);
    }
  }
  assert.equal(window.size, DEFAULT_LIMITS.maxWindow);
});

Deno.test("a window does not grow for a slow sender or a slow reader", () => {
  const pool = new WindowPool(DEFAULT_LIMITS);
  const window = new ReceiveWindow(pool);
  window.start(0);
  for (let now = 100; now < 10_000; now += 100) {
    if (window.consume(65_536)) window.grant(now, 20);
  }
  assert.equal(window.size, DEFAULT_LIMITS.initialWindow);
});

Deno.test("a window is granted by quarters", () => {
  const pool = new WindowPool(DEFAULT_LIMITS);
  const window = new ReceiveWindow(pool);
  window.start(0);
  assert.equal(window.consume(65_535), false);
  assert.equal(window.consume(1), true);
  assert.equal(window.grant(1_000_000, 1), 65_536 + 262_144);
  assert.equal(window.consume(1), false);
});

Deno.test("a datagram queue keeps the newest and drops the oldest", () => {
  const queue = new DatagramQueue(3 * (2 + 10));
  const take = () => {
    let text = "";
    queue.take((b, o, n) => text = new TextDecoder().decode(b.subarray(o, o + n)));
    return text;
  };
  const push = (text: string) => queue.push(new TextEncoder().encode(text), text.length);
  for (const n of [1, 2, 3, 4]) assert.ok(push(`datagram-${n}`));
  assert.equal(queue.dropped, 1);
  assert.deepEqual([take(), take(), take()], ["datagram-2", "datagram-3", "datagram-4"]);
  assert.equal(queue.bytes, 0);
  assert.equal(push("x".repeat(40)), false);
  assert.ok(push(""));
  assert.equal(take(), "");
});

Deno.test("property: a datagram queue is a list with a cap", () => {
  const cap = 20_000;
  fc.assert(fc.property(fc.array(fc.option(fc.nat(6000), { freq: 3 }), { maxLength: 120 }), (steps) => {
    const queue = new DatagramQueue(cap);
    let list: Uint8Array[] = [];
    const size = () => list.reduce((n, d) => n + 2 + d.length, 0);
    let tag = 0;
    for (const s of steps) {
      if (s === null) {
        if (queue.bytes === 0) continue;
        const expected = list.shift()!;
        queue.take((b, o, n) => assert.deepEqual(b.slice(o, o + n), expected));
      } else {
        const datagram = new Uint8Array(s).fill(++tag);
        queue.push(datagram, s);
        list.push(datagram);
        while (size() > cap) list = list.slice(1);
      }
      assert.equal(queue.bytes, size());
    }
  }));
});

const header = (number: number, total: number, offset: number, bytes: number[]) =>
  Uint8Array.of(number >> 8, number, total >> 8, total, offset >> 8, offset, ...bytes);

Deno.test("pieces make a datagram only in order, complete, and of one flow", () => {
  const r = new Reassembly();
  const read = (flow: number, p: Uint8Array) => {
    const result = r.read(flow, p, 0, p.length);
    return result === "whole" ? [...r.whole] : result;
  };
  assert.deepEqual(read(1, header(1, 2, 0, [7, 8])), [7, 8]);
  assert.deepEqual(read(1, header(2, 0, 0, [])), []);
  assert.equal(read(1, header(3, 3, 0, [1])), "part");
  assert.equal(read(1, header(3, 3, 1, [2])), "part");
  assert.deepEqual(read(1, header(3, 3, 2, [3])), [1, 2, 3]);
  // A gap, another number, another flow, a total that changed, a repetition: dropped, and the rest too.
  for (
    const second of [[1, header(4, 3, 2, [3])], [1, header(5, 3, 1, [2])], [2, header(4, 3, 1, [2])], [
      1,
      header(4, 4, 1, [2]),
    ]] as const
  ) {
    assert.equal(read(1, header(4, 3, 0, [1])), "part");
    assert.equal(read(second[0], second[1]), "part");
    assert.equal(read(1, header(4, 3, 1, [2])), "part");
    assert.equal(read(1, header(4, 3, 2, [3])), "part");
  }
  assert.equal(r.dropped, 4);
  assert.equal(read(1, header(6, 2, 0, [1])), "part");
  assert.deepEqual(read(1, header(7, 1, 0, [9])), [9]);
  assert.equal(r.dropped, 5);
});

Deno.test("liveness: often while busy, rarely while idle, dead after three misses and six seconds", () => {
  const live = new Liveness();
  const actions: string[] = [];
  const run = (from: number, to: number, answer: (token: number, at: number) => void) => {
    for (let now = from; now < to; now += 100) {
      let action = live.tick(now);
      if (action === "doubt") action = live.tick(now);
      if (action !== "none") actions.push(`${now} ${action}`);
      if (action === "ping") answer(live.token, now);
    }
  };
  const answers = (token: number, at: number) => {
    live.heard(at + 10);
    assert.ok(live.answered(token, at, at + 10));
    live.settle(at + 10);
  };
  assert.equal(live.nextAt, Infinity);
  answers(live.start(0), 0);
  run(0, 40_000, answers);
  assert.deepEqual(actions, ["15100 ping", "30200 ping"]);
  assert.equal(live.rttMs, 10);
  actions.length = 0;
  live.moved(40_000);
  run(40_000, 60_000, (token, at) => {
    if (at < 45_000) live.moved(at);
    answers(token, at);
  });
  // Busy until 46.1 s; ten seconds later it counts as idle.
  assert.deepEqual(actions.slice(0, 3), ["41500 ping", "43100 ping", "44700 ping"]);
  assert.equal(actions.at(-1), "55900 ping");
  actions.length = 0;
  // The peer falls silent while idle: from the first missing answer on, pings are as fast as while busy.
  run(60_000, 90_000, () => {});
  assert.deepEqual(actions, ["71000 ping", "72500 ping", "74000 ping", "75500 dead"]);
});

Deno.test("liveness: three misses are not enough while batches came within six seconds", () => {
  const live = new Liveness();
  live.start(0);
  const actions: string[] = [];
  for (let now = 0; now < 20_000; now += 100) {
    let action = live.tick(now);
    if (action === "doubt") action = live.tick(now);
    if (action !== "none") actions.push(`${now} ${action}`);
    if (now === 1000) live.heard(now);
  }
  assert.deepEqual(actions, ["1500 ping", "3000 ping", "4500 ping", "6000 ping", "7500 dead"]);
});

Deno.test("liveness: a flow that stops is asked after at once, and only once; single requests are not", () => {
  const pings = (until: number, busy: (now: number) => boolean) => {
    const live = new Liveness();
    live.start(0);
    live.heard(40);
    live.answered(live.token, 0, 40);
    live.settle(40);
    const actions: string[] = [];
    for (let now = 50; now < until; now += 10) {
      if (busy(now)) {
        live.heard(now);
        live.moved(now);
      }
      const action = live.tick(now);
      if (action !== "none") actions.push(`${now} ${action}`);
      if (action === "ping" && busy(now)) {
        live.answered(live.token, now, now);
        live.settle(now);
      }
    }
    return actions;
  };
  // A download that is cut at 5 s: without the early ping the next one would go at 6 s.
  const cut = pings(6_000, (now) => now < 4_900).filter((action) => Number(action.split(" ")[0]) > 4_600);
  assert.deepEqual(cut, ["5190 ping", "5690 doubt"]);
  // A request of 100 ms each second: one ping every 1.5 s at most.
  assert.ok(
    pings(11_000, (now) => now % 1_000 < 100 || now % 1_000 === 500).filter((action) => action.endsWith("ping"))
      .length <= 8,
  );
});

Deno.test("liveness: a carrier that still delivers is not dead, however late its answers are", () => {
  const live = new Liveness();
  live.start(0);
  for (let now = 0; now < 60_000; now += 500) {
    assert.notEqual(live.tick(now), "dead");
    live.heard(now);
  }
  assert.equal(live.answered(live.token + 1, 0, 60_000), false, "an answer to no ping");
  const old = live.token;
  live.start(60_000);
  assert.equal(live.answered(old, 59_000, 60_000), false, "an answer from the carrier before");
});

Deno.test("liveness: round trips are smoothed, and the least is kept", () => {
  const live = new Liveness();
  live.start(0);
  for (const rtt of [20, 100, 20, 20]) {
    const token = live.ask(1000);
    live.answered(token, 1000, 1000 + rtt);
  }
  assert.equal(live.leastRttMs, 20);
  assert.ok(live.rttMs! > 20 && live.rttMs! < 30);
});

Deno.test("liveness: an overdue answer is a doubt, long before it is death, and any batch ends it", () => {
  const live = new Liveness();
  const answer = (at: number, rtt: number) => {
    live.heard(at + rtt);
    live.answered(live.token, at, at + rtt);
    live.settle(at + rtt);
  };
  live.start(0);
  assert.equal(live.nextAt, 1_000, "nobody knows the round trip yet");
  answer(0, 40);
  live.moved(5_000);
  assert.equal(live.nextAt, 6_500);
  assert.equal(live.tick(6_500), "ping");
  assert.equal(live.nextAt, 7_000, "40 ms × 4 is below the least wait");
  assert.equal(live.silent, false);
  assert.equal(live.tick(7_000), "doubt");
  assert.ok(live.silent);
  assert.equal(live.tick(7_000), "none", "once per ping");
  assert.equal(live.tick(8_000), "ping");
  assert.equal(live.tick(8_500), "doubt");
  live.heard(8_600);
  assert.ok(!live.silent);
  assert.equal(live.tick(9_000), "none");
  answer(8_000, 700);
  live.stop();
  assert.equal(live.nextAt, Infinity);
});

Deno.test("liveness: on a slow way more than one ping may be under way before there is doubt", () => {
  const live = new Liveness();
  live.start(0);
  live.heard(800);
  live.answered(live.token, 0, 800);
  live.settle(800);
  live.moved(800);
  assert.equal(live.tick(2_300), "ping");
  assert.equal(live.tick(3_800), "ping");
  assert.equal(live.tick(5_300), "ping");
  assert.equal(live.tick(5_500), "doubt", "four round trips after the oldest ping without an answer");
});
