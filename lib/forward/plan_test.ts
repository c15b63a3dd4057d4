import assert from "node:assert/strict";
import { metaOf, service, slice } from "../../tests/fixtures/meta_literal.ts";
import { parseCidr } from "../addr.ts";
import { DEFAULT_FILTER } from "../meta/filters.ts";
import { DEFAULT_FORWARD_CONFIG, type ForwardConfig, type NodeFacts, type Preference } from "./facts.ts";
import { planForwarding } from "./plan.ts";
import type { PlannedPort, Slot } from "./plan_model.ts";

const facts: NodeFacts = {
  node: "n1",
  zone: "z1",
  addresses: ["192.0.2.1", "10.1.0.1", "169.254.96.16"],
  podCidrs: [parseCidr("10.1.0.0/24")!],
  routable: [{ node: "n2", cidr: parseCidr("10.2.0.0/24")! }],
  mesh4: "169.254.96.16",
  mesh6: undefined,
  hairpinLinks: [],
};

function plan(literals: Parameters<typeof metaOf>[0], config: Partial<ForwardConfig> = {}) {
  return planForwarding(metaOf(literals), facts, { ...DEFAULT_FORWARD_CONFIG, ...config });
}

function only(p: ReturnType<typeof plan>, key = "a/web"): PlannedPort {
  return p.services.get(key)!.ports[0]!;
}

function slots(port: PlannedPort): readonly Slot[] {
  return port.internal.verdict === "forward" ? port.internal.slots : [];
}

const web = service("a/web", { clusterIPs: ["10.96.0.1"] });

Deno.test("plan: each endpoint has its way and the reason", () => {
  const p = plan({
    services: [web],
    slices: [slice("a/web", [
      { ip: "10.1.0.5", node: "n1" },
      { ip: "10.2.0.5", node: "n2" },
      { ip: "10.3.0.5", node: "n3" },
      { ip: "10.9.0.5", node: "n2" },
      { ip: "203.0.113.5" },
    ])],
  });
  assert.deepEqual(slots(only(p)).map((s) => [s.endpoint.ip, s.way, s.reason]), [
    ["203.0.113.5", "proxy", "no-node"],
    ["10.1.0.5", "kernel", "own-node"],
    ["10.2.0.5", "kernel", "routable-subnet"],
    ["10.9.0.5", "tunnel", "other-node"],
    ["10.3.0.5", "tunnel", "other-node"],
  ]);
});

Deno.test("plan: the same pod address on two nodes is two endpoints", () => {
  const p = plan({
    services: [web],
    slices: [slice("a/web", [{ ip: "172.17.0.2", node: "n1" }, { ip: "172.17.0.2", node: "n3" }])],
  });
  assert.deepEqual(slots(only(p)).map((s) => [s.node, s.way]), [["n1", "kernel"], ["n3", "tunnel"]]);
});

Deno.test("plan: the order of slots does not depend on the order of slices, and duplicates are one", () => {
  const a = slice("a/web", [{ ip: "10.1.0.6", node: "n1" }, {
    ip: "10.1.0.5",
    node: "n1",
    ready: false,
    serving: false,
  }]);
  const b = slice("a/web", [{ ip: "10.1.0.5", node: "n1" }]);
  const keys = (...slices: (typeof a)[]) => slots(only(plan({ services: [web], slices }))).map((s) => s.key);
  assert.deepEqual(keys(a, b), ["n1/10.1.0.5:8080", "n1/10.1.0.6:8080"]);
  assert.deepEqual(keys(b, a), keys(a, b));
});

Deno.test("plan: no endpoints are refused, endpoints excluded by policy are dropped", () => {
  const local = { ...web, internalTrafficPolicy: "Local" as const };
  const remote = [slice("a/web", [{ ip: "10.3.0.5", node: "n3" }])];
  assert.deepEqual(only(plan({ services: [web] })).internal, { verdict: "reject", reason: "no-endpoints" });
  assert.deepEqual(only(plan({ services: [local], slices: remote })).internal, {
    verdict: "drop",
    reason: "traffic-policy",
  });
  assert.deepEqual(only(plan({ services: [local] })).internal, { verdict: "reject", reason: "no-endpoints" });
  assert.equal(only(plan({ services: [web], slices: remote })).internal.verdict, "forward");
});

