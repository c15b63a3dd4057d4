/** A thousand streams and a thousand UDP flows that come and go, and what they leave in the processes that carried them. */
import assert from "node:assert/strict";
import { pause, systemClock } from "../../lib/clock.ts";
import { until } from "../../lib/lab/exec.ts";
import { type Mesh, serviceYaml } from "../../lib/lab/mesh.ts";
import type { Pod } from "../../lib/lab/pod.ts";
import type { HostProcess } from "../../lib/lab/process.ts";
import { webService } from "./fixture.ts";
import { askUdp, startUdpPeer } from "./udp_peers.ts";

const WEB = "10.96.0.10";
const UDP = "10.96.0.11";
const UDP_PORT = 5300;
const TARGET = 9000;
export const MANY = 1000;
/** Settings of the agents: flows end soon, so that a round does. */
export const LOAD_FLAGS = ["--set", "forward.udpIdleMs=2000"] as const;
/** A look every 5 s, two in a row that are calm, and one more for what the collection itself leaves. */
const CALM_MS = 20_000;

/** One pod that asks another on another node. */
export class MemoryLoad {
  readonly #mesh: Mesh;
  readonly #client: Pod;
  readonly #far: Pod;

  constructor(mesh: Mesh) {
    this.#mesh = mesh;
    this.#client = mesh.topology.pod("edge-1-pod-1");
    this.#far = mesh.topology.pod("edge-2-pod-1");
  }

  /** Writes the Services and starts what answers; before the server starts. */
  async prepare(): Promise<void> {
    const far = this.#far;
    const endpoints = [{ ip: far.ip, node: far.node.name }];
    const udp = {
      name: "udp",
      clusterIP: UDP,
      port: UDP_PORT,
      targetPort: TARGET,
      protocol: "UDP",
      endpoints,
    } as const;
    await this.#mesh.writeManifest("web.yaml", webService("web", WEB, [far]));
    await this.#mesh.writeManifest("udp.yaml", serviceYaml(udp));
    await startUdpPeer(far.host, far.name, TARGET);
  }

  /** All of them, each answered, until none is left. */
  async round(): Promise<void> {
    await this.streams(MANY);
    const { answered } = await askUdp<{ answered: number }>(this.#client.host, "flows", UDP, UDP_PORT, MANY);
    assert.equal(answered, MANY);
    await until("streams and flows to be gone", async () => {
      const { peers } = await this.#mesh.status(this.#client.node);
      return peers.every((peer) => peer.streams === 0) || undefined;
    }, 30_000);
  }

  async streams(count: number): Promise<void> {
    const argv = ["curl", "-sS", "--parallel", "--parallel-immediate", "--parallel-max", "50", "--max-time", "50"];
    const { stdout, stderr } = await this.#client.host.exec([
      ...[...argv, "-H", "Connection: close", "-o", "/dev/null", "-w", "%{http_code}\n", `http://${WEB}/[1-${count}]`],
    ], { timeoutMs: 60_000 });
    assert.equal(stdout.trim().split("\n").filter((code) => code === "200").length, count, stderr);
  }

  /** Where the bytes go now: `relay`, `direct`, `lan`. */
  async path(): Promise<string | undefined> {
    return (await this.#mesh.status(this.#client.node)).peers[0]?.path;
  }
}

/** Private bytes of each once they have had time to give memory back: the smallest figure until then. */
export async function calm(processes: readonly HostProcess[]): Promise<readonly number[]> {
  const deadline = systemClock.now() + CALM_MS;
  let least = await Promise.all(processes.map(async (p) => (await p.memory()).private));
  while (systemClock.now() < deadline) {
    await pause(1_000);
    const now = await Promise.all(processes.map(async (p) => (await p.memory()).private));
    least = least.map((bytes, i) => Math.min(bytes, now[i]!));
  }
  return least;
}

export function mb(bytes: number): string {
  return `${(bytes / 1e6).toFixed(1)} MB`;
}
