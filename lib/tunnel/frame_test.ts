/** The codec against golden bytes, against a second codec, and against everything that is not a frame. */
import assert from "node:assert/strict";
import fc from "fast-check";
import { bytesOf, hex, join, rawFrame, rawHello, unhex } from "../../tests/fixtures/raw_peer.ts";
import type { ServiceTarget } from "../net.ts";
import { MAX_NAME } from "./constants.ts";
import {
  decodeHello,
  decodeOpen,
  encodeHello,
  encodeOpen,
  frameBytes,
  get16,
  get24,
  get32,
  get64,
  type Hello,
  helloSize,
  isKnownType,
  openSize,
  put16,
  put32,
  put64,
  TYPE,
} from "./frame.ts";

const HELLO: Hello = {
  versionMin: 1,
  versionMax: 3,
  initiator: true,
  draining: false,
  generation: 7,
  instance: 0x1234567890abc,
  peerInstance: 5,
  received: 0x1_0000_0001,
  maxStreams: 4096,
  maxFlows: 256,
  retention: 8_388_608,
  build: "edgemesh/0.1.0",
};
const TCP4: ServiceTarget = {
  namespace: "shop",
  service: "web",
  protocol: "TCP",
  port: 80,
  node: "edge-1",
  endpoint: { ip: "10.1.2.3", port: 8080 },
};
const UDP6: ServiceTarget = {
  namespace: "d",
  service: "dns",
  protocol: "UDP",
  port: 53,
  node: "edge-1",
  endpoint: { ip: "fd00::1", port: 5353 },
};

function helloPayload(hello: Hello): Uint8Array {
  const b = new Uint8Array(helloSize(hello));
  assert.equal(encodeHello(b, 0, hello), b.length);
  return b;
}

function openPayload(target: ServiceTarget, flow: boolean, window: number): Uint8Array {
  const b = new Uint8Array(openSize(target)!);
  assert.equal(encodeOpen(b, 0, { flow, target, window }), b.length);
  return b;
}

/** Every frame type once, written down as the bytes PROTOCOL.md promises. */
const GOLDEN: readonly (readonly [name: string, bytes: Uint8Array, hex: string])[] = [
  [
    "HELLO",
    frameBytes(TYPE.HELLO, 0, helloPayload(HELLO)),
    `40 00003b 00000000  01 03 01 00  00000007  0001234567890abc  0000000000000005  0000000100000001
     00001000  00000100  00800000  0e 656467656d6573682f302e312e30`,
  ],
  [
    "HELLO, acceptor, draining, empty build",
    frameBytes(
      TYPE.HELLO,
      0,
      helloPayload({ ...HELLO, initiator: false, draining: true, generation: 0, build: "", received: 0 }),
    ),
    `40 00002d 00000000  01 03 02 00  00000000  0001234567890abc  0000000000000005  0000000000000000
     00001000  00000100  00800000  00`,
  ],
  [
    "OPEN of a stream",
    frameBytes(TYPE.OPEN, 1, openPayload(TCP4, false, 262_144)),
    "01 000018 00000001  00 06 0050 1f90 00040000 04 0a010203 04 73686f70 03 776562",
  ],
  [
    "OPEN of a flow",
    frameBytes(TYPE.OPEN, 0xfffffffe, openPayload(UDP6, true, 0)),
    "01 000021 fffffffe  01 11 0035 14e9 00000000 10 fd000000000000000000000000000001 01 64 03 646e73",
  ],
  ["OPEN_OK", frameBytes(TYPE.OPEN_OK, 1, bytesOf([64, 262_144])), "02 000008 00000001 0000000000040000"],
  ["DATA", frameBytes(TYPE.DATA, 3, unhex("6869")), "03 000002 00000003 6869"],
  ["CREDIT", frameBytes(TYPE.CREDIT, 3, bytesOf([64, 0x1_0000_0000])), "04 000008 00000003 0000000100000000"],
  ["FIN", frameBytes(TYPE.FIN, 3, new Uint8Array(0)), "05 000000 00000003"],
  ["RST", frameBytes(TYPE.RST, 3, bytesOf([16, 13])), "06 000002 00000003 000d"],
  ["FLOW_CLOSE", frameBytes(TYPE.FLOW_CLOSE, 4, bytesOf([16, 4])), "07 000002 00000004 0004"],
  ["RESUME", frameBytes(TYPE.RESUME, 0, bytesOf([64, 56])), "41 000008 00000000 0000000000000038"],
  ["ACK", frameBytes(TYPE.ACK, 0, bytesOf([64, 56])), "42 000008 00000000 0000000000000038"],
  ["PING", frameBytes(TYPE.PING, 0, bytesOf([64, 1], [64, 2])), "43 000010 00000000 0000000000000001 0000000000000002"],
  ["PONG", frameBytes(TYPE.PONG, 0, bytesOf([64, 1], [64, 2])), "44 000010 00000000 0000000000000001 0000000000000002"],
  ["GOAWAY", frameBytes(TYPE.GOAWAY, 0, bytesOf([16, 4], [8, 1])), "45 000003 00000000 0004 01"],
  [
    "DGRAM",
    frameBytes(TYPE.DGRAM, 4, join(bytesOf([16, 9], [16, 4], [16, 2]), unhex("6869"))),
    "46 000008 00000004 0009 0004 0002 6869",
  ],
];

