/**
 * Random bytes and broken messages against the decoders of carriers, control connections and relay: a value or
 * PROTOCOL, never another error, never a buffer that stays, never harm to a bystander. FUZZ_RUNS sets the number of
 * inputs (10 000 unless said otherwise), FUZZ_SEED the first one: a failure prints the seed that repeats it.
 */
import assert from "node:assert/strict";
import { codeOf } from "../../lib/errors.ts";
import { MAX_BATCH } from "../../lib/tunnel/carrier.ts";
import { BatchPool } from "../../lib/tunnel/carriers/pool.ts";
import { encodeClose, encodeHeader, FrameReader, MAX_WS_HEADER } from "../../lib/tunnel/carriers/ws_frame.ts";
import { decodeControl, encodeControl } from "../../lib/tunnel/control/message.ts";
import { CHANNEL, CHANNEL_HEADER, encodeOpen, setChannel } from "../../lib/tunnel/relay/frames.ts";
import { RelaySwitch } from "../../lib/tunnel/relay/switch.ts";
import { generator, joined, mutated, type Random } from "./random.ts";

const RUNS = Number(Deno.env.get("FUZZ_RUNS") ?? 10_000);
const FIRST = Number(Deno.env.get("FUZZ_SEED") ?? 1);

fuzz("carrier frames", (random) => {
  const wire = mutated(random, carrierBytes(random));
  const pool = new CountingPool();
  const reader = new FrameReader(pool);
  const sink = {
    onMessage: (message: Uint8Array) => assert.ok(message.length > 0 && message.length <= MAX_BATCH),
    onClose() {},
  };
  protocolOnly(() => {
    for (let at = 0; at < wire.length;) {
      const step = 1 + random(200);
      reader.push(wire.subarray(at, at + step), sink);
      at += step;
    }
  });
  assert.ok(pool.out <= 1, "at most the one buffer of an unfinished message");
  reader.end();
  assert.equal(pool.out, 0);
});

fuzz("control messages", (random) => {
  const bytes = mutated(random, samples[random(samples.length)]!.slice());
  protocolOnly(() => {
    const message = decodeControl(bytes);
    // What is accepted can be said, and says the same again.
    const again = encodeControl(message);
    assert.deepEqual(encodeControl(decodeControl(again)), again);
  });
});

fuzz("relay frames", (random) => {
  const heard: number[] = [];
  const relay = new RelaySwitch({ emit: (line) => heard.push(line) > 0 });
  for (const [line, node] of [[1, "a"], [2, "b"], [3, "bystander-1"], [4, "bystander-2"]] as const) {
    relay.connect(line, node);
  }
  relay.receive(3, encodeOpen(1, "bystander-2"), 0);
  heard.length = 0;
  let alive = true;
  for (let i = 0; i < 8 && alive; i++) {
    const frame = mutated(random, relayFrame(random));
    alive = protocolOnly(() => relay.receive(1, frame, i));
  }
  assert.ok(heard.every((line) => line <= 2), "bystanders hear nothing");
  if (!alive) relay.disconnect(1);
  relay.disconnect(2);
  relay.disconnect(1);
  const { lines, queuedBytes } = relay.stats();
  assert.deepEqual(lines.map((line) => [line.node, line.channels]), [["bystander-1", 1], ["bystander-2", 1]]);
  assert.equal(queuedBytes, 0);
});

function fuzz(name: string, run: (random: Random) => void): void {
  Deno.test(`T11: fuzz of ${name}: ${RUNS} inputs`, () => {
    for (let seed = FIRST; seed < FIRST + RUNS; seed++) {
      try {
        run(generator(seed));
      } catch (error) {
        throw new Error(`seed ${seed}`, { cause: error });
      }
    }
  });
}

/** Runs a decoder; false when it refused. Any other error is a failure. */
function protocolOnly(run: () => void): boolean {
  try {
    run();
    return true;
  } catch (error) {
    if (codeOf(error) !== "PROTOCOL") throw error;
    return false;
  }
}

function carrierBytes(random: Random): Uint8Array {
  const parts: Uint8Array[] = [];
  for (let i = random(4); i >= 0; i--) {
    const header = new Uint8Array(MAX_WS_HEADER);
    const length = 1 + (random(10) === 0 ? random(MAX_BATCH) : random(300));
    parts.push(header.subarray(0, encodeHeader(header, length)), new Uint8Array(length));
  }
  if (random(3) === 0) parts.push(encodeClose("LIMIT"));
  return joined(...parts);
}

function relayFrame(random: Random): Uint8Array {
  if (random(3) === 0) return encodeOpen(1 + 2 * random(6), ["b", "a", "nobody", "edge-9"][random(4)]!);
  const type = [CHANNEL.DATA, CHANNEL.CREDIT, CHANNEL.CLOSE][random(3)]!;
  const body = type === CHANNEL.DATA ? 1 + random(600) : type === CHANNEL.CREDIT ? 4 : 2;
  const frame = new Uint8Array(CHANNEL_HEADER + body);
  frame[0] = type;
  setChannel(frame, random(9));
  for (let i = CHANNEL_HEADER; i < frame.length; i++) frame[i] = random(random(2) === 0 ? 4 : 256);
  return frame;
}

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

const samples: readonly Uint8Array[] = [
  encodeControl({ type: "hello", protocol: 1, node: "edge-1", version: "0.1.0", boot: "b", features: ["paths"] }),
  encodeControl({
    type: "welcome",
    protocol: 1,
    server: "srv",
    version: "1",
    time: 1_767_225_600_000,
    observed: { ip: "2001:db8::1", port: 40_000 },
    config: { a: [1, { b: null }] },
    features: [],
  }),
  encodeControl({ type: "peers", full: false, online: ["a", "b", "c-1"], offline: ["d"] }),
  encodeControl({ type: "meta", last: true, bytes: new Uint8Array(30) }),
  encodeControl({ type: "renew", id: 1, body: '{"version":1}' }),
  encodeControl({ type: "renewed", id: 2, body: "text" }),
  encodeControl({ type: "revocations", list: { epoch: 1, entries: [{ by: "node", value: "x" }] } }),
  encodeControl({ type: "ping", stamp: 1.5 }),
  encodeControl({ type: "pong", stamp: 1.5, time: 2 }),
  encodeControl({ type: "goaway", code: "LIMIT", message: "too many" }),
];
