import assert from "node:assert/strict";
import fc from "fast-check";
import { codeOf, type ReasonCode, REASONS } from "../../errors.ts";
import { MAX_PATH_BODY } from "./path_message.ts";
import {
  CONTROL,
  type ControlMessage,
  decodeControl,
  encodeControl,
  MAX_JSON,
  MAX_PEERS,
  MAX_RENEW,
  META_CHUNK,
} from "./message.ts";

const samples: readonly ControlMessage[] = [
  { type: "hello", protocol: 1, node: "edge-1", version: "0.1.0", boot: "5f2c", features: ["paths"] },
  {
    type: "welcome",
    protocol: 1,
    server: "srv-1",
    version: "0.1.0",
    time: 1_767_225_600_000,
    observed: { ip: "2001:db8::1", port: 40000 },
    config: { relay: true, nested: { a: [1, 2] } },
    features: [],
  },
  { type: "peers", full: true, online: ["edge-1", "edge-2"], offline: [] },
  { type: "peers", full: false, online: [], offline: ["edge-3"] },
  { type: "meta", last: false, bytes: Uint8Array.of(1, 2, 3) },
  { type: "meta", last: true, bytes: new Uint8Array(META_CHUNK) },
  { type: "renew", id: 7, body: '{"version":1}' },
  { type: "renewed", id: 0xffffffff, body: "ü" },
  { type: "revocations", list: { epoch: 3, entries: [] } },
  { type: "ping", stamp: 12345.678 },
  { type: "pong", stamp: 0.5, time: 1_767_225_600_000.25 },
  { type: "goaway", code: "REPLACED", message: "node edge-1 connected again" },
  { type: "candidates", addresses: [{ ip: "192.168.1.2", port: 20006 }, { ip: "2001:db8::2", port: 20006 }] },
  { type: "observe", nonce: "00112233445566778899aabbccddeeff", port: 3478, servers: ["203.0.113.1"] },
  { type: "meet", peer: "edge-2", punch: true },
  { type: "meet", peer: "edge-2", punch: false, ifApart: true },
  { type: "addresses", peer: "edge-2", addresses: [{ ip: "192.168.1.3", port: 1 }], observed: ["203.0.113.10"] },
  { type: "punch", step: "prepare", id: 7, peer: "edge-2", nonce: "0".repeat(32), port: 3478, servers: [] },
  { type: "punch", step: "prepare", id: 8, peer: "a", nonce: "0".repeat(32), port: 1, servers: [], counts: true },
  { type: "punch", step: "ready", id: 7, rttMs: 40 },
  { type: "punch", step: "ready", id: 7, rttMs: 40, expect: 2 },
  {
    type: "punch",
    step: "go",
    id: 7,
    at: 1_767_225_600_123,
    targets: [{ ip: "203.0.113.20", port: 25001 }],
    mapping: "same",
    peerMapping: "varies",
  },
  { type: "punch", step: "stop", id: 0xffffffff, code: "TIMEOUT", message: "nobody came" },
  { type: "unmet", peer: "edge-2", code: "PEER_OFFLINE", message: "edge-2 is not connected" },
  { type: "authorities", trusted: ["sha256:" + "0a".repeat(32)], issuer: "sha256:" + "0a".repeat(32) },
  { type: "leg-ask", peer: "edge-2" },
  { type: "leg", peer: "edge-2", ticket: "0f".repeat(32), client: true },
];

Deno.test("every message survives its encoding", () => {
  const kinds = new Set(samples.map((m) => m.type));
  assert.equal(kinds.size, Object.keys(CONTROL).length, "one sample per type at least");
  for (const m of samples) assert.deepEqual(plain(decodeControl(encodeControl(m))), plain(m));
});

Deno.test("the first byte is the type of PROTOCOL.md", () => {
  const bytes = new Set(samples.map((m) => encodeControl(m)[0]));
  assert.deepEqual([...bytes], [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 32, 35, 33, 34]);
});

Deno.test("builds without features are understood", () => {
  const old = '{"protocol":1,"node":"edge-1","version":"0.0.9","boot":"b"}';
  const m = decodeControl(Uint8Array.of(CONTROL.HELLO, ...new TextEncoder().encode(old)));
  assert.ok(m.type === "hello" && m.features.length === 0);
});

Deno.test("goaway carries every reason and cuts long texts", () => {
  for (const code of Object.keys(REASONS) as ReasonCode[]) {
    const m = decodeControl(encodeControl({ type: "goaway", code, message: "ä".repeat(1000) }));
    assert.ok(m.type === "goaway" && m.code === code && m.message.length === 255 && m.message.endsWith("…"));
  }
});

