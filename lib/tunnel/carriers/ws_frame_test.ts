import assert from "node:assert/strict";
import fc from "fast-check";
import { codeOf, type ReasonCode, REASONS } from "../../errors.ts";
import { MAX_BATCH } from "../carrier.ts";
import { BATCH_BUFFER, BatchPool } from "./pool.ts";
import {
  CLOSE_FRAME_BYTES,
  encodeClose,
  encodeHeader,
  FrameReader,
  type FrameSink,
  MAX_WS_HEADER,
} from "./ws_frame.ts";

class Sink implements FrameSink {
  readonly messages: Uint8Array[] = [];
  readonly closes: (ReasonCode | undefined)[] = [];

  onMessage(message: Uint8Array): void {
    this.messages.push(message.slice());
  }

  onClose(reason: ReasonCode | undefined): void {
    this.closes.push(reason);
  }
}

function frameOf(payload: Uint8Array): Uint8Array {
  const header = new Uint8Array(MAX_WS_HEADER);
  const n = encodeHeader(header, payload.length);
  return concat([header.subarray(0, n), payload]);
}

function concat(parts: readonly Uint8Array[]): Uint8Array {
  return Uint8Array.from(parts.flatMap((p) => [...p]));
}

function pattern(length: number): Uint8Array {
  return Uint8Array.from({ length }, (_, i) => i * 31 + (i >> 8));
}

Deno.test("headers are RFC 6455 binary frames in their shortest form", () => {
  const header = new Uint8Array(MAX_WS_HEADER);
  const of = (length: number) => [...header.subarray(0, encodeHeader(header, length))];
  assert.deepEqual(of(1), [0x82, 1]);
  assert.deepEqual(of(125), [0x82, 125]);
  assert.deepEqual(of(126), [0x82, 126, 0, 126]);
  assert.deepEqual(of(65535), [0x82, 126, 0xff, 0xff]);
  assert.deepEqual(of(65536), [0x82, 127, 0, 0, 0, 0, 0, 1, 0, 0]);
  assert.throws(() => encodeHeader(header, MAX_BATCH + 1), { code: "INTERNAL" });
});

Deno.test("messages survive any cut of the stream, and borrowed buffers come back", () => {
  const lengths = [1, 2, 125, 126, 127, 4096, 65535, 65536];
  const wire = concat(lengths.map((n) => frameOf(pattern(n))));
  for (const step of [1, 2, 3, 7, 1460, 16384, 65536, wire.length]) {
    const pool = new CountingPool();
    const sink = new Sink();
    const reader = new FrameReader(pool);
    for (let at = 0; at < wire.length; at += step) reader.push(wire.subarray(at, at + step), sink);
    assert.deepEqual(sink.messages.map((m) => m.length), lengths, `step ${step}`);
    for (const m of sink.messages) assert.deepEqual(m, pattern(m.length));
    assert.equal(pool.out, 0);
    assert.equal(reader.midFrame, false);
  }
});

Deno.test("property: any messages, cut anywhere, arrive equal and in order", () => {
  const messages = fc.array(fc.uint8Array({ minLength: 1, maxLength: 300 }), { maxLength: 20 });
  fc.assert(
    fc.property(messages, fc.array(fc.integer({ min: 1, max: 400 }), { minLength: 1, maxLength: 40 }), (list, cuts) => {
      const wire = concat(list.map(frameOf));
      const sink = new Sink();
      const reader = new FrameReader(new BatchPool());
      for (let at = 0, i = 0; at < wire.length; i++) {
        const end = at + cuts[i % cuts.length]!;
        reader.push(wire.subarray(at, end), sink);
        at = end;
      }
      assert.deepEqual(sink.messages, list.map((m) => Uint8Array.from(m)));
    }),
  );
});

Deno.test("a message inside one chunk is a view of it, not a copy", () => {
  const wire = frameOf(pattern(1000));
  let seen: Uint8Array | undefined;
  new FrameReader(new BatchPool()).push(wire, { onMessage: (m) => (seen = m), onClose() {} });
  assert.equal(seen!.buffer, wire.buffer);
});

Deno.test("every reason survives the close frame; a normal closure has none", () => {
  for (const reason of [undefined, ...Object.keys(REASONS) as ReasonCode[]]) {
    const wire = encodeClose(reason);
    assert.equal(wire.length, CLOSE_FRAME_BYTES);
    for (const step of [1, 4]) {
      const sink = new Sink();
      const reader = new FrameReader(new BatchPool());
      for (let at = 0; at < wire.length; at += step) reader.push(wire.subarray(at, at + step), sink);
      assert.deepEqual(sink.closes, [reason]);
    }
  }
  const foreign = new Sink();
  new FrameReader(new BatchPool()).push(Uint8Array.of(0x88, 2, 0x03, 0xea), foreign);
  assert.deepEqual(foreign.closes, ["PROTOCOL"], "1002 is not ours");
});

