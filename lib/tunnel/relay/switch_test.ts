import assert from "node:assert/strict";
import fc from "fast-check";
import { codeOf } from "../../errors.ts";
import {
  CHANNEL,
  CHANNEL_HEADER,
  channelOf,
  encodeClose,
  encodeCredit,
  encodeOpen,
  INITIAL_WINDOW,
  isChannelFrame,
  MAX_CHANNEL_DATA,
  MAX_WINDOW,
  setChannel,
} from "./frames.ts";
import { DEFAULT_RELAY_LIMITS, RelaySwitch } from "./switch.ts";
import { data, pair, Rig } from "./testing.ts";

Deno.test("bytes pass both ways under each side's own number, in the buffer they came in", () => {
  const rig = pair();
  const frame = data(1, "hello");
  rig.send(1, frame);
  assert.equal(rig.out.get(2)![0], frame, "no copy");
  assert.deepEqual(rig.said(2), [["data", 2, "hello"]]);
  rig.send(2, data(2, "back"));
  assert.deepEqual(rig.said(1), [["data", 1, "back"]]);
  const { relayedBytes, relayedMessages, lines } = rig.relay.stats();
  assert.deepEqual([relayedBytes, relayedMessages], [9, 2]);
  assert.deepEqual(lines.map((l) => [l.node, l.bytesIn, l.bytesOut]), [["a", 5, 4], ["b", 4, 5]]);
  assert.deepEqual(lines.map((l) => l.perChannel), [
    [{ peer: "b", bytesIn: 5, messagesIn: 1, queuedBytes: 0 }],
    [{ peer: "a", bytesIn: 4, messagesIn: 1, queuedBytes: 0 }],
  ]);
});

Deno.test("opens that cannot be are answered at once with the reason", () => {
  const rig = new Rig({}, (_from, to) => to === "ghost" ? "UNKNOWN_NODE" : to === "hidden" ? "NOT_ALLOWED" : undefined);
  rig.connect(1, "a");
  rig.connect(2, "hidden");
  for (const [i, node] of ["b", "ghost", "hidden", "a"].entries()) rig.send(1, encodeOpen(1 + 2 * i, node));
  assert.deepEqual(rig.said(1), [
    ["close", 1, "PEER_OFFLINE"],
    ["close", 3, "UNKNOWN_NODE"],
    ["close", 5, "NOT_ALLOWED"],
    ["close", 7, "NOT_ALLOWED"],
  ]);
  assert.deepEqual(rig.said(2), []);
  assert.deepEqual(rig.relay.stats().refused, { PEER_OFFLINE: 1, UNKNOWN_NODE: 1, NOT_ALLOWED: 2 });
});

Deno.test("first data right behind a refused OPEN is dropped, not a fault", () => {
  const rig = new Rig();
  rig.connect(1, "a");
  rig.send(1, encodeOpen(1, "b"));
  rig.send(1, data(1, "ClientHello"));
  assert.deepEqual(rig.said(1), [["close", 1, "PEER_OFFLINE"]]);
});

Deno.test("close passes on with its reason, after the data before it, and frees both sides", () => {
  const rig = pair();
  rig.full.add(2);
  rig.send(1, data(1, "one"));
  rig.send(1, data(1, "two"));
  rig.send(1, encodeClose(1, "CERT_EXPIRED"));
  assert.deepEqual(rig.said(2), [["data", 2, "one"]], "the connection is full");
  rig.drain(2);
  assert.deepEqual(rig.said(2), [["data", 2, "two"], ["close", 2, "CERT_EXPIRED"]]);
  assert.deepEqual(rig.relay.stats().lines.map((l) => [l.channels, l.queuedBytes]), [[0, 0], [0, 0]]);
  rig.send(2, data(2, "late"));
  rig.send(2, encodeClose(2, undefined));
  assert.deepEqual(rig.said(1), [], "what crossed the close is dropped");
});

Deno.test("a connection that is lost ends its channels at the other side with PEER_GONE", () => {
  const rig = pair();
  rig.full.add(2);
  rig.send(1, data(1, "one"));
  rig.send(1, data(1, "two"));
  rig.relay.disconnect(1);
  rig.drain(2);
  assert.deepEqual(rig.said(2), [["data", 2, "one"], ["data", 2, "two"], ["close", 2, "PEER_GONE"]]);
  assert.equal(rig.relay.stats().queuedBytes, 0);
  rig.send(1, data(1, "a ghost"));
  assert.equal(rig.relay.online("a"), false);
});

