import assert from "node:assert/strict";
import { parseCidr } from "../addr.ts";
import type { GuardPolicy } from "./guard.ts";
import { Guard } from "./guard.ts";
import type { EndpointSlice, Node, Service } from "./model.ts";
import type { ObjectChange } from "./objects.ts";
import { put, remove } from "./objects.ts";
import { problemText } from "./problems.ts";
import { anEndpoint, aNode, aPod, aService, aSlice } from "./testing.ts";

const policy: GuardPolicy = {
  serviceCidrs: [parseCidr("10.96.0.0/12")!, parseCidr("fd00:10:96::/112")!],
  externalCidrs: [parseCidr("203.0.113.0/24")!],
  own: new Set(["192.168.1.10", "10.96.0.77"]),
  vital: new Set(["192.168.1.1", "203.0.113.53"]),
  zones: ["cluster.local"],
};

function one(change: ObjectChange): { object: unknown; texts: string[] } {
  const guard = new Guard(policy);
  const [out] = guard.filter([change]);
  return { object: out!.object, texts: [...guard.book.all()].map(problemText) };
}

const SERVICES: [string, Partial<Service>, Partial<Service> | undefined, RegExp | undefined][] = [
  ["inside the networks", {}, { clusterIPs: ["10.96.0.10"] }, undefined],
  [
    "a public address as cluster IP",
    { clusterIPs: ["8.8.8.8"] },
    undefined,
    /clusterIPs\[0\] 8\.8\.8\.8: is outside the service/,
  ],
  [
    "one family outside",
    { clusterIPs: ["10.96.0.10", "fd11::1"] },
    { clusterIPs: ["10.96.0.10"] },
    /fd11::1: is outside/,
  ],
  ["an own address inside the networks", { clusterIPs: ["10.96.0.77"] }, undefined, /is an address of this node/],
  ["loopback", { clusterIPs: ["127.0.0.1"] }, undefined, /is a loopback/],
  ["multicast", { clusterIPs: ["224.0.0.1"] }, undefined, /multicast/],
  ["external IP by the list", { externalIPs: ["203.0.113.9"] }, { externalIPs: ["203.0.113.9"] }, undefined],
  [
    "external IP not in it",
    { externalIPs: ["1.1.1.1"] },
    { externalIPs: [] },
    /externalIPs\[0\] 1\.1\.1\.1: is not in this/,
  ],
  [
    "a resolver in the list's network",
    { externalIPs: ["203.0.113.53"] },
    { externalIPs: [] },
    /gateway, resolver or server/,
  ],
  ["balancer IP", { loadBalancerIPs: ["192.168.1.1"] }, { loadBalancerIPs: [] }, /loadBalancerIPs\[0\] 192\.168\.1\.1/],
  [
    "SSH as node port",
    { ports: [{ name: "", protocol: "TCP", port: 80, nodePort: 22 }] },
    { ports: [{ name: "", protocol: "TCP", port: 80 }] },
    /ports\[0\]\.nodePort 22: is outside the node-port range/,
  ],
  ["headless needs no address", { clusterIPs: [], headless: true }, { headless: true }, undefined],
];

for (const [name, given, expected, problem] of SERVICES) {
  Deno.test(`guard: Service, ${name}`, () => {
    const { object, texts } = one(put("service", aService(given)));
    if (expected === undefined) assert.equal(object, undefined);
    else for (const [k, v] of Object.entries(expected)) assert.deepEqual((object as Record<string, unknown>)[k], v);
    if (problem) assert.match(texts.join("\n"), problem);
    else assert.deepEqual(texts, []);
  });
}

Deno.test("guard: what is allowed stays the same object", () => {
  for (const change of [put("service", aService()), put("slice", aSlice()), put("node", aNode()), put("pod", aPod())]) {
    assert.equal(one(change).object, change.object);
  }
});

Deno.test("guard: endpoints that are loopback, link-local or a virtual address are left out", () => {
  const ips = ["10.1.0.5", "127.0.0.1", "169.254.96.16", "10.96.0.10", "fe80::1", "::1", "192.168.1.10"];
  const { object, texts } = one(put("slice", aSlice({ endpoints: ips.map((ip) => anEndpoint(ip)) })));
  assert.deepEqual((object as EndpointSlice).endpoints.map((e) => e.ip), ["10.1.0.5", "192.168.1.10"]);
  assert.equal(texts.length, 5);
});

Deno.test("guard: pod networks that would open the node's surroundings are left out", () => {
  const podCIDRs = ["10.1.0.0/24", "0.0.0.0/0", "192.168.1.0/24", "10.96.0.0/16", "127.0.0.0/8", "::/0", "fd01::/64"];
  const { object, texts } = one(put("node", aNode({ podCIDRs })));
  assert.deepEqual((object as Node).podCIDRs, ["10.1.0.0/24", "fd01::/64"]);
  assert.match(texts.join("\n"), /0\.0\.0\.0\/0: is too wide/);
  assert.match(texts.join("\n"), /192\.168\.1\.0\/24: holds 192\.168\.1\.1, a gateway/);
  assert.match(texts.join("\n"), /10\.96\.0\.0\/16: overlaps the service network/);
});

Deno.test("guard: mesh routes name hosts of the cluster only, gateways may name others", () => {
  const route = (kind: string, spec: unknown) =>
    one(put("route", { apiVersion: "networking.istio.io/v1", kind, namespace: "a", name: "r", spec, labels: {} }));
  const hosts = (list: unknown, gateways?: unknown) => route("VirtualService", { hosts: list, gateways }).object;
  assert.ok(hosts(["reviews", "reviews.prod.svc", "reviews.prod.svc.cluster.local", "*.prod.svc.cluster.local."]));
  for (const bad of ["google.com", "*", "*.com", "notcluster.local", 5]) {
    assert.equal(hosts([bad]), undefined, String(bad));
  }
  assert.equal(hosts(["google.com"], ["mesh", "gw"]), undefined);
  assert.ok(hosts(["www.example.com"], ["gw"]));
  assert.equal(route("ServiceEntry", { hosts: ["api.example.com"] }).object, undefined);
  assert.ok(route("DestinationRule", { host: "anything" }).object);
});

Deno.test("guard: an object that is fixed or removed takes its problems with it, the counter stays", () => {
  const guard = new Guard(policy);
  guard.filter([put("service", aService({ clusterIPs: ["8.8.8.8"] }))]);
  assert.equal(guard.book.size, 1);
  guard.filter([put("service", aService())]);
  assert.equal(guard.book.size, 0);
  guard.filter([put("service", aService({ clusterIPs: ["8.8.8.8"] }))]);
  assert.deepEqual(guard.filter([remove("service", "shop/web")]), [remove("service", "shop/web")]);
  assert.equal(guard.book.size, 0);
  assert.equal(guard.book.total, 2);
});

Deno.test("guard: a policy that became narrower holds for the next change", () => {
  const guard = new Guard(policy);
  assert.ok(guard.filter([put("service", aService())])[0]!.object);
  guard.policy = { ...policy, serviceCidrs: [parseCidr("10.43.0.0/16")!] };
  assert.equal(guard.filter([put("service", aService())])[0]!.object, undefined);
});
