import assert from "node:assert/strict";
import fc from "fast-check";
import { metaOf, service, slice } from "../../tests/fixtures/meta_literal.ts";
import type { RouteObject } from "../meta/model.ts";
import { DEFAULT_FORWARD_CONFIG, type NodeFacts } from "./facts.ts";
import { planForwarding } from "./plan.ts";
import { policiesOf } from "./policies.ts";

function rule(spec: unknown, name = "rule", namespace = "shop"): RouteObject {
  return { kind: "DestinationRule", apiVersion: "networking.istio.io/v1beta1", namespace, name, labels: {}, spec };
}

function only(spec: unknown) {
  return policiesOf(metaOf({ routes: [rule(spec)] })).get("shop/web");
}

const balances: readonly (readonly [unknown, string | undefined])[] = [
  [{ simple: "ROUND_ROBIN" }, "round-robin"],
  [{ simple: "RANDOM" }, "random"],
  [{ simple: "LEAST_CONN" }, "least-connections"],
  [{ simple: "LEAST_REQUEST" }, "least-connections"],
  [{ simple: "PASSTHROUGH" }, undefined],
  [{ simple: "UNSPECIFIED" }, undefined],
  [{ consistentHash: { useSourceIp: true } }, "source-hash"],
  [{ consistentHash: { httpHeaderName: "User-Agent" } }, "request-hash"],
  [{ consistentHash: { httpCookie: { name: "sid", ttl: "0s" } } }, "request-hash"],
  [{ consistentHash: { httpQueryParameterName: "user", minimumRingSize: 4 } }, "request-hash"],
];
for (const [loadBalancer, balance] of balances) {
  Deno.test(`policies: ${JSON.stringify(loadBalancer)} is ${balance ?? "left to us"}`, () => {
    const policy = only({ host: "web", trafficPolicy: { loadBalancer } })!;
    assert.deepEqual([policy.balancing?.balance, policy.notes], [balance, []]);
  });
}

for (
  const loadBalancer of [
    { simple: "FASTEST" },
    { simple: "constructor" },
    { simple: 7 },
    {},
    {
      consistentHash: { minimumRingSize: 4 },
    },
    { consistentHash: { httpHeaderName: 7 } },
    { consistentHash: { httpCookie: {} } },
  ]
) {
  Deno.test(`policies: ${JSON.stringify(loadBalancer)} is a note and changes nothing`, () => {
    const policy = only({ host: "web", trafficPolicy: { loadBalancer } })!;
    assert.equal(policy.balancing, undefined);
    assert.match(policy.notes[0]!, /^DestinationRule shop\/rule: /);
  });
}

Deno.test("policies: hosts in every form", () => {
  for (const host of ["web", "web.shop", "web.shop.svc", "web.shop.svc.cluster.local", "web.shop.svc.cluster.local."]) {
    assert.ok(only({ host }), host);
  }
  for (const host of ["", "*.shop", "web.other", "web.shop.example.com", 7, undefined]) {
    assert.equal(only({ host }), undefined, String(host));
  }
});

Deno.test("policies: a port's own setting wins over the Service's", () => {
  const policy = only({
    host: "web",
    trafficPolicy: {
      loadBalancer: { simple: "RANDOM" },
      portLevelSettings: [{ port: { number: 80 }, loadBalancer: { simple: "LEAST_CONN" } }, { port: {} }, null],
    },
  })!;
  const perPort = [...policy.perPort].map(([port, { balance }]) => [port, balance]);
  assert.deepEqual([policy.balancing?.balance, perPort], ["random", [[80, "least-connections"]]]);
});

Deno.test("policies: whatever a rule holds, it is read without an error", () => {
  const keys = fc.constantFrom(
    "host",
    "trafficPolicy",
    "loadBalancer",
    "simple",
    "consistentHash",
    "httpCookie",
    "httpHeaderName",
    "portLevelSettings",
  );
  const { tree } = fc.letrec((tie) => ({
    tree: fc.oneof(
      { depthSize: "small" },
      fc.jsonValue({ maxDepth: 1 }),
      fc.dictionary(keys, tie("tree"), { maxKeys: 4 }),
      fc.array(tie("tree"), { maxLength: 3 }),
    ),
  }));
  fc.assert(fc.property(tree, (spec) => void policiesOf(metaOf({ routes: [rule(spec)] }))));
});

const facts: NodeFacts = {
  node: "n1",
  addresses: [],
  podCidrs: [],
  routable: [],
  mesh4: "169.254.96.16",
  mesh6: undefined,
  hairpinLinks: [],
};

Deno.test("policies: a rule that came before its Service applies when that appears, and changes with it", () => {
  const routes = [rule({ host: "web", trafficPolicy: { loadBalancer: { simple: "LEAST_CONN" } } })];
  const empty = planForwarding(metaOf({ routes }), facts, DEFAULT_FORWARD_CONFIG);
  const services = [service("shop/web", { clusterIPs: ["10.96.0.1"] })];
  const slices = [slice("shop/web", [{ ip: "10.1.0.5", node: "n1" }])];
  const plan = planForwarding(metaOf({ services, slices, routes }), facts, DEFAULT_FORWARD_CONFIG, empty);
  const port = plan.services.get("shop/web")!.ports[0]!;
  assert.equal(port.balance, "least-connections");
  // The kernel cannot count connections, so the agent carries them.
  assert.deepEqual(port.internal.verdict === "forward" && port.internal.slots.map((s) => [s.way, s.reason]), [[
    "proxy",
    "balance",
  ]]);
  const without = planForwarding(metaOf({ services, slices }), facts, DEFAULT_FORWARD_CONFIG, plan);
  assert.equal(without.services.get("shop/web")!.ports[0]!.balance, "round-robin");
});

Deno.test("policies: balancing by request needs TCP and gives way to sessionAffinity", () => {
  const routes = [rule({ host: "web", trafficPolicy: { loadBalancer: { consistentHash: { httpHeaderName: "X" } } } })];
  const slices = [slice("shop/web", [{ ip: "10.1.0.5", node: "n1" }])];
  const planned = (extra: Parameters<typeof service>[1]) => {
    const services = [service("shop/web", { clusterIPs: ["10.96.0.1"], ...extra })];
    return planForwarding(metaOf({ services, slices, routes }), facts, DEFAULT_FORWARD_CONFIG).services.get(
      "shop/web",
    )!;
  };
  const plain = planned({});
  assert.deepEqual(plain.ports.map((p) => [p.balance, p.hashOn]), [["request-hash", { kind: "header", name: "x" }]]);
  assert.deepEqual(plain.notes, []);
  const kept = planned({ affinitySeconds: 60 });
  assert.deepEqual(kept.ports.map((p) => [p.balance, p.hashOn]), [["round-robin", undefined]]);
  assert.match(kept.notes[0]!, /sessionAffinity/);
  const udp = planned({ ports: [{ port: 53, protocol: "UDP" }] });
  assert.deepEqual(udp.ports.map((p) => [p.balance, p.hashOn]), [["round-robin", undefined]]);
  assert.match(udp.notes[0]!, /UDP has no requests/);
});
