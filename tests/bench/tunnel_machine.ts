/**
 * Client pod, agent, (server,) agent, far pod: edgemesh as it is built, chisel in its place on the same machines, and a
 * plain TCP connection over the same links. One namespace per machine, no delay: what is measured is work.
 */
import { fileURLToPath } from "node:url";
import { startNginx } from "../../lib/lab/backends.ts";
import { until } from "../../lib/lab/exec.ts";
import { Internet } from "../../lib/lab/internet.ts";
import { Mesh, nodesYaml, serviceYaml } from "../../lib/lab/mesh.ts";
import { Lab } from "../../lib/lab/namespace.ts";
import { LabNode } from "../../lib/lab/node.ts";
import { type Pod, PodNetwork } from "../../lib/lab/pod.ts";
import type { HostProcess } from "../../lib/lab/process.ts";
import { Topology } from "../../lib/lab/topology.ts";
import type { IpPort } from "../../lib/net.ts";
import type { LoadJob, Paced } from "./forward_load.ts";

export type Way = "direct" | "relayed";

const SERVER = "203.0.113.1";
const EDGES = ["203.0.113.11", "203.0.113.12"] as const;
const SERVICES = { http: "10.96.0.10", bulk: "10.96.0.11" } as const;
const HTTP = 8080;
const BULK = 5201;
const CHISEL = 9000;
/** Where chisel listens on edge-1; its own ports, so that nothing depends on who came first. */
const CHISEL_PORTS = { http: 18080, bulk: 15201 } as const;

/** Something that brings bytes from the client pod to the far pod. */
export interface Target {
  readonly name: string;
  readonly http: IpPort;
  readonly bulk: IpPort;
  /** Client side, far side, and the relay where there is one. */
  readonly processes: readonly HostProcess[];
}

export class Machine implements AsyncDisposable {
  readonly way: Way;
  readonly targets: readonly Target[];
  /** What `status` says about the engine and the path. */
  readonly about: string;
  readonly #topology: Topology;
  readonly #client: Pod;

  private constructor(way: Way, about: string, topology: Topology, targets: readonly Target[]) {
    this.way = way;
    this.about = about;
    this.targets = targets;
    this.#topology = topology;
    this.#client = topology.pod("edge-1-pod-1");
  }

  /** `flags` go to both agents. */
  static async start(way: Way, command: string, flags: readonly string[]): Promise<Machine> {
    const topology = await build(command);
    try {
      const far = topology.pod("edge-2-pod-1");
      await startNginx(far.host, { port: HTTP, text: "x".repeat(64) });
      await far.host.start("iperf3", ["iperf3", "-s", "-p", String(BULK)], { ready: { port: BULK } });
      const mesh = new Mesh(topology);
      await startMesh(mesh, far, [...(way === "relayed" ? ["--set", "tunnel.mode=off"] : []), ...flags]);
      const about = await settled(mesh, topology, way);
      const agents = [mesh.agent("edge-1"), mesh.agent("edge-2")];
      const targets: Target[] = [
        {
          name: `edgemesh ${way}`,
          http: { ip: SERVICES.http, port: HTTP },
          bulk: { ip: SERVICES.bulk, port: BULK },
          processes: way === "relayed" ? [...agents, mesh.server] : agents,
        },
        await chisel(way, topology, far),
      ];
      if (way === "direct") targets.push(await plain(topology, far));
      return new Machine(way, about, topology, targets);
    } catch (error) {
      await topology.close();
      throw error;
    }
  }