for (const [name, bytes, expected] of GOLDEN) {
  Deno.test(`golden bytes: ${name}`, () => {
    assert.equal(hex(bytes), hex(unhex(expected)));
    assert.ok(isKnownType(bytes[0]!));
  });
}

Deno.test("every known type has golden bytes", () => {
  assert.deepEqual(new Set(GOLDEN.map(([, bytes]) => bytes[0]!)), new Set(Object.values(TYPE)));
});

Deno.test("HELLO and OPEN read back what was written", () => {
  assert.deepEqual(decodeHello(helloPayload(HELLO)), HELLO);
  assert.deepEqual(decodeOpen(openPayload(TCP4, false, 9), "edge-1"), { flow: false, window: 9, target: TCP4 });
  assert.deepEqual(decodeOpen(openPayload(UDP6, true, 0), "edge-1"), { flow: true, window: 0, target: UDP6 });
});

Deno.test("HELLO and OPEN allow fields of later versions behind the known ones", () => {
  assert.deepEqual(decodeHello(join(helloPayload(HELLO), unhex("0102"))), HELLO);
  assert.deepEqual(decodeOpen(join(openPayload(TCP4, false, 9), unhex("0102")), "edge-1")?.target, TCP4);
});

Deno.test("HELLO and OPEN cut off at any byte are refused", () => {
  for (
    const [payload, decode] of [
      [helloPayload(HELLO), decodeHello],
      [openPayload(TCP4, false, 1), (p: Uint8Array) => decodeOpen(p, undefined)],
      [openPayload(UDP6, true, 0), (p: Uint8Array) => decodeOpen(p, undefined)],
    ] as const
  ) {
    for (let n = 0; n < payload.length; n++) assert.equal(decode(payload.subarray(0, n)), undefined, `${n} bytes`);
  }
});

Deno.test("HELLO with values that cannot be is refused", () => {
  const broken: readonly (readonly [string, (p: Uint8Array) => void])[] = [
    ["instance 0", (p) => p.fill(0, 8, 16)],
    ["instance of 2^53", (p) => p.set(bytesOf([8, 0], [8, 32], [16, 0], [32, 0]), 8)],
    ["peer instance of 2^63", (p) => (p[16] = 0x80)],
    ["received beyond 2^53", (p) => p.fill(0xff, 24, 32)],
    ["least version above the greatest", (p) => (p[0] = 9)],
    ["build longer than allowed", (p) => (p[44] = 65)],
  ];
  for (const [name, breakIt] of broken) {
    const payload = join(helloPayload(HELLO), new Uint8Array(100));
    breakIt(payload);
    assert.equal(decodeHello(payload), undefined, name);
  }
});

Deno.test("OPEN with values that cannot be is refused", () => {
  const broken: readonly (readonly [string, (p: Uint8Array) => void])[] = [
    ["unknown flag", (p) => (p[0] = 2)],
    ["flow over TCP", (p) => (p[0] = 1)],
    ["stream over UDP", (p) => (p[1] = 17)],
    ["unknown protocol", (p) => (p[1] = 132)],
    ["service port 0", (p) => p.fill(0, 2, 4)],
    ["endpoint port 0", (p) => p.fill(0, 4, 6)],
    ["address of 5 bytes", (p) => (p[10] = 5)],
    ["address of no bytes", (p) => (p[10] = 0)],
    ["empty namespace", (p) => (p[15] = 0)],
    ["name with a control character", (p) => (p[16] = 10)],
    ["name with a space", (p) => (p[16] = 32)],
    ["name with a byte above ASCII", (p) => (p[16] = 0xc3)],
  ];
  for (const [name, breakIt] of broken) {
    const payload = openPayload(TCP4, false, 1);
    breakIt(payload);
    assert.equal(decodeOpen(payload, undefined), undefined, name);
  }
});