Deno.test("plan: named and numeric target ports are taken from the slice, per protocol", () => {
  const dns = service("a/web", {
    clusterIPs: ["10.96.0.1"],
    ports: [{ name: "dns", port: 53, protocol: "UDP" }, { name: "dns-tcp", port: 53 }, { name: "metrics", port: 9 }],
  });
  const p = plan({
    services: [dns],
    slices: [slice("a/web", [{ ip: "10.1.0.5", node: "n1" }], [
      { name: "dns", port: 5353, protocol: "UDP" },
      { name: "dns-tcp", port: 5354 },
    ])],
  });
  assert.deepEqual(
    p.services.get("a/web")!.ports.map((port) => [port.id, slots(port).map((s) => s.endpoint.port)]),
    [["a/web UDP/53 v4", [5353]], ["a/web TCP/53 v4", [5354]], ["a/web TCP/9 v4", []]],
  );
});

Deno.test("plan: a dual-stack Service gets each family's own endpoints", () => {
  const dual = service("a/web", { clusterIPs: ["10.96.0.1", "fd00:10:96::1"] });
  const p = plan({
    services: [dual],
    slices: [slice("a/web", [{ ip: "10.1.0.5", node: "n1" }]), slice("a/web", [{ ip: "fd00:1::5", node: "n3" }])],
  });
  assert.deepEqual(
    p.services.get("a/web")!.ports.map((port) => [port.family, slots(port).map((s) => s.endpoint.ip)]),
    [[4, ["10.1.0.5"]], [6, ["fd00:1::5"]]],
  );
});

Deno.test("plan: Services of others and without a virtual address are left alone", () => {
  const cases = [
    service("a/headless", { headless: true }),
    service("a/external", { type: "ExternalName", externalName: "x.example" }),
    service("a/proxied", { clusterIPs: ["10.96.0.2"], labels: { "service.kubernetes.io/service-proxy-name": "x" } }),
    service("a/original", {
      clusterIPs: ["10.96.0.3"],
      labels: { "service.edgemesh.kubeedge.io/service-proxy-name": "" },
    }),
    service("default/kubernetes", { clusterIPs: ["10.96.0.4"] }),
  ];
  assert.equal(plan({ services: cases }, { filter: { ...DEFAULT_FILTER, nativeProxy: true } }).services.size, 0);
  const inverse = { filter: { ...DEFAULT_FILTER, mode: "FilterIfLabelDoesNotExists" } } as const;
  assert.deepEqual([...plan({ services: cases }, inverse).services.keys()], ["a/original"]);
});

Deno.test("plan: endpoints that must not be connected to are left out, with a note", () => {
  const endpoints = [
    { ip: "127.0.0.1", node: "n1" },
    { ip: "169.254.169.254" },
    { ip: "192.168.7.7" },
    { ip: "192.0.2.1" },
  ];
  const p = plan({ services: [web], slices: [slice("a/web", endpoints)] });
  assert.deepEqual(only(p).internal, { verdict: "reject", reason: "none-usable" });
  assert.equal(p.services.get("a/web")!.notes.length, 4);
  const opened = plan({ services: [web], slices: [slice("a/web", endpoints)] }, { privateEndpoints: true });
  assert.deepEqual(slots(only(opened)).map((s) => s.endpoint.ip), ["192.168.7.7"]);
});

Deno.test("plan: the agent's own ports are never an endpoint here, but the same address elsewhere is", () => {
  const make = (node: string) =>
    plan({ services: [web], slices: [slice("a/web", [{ ip: "192.0.2.1", node }], [{ port: 20006 }])] }, {
      reservedPorts: [20006],
    });
  assert.equal(only(make("n1")).internal.verdict, "reject");
  assert.deepEqual(slots(only(make("n3"))).map((s) => s.way), ["tunnel"]);
});

Deno.test("plan: external addresses count only inside the allowed networks", () => {
  const s = service("a/web", {
    clusterIPs: ["10.96.0.1"],
    externalIPs: ["198.51.100.7", "203.0.113.9", "192.0.2.1"],
    ports: [{ port: 80, nodePort: 30080 }],
  });
  const config = { externalIPs: [parseCidr("198.51.100.0/24")!, parseCidr("192.0.2.0/24")!] };
  const p = plan({ services: [s] }, config);
  assert.deepEqual(only(p).frontends, [
    { kind: "cluster-ip", ip: "10.96.0.1", port: 80 },
    { kind: "external-ip", ip: "198.51.100.7", port: 80 },
    { kind: "node-port", ip: "", port: 30080 },
  ]);
  assert.equal(p.services.get("a/web")!.notes.length, 2);
});

