import assert from "node:assert/strict";
import fc from "fast-check";
import { convert, ConvertContext } from "./convert.ts";
import type { EndpointSlice, Node, Pod, RouteObject, Service } from "../model.ts";
import { problemText } from "../problems.ts";

function run(raw: unknown) {
  const result = convert(raw, new ConvertContext());
  return { ...result, objects: result.puts.map((p) => p.object), texts: result.problems.map(problemText) };
}

function service(spec: unknown, over: Record<string, unknown> = {}) {
  return { apiVersion: "v1", kind: "Service", metadata: { namespace: "shop", name: "web" }, spec, ...over };
}

function slice(over: Record<string, unknown>) {
  return {
    apiVersion: "discovery.k8s.io/v1",
    kind: "EndpointSlice",
    metadata: { namespace: "shop", name: "web-abc", labels: { "kubernetes.io/service-name": "web" } },
    addressType: "IPv4",
    ...over,
  };
}

Deno.test("convert: a full Service", () => {
  const { objects, texts } = run({
    apiVersion: "v1",
    kind: "Service",
    metadata: {
      namespace: "shop",
      name: "web",
      creationTimestamp: "2026-01-02T03:04:05Z",
      labels: { app: "web", "service.edgemesh.kubeedge.io/service-proxy-name": "" },
      annotations: { "kubectl.kubernetes.io/last-applied-configuration": "{}" },
    },
    spec: {
      type: "LoadBalancer",
      clusterIP: "10.96.0.10",
      clusterIPs: ["10.96.0.10", "FD00:0:0::A"],
      ports: [
        { name: "http", port: 80, targetPort: 8080, nodePort: 30080, appProtocol: "http" },
        { name: "dns", port: 53, protocol: "UDP" },
      ],
      externalIPs: ["203.0.113.9"],
      sessionAffinity: "ClientIP",
      externalTrafficPolicy: "Local",
      trafficDistribution: "PreferClose",
    },
    status: {
      loadBalancer: { ingress: [{ ip: "198.51.100.1" }, { ip: "198.51.100.2", ipMode: "Proxy" }, { hostname: "x" }] },
    },
  });
  assert.deepEqual(texts, []);
  assert.deepEqual(
    objects[0],
    {
      namespace: "shop",
      name: "web",
      type: "LoadBalancer",
      clusterIPs: ["10.96.0.10", "fd00::a"],
      headless: false,
      ports: [
        { name: "http", protocol: "TCP", port: 80, nodePort: 30080, appProtocol: "http" },
        { name: "dns", protocol: "UDP", port: 53 },
      ],
      externalIPs: ["203.0.113.9"],
      loadBalancerIPs: ["198.51.100.1"],
      affinitySeconds: 10800,
      internalTrafficPolicy: "Cluster",
      externalTrafficPolicy: "Local",
      publishNotReadyAddresses: false,
      trafficDistribution: "PreferClose",
      labels: { "service.edgemesh.kubeedge.io/service-proxy-name": "" },
      annotations: {},
      created: 1767323045,
    } satisfies Service,
  );
});

Deno.test("convert: headless, ExternalName, not yet allocated, legacy annotation", () => {
  const headless = run(service({ clusterIP: "None" })).objects[0] as Service;
  assert.ok(headless.headless && headless.clusterIPs.length === 0);
  const external = run(service({ type: "ExternalName", externalName: "DB.Example.com." })).objects[0] as Service;
  assert.equal(external.externalName, "db.example.com");
  assert.ok(!external.headless);
  const waiting = run(service({ ports: [{ port: 80 }] })).objects[0] as Service;
  assert.ok(!waiting.headless && waiting.clusterIPs.length === 0);
  const raw = service({});
  const legacy = { "service.alpha.kubernetes.io/tolerate-unready-endpoints": "true" };
  const tolerant = run({ ...raw, metadata: { ...raw.metadata, annotations: legacy } }).objects[0] as Service;
  assert.ok(tolerant.publishNotReadyAddresses);
});