  async wrk(target: Target, of: { readonly connections: number; readonly seconds: number; readonly close?: boolean }) {
    const argv = ["wrk", "-t1", `-c${of.connections}`, `-d${of.seconds}s`, "--latency"];
    if (of.close) argv.push("-H", "Connection: close");
    const before = cpu(target);
    const { stdout } = await this.#client.host.execOk([...argv, `http://${target.http.ip}:${target.http.port}/`], {
      timeoutMs: of.seconds * 1000 + 30_000,
    });
    const used = cpu(target).map((seconds, i) => seconds - before[i]!);
    const requests = Number(/(\d+) requests in/.exec(stdout)?.[1] ?? NaN);
    return {
      perSecond: Number(/Requests\/sec:\s+([\d.]+)/.exec(stdout)?.[1] ?? NaN),
      errors: /Socket errors:.*/.exec(stdout)?.[0],
      cpuPer10k: used.map((seconds) => seconds / requests * 10_000),
    };
  }

  async bulk(target: Target, of: { readonly streams: number; readonly seconds: number }) {
    const before = cpu(target);
    const { stdout } = await this.#client.host.execOk(
      [
        "iperf3",
        "-J",
        "-c",
        target.bulk.ip,
        "-p",
        String(target.bulk.port),
        "-t",
        `${of.seconds}`,
        "-P",
        `${of.streams}`,
      ],
      { timeoutMs: of.seconds * 1000 + 30_000 },
    );
    const used = cpu(target).map((seconds, i) => seconds - before[i]!);
    const { bits_per_second, bytes } = (JSON.parse(stdout) as {
      end: { sum_received: { bits_per_second: number; bytes: number } };
    }).end.sum_received;
    return { gbits: bits_per_second / 1e9, cpuPerGb: used.map((seconds) => seconds / (bytes / 1e9)) };
  }

  /** Round trip of a request on an otherwise idle connection. */
  async paced(target: Target, rate: number, seconds: number): Promise<Paced> {
    const job: LoadJob = { do: "paced", to: target.http, rate, connections: 1, ms: seconds * 1000 };
    const script = fileURLToPath(new URL("forward_load.ts", import.meta.url));
    const { stdout } = await this.#client.host.execOk(
      [Deno.execPath(), "run", "-A", "--quiet", script, JSON.stringify(job)],
      { timeoutMs: seconds * 1000 + 30_000 },
    );
    return JSON.parse(stdout) as Paced;
  }

  /** Private MB of each process. */
  async memory(target: Target): Promise<number[]> {
    return await Promise.all(target.processes.map(async (process) => (await process.memory()).private / 1e6));
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#topology.close();
  }
}

function cpu(target: Target): number[] {
  return target.processes.map((process) => process.cpuSeconds());
}

async function build(command: string): Promise<Topology> {
  const lab = await Lab.open();
  try {
    const shape = { delayMs: 0, jitterMs: 0, loss: 0 };
    const internet = await Internet.create(lab, { command: [command], shape });
    const node = async (name: string, address: string) => {
      const ns = await lab.namespace(name);
      const leg = await internet.attach(ns, { addresses: [address], ifname: "eth0" });
      return await LabNode.create(ns, { command: [command], attachment: { leg } });
    };
    const server = await node("server", SERVER);
    const edges: LabNode[] = [];
    for (const [i, address] of EDGES.entries()) {
      const edge = await node(`edge-${i + 1}`, address);
      const pods = await PodNetwork.create(edge, { cidr: `10.244.${i + 1}.0/24` });
      const pod = await pods.add(`edge-${i + 1}-pod-1`);
      await pod.host.ns.configure({
        sysctl: { "net.ipv4.ip_local_port_range": "10000 65000", "net.ipv4.tcp_tw_reuse": 1 },
      });
      await edge.host.ns.configure({
        sysctl: { "net.ipv4.ip_local_port_range": "10000 19000", "net.ipv4.tcp_tw_reuse": 1 },
      });
      edges.push(edge);
    }
    return new Topology({ lab, internet, server, cloud: undefined, sites: [], providers: [], edges });
  } catch (error) {
    await lab.close();
    throw error;
  }
}

async function startMesh(mesh: Mesh, far: Pod, flags: readonly string[]): Promise<void> {
  const { topology } = mesh;
  const service = (name: keyof typeof SERVICES, port: number) =>
    serviceYaml({
      name,
      clusterIP: SERVICES[name],
      port,
      targetPort: port,
      endpoints: [{ ip: far.ip, node: far.node.name }],
    });
  await mesh.writeManifest("nodes.yaml", nodesYaml(topology));
  await mesh.writeManifest("http.yaml", service("http", HTTP));
  await mesh.writeManifest("bulk.yaml", service("bulk", BULK));
  await mesh.startServer();
  for (const node of topology.nodes) await mesh.join(node, { flags });
}