Deno.test("encoding refuses what a receiver would refuse", () => {
  const limit = { code: "LIMIT" };
  assert.throws(() => encodeControl({ type: "meta", last: true, bytes: new Uint8Array(META_CHUNK + 1) }), limit);
  assert.throws(() => encodeControl({ type: "renew", id: 1, body: "x".repeat(MAX_RENEW + 1) }), limit);
  const names = Array.from({ length: 5000 }, (_, i) => `node-with-quite-a-long-name-so-that-many-do-not-fit-${i}`);
  assert.throws(() => encodeControl({ type: "peers", full: true, online: names, offline: [] }), limit);
});

Deno.test("each malformed message is refused as PROTOCOL", () => {
  const body = (type: number, value: unknown) => {
    const text = new TextEncoder().encode(typeof value === "string" ? value : JSON.stringify(value));
    const bytes = new Uint8Array(1 + text.length);
    bytes[0] = type;
    bytes.set(text, 1);
    return bytes;
  };
  const hello = { protocol: 1, node: "edge-1", version: "1", boot: "b" };
  const welcome = { protocol: 1, server: "s", version: "1", time: 1, observed: { ip: "1.2.3.4", port: 1 }, config: {} };
  const peers = { full: true, online: [], offline: [] };
  const at = { ip: "10.0.0.1", port: 1 };
  const nonce = "0".repeat(32);
  const bad: Record<string, Uint8Array> = {
    "empty": new Uint8Array(0),
    "unknown type": Uint8Array.of(0x7f),
    "channel frame": Uint8Array.of(0x11, 0, 0, 0, 1, 9),
    "hello without JSON": body(CONTROL.HELLO, "{"),
    "hello that is a list": body(CONTROL.HELLO, []),
    "hello that is null": body(CONTROL.HELLO, "null"),
    "hello not UTF-8": Uint8Array.of(CONTROL.HELLO, 0xff, 0xfe),
    "hello with a bad name": body(CONTROL.HELLO, { ...hello, node: "Edge_1" }),
    "hello without node": body(CONTROL.HELLO, { ...hello, node: undefined }),
    "hello with a long version": body(CONTROL.HELLO, { ...hello, version: "x".repeat(65) }),
    "hello with a fraction": body(CONTROL.HELLO, { ...hello, protocol: 1.5 }),
    "hello with a negative": body(CONTROL.HELLO, { ...hello, protocol: -1 }),
    "hello above the cap": body(CONTROL.HELLO, { ...hello, pad: "x".repeat(MAX_JSON) }),
    "welcome with a bad address": body(CONTROL.WELCOME, { ...welcome, observed: { ip: "1.2.3", port: 1 } }),
    "welcome with a bad port": body(CONTROL.WELCOME, { ...welcome, observed: { ip: "1.2.3.4", port: 65536 } }),
    "welcome without config": body(CONTROL.WELCOME, { ...welcome, config: undefined }),
    "welcome without observed": body(CONTROL.WELCOME, { ...welcome, observed: null }),
    "peers without full": body(CONTROL.PEERS, { ...peers, full: 1 }),
    "peers with a bad name": body(CONTROL.PEERS, { ...peers, online: ["-"] }),
    "peers with a number": body(CONTROL.PEERS, { ...peers, offline: [1] }),
    "too many peers": body(CONTROL.PEERS, { ...peers, online: Array.from({ length: MAX_PEERS + 1 }, () => "a") }),
    "meta without flags": Uint8Array.of(CONTROL.META),
    "meta with unknown flags": Uint8Array.of(CONTROL.META, 2),
    "meta above the cap": Uint8Array.from({ length: META_CHUNK + 3 }, (_, i) => i === 0 ? CONTROL.META : 0),
    "renew cut off": Uint8Array.of(CONTROL.RENEW, 0, 0, 0),
    "renewed cut off": Uint8Array.of(CONTROL.RENEWED, 0, 0),
    "ping too short": Uint8Array.of(CONTROL.PING, 1),
    "ping with NaN": Uint8Array.of(CONTROL.PING, 0x7f, 0xf8, 0, 0, 0, 0, 0, 0),
    "pong too long": new Uint8Array(18).fill(CONTROL.PONG, 0, 1),
    "pong with infinity": Uint8Array.of(CONTROL.PONG, ...new Array(8).fill(0), 0x7f, 0xf0, 0, 0, 0, 0, 0, 0),
    "goaway cut off": Uint8Array.of(CONTROL.GOAWAY, 0),
    "hello with features that are no list": body(CONTROL.HELLO, { ...hello, features: "paths" }),
    "hello with too many features": body(CONTROL.HELLO, { ...hello, features: new Array(33).fill("x") }),
    "hello with a feature that is a number": body(CONTROL.HELLO, { ...hello, features: [1] }),
    "candidates without addresses": body(CONTROL.CANDIDATES, {}),
    "candidates that are too many": body(CONTROL.CANDIDATES, { addresses: new Array(17).fill(at) }),
    "a candidate without a port": body(CONTROL.CANDIDATES, { addresses: [{ ip: "10.0.0.1", port: 0 }] }),
    "a candidate with a host name": body(CONTROL.CANDIDATES, { addresses: [{ ip: "localhost", port: 1 }] }),
    "a candidate that is null": body(CONTROL.CANDIDATES, { addresses: [null] }),
    "candidates above the cap": body(CONTROL.CANDIDATES, { addresses: [], pad: "x".repeat(MAX_PATH_BODY) }),
    "observe with a short nonce": body(CONTROL.OBSERVE, { nonce: "00", port: 1, servers: [] }),
    "observe with a nonce that is no hex": body(CONTROL.OBSERVE, { nonce: "g".repeat(32), port: 1, servers: [] }),
    "observe with too many servers": body(CONTROL.OBSERVE, { nonce, port: 1, servers: new Array(5).fill("10.0.0.1") }),
    "meet without punch": body(CONTROL.MEET, { peer: "edge-1" }),
    "meet nobody": body(CONTROL.MEET, { peer: "", punch: false }),
    "addresses with a bad observed one": body(CONTROL.ADDRESSES, { peer: "a", addresses: [], observed: ["x"] }),
    "unmet with a long text": body(CONTROL.UNMET, { peer: "a", code: "LIMIT", message: "x".repeat(301) }),
    "unmet without a code": body(CONTROL.UNMET, { peer: "a", message: "x" }),
    "punch without a step": body(CONTROL.PUNCH, { id: 1 }),
    "punch with an unknown step": body(CONTROL.PUNCH, { id: 1, step: "dig" }),
    "punch with a bad id": body(CONTROL.PUNCH, { id: -1, step: "ready", rttMs: 1 }),
    "meet perhaps": body(CONTROL.MEET, { peer: "edge-1", punch: false, ifApart: "yes" }),
    "punch ready with too much to expect": body(CONTROL.PUNCH, { id: 1, step: "ready", rttMs: 1, expect: 7 }),
    "punch ready after a minute": body(CONTROL.PUNCH, { id: 1, step: "ready", rttMs: 60_001 }),
    "punch go with too many targets": body(CONTROL.PUNCH, { id: 1, step: "go", at: 1, targets: new Array(5).fill(at) }),
  };
  for (const [name, bytes] of Object.entries(bad)) {
    assert.throws(() => decodeControl(bytes), { code: "PROTOCOL" }, name);
  }
});