/** Field problems of a Service: spec → the lines reported and what is left of ports and addresses. */
const SERVICE_PROBLEMS: [string, unknown, RegExp[], Partial<Service>][] = [
  ["leading zeros", { clusterIP: "010.96.0.10" }, [/spec\.clusterIP 010\.96\.0\.10: is not an IP/], { clusterIPs: [] }],
  ["loopback", { clusterIPs: ["127.0.0.1"] }, [/spec\.clusterIPs\[0\] 127\.0\.0\.1: is a loopback/], {
    clusterIPs: [],
  }],
  ["mapped loopback", { clusterIP: "::ffff:127.0.0.1" }, [/127\.0\.0\.1: is a loopback/], { clusterIPs: [] }],
  [
    "link-local external",
    { externalIPs: ["169.254.169.254", "203.0.113.1"] },
    [/spec\.externalIPs\[0\] 169\.254\.169\.254/],
    { externalIPs: ["203.0.113.1"] },
  ],
  [
    "port range",
    { ports: [{ port: 70000 }] },
    [/spec\.ports\[0\]\.port 70000: must be a whole number from 1 to 65535/],
    {
      ports: [],
    },
  ],
  ["port missing", { ports: [{}] }, [/spec\.ports\[0\]\.port: is required/], { ports: [] }],
  ["port text", { ports: [{ port: "80" }] }, [/spec\.ports\[0\]\.port 80: must be a whole number/], { ports: [] }],
  [
    "duplicate port",
    { ports: [{ name: "a", port: 80 }, { name: "b", port: 80 }, { name: "c", port: 80, protocol: "UDP" }] },
    [/spec\.ports\[1\]\.port 80: is there twice for TCP/],
    { ports: [{ name: "a", protocol: "TCP", port: 80 }, { name: "c", protocol: "UDP", port: 80 }] },
  ],
  [
    "unnamed second port",
    { ports: [{ port: 80 }, { port: 81 }] },
    [/spec\.ports\[1\]\.name: is required where/],
    { ports: [{ name: "", protocol: "TCP", port: 80 }] },
  ],
  ["SCTP", { ports: [{ port: 80, protocol: "SCTP" }] }, [/is not carried by the mesh/], { ports: [] }],
  ["type", { type: "Ingress" }, [/spec\.type Ingress: must be one of/], { type: "ClusterIP" }],
  ["affinity", { sessionAffinity: "ClientIP", sessionAffinityConfig: { clientIP: { timeoutSeconds: 0 } } }, [
    /timeoutSeconds 0: must be a whole number from 1 to 86400/,
  ], { affinitySeconds: 10800 }],
  ["ports not a list", { ports: { port: 80 } }, [/spec\.ports .*: must be a list/], { ports: [] }],
];

for (const [name, spec, expected, left] of SERVICE_PROBLEMS) {
  Deno.test(`convert: Service problem, ${name}`, () => {
    const { objects, texts } = run(service(spec));
    assert.equal(texts.length, expected.length, texts.join("\n"));
    for (const [i, pattern] of expected.entries()) assert.match(texts[i]!, pattern);
    assert.match(texts[0]!, /^Service shop\/web: /);
    for (const [key, value] of Object.entries(left)) {
      assert.deepEqual((objects[0] as unknown as Record<string, unknown>)[key], value);
    }
  });
}

/** Objects that cannot be used at all. */
const UNUSABLE: [string, unknown, RegExp][] = [
  ["null", null, /must be an object/],
  ["a list", [], /must be an object/],
  ["no kind", { apiVersion: "v1" }, /kind: is required/],
  ["no metadata", { apiVersion: "v1", kind: "Service" }, /metadata: is required/],
  ["no name", { apiVersion: "v1", kind: "Service", metadata: {} }, /metadata\.name: is required/],
  ["a name with a dot", service({}, { metadata: { name: "a.b" } }), /metadata\.name a\.b: is not a DNS label/],
  ["upper case", service({}, { metadata: { name: "Web" } }), /metadata\.name Web/],
  ["a bad namespace", service({}, { metadata: { name: "a", namespace: "x/y" } }), /metadata\.namespace x\/y/],
  ["no spec", service(undefined), /spec: is required/],
  ["ExternalName without a name", service({ type: "ExternalName" }), /spec\.externalName: is required/],
  ["ExternalName of rubbish", service({ type: "ExternalName", externalName: "a b" }), /spec\.externalName a b/],
  ["a slice of names", slice({ addressType: "FQDN" }), /addressType FQDN/],
];

for (const [name, raw, expected] of UNUSABLE) {
  Deno.test(`convert: unusable, ${name}`, () => {
    const { objects, texts } = run(raw);
    assert.deepEqual(objects, []);
    assert.equal(texts.length, 1);
    assert.match(texts[0]!, expected);
  });
}

Deno.test("convert: kinds the product does not read are no problem", () => {
  for (const kind of ["Deployment", "ConfigMap"]) {
    const result = run({ apiVersion: "apps/v1", kind, metadata: { name: "x" } });
    assert.equal(result.known, false);
    assert.deepEqual(result.texts, []);
  }
  assert.deepEqual(run(slice({ metadata: { name: "x" } })).objects, [], "a slice without a Service belongs to nobody");
});