Deno.test("a receiver that is lost takes what waited for it with it", () => {
  const rig = pair();
  rig.full.add(2);
  rig.send(1, data(1, "one"));
  rig.send(1, data(1, "two"));
  rig.relay.disconnect(2);
  assert.equal(rig.relay.stats().queuedBytes, 0);
  assert.deepEqual(rig.said(1), [["close", 1, "PEER_GONE"]]);
});

Deno.test("the newest connection of a node gets new channels; the older keeps its own until it ends", () => {
  const rig = pair();
  rig.connect(3, "b");
  rig.send(1, encodeOpen(3, "b"));
  assert.deepEqual(rig.said(3), [["open", 2, "a"]]);
  rig.send(1, data(1, "to the old one"));
  assert.deepEqual(rig.said(2), [["data", 2, "to the old one"]]);
  rig.relay.disconnect(2);
  assert.equal(rig.relay.online("b"), true);
  assert.deepEqual(rig.said(1), [["close", 1, "PEER_GONE"]]);
});

Deno.test("credit passes on, and sending beyond it costs the channel", () => {
  const rig = pair();
  const chunk = new Uint8Array(MAX_CHANNEL_DATA);
  for (let sent = 0; sent < INITIAL_WINDOW; sent += chunk.length) rig.send(1, data(1, chunk));
  assert.equal(rig.said(2).length, INITIAL_WINDOW / chunk.length);
  rig.send(2, encodeCredit(2, 10));
  assert.deepEqual(rig.said(1), [["credit", 1, 10]]);
  rig.send(1, data(1, new Uint8Array(10)));
  assert.equal(rig.said(2).length, 1);
  rig.send(1, data(1, "x"));
  assert.deepEqual(rig.said(1), [["close", 1, "PROTOCOL"]]);
  assert.deepEqual(rig.said(2), [["close", 2, "PEER_GONE"]]);
});

Deno.test("grants beyond the channel's or the connection's window cost the channel", () => {
  const channel = pair();
  channel.send(2, encodeCredit(2, MAX_WINDOW - INITIAL_WINDOW));
  assert.deepEqual(channel.said(1), [["credit", 1, MAX_WINDOW - INITIAL_WINDOW]]);
  channel.send(2, encodeCredit(2, 1));
  assert.deepEqual(channel.said(2), [["close", 2, "PROTOCOL"]]);

  const line = pair({ lineWindow: INITIAL_WINDOW + 100 });
  line.send(2, encodeCredit(2, 101));
  assert.deepEqual(line.said(2), [["close", 2, "LIMIT"]]);
  assert.deepEqual(line.said(1), [["close", 1, "LIMIT"]]);

  const nothing = pair();
  nothing.send(2, encodeCredit(2, 0));
  assert.deepEqual(nothing.said(2), [["close", 2, "PROTOCOL"]]);
});

Deno.test("delivered bytes make room for new grants: a channel runs for ever within its window", () => {
  const rig = pair();
  for (let i = 0; i < 200; i++) {
    rig.send(1, data(1, new Uint8Array(MAX_CHANNEL_DATA)));
    rig.send(2, encodeCredit(2, MAX_CHANNEL_DATA));
  }
  assert.equal(rig.relay.stats().lines[1]!.bytesOut, 200 * MAX_CHANNEL_DATA);
  assert.ok(rig.said(2).every(([kind]) => kind === "data"));
});

Deno.test("grants for a full connection add up and go first when it drains", () => {
  const rig = pair();
  rig.full.add(1);
  rig.send(2, data(2, "fills"));
  rig.send(2, data(2, "waits"));
  rig.send(2, encodeCredit(2, 5));
  rig.send(2, encodeCredit(2, 7));
  assert.deepEqual(rig.said(1), [["data", 1, "fills"]]);
  rig.drain(1);
  assert.deepEqual(rig.said(1), [["credit", 1, 12], ["data", 1, "waits"]]);
});