Deno.test("the text of a GOAWAY arrives whole up to its cap, longer ones end at a whole character", () => {
  const goaway = (message: string) => {
    const m = decodeControl(encodeControl({ type: "goaway", code: "INTERNAL", message }));
    return m.type === "goaway" ? m.message : "";
  };
  assert.equal(goaway("a".repeat(512)), "a".repeat(512));
  assert.equal(goaway("a".repeat(513)), "a".repeat(509) + "…");
  assert.equal(goaway("語".repeat(171)), "語".repeat(169) + "…", "3 bytes each");
  assert.equal(goaway("😀".repeat(129)), "😀".repeat(127) + "…", "4 bytes each");
});

Deno.test("prototype keys in a body change nothing", () => {
  const text = '{"protocol":1,"node":"a","version":"1","boot":"b","__proto__":{"evil":1},"constructor":{}}';
  const m = decodeControl(Uint8Array.of(CONTROL.HELLO, ...new TextEncoder().encode(text)));
  assert.deepEqual(Object.keys(m).sort(), ["boot", "features", "node", "protocol", "type", "version"]);
  assert.equal(({} as { evil?: number }).evil, undefined);
});

Deno.test("T11: fuzz: any bytes and any mutation give a message or PROTOCOL", () => {
  const encoded = samples.map((m) => encodeControl(m).subarray(0, 400));
  const mutated = fc.tuple(
    fc.integer({ min: 0, max: encoded.length - 1 }),
    fc.array(fc.tuple(fc.nat(399), fc.integer({ min: 0, max: 255 })), { maxLength: 5 }),
    fc.integer({ min: 0, max: 400 }),
  ).map(([i, edits, length]) => {
    const bytes = encoded[i]!.slice(0, length);
    for (const [at, value] of edits) if (at < bytes.length) bytes[at] = value;
    return bytes;
  });
  fc.assert(
    fc.property(fc.oneof(fc.uint8Array({ maxLength: 200 }), mutated), (bytes) => {
      let m: ControlMessage;
      try {
        m = decodeControl(bytes);
      } catch (error) {
        assert.equal(codeOf(error), "PROTOCOL");
        return;
      }
      // Whatever is accepted can be said again and means the same.
      assert.deepEqual(plain(decodeControl(encodeControl(m))), plain(m));
    }),
    { numRuns: 10_000 },
  );
});

/** What JSON says of a message (it has no -0), with views of different buffers as plain arrays, so that they compare. */
function plain(m: ControlMessage): unknown {
  return m.type === "meta" ? { ...m, bytes: [...m.bytes] } : m.type === "ping" ? m : JSON.parse(JSON.stringify(m));
}