/** Waits until requests go the way that is to be measured; says what `status` shows. */
async function settled(mesh: Mesh, topology: Topology, way: Way): Promise<string> {
  const client = topology.pod("edge-1-pod-1");
  return await until(`a ${way} path`, async () => {
    await client.host.exec(["curl", "-sS", "-o", "/dev/null", "--max-time", "2", `http://${SERVICES.http}:${HTTP}/`]);
    const status = await mesh.status(topology.node("edge-1"));
    const path = status.peers.find((peer) => peer.node === "edge-2")?.path;
    const wanted = way === "relayed" ? path === "relay" : path !== undefined && path !== "relay";
    return wanted ? `${status.tlsEngine} engine (${status.tlsDetail}), path ${path}` : undefined;
  }, 20_000);
}

/** chisel between the same two machines; relayed, its server is where ours is and the far side is a reverse tunnel. */
async function chisel(way: Way, topology: Topology, far: Pod): Promise<Target> {
  const program = `${await tunnelsDir()}/chisel`;
  const [near, there, server] = [topology.node("edge-1"), topology.node("edge-2"), topology.server];
  const start = (node: LabNode, name: string, args: readonly string[], port?: number) =>
    node.host.start(name, [program, ...args], port === undefined ? {} : { ready: { port } });
  const gateway = near.podNetwork!.gateway;
  const target = (processes: readonly HostProcess[]): Target => ({
    name: `chisel ${way}`,
    http: { ip: gateway, port: CHISEL_PORTS.http },
    bulk: { ip: gateway, port: CHISEL_PORTS.bulk },
    processes,
  });
  const listen = (via: (port: number) => string) => [
    `0.0.0.0:${CHISEL_PORTS.http}:${via(HTTP)}`,
    `0.0.0.0:${CHISEL_PORTS.bulk}:${via(BULK)}`,
  ];
  if (way === "direct") {
    const b = await start(there, "chisel-server", ["server", "--port", `${CHISEL}`], CHISEL);
    const url = `${EDGES[1]}:${CHISEL}`;
    const args = ["client", url, ...listen((port) => `${far.ip}:${port}`)];
    return target([await start(near, "chisel-client", args, CHISEL_PORTS.bulk), b]);
  }
  const relay = await start(server, "chisel-server", ["server", "--reverse", "--port", `${CHISEL}`], CHISEL);
  const url = `${SERVER}:${CHISEL}`;
  const reverse = [HTTP, BULK].map((port) => `R:127.0.0.1:${port}:${far.ip}:${port}`);
  const b = await start(there, "chisel-client", ["client", url, ...reverse]);
  await until("chisel's reverse tunnel", async () => {
    const { stdout } = await server.host.exec(["ss", "-ltn", `sport = :${BULK}`]);
    return stdout.includes(`:${BULK}`) || undefined;
  });
  const args = ["client", url, ...listen((port) => `127.0.0.1:${port}`)];
  return target([await start(near, "chisel-client", args, CHISEL_PORTS.bulk), b, relay]);
}

/** The same links without any tunnel: the far node passes two ports on to its pod. */
async function plain(topology: Topology, far: Pod): Promise<Target> {
  const rules = [HTTP, BULK].map((port) => `tcp dport ${port} ip daddr ${EDGES[1]} dnat to ${far.ip}:${port}`);
  await topology.node("edge-2").host.ns.nft(
    `table ip bench { chain pre { type nat hook prerouting priority dstnat;\n${rules.join("\n")}\n}\n}`,
  );
  return { name: "plain TCP", http: { ip: EDGES[1], port: HTTP }, bulk: { ip: EDGES[1], port: BULK }, processes: [] };
}

async function tunnelsDir(): Promise<string> {
  const given = Deno.env.get("EDGEMESH_TUNNELS");
  if (given) return given;
  const script = fileURLToPath(new URL("../../scripts/fetch_tunnels.sh", import.meta.url));
  const { stdout, success } = await new Deno.Command("sh", { args: [script], stderr: "inherit" }).output();
  if (!success) throw new Error("chisel cannot be built");
  return new TextDecoder().decode(stdout).trim();
}