Deno.test("a small frame waits for one quantum per busy channel, not for a bulk window", () => {
  const rig = new Rig();
  for (const [line, node] of [[1, "a"], [2, "b"], [3, "c"]] as const) rig.connect(line, node);
  rig.send(1, encodeOpen(1, "b"));
  rig.send(3, encodeOpen(1, "b"));
  rig.said(2);
  rig.full.add(2);
  const bulk = new Uint8Array(8192);
  for (let sent = 0; sent + bulk.length <= INITIAL_WINDOW; sent += bulk.length) rig.send(1, data(1, bulk));
  rig.send(3, data(1, "ping"));
  rig.said(2);
  rig.drain(2);
  const order = rig.said(2).map(([, channel]) => channel);
  assert.ok(order.indexOf(4) <= 2, `the small frame came at place ${order.indexOf(4)}`);
  assert.equal(order.length, INITIAL_WINDOW / bulk.length);
});

Deno.test("channels that all send bulk get equal shares in bytes, whatever their frame sizes", () => {
  const rig = new Rig();
  const sizes = [1000, 16384, MAX_CHANNEL_DATA];
  rig.connect(9, "sink");
  for (const [i, size] of sizes.entries()) {
    rig.connect(i + 1, `n${i}`);
    rig.send(i + 1, encodeOpen(1, "sink"));
    rig.full.add(9);
    for (let sent = 0; sent + size <= INITIAL_WINDOW; sent += size) rig.send(i + 1, data(1, new Uint8Array(size)));
  }
  rig.said(9);
  rig.drain(9);
  const bytes = new Map<number, number>();
  let total = 0;
  for (const frame of rig.out.get(9)!) {
    const n = frame.length - CHANNEL_HEADER;
    bytes.set(channelOf(frame), (bytes.get(channelOf(frame)) ?? 0) + n);
    total += n;
    if (total >= 300_000) break;
  }
  const shares = [...bytes.values()];
  assert.equal(shares.length, 3);
  assert.ok(Math.max(...shares) - Math.min(...shares) <= MAX_CHANNEL_DATA + 16384, `shares ${shares}`);
});

Deno.test("too much for all connections together closes the longest queue of the full one", () => {
  const rig = new Rig({ memory: 100_000 });
  for (const [line, node] of [[1, "a"], [2, "b"], [3, "c"]] as const) rig.connect(line, node);
  rig.send(1, encodeOpen(1, "b"));
  rig.send(3, encodeOpen(1, "b"));
  rig.said(2);
  rig.full.add(2);
  rig.send(3, data(1, "fills the connection"));
  rig.send(1, data(1, new Uint8Array(60_000)));
  rig.send(3, data(1, new Uint8Array(30_000)));
  rig.send(3, data(1, new Uint8Array(20_000)));
  assert.deepEqual(rig.said(1), [["close", 1, "LIMIT"]]);
  assert.equal(rig.relay.stats().queuedBytes, 50_000);
  rig.drain(2);
  assert.deepEqual(rig.said(2).map(([kind, channel]) => [kind, channel]), [
    ["data", 4],
    ["close", 2],
    ["data", 4],
    ["data", 4],
  ]);
});

Deno.test("limits: channels per agent on either side, and how fast it opens them", () => {
  const rig = new Rig({ channels: 2 });
  for (const [line, node] of [[1, "a"], [2, "b"], [3, "c"]] as const) rig.connect(line, node);
  for (const channel of [1, 3, 5]) rig.send(1, encodeOpen(channel, "b"));
  assert.deepEqual(rig.said(1), [["close", 5, "LIMIT"]]);
  rig.send(3, encodeOpen(1, "b"));
  assert.deepEqual(rig.said(3), [["close", 1, "LIMIT"]], "the target is full");

  const fast = new Rig({ opensPerSecond: 2 });
  fast.connect(1, "a");
  let channel = 1;
  const burst = (n: number) => {
    for (let i = 0; i < n; i++, channel += 2) fast.send(1, encodeOpen(channel, "nobody"));
    return fast.said(1).filter(([, , reason]) => reason === "LIMIT").length;
  };
  assert.equal(burst(25), 5, "ten seconds' worth at once");
  fast.now += 1000;
  assert.equal(burst(5), 3, "then two a second");
});

