/** The stage of the demo: three sites behind NATs, a server, a cloud node, real back ends in pods, Services over them. */
import { startEcho, startNginx, startRedis } from "../../lib/lab/backends.ts";
import type { ExecResult } from "../../lib/lab/exec.ts";
import { Mesh, nodesYaml, serviceYaml } from "../../lib/lab/mesh.ts";
import type { Meter } from "../../lib/lab/meter.ts";
import type { LabNode } from "../../lib/lab/node.ts";
import type { Pod } from "../../lib/lab/pod.ts";
import { buildTopology, type Topology } from "../../lib/lab/topology.ts";
import { must } from "./report.ts";

/** One-way delay: 40 ms between a site and the server, 80 ms from site to site through it. */
const ONE_WAY_DELAY_MS = 20;

export interface World {
  readonly topology: Topology;
  readonly mesh: Mesh;
  /** Counts what crosses the server's interface, below everything the product could say. */
  readonly atServer: Meter;
  readonly edge1: LabNode;
  readonly edge2: LabNode;
  readonly cloud: LabNode;
  /** Two nodes of one LAN, behind a NAT through which a direct path to edge-1 can be had. */
  readonly edge3: LabNode;
  readonly edge4: LabNode;
  /** Kernel state of edge-1 before the agent ran. */
  readonly before: string;
}

/** Builds namespaces, NATs and back ends; nothing of the product runs yet. */
export async function buildWorld(executable: readonly string[]): Promise<World> {
  const topology = await buildTopology({
    command: executable,
    oneWayDelayMs: ONE_WAY_DELAY_MS,
    sites: [{ nat: "cone" }, { nat: "symrand" }, { nat: "cone", nodes: 2 }],
    cloud: "datacenter",
    podsPerNode: 2,
  });
  const mesh = new Mesh(topology);
  const pod = (name: string) => topology.pod(name);
  const neighbours = ["edge-3-pod-1", "edge-4-pod-1"].map(pod);
  const webPods = ["edge-1-pod-2", "edge-2-pod-1", "cloud-1-pod-1"].map(pod);
  await Promise.all([
    ...[...webPods, ...neighbours].map((p) =>
      startNginx(p.host, { port: 8080, text: `hello from ${p.name} on ${p.node.name}\n` })
    ),
    startNginx(pod("edge-2-pod-2").host, { port: 8080, text: "hello from edge-2-pod-2 on edge-2\n" }),
    startRedis(pod("edge-2-pod-2").host, { port: 6379 }),
    startEcho(pod("edge-2-pod-2").host, { port: 7007, protocol: "udp" }),
    mesh.writeManifest("nodes.yaml", nodesYaml(topology)),
    mesh.writeManifest("services.yaml", servicesYaml(webPods, neighbours, pod("edge-2-pod-2"))),
  ]);
  const edge1 = topology.node("edge-1");
  return {
    topology,
    mesh,
    atServer: await topology.server.counters("demo"),
    edge1,
    edge2: topology.node("edge-2"),
    cloud: topology.node("cloud-1"),
    edge3: topology.node("edge-3"),
    edge4: topology.node("edge-4"),
    before: await kernelState(edge1),
  };
}

function servicesYaml(web: readonly Pod[], neighbours: readonly Pod[], other: Pod): string {
  const at = (p: Pod) => ({ ip: p.ip, node: p.node.name });
  const [local, edge, cloud] = web as [Pod, Pod, Pod];
  const [third, fourth] = neighbours as [Pod, Pod];
  return [
    serviceYaml({ name: "web", clusterIP: "10.96.0.10", port: 80, targetPort: 8080, endpoints: web.map(at) }),
    serviceYaml({ name: "web-edge", clusterIP: "10.96.0.11", port: 80, targetPort: 8080, endpoints: [at(edge)] }),
    serviceYaml({ name: "web-cloud", clusterIP: "10.96.0.12", port: 80, targetPort: 8080, endpoints: [at(cloud)] }),
    serviceYaml({ name: "web-local", clusterIP: "10.96.0.13", port: 80, targetPort: 8080, endpoints: [at(local)] }),
    serviceYaml({ name: "cache", clusterIP: "10.96.0.20", port: 6379, targetPort: 6379, endpoints: [at(other)] }),
    serviceYaml({ name: "web-third", clusterIP: "10.96.0.14", port: 80, targetPort: 8080, endpoints: [at(third)] }),
    serviceYaml({ name: "web-fourth", clusterIP: "10.96.0.15", port: 80, targetPort: 8080, endpoints: [at(fourth)] }),
    serviceYaml({
      name: "echo",
      clusterIP: "10.96.0.21",
      port: 7,
      targetPort: 7007,
      protocol: "UDP",
      endpoints: [at(other)],
    }),
    serviceYaml({ name: "nothing", clusterIP: "10.96.0.30", port: 80, targetPort: 8080, endpoints: [] }),
  ].join("---\n");
}

/** Everything in the kernel that an agent may touch, as text. */
export async function kernelState(node: LabNode): Promise<string> {
  const { stdout } = await node.host.execOk([
    "sh",
    "-c",
    "nft list ruleset; ip -br link; ip -br addr; ip route show table all | sort; ip -6 route show table all | sort; ip rule; " +
    "sysctl -a 2>/dev/null | grep -E '^net[.]ipv[46][.](ip_forward|conf[.](all|default|eth0)[.])' | sort",
  ]);
  // The lab's own counters are not the agent's work.
  return stdout;
}

/** `curl` of a URL in a pod or on a node; the body, and the milliseconds curl itself measured. */
export async function curl(
  from: Pod | LabNode,
  url: string,
  maxSeconds = 8,
): Promise<{ readonly body: string; readonly ms: number }> {
  const result = await from.host.exec(["curl", "-sS", "--max-time", String(maxSeconds), "-w", "\n%{time_total}", url]);
  must(result.code === 0, `curl ${url} in ${from.name} failed: ${result.stderr.trim()}`);
  const at = result.stdout.lastIndexOf("\n");
  return { body: result.stdout.slice(0, at).trim(), ms: Number(result.stdout.slice(at + 1)) * 1000 };
}

/** Runs a command in a pod and gives its trimmed output. */
export async function output(from: Pod | LabNode, argv: readonly string[]): Promise<string> {
  const result: ExecResult = await from.host.exec(argv);
  must(result.code === 0, `${argv.join(" ")} in ${from.name} failed: ${(result.stderr || result.stdout).trim()}`);
  return result.stdout.trim();
}
