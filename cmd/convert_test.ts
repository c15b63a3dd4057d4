import assert from "node:assert/strict";
import { convertEdgeMesh } from "./convert.ts";
import { MeshError } from "../lib/errors.ts";

/** The agent's sample of KubeEdge's EdgeMesh 1.17, with every module switched on. */
const AGENT = `apiVersion: agent.edgemesh.config.kubeedge.io/v1alpha1
kind: EdgeMeshAgent
kubeAPIConfig:
  burst: 200
  contentType: application/json
  kubeConfig: ""
  master: ""
  metaServer:
    server: http://127.0.0.1:10550
    security:
      requireAuthorization: true
      tlsCaFile: /etc/edgemesh/metaserver/rootCA.crt
commonConfig:
  bridgeDeviceName: edgemesh0
  bridgeDeviceIP: 169.254.96.16
modules:
  edgeDNS:
    enable: true
    listenPort: 53
    cacheDNS:
      enable: true
      autoDetect: false
      upstreamServers: [10.96.0.10]
      cacheTTL: 30
  edgeProxy:
    enable: true
    serviceFilterMode: FilterIfLabelDoesNotExists
    socks5Proxy:
      enable: true
      listenPort: 10800
    loadBalancer:
      consistentHash:
        partitionCount: 100
  edgeTunnel:
    enable: true
    listenPort: 20006
    transport: quic
    relayNodes:
      - nodeName: k8s-node1
        advertiseAddress: [1.1.1.1]
    psk:
      enable: true
      path: /etc/edgemesh/psk
    metricConfig:
      enable: true
      port: 9999
  edgeCNI:
    enable: false
  edgeFuture:
    enable: true
`;

Deno.test("A38: convert: the original's agent configuration; what has no place is named line by line", () => {
  const { config, notes } = convertEdgeMesh(AGENT, "edgemesh-agent.yaml");
  assert.deepEqual(config, {
    metaServer: {
      server: "http://127.0.0.1:10550",
      security: { requireAuthorization: true, tlsCaFile: "/etc/edgemesh/metaserver/rootCA.crt" },
    },
    mesh: { interface: "edgemesh0", address: "169.254.96.16" },
    dns: { enabled: true, port: 53, mode: "cache", autoDetect: false, upstreams: ["10.96.0.10"], maxTtlSeconds: 30 },
    forward: { enabled: true, serviceFilterMode: "FilterIfLabelDoesNotExists" },
    tunnel: { enabled: true, listen: "[::]:20006" },
    metricsListen: "127.0.0.1:9999",
  });
  const lines = AGENT.split("\n");
  for (const { line, path } of notes) {
    assert.ok(lines[line - 1]!.includes(path.split(".").at(-1)!), `${path} at ${line}`);
  }
  assert.deepEqual(notes.map((n) => n.path), [
    "kubeAPIConfig.burst",
    "kubeAPIConfig.contentType",
    "modules.edgeProxy.socks5Proxy.enable",
    "modules.edgeProxy.loadBalancer.consistentHash",
    "modules.edgeTunnel.transport",
    "modules.edgeTunnel.relayNodes",
    "modules.edgeTunnel.psk",
    "modules.edgeFuture.enable",
  ]);
});

Deno.test("A38: convert: every key of the original's that the reference names has a rule", () => {
  const gateway = `apiVersion: gateway.edgemesh.config.kubeedge.io/v1alpha1
kind: EdgeMeshGateway
pprofConfig: { enableProfiling: false }
modules:
  edgeGateway: { enable: true, nic: "*", includeIP: "*", excludeIP: "*", loadBalancer: { consistentHash: { load: 1.25 } } }
  edgeTunnel: { enable: true, maxCandidates: 5, heartbeatPeriod: 120, finderPeriod: 60, rendezvous: X, listenInterfaces: "*",
    tunnelLimitConfig: { enable: true }, extraFilteredInterfaces: "", enableIpfsLog: true }
`;
  const { config, notes } = convertEdgeMesh(gateway, "g");
  assert.deepEqual(config, { tunnel: { enabled: true }, log: { level: "debug" } });
  assert.ok(notes.every((n) => !n.text.includes("not a key of the original")), JSON.stringify(notes));
  const old = convertEdgeMesh(
    "kind: EdgeMeshServer\nmodules: { tunnel: { listenPort: 20004, security: { enable: true } } }",
    "s",
  );
  assert.deepEqual(old.config, { tunnel: { listen: "[::]:20004" } });
  assert.match(old.notes[0]!.text, /no shared key/);
});

Deno.test("A38: convert: a ConfigMap is looked into, with the lines of the file", () => {
  const inner = "kind: EdgeMeshAgent\nmodules:\n  edgeTunnel:\n    psk: { enable: true }\n";
  const map = `apiVersion: v1
kind: ConfigMap
data:
  edgemesh-agent.yaml: |
${inner.split("\n").map((line) => `    ${line}`).join("\n")}
`;
  const { notes } = convertEdgeMesh(map, "cm.yaml");
  assert.equal(map.split("\n")[notes[0]!.line - 1]!.trim(), "psk: { enable: true }");
});

Deno.test("A38: convert: a value that we refuse is named, and what is no configuration of theirs", () => {
  const { notes } = convertEdgeMesh("kind: EdgeMeshAgent\ncommonConfig: { bridgeDeviceIP: nonsense }\n", "x");
  assert.match(notes.map((n) => `${n.path} ${n.text}`).join(), /mesh\.address must be an IP address/);
  for (const text of ["kind: Deployment", "- a", "a: [", ""]) {
    assert.throws(
      () => convertEdgeMesh(text, "x"),
      (e: unknown) => e instanceof MeshError && e.code === "CONFIG_INVALID",
    );
  }
});
