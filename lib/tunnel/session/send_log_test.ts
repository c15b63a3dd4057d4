/** The retention log against a naive one: a list of frames. */
import assert from "node:assert/strict";
import fc from "fast-check";
import { hex, rawFrames } from "../../../tests/fixtures/raw_peer.ts";
import { BufferPool } from "../buffer_pool.ts";
import { MAX_BATCH } from "../carrier.ts";
import { ACK_ROOM, BATCH_ROOM, FRAME_HEADER, MAX_PAYLOAD, SEGMENT } from "../constants.ts";
import { TYPE } from "../frame.ts";
import { copy, SendLog } from "./send_log.ts";

function fresh(cap = 1 << 20): { log: SendLog; pool: BufferPool } {
  const pool = new BufferPool(SEGMENT, 4);
  return { log: new SendLog(cap, pool), pool };
}

/** Takes everything that waits, as a carrier would. */
function sendAll(log: SendLog): Uint8Array[] {
  const batches: Uint8Array[] = [];
  log.seal();
  while (log.pending) log.ship((bytes, start, end) => batches.push(bytes.slice(start, end)));
  return batches;
}

const pattern = Uint8Array.from({ length: 200_000 }, (_, i) => (i * 7) ^ (i >> 8));

Deno.test("small writes of one stream grow one frame; another stream begins its own", () => {
  const { log } = fresh();
  log.data(1, pattern, 0, 3);
  log.data(1, pattern, 3, 2);
  log.data(3, pattern, 0, 1);
  log.data(1, pattern, 5, 1);
  log.frame(TYPE.FIN, 1, 0);
  const frames = rawFrames(sendAll(log)[0]!);
  assert.deepEqual(frames.map((f) => [f.type, f.id, hex(f.payload)]), [
    [TYPE.DATA, 1, hex(pattern.subarray(0, 5))],
    [TYPE.DATA, 3, hex(pattern.subarray(0, 1))],
    [TYPE.DATA, 1, hex(pattern.subarray(5, 6))],
    [TYPE.FIN, 1, ""],
  ]);
});

Deno.test("a frame never grows beyond its limit, a batch never beyond the carrier's", () => {
  const { log } = fresh();
  let done = 0;
  while (done < 150_000) done += log.data(1, pattern, done, 150_000 - done);
  const batches = sendAll(log);
  const frames = batches.flatMap(rawFrames);
  assert.ok(batches.every((b) => b.length <= MAX_BATCH - ACK_ROOM));
  assert.ok(frames.every((f) => f.payload.length <= MAX_PAYLOAD));
  assert.equal(hex(new Uint8Array(frames.flatMap((f) => [...f.payload]))), hex(pattern.subarray(0, 150_000)));
});

Deno.test("room counts what is held, and comes back with the acknowledgement", () => {
  const { log } = fresh(100_000);
  assert.equal(log.room, 100_000);
  log.data(1, pattern, 0, 10_000);
  assert.equal(log.room, 100_000 - 10_000 - FRAME_HEADER - ACK_ROOM);
  sendAll(log);
  assert.ok(log.ack(log.tx));
  assert.equal(log.room, 100_000);
});

Deno.test("an acknowledgement of what was never sent is refused", () => {
  const { log } = fresh();
  log.data(1, pattern, 0, 10);
  assert.equal(log.ack(1), false);
  sendAll(log);
  assert.ok(log.ack(18));
  assert.equal(log.ack(19), false);
  assert.ok(log.ack(5), "an old one says nothing new");
  assert.equal(log.acked, 18);
});

Deno.test("after a rewind, what is acknowledged meanwhile is not sent again", () => {
  const { log } = fresh();
  for (let i = 0; i < 4; i++) {
    log.data(1, pattern, i * 10, 10);
    sendAll(log);
  }
  assert.ok(log.rewind(18));
  log.ship(() => {});
  assert.ok(log.ack(54), "the peer had received more than its HELLO said");
  const rest = sendAll(log);
  assert.deepEqual(rest.map((b) => hex(rawFrames(b)[0]!.payload)), [hex(pattern.subarray(30, 40))]);
});

Deno.test("rewinding into a batch sends its rest, and leaves no room for an ACK in front", () => {
  const { log } = fresh();
  log.data(1, pattern, 0, 10);
  log.data(3, pattern, 10, 10);
  sendAll(log);
  assert.ok(log.rewind(18));
  log.ship((bytes, start, end, room) => {
    assert.equal(room, 0);
    assert.equal(hex(rawFrames(bytes.slice(start, end))[0]!.payload), hex(pattern.subarray(10, 20)));
  });
  assert.equal(log.rewind(17), false, "not the border of a frame");
  assert.equal(log.rewind(37), false, "never sent");
});

Deno.test("after a rewind into a batch and an ACK of that batch, the next one is sent from its beginning", () => {
  const { log } = fresh();
  log.data(1, pattern, 0, 10);
  log.data(3, pattern, 10, 10);
  sendAll(log);
  log.data(1, pattern, 20, 10);
  sendAll(log);
  assert.ok(log.rewind(18));
  assert.ok(log.ack(36));
  assert.equal(log.next, 36);
  assert.deepEqual(sendAll(log).map((b) => hex(rawFrames(b)[0]!.payload)), [hex(pattern.subarray(20, 30))]);
});

Deno.test("memory: segments go back when acknowledged, all of them after trim", () => {
  const { log, pool } = fresh(8 * SEGMENT);
  for (let i = 0; i < 60; i++) {
    let done = 0;
    while (done < 30_000) done += log.data(1, pattern, done, 30_000 - done);
  }
  sendAll(log);
  assert.ok(pool.taken >= 6);
  log.ack(log.tx);
  assert.equal(pool.taken, 1);
  log.trim();
  assert.equal(pool.taken, 0);
  log.data(1, pattern, 0, 10);
  assert.equal(pool.taken, 1);
  log.clear();
  assert.equal(pool.taken, 0);
  assert.deepEqual([log.tx, log.acked, log.sent, log.held], [0, 0, 0, 0]);
});