Deno.test("convert: EndpointSlice with conditions as the API defines their absence", () => {
  const { objects, texts } = run(slice({
    ports: [{ name: "http", port: 8080 }, { name: "all" }],
    endpoints: [
      { addresses: ["10.1.0.1", "10.9.9.9"], nodeName: "edge-1", zone: "z1", hostname: "web-0" },
      { addresses: ["10.1.0.2"], conditions: { ready: false }, targetRef: { kind: "Pod", name: "web-2" } },
      { addresses: ["10.1.0.3"], conditions: { ready: false, serving: true, terminating: true } },
      { addresses: ["10.1.0.4"], hints: { forZones: [{ name: "z1" }], forNodes: [{ name: "edge-1" }] } },
      { addresses: ["127.0.0.1"] },
      { addresses: ["169.254.0.9"] },
      { addresses: ["10.01.0.1"] },
      { addresses: [] },
    ],
  }));
  const got = objects[0] as EndpointSlice;
  assert.equal(got.service, "web");
  assert.deepEqual(got.ports, [{ name: "http", protocol: "TCP", port: 8080 }]);
  const ready = { ready: true, serving: true, terminating: false };
  assert.deepEqual(got.endpoints, [
    { ip: "10.1.0.1", node: "edge-1", zone: "z1", hostname: "web-0", ...ready },
    { ip: "10.1.0.2", pod: "web-2", ready: false, serving: false, terminating: false },
    { ip: "10.1.0.3", ready: false, serving: true, terminating: true },
    { ip: "10.1.0.4", ...ready, hintZones: ["z1"], hintNodes: ["edge-1"] },
  ]);
  assert.equal(texts.length, 4);
  assert.match(texts[0]!, /EndpointSlice shop\/web-abc: endpoints\[4\]\.addresses\[0\] 127\.0\.0\.1: is a loopback/);
  assert.match(texts[3]!, /endpoints\[7\]\.addresses\[0\]: is required/);
});

Deno.test("convert: an imported slice says which cluster it is from", () => {
  const from = (cluster: string) => {
    const labels = { "kubernetes.io/service-name": "web", "multicluster.kubernetes.io/source-cluster": cluster };
    const { objects, texts } = run(slice({ metadata: { namespace: "shop", name: "web-abc", labels } }));
    return [(objects[0] as EndpointSlice).sourceCluster, texts.length];
  };
  assert.deepEqual(from("west-1"), ["west-1", 0]);
  assert.deepEqual(from("west 1"), [undefined, 1], "no label value");
  assert.equal((run(slice({})).objects[0] as EndpointSlice).sourceCluster, undefined);
});

Deno.test("convert: Endpoints become one slice per subset", () => {
  const { objects } = run({
    apiVersion: "v1",
    kind: "Endpoints",
    metadata: { namespace: "shop", name: "web" },
    subsets: [
      {
        addresses: [{ ip: "10.1.0.1", nodeName: "edge-1" }],
        notReadyAddresses: [{ ip: "10.1.0.2" }],
        ports: [{ port: 8080 }],
      },
      { addresses: [{ ip: "10.1.0.3" }], ports: [{ name: "x", port: 53, protocol: "UDP" }] },
      { addresses: [], ports: [{ port: 1 }] },
    ],
  }) as unknown as { objects: EndpointSlice[] };
  assert.deepEqual(objects.map((s) => [s.name, s.service, s.endpoints.map((e) => [e.ip, e.ready])]), [
    ["web~0", "web", [["10.1.0.1", true], ["10.1.0.2", false]]],
    ["web~1", "web", [["10.1.0.3", true]]],
  ]);
});

Deno.test("convert: Endpoints with more addresses than a slice holds are cut", () => {
  const addresses = Array.from({ length: 1500 }, (_, i) => ({ ip: `10.2.${i >> 8}.${i & 255}` }));
  const raw = { apiVersion: "v1", kind: "Endpoints", metadata: { name: "big" }, subsets: [{ addresses }] };
  assert.deepEqual((run(raw).objects as EndpointSlice[]).map((s) => s.endpoints.length), [1000, 500]);
});