Deno.test("nothing is read after a close frame", () => {
  const sink = new Sink();
  const reader = new FrameReader(new BatchPool());
  reader.push(concat([encodeClose("LIMIT"), frameOf(pattern(5)), Uint8Array.of(0xff)]), sink);
  reader.push(frameOf(pattern(5)), sink);
  assert.deepEqual([sink.closes, sink.messages.length], [["LIMIT"], 0]);
});

Deno.test("each way to break the format is refused at its first wrong byte", () => {
  const bad: Record<string, number[]> = {
    "text frame": [0x81, 1],
    "continuation": [0x80, 1],
    "not final": [0x02, 1],
    "reserved bit 1": [0xc2, 1],
    "reserved bit 2": [0xa2, 1],
    "reserved bit 3": [0x92, 1],
    "ping": [0x89, 0],
    "pong": [0x8a, 0],
    "unknown opcode": [0x83, 1],
    "masked": [0x82, 0x81],
    "empty message": [0x82, 0],
    "16-bit length below 126": [0x82, 126, 0, 125],
    "64-bit length that fits 16": [0x82, 127, 0, 0, 0, 0, 0, 0, 0xff, 0xff],
    "64-bit length above the cap": [0x82, 127, 0, 0, 0, 0, 0, 1, 0, 1],
    "2^31 bytes": [0x82, 127, 0, 0, 0, 0, 0x80, 0, 0, 0],
    "2^63 bytes": [0x82, 127, 0x80, 0, 0, 0, 0, 0, 0, 0],
    "close without a code": [0x88, 0],
    "close with text": [0x88, 5],
    "fragmented close": [0x08, 2],
  };
  for (const [name, bytes] of Object.entries(bad)) {
    for (const step of [1, bytes.length]) {
      const pool = new CountingPool();
      const reader = new FrameReader(pool);
      const feed = () => {
        for (let at = 0; at < bytes.length; at += step) {
          reader.push(Uint8Array.from(bytes.slice(at, at + step)), new Sink());
        }
      };
      assert.throws(feed, { code: "PROTOCOL" }, name);
      assert.equal(pool.out, 0, name);
      reader.push(frameOf(pattern(3)), { onMessage: () => assert.fail("read on after an error"), onClose() {} });
    }
  }
});

Deno.test("fuzz: mutated streams give messages or PROTOCOL, hold nothing and never go beyond the cap", () => {
  const clean = concat([1, 126, 700, 3].map((n) => frameOf(pattern(n))));
  const edits = fc.array(fc.tuple(fc.nat(clean.length - 1), fc.integer({ min: 0, max: 255 })), { maxLength: 6 });
  fc.assert(
    fc.property(edits, fc.integer({ min: 1, max: 900 }), (list, step) => {
      const wire = clean.slice();
      for (const [at, value] of list) wire[at] = value;
      const pool = new CountingPool();
      const reader = new FrameReader(pool);
      const sink = new Sink();
      try {
        for (let at = 0; at < wire.length; at += step) reader.push(wire.subarray(at, at + step), sink);
      } catch (error) {
        assert.equal(codeOf(error), "PROTOCOL");
      }
      for (const m of sink.messages) assert.ok(m.length >= 1 && m.length <= MAX_BATCH);
      reader.end();
      assert.equal(pool.out, 0);
    }),
    { numRuns: 2000 },
  );
});

Deno.test("a sink that ends the reader from inside its call gets nothing more", () => {
  const reader = new FrameReader(new BatchPool());
  let count = 0;
  const sink = {
    onMessage() {
      count++;
      reader.end();
    },
    onClose() {},
  };
  reader.push(concat([frameOf(pattern(3)), frameOf(pattern(3))]), sink);
  assert.equal(count, 1);
});

Deno.test("the pool keeps few buffers and refuses foreign ones", () => {
  const pool = new BatchPool();
  const taken = Array.from({ length: 40 }, () => pool.take());
  for (const buffer of taken) pool.give(buffer);
  assert.equal(pool.idle, 16);
  pool.give(new Uint8Array(5));
  assert.ok([...Array(16)].every(() => pool.take().length === BATCH_BUFFER));
});

class CountingPool extends BatchPool {
  out = 0;

  override take(): Uint8Array {
    this.out++;
    return super.take();
  }

  override give(buffer: Uint8Array): void {
    this.out--;
    super.give(buffer);
  }
}