Deno.test("steady small traffic stays in one segment", () => {
  const { log, pool } = fresh();
  for (let i = 0; i < 10_000; i++) {
    log.data(1, pattern, 0, 100);
    sendAll(log);
    log.ack(log.tx);
  }
  assert.equal(pool.taken, 1);
});

Deno.test("a batch may be as large as the carrier allows, with its ACK", () => {
  const { log } = fresh();
  let done = 0;
  while (!log.full) done += log.data(1, pattern, done, 100_000);
  assert.ok(done > BATCH_ROOM - 1000);
  log.seal();
  log.ship((_bytes, start, end, room) => {
    assert.equal(room, ACK_ROOM);
    assert.ok(end - start + room <= MAX_BATCH);
  });
});

type Step =
  | { readonly kind: "data"; readonly id: number; readonly length: number }
  | { readonly kind: "frame"; readonly id: number }
  | { readonly kind: "seal" }
  | { readonly kind: "send" }
  | { readonly kind: "ack"; readonly part: number }
  | { readonly kind: "rewind"; readonly part: number };

const part = fc.nat(1000);
const step: fc.Arbitrary<Step> = fc.oneof(
  { weight: 6, arbitrary: fc.record({ kind: fc.constant("data" as const), id: fc.nat(3), length: fc.nat(40_000) }) },
  { weight: 3, arbitrary: fc.record({ kind: fc.constant("frame" as const), id: fc.nat(3) }) },
  { weight: 2, arbitrary: fc.record({ kind: fc.constant("seal" as const) }) },
  { weight: 2, arbitrary: fc.record({ kind: fc.constant("send" as const) }) },
  { weight: 2, arbitrary: fc.record({ kind: fc.constant("ack" as const), part }) },
  { weight: 2, arbitrary: fc.record({ kind: fc.constant("rewind" as const), part }) },
);

/** What a peer would have at the end: for each stream its bytes, with U+0100 for each control frame. */
class Expected {
  readonly #streams = new Map<number, string[]>();

  data(id: number, bytes: Uint8Array): void {
    this.#of(id).push(new TextDecoder("latin1").decode(bytes));
  }

  control(id: number): void {
    this.#of(id).push("\u{100}");
  }

  text(id: number): string {
    return this.#of(id).join("");
  }

  #of(id: number): string[] {
    const list = this.#streams.get(id) ?? [];
    this.#streams.set(id, list);
    return list;
  }
}

Deno.test("property: every suffix that can be asked for is sent exactly as it was written", () => {
  fc.assert(
    fc.property(fc.array(step, { maxLength: 60 }), (steps) => {
      const { log, pool } = fresh(1 << 24);
      const expected = new Expected();
      /** What was sent, by offset; and where frames begin. */
      const sent = new Uint8Array(4_000_000);
      let borders = [0];
      let reached = 0;
      let cursor = 0;
      const take = () => {
        for (const batch of sendAll(log)) {
          for (const frame of rawFrames(batch)) {
            const size = FRAME_HEADER + frame.payload.length;
            if (cursor >= reached) borders.push(cursor + size);
            cursor += size;
          }
          const start = cursor - batch.length;
          const known = Math.max(0, Math.min(batch.length, reached - start));
          assert.ok(batch.subarray(0, known).every((byte, i) => byte === sent[start + i]));
          sent.set(batch, start);
          reached = Math.max(reached, cursor);
        }
        assert.equal(cursor, log.tx);
      };
      const pick = (list: readonly number[], n: number) => list[n % list.length]!;
      for (const s of steps) {
        switch (s.kind) {
          case "data":
            for (let done = 0; done < s.length;) {
              const n = log.data(s.id, pattern, done, s.length - done);
              expected.data(s.id, pattern.subarray(done, done + n));
              done += n;
            }
            break;
          case "frame":
            log.frame(TYPE.FIN, s.id, 0);
            expected.control(s.id);
            break;
          case "seal":
            log.seal();
            break;
          case "send":
            take();
            break;
          case "ack":
            assert.ok(log.ack(pick(borders, s.part)));
            break;
          case "rewind":
            // What was written since goes with it: a new carrier takes everything from there on.
            take();
            cursor = pick(borders.filter((b) => b >= log.acked), s.part);
            assert.ok(log.rewind(cursor));
            take();
        }
      }
      take();
      borders = [...new Set(borders)];
      const got = new Expected();
      for (const frame of rawFrames(sent.subarray(0, reached))) {
        if (frame.type === TYPE.DATA) got.data(frame.id, frame.payload);
        else got.control(frame.id);
      }
      for (let id = 0; id <= 3; id++) assert.equal(got.text(id), expected.text(id));
      assert.equal(log.sent, log.tx);
      assert.ok(log.ack(log.tx));
      assert.equal(log.held, 0);
      log.trim();
      assert.equal(pool.taken, 0);
    }),
    { numRuns: 60 },
  );
});

Deno.test("property: copy moves exactly the bytes asked for", () => {
  fc.assert(fc.property(fc.nat(80), fc.nat(80), fc.nat(100), (at, offset, n) => {
    const from = pattern.slice(0, 200);
    const into = new Uint8Array(200);
    copy(into, at, from, offset, n);
    for (let i = 0; i < 200; i++) assert.equal(into[i], i >= at && i < at + n ? from[offset + i - at] : 0);
  }));
});
