/** What TCP promises holds from pod to pod across two NATs: every byte, half-close, resets both ways, back-pressure. */
import assert from "node:assert/strict";
import { pause } from "../../lib/clock.ts";
import { until } from "../../lib/lab/exec.ts";
import { serviceYaml } from "../../lib/lab/mesh.ts";
import type { HostProcess } from "../../lib/lab/process.ts";
import { startAll, tell, withMesh } from "./fixture.ts";
import { ask, PORTS, startPeer, startStalled } from "./peers.ts";
import { labTest } from "./support.ts";

const UPLOAD = 100_000_000;
/**
 * What may be under way to somebody who does not read: socket buffers of four hops (up to 6 MB each on a receiver that
 * the kernel tuned up), the session's window of 4 MiB and the channel's.
 */
const MOST_UNDER_WAY = 32_000_000;
/** An agent that carries a stalled stream may hold its windows, and nothing that grows. */
const MOST_GROWTH = 24_000_000;
const STABLE_MS = 1000;

labTest("TCP across two NATs: bytes, half-close, resets and back-pressure are kept end to end", async (t) => {
  await withMesh({ cloud: "none", web: [] }, async (mesh) => {
    const { topology } = mesh;
    const [client, far] = [topology.pod("edge-1-pod-1"), topology.pod("edge-2-pod-1")];
    const at = (port: number) => `10.96.0.${port - 6990}`;
    const yaml = Object.entries(PORTS).map(([name, port]) =>
      serviceYaml({
        name,
        clusterIP: at(port),
        port,
        targetPort: port,
        endpoints: [{ ip: far.ip, node: far.node.name }],
      })
    ).join("---\n");
    await mesh.writeManifest("peer.yaml", yaml);
    const server = await startPeer(far.host);
    await startAll(mesh);

    await t.step("half-close: the answer comes after the client has ended its side", async () => {
      const { answer, sha256, ended } = await ask(client.host, "upload", at(PORTS.digest), 1_000);
      assert.equal(answer, `1000 ${sha256}`);
      assert.equal(ended, "cleanly");
      await server.waitFor({ log: /digest ended cleanly after 1000$/m });
    });
    await t.step("100 MB arrive as they were sent", async () => {
      const { answer, sha256, ms } = await ask(client.host, "upload", at(PORTS.digest), UPLOAD);
      assert.equal(answer, `${UPLOAD} ${sha256}`);
      tell(`up: ${Math.round(UPLOAD / ms / 125)} Mbit/s through the relay at 80 ms`);
    });
    await t.step("20 MB come back as they were sent", async () => {
      const bytes = 20_000_000;
      const down = await ask(client.host, "download", at(PORTS.source), bytes);
      const near = await ask(far.host, "download", far.ip, bytes);
      assert.deepEqual([down.received, down.ended], [bytes, "cleanly"]);
      assert.equal(down.sha256, near.sha256, "not what the server sends to its own pod");
      tell(`down: ${Math.round(bytes / down.ms / 125)} Mbit/s`);
    });
    await t.step("a reset by the server reaches the client", async () => {
      const { ended, ms } = await ask(client.host, "reset", at(PORTS.reset));
      assert.equal(ended, "RESET");
      assert.ok(ms < 2000, `only after ${ms} ms`);
    });
    await t.step("a reset by the client reaches the server", async () => {
      await ask(client.host, "abort", at(PORTS.digest), 50_000);
      await server.waitFor({ log: /digest ended RESET after \d+$/m });
    });
    await t.step(
      "a client that does not read stops the sender; memory stays; then every byte still comes",
      async () => {
        const agents = ["edge-1", "edge-2"].map((name) => mesh.agent(name));
        const before = await Promise.all(agents.map(async (agent) => (await agent.memory()).private));
        const stalled = await startStalled(client.host, at(PORTS.flood));
        const sent = await standstill(server);
        assert.ok(sent > 64 * 1024, `only ${sent} bytes left the server`);
        assert.ok(sent < MOST_UNDER_WAY, `${sent} bytes left the server, and nobody reads them`);
        const after = await Promise.all(agents.map(async (agent) => (await agent.memory()).private));
        after.forEach((bytes, i) => {
          const growth = bytes - before[i]!;
          tell(`${agents[i]!.host.name}: ${megabytes(growth)} more while ${megabytes(sent)} are under way`);
          assert.ok(growth < MOST_GROWTH, `${agents[i]!.host.name} grew by ${megabytes(growth)}`);
        });
        stalled.signal("SIGUSR2");
        await until("the sender to go on", async () => await flooded(server) > sent + 1_000_000 || undefined);
        await stalled.kill();
        await server.waitFor({ log: /^flood ended/m });
      },
    );
  });
});

/** Bytes the flood has sent when it sends no more. */
async function standstill(server: HostProcess): Promise<number> {
  let last = -1;
  return await until("the sender to stop", async () => {
    await pause(STABLE_MS);
    const now = await flooded(server);
    if (now === last && now > 0) return now;
    last = now;
    return undefined;
  }, 20_000);
}

async function flooded(server: HostProcess): Promise<number> {
  return Number([...(await server.log()).matchAll(/^flood (\d+)$/gm)].at(-1)?.[1] ?? 0);
}

function megabytes(bytes: number): string {
  return `${(bytes / 1e6).toFixed(1)} MB`;
}