Deno.test("plan: one address claimed twice belongs to one Service, and to the other when that is gone", () => {
  const first = service("a/one", { clusterIPs: ["10.96.0.1"] });
  const second = service("b/two", { clusterIPs: ["10.96.0.1"] });
  const both = plan({ services: [second, first] });
  assert.equal(only(both, "a/one").frontends.length, 1);
  assert.equal(only(both, "b/two").frontends.length, 0);
  assert.match(both.services.get("b/two")!.notes[0]!, /a\/one/);
  const after = planForwarding(metaOf({ services: [second] }), facts, both.config, both);
  assert.equal(only(after, "b/two").frontends.length, 1);
});

Deno.test("plan: near endpoints are preferred only when asked, and only while there are some", () => {
  const endpoints = [
    { ip: "10.1.0.5", node: "n1", zone: "z1" },
    { ip: "10.3.0.5", node: "n3", zone: "z1" },
    { ip: "10.4.0.5", node: "n4", zone: "z2" },
  ];
  const count = (trafficDistribution: string | undefined, list = endpoints) =>
    slots(only(plan({
      services: [{ ...web, ...(trafficDistribution ? { trafficDistribution } : {}) }],
      slices: [slice("a/web", list)],
    }))).map((s) => s.node);
  assert.deepEqual(count(undefined), ["n1", "n3", "n4"]);
  assert.deepEqual(count("PreferSameNode"), ["n1"]);
  assert.deepEqual(count("PreferClose"), ["n1", "n3"]);
  assert.deepEqual(count("PreferSameNode", endpoints.slice(1)), ["n3"]);
  assert.deepEqual(count("PreferSameZone", endpoints.slice(2)), ["n4"]);
});

Deno.test("plan: preference node, LAN, zone, all: by configuration, by annotation, which wins, and with unknown words", () => {
  const endpoints = [
    { ip: "10.1.0.5", node: "n1", zone: "z1" },
    { ip: "10.2.0.5", node: "n2", zone: "z2" },
    { ip: "10.3.0.5", node: "n3", zone: "z1" },
    { ip: "10.4.0.5", node: "n4", zone: "z2" },
  ];
  const planned = (prefer: Preference, annotation?: string, from = 0) => {
    const annotations: Record<string, string> = annotation === undefined ? {} : { "edgemesh.io/prefer": annotation };
    const meta = metaOf({ services: [{ ...web, annotations }], slices: [slice("a/web", endpoints.slice(from))] });
    return planForwarding(meta, { ...facts, lan: ["n2"] }, { ...DEFAULT_FORWARD_CONFIG, prefer });
  };
  const nodes = (...of: Parameters<typeof planned>) => slots(only(planned(...of))).map((s) => s.node);
  assert.deepEqual(nodes("none"), ["n1", "n2", "n3", "n4"]);
  assert.deepEqual([nodes("node"), nodes("node", undefined, 1), nodes("node", undefined, 2)], [["n1"], ["n2"], ["n3"]]);
  assert.deepEqual([nodes("lan"), nodes("lan", undefined, 2), nodes("lan", undefined, 3)], [["n1", "n2"], ["n3"], [
    "n4",
  ]]);
  assert.deepEqual(nodes("zone"), ["n1", "n3"]);
  assert.deepEqual([nodes("none", "lan"), nodes("node", "none").length], [["n1", "n2"], 4]);
  assert.deepEqual(nodes("zone", "nearby"), ["n1", "n3"]);
  assert.match(planned("zone", "nearby").services.get("a/web")!.notes.join(), /edgemesh\.io\/prefer: "nearby"/);
});

Deno.test("plan: what did not change keeps its identity, what changed does not", () => {
  const other = service("a/other", { clusterIPs: ["10.96.0.9"] });
  const one = slice("a/web", [{ ip: "10.1.0.5", node: "n1" }]);
  const before = plan({ services: [web, other], slices: [one] });
  const changed = { ...one, endpoints: [{ ...one.endpoints[0]!, ip: "10.1.0.6" }] };
  const after = planForwarding(metaOf({ services: [web, other], slices: [changed] }), facts, before.config, before);
  assert.equal(after.services.get("a/other"), before.services.get("a/other"));
  assert.notEqual(after.services.get("a/web"), before.services.get("a/web"));
});