Deno.test("convert: Node, Pod, Namespace", () => {
  const node = run({
    apiVersion: "v1",
    kind: "Node",
    metadata: {
      name: "ip-10-0-0-1.internal",
      labels: { "topology.kubernetes.io/zone": "z", "beta.kubernetes.io/os": "l" },
    },
    spec: { podCIDR: "10.1.0.0/24", podCIDRs: ["10.1.0.0/24", "fd00:1::/64", "10.1.0.1/24"] },
    status: { addresses: [{ type: "InternalIP", address: "192.168.0.1" }, { type: "Hostname", address: "x" }] },
  });
  assert.deepEqual(
    node.objects[0],
    {
      name: "ip-10-0-0-1.internal",
      zone: "z",
      internalIPs: ["192.168.0.1"],
      podCIDRs: ["10.1.0.0/24", "fd00:1::/64"],
      labels: { "topology.kubernetes.io/zone": "z" },
    } satisfies Node,
  );
  assert.match(node.texts[0]!, /spec\.podCIDRs\[2\] 10\.1\.0\.1\/24: is not a network/);

  const pod = (status: unknown) =>
    run({
      apiVersion: "v1",
      kind: "Pod",
      metadata: { namespace: "shop", name: "web-1" },
      spec: { nodeName: "edge-1", hostNetwork: true },
      status,
    }).objects;
  assert.deepEqual(
    pod({ phase: "Running", podIP: "10.1.0.5", podIPs: [{ ip: "10.1.0.5" }, { ip: "fd00::5" }] })[0],
    { namespace: "shop", name: "web-1", node: "edge-1", ips: ["10.1.0.5", "fd00::5"], hostNetwork: true } satisfies Pod,
  );
  assert.deepEqual(pod({ phase: "Succeeded", podIP: "10.1.0.5" }), [], "a finished pod's address may be another's");
  assert.deepEqual(pod({ phase: "Pending" }), []);

  const namespace = run({ apiVersion: "v1", kind: "Namespace", metadata: { name: "shop", labels: { team: "a" } } });
  assert.deepEqual(namespace.objects[0], { name: "shop", labels: { team: "a" } });
});

Deno.test("convert: route objects are kept whole, Istio's and Gateway API's Gateway apart", () => {
  const keys = ["networking.istio.io/v1beta1", "gateway.networking.k8s.io/v1"].map((apiVersion) => {
    const { puts } = run({ apiVersion, kind: "Gateway", metadata: { namespace: "a", name: "g" }, spec: { x: [1] } });
    assert.deepEqual((puts[0]!.object as RouteObject).spec, { x: [1] });
    return puts[0]!.key;
  });
  assert.deepEqual(keys, ["networking.istio.io/Gateway/a/g", "gateway.networking.k8s.io/Gateway/a/g"]);
  const huge = run({
    apiVersion: "networking.istio.io/v1",
    kind: "VirtualService",
    metadata: { name: "v" },
    spec: { x: "y".repeat(300_000) },
  });
  assert.deepEqual(huge.objects, []);
  assert.match(huge.texts[0]!, /larger than/);
});

Deno.test("convert: __proto__ as a label is a plain key", () => {
  const raw = JSON.parse(`{"apiVersion":"v1","kind":"Namespace","metadata":{"name":"x","labels":{"__proto__":"y"}}}`);
  const labels = (run(raw).objects[0] as { labels: Record<string, string> }).labels;
  assert.deepEqual(Object.keys(labels), ["__proto__"]);
  assert.equal(Object.getPrototypeOf(labels), Object.prototype);
});

Deno.test("convert: no JSON value, and no value in any field of a good object, makes it throw", () => {
  fc.assert(fc.property(fc.jsonValue(), (value) => {
    run(value);
  }));
  const good = [
    service({ clusterIPs: ["10.96.0.1"], ports: [{ port: 80 }], sessionAffinity: "ClientIP" }, { status: {} }),
    slice({ endpoints: [{ addresses: ["10.1.0.1"], conditions: {}, hints: {} }], ports: [{ port: 1 }] }),
    { apiVersion: "v1", kind: "Endpoints", metadata: { name: "e" }, subsets: [{ addresses: [{ ip: "10.0.0.1" }] }] },
    { apiVersion: "v1", kind: "Node", metadata: { name: "n" }, spec: { podCIDRs: [] }, status: { addresses: [{}] } },
    { apiVersion: "v1", kind: "Pod", metadata: { name: "p" }, spec: {}, status: { podIPs: [{ ip: "10.0.0.1" }] } },
  ];
  fc.assert(
    fc.property(fc.constantFrom(...good), fc.nat(), fc.jsonValue(), (object, where, value) => {
      run(withValueAt(object, where, value));
    }),
    { numRuns: 500 },
  );
});

/** A copy in which the n-th place of the tree (counted around) holds another value. */
function withValueAt(object: unknown, n: number, value: unknown): unknown {
  const copy = structuredClone(object);
  const places: [Record<string, unknown>, string][] = [];
  const walk = (at: unknown) => {
    if (typeof at !== "object" || at === null) return;
    for (const key of Object.keys(at)) {
      places.push([at as Record<string, unknown>, key]);
      walk((at as Record<string, unknown>)[key]);
    }
  };
  walk(copy);
  const [holder, key] = places[n % places.length]!;
  if (key !== "kind" && key !== "apiVersion") holder[key] = value;
  return copy;
}