Deno.test("names that cannot travel are not encoded", () => {
  for (const service of ["", "a b", "é", "x".repeat(MAX_NAME + 1), "a\n"]) {
    assert.equal(openSize({ ...TCP4, service }), undefined, JSON.stringify(service));
    assert.equal(openSize({ ...TCP4, namespace: service }), undefined);
  }
  assert.ok(openSize({ ...TCP4, service: "x".repeat(MAX_NAME) }));
});

Deno.test("a long build text is cut, not refused", () => {
  const decoded = decodeHello(helloPayload({ ...HELLO, build: "x".repeat(200) }));
  assert.equal(decoded?.build, "x".repeat(64));
});

const offset = fc.maxSafeNat();
const u32 = fc.nat(0xffff_ffff);

Deno.test("property: both codecs write the same HELLO", () => {
  fc.assert(fc.property(
    fc.record({
      versions: fc.tuple(fc.nat(255), fc.nat(255)).map(([a, b]) => [Math.min(a, b), Math.max(a, b)] as const),
      initiator: fc.boolean(),
      draining: fc.boolean(),
      generation: u32,
      instance: fc.integer({ min: 1, max: Number.MAX_SAFE_INTEGER }),
      peerInstance: offset,
      received: offset,
      maxStreams: u32,
      maxFlows: u32,
      retention: u32,
      build: fc.stringMatching(/^[a-z0-9./]{0,64}$/),
    }),
    ({ versions: [versionMin, versionMax], ...rest }) => {
      const hello: Hello = { versionMin, versionMax, ...rest };
      const bytes = frameBytes(TYPE.HELLO, 0, helloPayload(hello));
      assert.equal(hex(bytes), hex(rawHello({ ...rest, min: versionMin, max: versionMax })));
      assert.deepEqual(decodeHello(bytes.subarray(8)), hello);
    },
  ));
});

Deno.test("property: an OPEN reads back what was written", () => {
  const name = fc.stringMatching(/^[\x21-\x7e]{1,60}$/);
  const port = fc.integer({ min: 1, max: 65_535 });
  fc.assert(
    fc.property(name, name, port, port, fc.boolean(), u32, fc.boolean(), (ns, service, p, q, v6, window, flow) => {
      const target: ServiceTarget = {
        namespace: ns,
        service,
        protocol: flow ? "UDP" : "TCP",
        port: p,
        node: undefined,
        endpoint: { ip: v6 ? "2001:db8::7" : "192.0.2.1", port: q },
      };
      assert.deepEqual(decodeOpen(openPayload(target, flow, window), undefined), { flow, window, target });
    }),
  );
});

Deno.test("property: integers are big-endian, like DataView writes them", () => {
  fc.assert(fc.property(offset, u32, fc.nat(0xffff), (n64, n32, n16) => {
    const b = new Uint8Array(14);
    put64(b, 0, n64);
    put32(b, 8, n32);
    put16(b, 12, n16);
    assert.equal(hex(b), hex(bytesOf([64, n64], [32, n32], [16, n16])));
    assert.deepEqual([get64(b, 0), get32(b, 8), get16(b, 12), get24(b, 9)], [n64, n32, n16, n32 % 0x100_0000]);
  }));
});

Deno.test("a u64 of 2^53 or more reads as none", () => {
  assert.equal(get64(unhex("001fffffffffffff"), 0), Number.MAX_SAFE_INTEGER);
  assert.equal(get64(unhex("0020000000000000"), 0), -1);
  assert.equal(get64(unhex("ffffffffffffffff"), 0), -1);
});

Deno.test("frames made in two ways are equal", () => {
  assert.equal(hex(frameBytes(0xc5, 0x89abcdef, unhex("0001"))), hex(rawFrame(0xc5, 0x89abcdef, unhex("0001"))));
});
