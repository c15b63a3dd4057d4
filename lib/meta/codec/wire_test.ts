import assert from "node:assert/strict";
import fc from "fast-check";
import { MeshError } from "../../errors.ts";
import { Interner } from "../convert/intern.ts";
import type { Endpoint, EndpointSlice, Kind, Kinds } from "../model.ts";
import { KINDS } from "../model.ts";
import { anEndpoint, aNode, aPod, aService, aSlice } from "../testing.ts";
import {
  decodeMessage,
  decodeUnit,
  encodeAck,
  encodeHello,
  encodeUnit,
  encodeWelcome,
  MAX_META_MESSAGE,
} from "../fanout/wire.ts";
import { applyPatch, encodePatch } from "./wire_endpoint.ts";
import { decodeObject, encodeObject } from "./wire_objects.ts";

const strings = new Interner();

const OBJECTS: [Kind, Kinds[Kind]][] = [
  ["service", aService()],
  ["slice", aSlice({ sourceCluster: "west-1" })],
  [
    "service",
    aService({
      type: "LoadBalancer",
      headless: false,
      clusterIPs: ["10.96.0.1", "fd00::1"],
      ports: [
        { name: "a", protocol: "UDP", port: 53, appProtocol: "x" },
        { name: "b", protocol: "TCP", port: 1, nodePort: 30001 },
      ],
      externalIPs: ["203.0.113.1"],
      loadBalancerIPs: ["203.0.113.2"],
      affinitySeconds: 60,
      internalTrafficPolicy: "Local",
      externalTrafficPolicy: "Local",
      publishNotReadyAddresses: true,
      trafficDistribution: "PreferClose",
      labels: { a: "b" },
      annotations: { c: "d" },
      created: 1,
    }),
  ],
  ["service", aService({ type: "ExternalName", clusterIPs: [], ports: [], externalName: "db.example.com" })],
  ["service", aService({ headless: true, clusterIPs: [] })],
  ["slice", aSlice()],
  [
    "slice",
    aSlice({
      name: "web~3",
      endpoints: [
        anEndpoint("fd00::9", { zone: "z", hostname: "h", pod: "p", hintZones: ["z"], hintNodes: ["n"], ready: false }),
        { ip: "10.0.0.1", ready: true, serving: false, terminating: true, hintNodes: ["n"] },
      ],
    }),
  ],
  ["node", aNode({ zone: "z", labels: { "kubernetes.io/hostname": "x" } })],
  ["node", aNode({ internalIPs: [], podCIDRs: [] })],
  ["pod", aPod()],
  ["namespace", { name: "shop", labels: { team: "a" } }],
  [
    "route",
    {
      apiVersion: "networking.istio.io/v1",
      kind: "Gateway",
      namespace: "",
      name: "g",
      spec: { a: [1] },
      labels: {},
      created: 5,
    },
  ],
];

for (const [i, [kind, object]] of OBJECTS.entries()) {
  Deno.test(`wire: ${kind} #${i} comes back as it was`, () => {
    const json = JSON.parse(JSON.stringify(encodeObject(kind, object)));
    assert.deepEqual(decodeObject(kind, json, strings), object);
  });
}

/** Values that must not become objects: each would reach kernel rules or DNS answers. */
const REFUSED: [Kind, unknown, RegExp][] = [
  ["service", "x", /must be a list/],
  ["service", ["shop", "Web", 0, 0, [], []], /\[1\] is not a valid name/],
  ["service", ["shop", "web", 9, 0, [], []], /\[2\] must be a whole number/],
  ["service", ["shop", "web", 0, 0, ["10.0.0.01"], []], /\[4\]\[0\] is not an address/],
  ["service", ["shop", "web", 0, 0, ["10.0.0.1 ; drop"], []], /\[4\]\[0\] is not an address/],
  ["service", ["shop", "web", 0, 0, ["FD00::1"], []], /canonical/],
  ["service", ["shop", "web", 0, 0, [], [["http", 0, 0]]], /\[5\]\[0\]\[2\] must be/],
  ["service", ["shop", "web", 0, 0, ["1.1.1.1", "1.1.1.2", "1.1.1.3"], []], /holds more than 2/],
  ["slice", ["shop", "a/b", "web", [], []], /\[1\] is not a valid name/],
  ["slice", ["shop", "a", "web", [], [["10.0.0.1", "UPPER"]]], /\[1\] is not a valid name/],
  ["slice", ["shop", "a", "web", [], [["10.0.0.1", 0, 1, "no pod"]]], /\[3\] is not a valid name/],
  ["node", ["n", 0, [], ["10.0.0.1/8"]], /is not a network/],
  ["pod", ["shop", "p", 0, [5]], /must be text/],
  ["namespace", ["shop", { a: 5 }], /must be text/],
  ["route", ["v1", "K", "", "n", 5], /must be an object/],
];

for (const [kind, value, expected] of REFUSED) {
  Deno.test(`wire: not a ${kind}: ${JSON.stringify(value)}`, () => {
    const result = decodeObject(kind, value, strings);
    assert.equal(typeof result, "string");
    assert.match(result as string, expected);
  });
}

Deno.test("wire: any JSON value is an object or a sentence, never an exception", () => {
  fc.assert(fc.property(fc.constantFrom(...KINDS), fc.jsonValue(), (kind, value) => {
    decodeObject(kind, value, strings);
  }));
});

