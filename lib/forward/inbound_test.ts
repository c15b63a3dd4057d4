import assert from "node:assert/strict";
import { metaOf, service, slice } from "../../tests/fixtures/meta_literal.ts";
import { parseCidr } from "../addr.ts";
import type { ReasonCode } from "../errors.ts";
import type { ServiceTarget } from "../net.ts";
import { authorize, type InboundPolicy } from "./inbound.ts";

const policy: InboundPolicy = {
  facts: {
    node: "n1",
    addresses: ["192.0.2.1", "10.1.0.1", "fd00:1::1"],
    podCidrs: [parseCidr("10.1.0.0/24")!, parseCidr("fd00:1::/64")!],
    routable: [],
    mesh4: "169.254.96.16",
    mesh6: undefined,
    hairpinLinks: [],
  },
  config: { hostPorts: [9100, 20006], reservedPorts: [20006] },
};

const meta = metaOf({
  services: [
    service("a/web", { clusterIPs: ["10.96.0.1"], ports: [{ port: 80, name: "http" }] }),
    service("a/odd", { clusterIPs: ["10.96.0.2"] }),
    service("a/host", { clusterIPs: ["10.96.0.3"], ports: [{ port: 9100 }, { port: 20006, name: "own" }] }),
  ],
  slices: [
    slice("a/web", [
      { ip: "10.1.0.5", node: "n1" },
      { ip: "10.1.0.6", node: "n2" },
      { ip: "10.1.0.7" },
      { ip: "fd00:1::5", node: "n1" },
    ], [{ name: "http", port: 8080 }]),
    slice("a/odd", [
      { ip: "127.0.0.1", node: "n1" },
      { ip: "169.254.169.254", node: "n1" },
      { ip: "192.168.1.1", node: "n1" },
      { ip: "10.1.0.1", node: "n1" },
    ]),
    slice("a/host", [{ ip: "192.0.2.1", node: "n1" }], [{ port: 9100 }, { name: "own", port: 20006 }]),
  ],
});

const good: ServiceTarget = {
  namespace: "a",
  service: "web",
  protocol: "TCP",
  port: 80,
  node: "n1",
  endpoint: { ip: "10.1.0.5", port: 8080 },
};

Deno.test("T08: authorize: an endpoint of the Service on this node, inside its pod network, is dialled as it was checked", () => {
  assert.deepEqual(authorize(good, meta, policy), { ok: true, dial: good.endpoint });
  const six = { ...good, endpoint: { ip: "fd00:1::5", port: 8080 } };
  assert.deepEqual(authorize(six, meta, policy), { ok: true, dial: six.endpoint });
});

Deno.test("authorize: a host port opened in the local configuration", () => {
  const target = { ...good, service: "host", port: 9100, endpoint: { ip: "192.0.2.1", port: 9100 } };
  assert.deepEqual(authorize(target, meta, policy), { ok: true, dial: target.endpoint });
});

const refusals: readonly (readonly [string, Partial<ServiceTarget>, ReasonCode])[] = [
  ["an unknown Service", { service: "nope" }, "NO_SERVICE"],
  ["a Service of another namespace", { namespace: "b" }, "NO_SERVICE"],
  ["a port the Service does not have", { port: 81 }, "NO_SERVICE"],
  ["the right port of the other protocol", { protocol: "UDP" }, "NO_SERVICE"],
  ["an address that is no endpoint", { endpoint: { ip: "10.1.0.99", port: 8080 } }, "ENDPOINT_REMOVED"],
  ["an endpoint on a port that is not its target port", { endpoint: { ip: "10.1.0.5", port: 22 } }, "ENDPOINT_REMOVED"],
  ["an endpoint of another node under our name", { endpoint: { ip: "10.1.0.6", port: 8080 } }, "ENDPOINT_REMOVED"],
  ["an endpoint of another node", { node: "n2", endpoint: { ip: "10.1.0.6", port: 8080 } }, "NOT_ALLOWED"],
  ["an endpoint without a node", { node: undefined, endpoint: { ip: "10.1.0.7", port: 8080 } }, "NOT_ALLOWED"],
  ["an endpoint without a node under our name", { endpoint: { ip: "10.1.0.7", port: 8080 } }, "ENDPOINT_REMOVED"],
  ["loopback, even as an endpoint", { service: "odd", endpoint: { ip: "127.0.0.1", port: 8080 } }, "NOT_ALLOWED"],
  [
    "link-local, even as an endpoint",
    { service: "odd", endpoint: { ip: "169.254.169.254", port: 8080 } },
    "NOT_ALLOWED",
  ],
  [
    "an address outside the pod networks",
    { service: "odd", endpoint: { ip: "192.168.1.1", port: 8080 } },
    "NOT_ALLOWED",
  ],
  [
    "the host's own address inside the pod network",
    { service: "odd", endpoint: { ip: "10.1.0.1", port: 8080 } },
    "NOT_ALLOWED",
  ],
  [
    "a host port that is ours, even when opened",
    { service: "host", port: 20006, endpoint: { ip: "192.0.2.1", port: 20006 } },
    "NOT_ALLOWED",
  ],
];

for (const [what, change, code] of refusals) {
  Deno.test(`authorize: refused: ${what}`, () => {
    const answer = authorize({ ...good, ...change }, meta, policy);
    assert.deepEqual([answer.ok, !answer.ok && answer.refused], [false, code]);
    assert.ok(!answer.ok && answer.why.length > 10);
  });
}

Deno.test("T09: authorize: refused: a host port that the local configuration did not open", () => {
  const closed = { ...policy, config: { hostPorts: [], reservedPorts: [] } };
  const target = { ...good, service: "host", port: 9100, endpoint: { ip: "192.0.2.1", port: 9100 } };
  assert.equal(authorize(target, meta, closed).ok, false);
});

Deno.test("T08: authorize: refused: anything before the first snapshot", () => {
  for (const early of [undefined, metaOf({ synced: false })]) {
    const answer = authorize(good, early, policy);
    assert.deepEqual(!answer.ok && answer.refused, "NOT_SYNCED");
  }
});
