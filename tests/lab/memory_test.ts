/** What an agent costs a small machine: at rest, and after it was busy. */
import assert from "node:assert/strict";
import { pause } from "../../lib/clock.ts";
import { until } from "../../lib/lab/exec.ts";
import { processesInGroup } from "../../lib/lab/proc.ts";
import type { HostProcess, Memory } from "../../lib/lab/process.ts";
import { startAll, tell, webService, withMesh } from "./fixture.ts";
import { labTest } from "./support.ts";

/** Issue 2 asks for 40 MB now; 30 is the aim. */
const IDLE_PRIVATE = 40_000_000;
const STREAMS = 1000;
/** Over idle: lazily loaded code, tuned windows and the engine's spare pages. */
const WARM = 12_000_000;
/** Over the round before. The heap levels off within a few rounds: 6, 3, 1.6, 0.2 MB more were measured. */
const GROWTH = 5_000_000;
/** Descriptors come and go with timers and the control connection; a leak would be one for each stream. */
const SPARE_FILES = 8;
const SETTLE_MS = 500;

labTest("memory: an idle agent stays below 40 MB private, and thousands of streams leave nothing behind", async (t) => {
  await withMesh({ cloud: "none" }, async (mesh) => {
    const { topology } = mesh;
    const pod = topology.pod("edge-1-pod-1");
    await mesh.writeManifest("web.yaml", webService("web", "10.96.0.10", [topology.pod("edge-2-pod-1")]));
    await startAll(mesh);
    const agents = ["edge-1", "edge-2"].map((name) => mesh.agent(name));
    const idle: Memory[] = [];

    await t.step("idle", async () => {
      for (const agent of agents) {
        const memory = await settled(agent);
        idle.push(memory);
        tell(`${agent.host.name}: ${mb(memory.private)} private, ${mb(memory.rss)} RSS, ${mb(memory.pss)} PSS`);
        assert.ok(memory.private <= IDLE_PRIVATE, `${agent.host.name} idles at ${mb(memory.private)}`);
      }
      const server = await settled(mesh.server);
      tell(`server: ${mb(server.private)} private, ${mb(server.rss)} RSS`);
      const { memory } = await mesh.status(topology.node("edge-1"));
      assert.ok(Math.abs(memory.privateMb * 1e6 - idle[0]!.private) < 10e6, "status tells another number");
    });
    await t.step(`twice ${STREAMS} streams that came and went`, async () => {
      const fetchMany = async (count: number) => {
        const argv = ["curl", "-sS", "--parallel", "--parallel-immediate", "--parallel-max", "50", "--max-time", "50"];
        const { stdout, stderr } = await pod.host.exec([
          ...argv,
          ...["-H", "Connection: close", "-o", "/dev/null", "-w", "%{http_code}\n", `http://10.96.0.10/[1-${count}]`],
        ], { timeoutMs: 60_000 });
        assert.equal(stdout.trim().split("\n").filter((code) => code === "200").length, count, stderr);
      };
      const files = agents.map((agent) => openFiles(agent));
      let before = idle;
      for (const limit of [WARM, GROWTH]) {
        await fetchMany(STREAMS);
        await until("the streams to be gone", async () => {
          return (await mesh.status(topology.node("edge-1"))).peers.every((peer) => peer.streams === 0) || undefined;
        });
        const after: Memory[] = [];
        for (const [i, agent] of agents.entries()) {
          const memory = await settled(agent);
          after.push(memory);
          const growth = memory.private - before[i]!.private;
          tell(
            `${agent.host.name}: ${mb(memory.private)} private after ${STREAMS} streams, ${
              mb(growth)
            } more than before`,
          );
          assert.ok(growth < limit, `${agent.host.name} kept ${mb(growth)}`);
        }
        agents.forEach((agent, i) => {
          const left = openFiles(agent) - files[i]!;
          assert.ok(left < SPARE_FILES, `${agent.host.name} has ${left} more open files than before`);
        });
        before = after;
      }
    });
  });
});

/** Memory once it does not shrink any more: the engine gives pages back a moment after it has collected. */
async function settled(process: HostProcess): Promise<Memory> {
  let last = await process.memory();
  for (let i = 0; i < 10; i++) {
    await pause(SETTLE_MS);
    const now = await process.memory();
    if (now.private > last.private - 100_000) return now;
    last = now;
  }
  return last;
}

function openFiles(process: HostProcess): number {
  return processesInGroup(process.pid).reduce((sum, pid) => sum + [...Deno.readDirSync(`/proc/${pid}/fd`)].length, 0);
}

function mb(bytes: number): string {
  return `${(bytes / 1e6).toFixed(1)} MB`;
}