Deno.test("frames that break the protocol end the whole connection", () => {
  const bad: Record<string, Uint8Array> = {
    "unknown type": Uint8Array.of(0x14, 0, 0, 0, 1),
    "no header": Uint8Array.of(CHANNEL.DATA, 0, 0),
    "empty data": Uint8Array.of(CHANNEL.DATA, 0, 0, 0, 1),
    "too much data": data(1, new Uint8Array(MAX_CHANNEL_DATA + 1)),
    "short credit": Uint8Array.of(CHANNEL.CREDIT, 0, 0, 0, 1, 0),
    "long close": Uint8Array.of(CHANNEL.CLOSE, 0, 0, 0, 1, 0, 0, 0),
    "open without a name": Uint8Array.of(CHANNEL.OPEN, 0, 0, 0, 3, 0),
    "open with a wrong length": Uint8Array.of(CHANNEL.OPEN, 0, 0, 0, 3, 2, 97),
    "open with a bad name": encodeOpen(3, "A"),
    "open with an even number": encodeOpen(4, "b"),
    "open with a used number": encodeOpen(1, "b"),
    "data on a channel never opened": data(99, "x"),
    "data on one never announced": data(4, "x"),
    "data on channel 0": data(0, "x"),
  };
  for (const [name, frame] of Object.entries(bad)) {
    const rig = pair();
    assert.throws(() => rig.send(1, frame), { code: "PROTOCOL" }, name);
  }
});

Deno.test("a frame that waits does not keep a large read buffer alive", () => {
  const rig = pair();
  rig.full.add(2);
  const big = new Uint8Array(1024 * 1024);
  for (const text of ["first", "second"]) {
    const frame = data(1, text);
    big.set(frame, 100);
    rig.send(1, big.subarray(100, 100 + frame.length));
  }
  rig.said(2);
  big.fill(0);
  rig.full.delete(2);
  rig.relay.drained(2);
  assert.deepEqual(rig.said(2), [["data", 2, "second"]], "a copy, untouched by what became of the buffer");
});

Deno.test("the tap sees each frame before the switch does, with its sender", () => {
  const seen: [string, number][] = [];
  const relay = new RelaySwitch({ emit: () => true, tap: (from, frame) => seen.push([from, frame[0]!]) });
  relay.connect(1, "a");
  relay.receive(1, encodeOpen(1, "b"), 0);
  assert.throws(() => relay.receive(1, Uint8Array.of(0x1f), 0));
  assert.deepEqual(seen, [["a", CHANNEL.OPEN], ["a", 0x1f]]);
});

Deno.test("only types 0x10 to 0x1f are the relay's", () => {
  assert.equal(isChannelFrame(Uint8Array.of(0x10)), true);
  assert.equal(isChannelFrame(Uint8Array.of(0x1f)), true);
  for (const type of [0x00, 0x0f, 0x20, 0xff]) assert.equal(isChannelFrame(Uint8Array.of(type)), false);
  assert.equal(isChannelFrame(new Uint8Array(0)), false);
});

Deno.test("T11: fuzz: any frames from one agent end its connection or change only its own channels", () => {
  const frames = fc.array(
    fc.tuple(fc.constantFrom(0x10, 0x11, 0x12, 0x13, 0x14), fc.nat(6), fc.uint8Array({ maxLength: 12 })),
    { maxLength: 40 },
  );
  fc.assert(
    fc.property(frames, (list) => {
      const rig = pair();
      rig.connect(3, "c");
      rig.connect(4, "d");
      rig.send(3, encodeOpen(1, "d"));
      rig.said(4);
      let alive = true;
      for (const [type, channel, body] of list) {
        if (!alive) break;
        const frame = new Uint8Array(CHANNEL_HEADER + body.length);
        frame[0] = type;
        setChannel(frame, channel);
        frame.set(body, CHANNEL_HEADER);
        try {
          rig.send(1, frame);
        } catch (error) {
          assert.equal(codeOf(error), "PROTOCOL");
          rig.relay.disconnect(1);
          alive = false;
        }
      }
      assert.deepEqual([rig.said(3), rig.said(4)], [[], []], "bystanders hear nothing");
      rig.send(3, data(1, "still works"));
      assert.deepEqual(rig.said(4), [["data", 2, "still works"]]);
    }),
    { numRuns: 2000 },
  );
});

Deno.test("T12: the default limits leave a malicious agent a bounded hold on memory", () => {
  const { channels, lineWindow, memory } = DEFAULT_RELAY_LIMITS;
  assert.ok(lineWindow >= channels * INITIAL_WINDOW, "every allowed channel has at least its first window");
  assert.ok(memory >= lineWindow);
});
