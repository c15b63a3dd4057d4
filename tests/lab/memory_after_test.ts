/** Memory of agents and server after 1 000 streams and 1 000 UDP flows, and after 200 MB, came and went. */
import assert from "node:assert/strict";
import { pause, systemClock } from "../../lib/clock.ts";
import { until } from "../../lib/lab/exec.ts";
import { serviceYaml } from "../../lib/lab/mesh.ts";
import type { HostProcess } from "../../lib/lab/process.ts";
import { tell, webService, withMesh } from "./fixture.ts";
import { ask, PORTS, startPeer } from "./peers.ts";
import { labTest } from "./support.ts";
import { askUdp, startUdpPeer } from "./udp_peers.ts";

const WEB = "10.96.0.10";
const UDP = "10.96.0.11";
const BULK = "10.96.0.12";
const UDP_PORT = 5300;
const TARGET = 9000;
const MANY = 1000;
/** Over the memory before: code that is loaded and compiled by the first use stays. */
const SPARE = 10_000_000;
/** The same after 200 MB: the relay and both agents keep buffers for the next busy time; 7 to 20 MB were measured. */
const BULK_SPARE = 25_000_000;
const BULK_BYTES = 200_000_000;
/** A look every 5 s, two for calm, and one more for what the collection itself leaves. */
const CALM_MS = 25_000;

labTest("memory: back to where it was after 1 000 streams, 1 000 UDP flows and 200 MB", async (t) => {
  await withMesh({ cloud: "none", web: ["edge-2-pod-1"] }, async (mesh) => {
    const { topology } = mesh;
    const [client, far] = [topology.pod("edge-1-pod-1"), topology.pod("edge-2-pod-1")];
    const at = [{ ip: far.ip, node: far.node.name }];
    await mesh.writeManifest("web.yaml", webService("web", WEB, [far]));
    await mesh.writeManifest(
      "udp.yaml",
      serviceYaml({ name: "udp", clusterIP: UDP, port: UDP_PORT, targetPort: TARGET, protocol: "UDP", endpoints: at }),
    );
    await mesh.writeManifest(
      "bulk.yaml",
      serviceYaml({ name: "bulk", clusterIP: BULK, port: PORTS.digest, targetPort: PORTS.digest, endpoints: at }),
    );
    await Promise.all([startUdpPeer(far.host, far.name, TARGET), startPeer(far.host)]);
    await mesh.startServer();
    await Promise.all(topology.nodes.map((node) => mesh.join(node, { flags: ["--set", "forward.udpIdleMs=2000"] })));
    const processes = [...["edge-1", "edge-2"].map((name) => mesh.agent(name)), mesh.server];
    const before = await calm(processes);
    report("idle", processes, before, before);

    const streams = async () => {
      const argv = ["curl", "-sS", "--parallel", "--parallel-immediate", "--parallel-max", "50", "--max-time", "50"];
      const { stdout, stderr } = await client.host.exec([
        ...[...argv, "-H", "Connection: close", "-o", "/dev/null", "-w", "%{http_code}\n", `http://${WEB}/[1-${MANY}]`],
      ], { timeoutMs: 60_000 });
      assert.equal(stdout.trim().split("\n").filter((code) => code === "200").length, MANY, stderr);
    };
    const flows = async () => {
      assert.equal((await askUdp<{ answered: number }>(client.host, "flows", UDP, UDP_PORT, MANY)).answered, MANY);
    };
    const gone = () =>
      until("streams and flows to be gone", async () => {
        const { peers } = await mesh.status(topology.node("edge-1"));
        return peers.every((peer) => peer.streams === 0) || undefined;
      }, 30_000);

    await t.step(`${MANY} streams and ${MANY} flows`, async () => {
      await streams();
      await flows();
      await gone();
      const first = await calm(processes);
      report("after the first round", processes, first, before);
      first.forEach((bytes, i) => assert.ok(bytes - before[i]! < SPARE, `${processes[i]!.host.name}: ${mb(bytes)}`));
    });
    await t.step("the same again: nothing more", async () => {
      await streams();
      await flows();
      await gone();
      const second = await calm(processes);
      report("after the second round", processes, second, before);
      second.forEach((bytes, i) => assert.ok(bytes - before[i]! < SPARE, `${processes[i]!.host.name}: ${mb(bytes)}`));
    });
    await t.step("200 MB through the relay", async () => {
      const { answer, sha256 } = await ask(client.host, "upload", BULK, BULK_BYTES);
      assert.equal(answer, `${BULK_BYTES} ${sha256}`);
      const busy = await Promise.all(processes.map(async (p) => (await p.memory()).private));
      report("right after 200 MB", processes, busy, before);
      const after = await calm(processes);
      report("a while after 200 MB", processes, after, before);
      after.forEach((bytes, i) =>
        assert.ok(bytes - before[i]! < BULK_SPARE, `${processes[i]!.host.name}: ${mb(bytes)}`)
      );
    });
  });
});

/** Private bytes of each once they have had time to give memory back: the smallest figure until then. */
async function calm(processes: readonly HostProcess[]): Promise<readonly number[]> {
  const deadline = systemClock.now() + CALM_MS;
  let least = await Promise.all(processes.map(async (p) => (await p.memory()).private));
  while (systemClock.now() < deadline) {
    await pause(1_000);
    const now = await Promise.all(processes.map(async (p) => (await p.memory()).private));
    least = least.map((bytes, i) => Math.min(bytes, now[i]!));
  }
  return least;
}

function report(when: string, all: readonly HostProcess[], now: readonly number[], before: readonly number[]): void {
  const parts = all.map((p, i) =>
    `${p.host.name} ${mb(now[i]!)} (${now[i]! >= before[i]! ? "+" : ""}${mb(now[i]! - before[i]!)})`
  );
  tell(`${when}: ${parts.join(", ")} private`);
}

function mb(bytes: number): string {
  return `${(bytes / 1e6).toFixed(1)} MB`;
}