Deno.test("wire: messages come back as they were", () => {
  const version = { source: "srv", epoch: "e1", number: 42 };
  assert.deepEqual(decodeMessage(encodeHello(version)), { type: "hello", protocol: 1, have: version });
  assert.deepEqual(decodeMessage(encodeHello(undefined)), { type: "hello", protocol: 1, have: undefined });
  assert.deepEqual(decodeMessage(encodeWelcome("s", "e")), { type: "welcome", protocol: 1, source: "s", epoch: "e" });
  assert.deepEqual(decodeMessage(encodeAck(0xfffffffe)), { type: "ack", messages: 0xfffffffe });
  assert.equal(decodeMessage(Uint8Array.of(99, 1, 2)), undefined, "a type of a later version");
});

Deno.test("wire: golden bytes of version 1", () => {
  const text = (bytes: Uint8Array) => new TextDecoder().decode(bytes);
  assert.equal(text(encodeHello({ source: "s", epoch: "e", number: 7 })), '\x01{"v":1,"have":["s","e",7]}');
  assert.equal(text(encodeHello(undefined)), '\x01{"v":1}');
  assert.equal(text(encodeWelcome("s", "e")), '\x02{"v":1,"s":"s","e":"e"}');
  assert.deepEqual([...encodeAck(258)], [4, 0, 0, 1, 2]);
  assert.deepEqual(encodeUnit("{}").map((m) => [...m]), [[3, 3, 123, 125]]);
  assert.equal(
    JSON.stringify(encodeObject("service", aService())),
    '["shop","web",0,0,["10.96.0.10"],[["http",0,80]]]',
  );
  assert.equal(
    JSON.stringify(encodeObject("slice", aSlice())),
    '["shop","web-abc12","web",[["http",0,8080]],[["10.1.0.5","edge-1",3]]]',
  );
});

Deno.test("wire: a unit larger than a message is cut and marked", () => {
  const text = JSON.stringify({ i: ["é".repeat(20_000)] });
  const messages = encodeUnit(text);
  assert.ok(messages.length > 2 && messages.every((m) => m.length <= MAX_META_MESSAGE));
  const parts = messages.map((m) => decodeMessage(m)).map((m) => m?.type === "unit" ? m : assert.fail());
  assert.deepEqual(parts.map((p) => p.first), messages.map((_, i) => i === 0));
  assert.deepEqual(parts.map((p) => p.last), messages.map((_, i) => i === messages.length - 1));
  const bytes = Uint8Array.from(parts.flatMap((p) => [...p.bytes]));
  assert.deepEqual(decodeUnit(bytes).items, ["é".repeat(20_000)]);
});

Deno.test("wire: rubbish is a PROTOCOL error, never another exception", () => {
  const encode = (text: string) => new TextEncoder().encode(text);
  fc.assert(fc.property(fc.uint8Array({ maxLength: 60 }), (bytes) => {
    for (const read of [() => decodeMessage(bytes), () => decodeUnit(bytes)]) {
      try {
        read();
      } catch (error) {
        assert.ok(error instanceof MeshError && error.code === "PROTOCOL", String(error));
      }
    }
  }));
  for (
    const bad of ["\x01", "\x01[]", '\x01{"v":1,"have":5}', '\x01{"v":-1}', '\x02{"v":1,"s":""}', "\x03", "\x04abc"]
  ) {
    assert.throws(() => decodeMessage(encode(bad)), { code: "PROTOCOL" }, bad);
  }
  for (const bad of ["", "{}", '{"i":5}', '{"i":[],"k":"x"}', '{"i":[],"k":"f"}', '{"i":[],"k":"d","t":1}']) {
    assert.throws(() => decodeUnit(encode(bad)), { code: "PROTOCOL" }, bad);
  }
  assert.throws(() => decodeMessage(new Uint8Array(MAX_META_MESSAGE + 1)), { code: "PROTOCOL" });
});

const endpoints: fc.Arbitrary<Endpoint[]> = fc.uniqueArray(
  fc.record({ n: fc.nat(30), node: fc.constantFrom(undefined, "a", "b"), ready: fc.boolean() }),
  { selector: (e) => `${e.n} ${e.node}`, maxLength: 25 },
).map((list) =>
  list.map(({ n, node, ready }) => ({
    ip: `10.0.0.${n}`,
    ...(node === undefined ? {} : { node }),
    ready,
    serving: ready,
    terminating: false,
  }))
);

Deno.test("wire: a patch turns one slice into the other, order included, or there is none", () => {
  fc.assert(fc.property(endpoints, endpoints, (a, b) => {
    const before = aSlice({ endpoints: a });
    const after = aSlice({ endpoints: b });
    const patch = encodePatch(before, after);
    if (patch === undefined) return;
    assert.deepEqual(applyPatch(before, JSON.parse(JSON.stringify(patch)), strings), after);
  }));
});

Deno.test("wire: one endpoint of a hundred is a patch of some bytes", () => {
  const list = Array.from({ length: 100 }, (_, i) => anEndpoint(`10.1.0.${i}`, { pod: `web-7d9f8b6c5-${i}` }));
  const before = aSlice({ endpoints: list });
  const cases: [string, Endpoint[]][] = [
    ["changed", list.with(50, { ...list[50]!, ready: false })],
    ["removed", list.toSpliced(50, 1)],
    ["added", [...list, anEndpoint("10.1.0.200")]],
  ];
  for (const [name, endpoints] of cases) {
    const after: EndpointSlice = { ...before, endpoints };
    const patch = encodePatch(before, after);
    assert.ok(patch && JSON.stringify(patch).length < 80, name);
    assert.deepEqual(applyPatch(before, patch, strings), after);
  }
  assert.equal(encodePatch(before, { ...before, endpoints: list.toReversed() }), undefined, "order cannot be said");
  assert.equal(encodePatch(before, { ...before, ports: [] }), undefined);
});
