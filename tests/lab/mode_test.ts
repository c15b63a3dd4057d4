/** `tunnel.mode`: when an agent looks for direct paths. Judged by what crosses the server's interface. */
import assert from "node:assert/strict";
import { pause } from "../../lib/clock.ts";
import { until } from "../../lib/lab/exec.ts";
import { type Mesh, serviceYaml } from "../../lib/lab/mesh.ts";
import { withMesh } from "./fixture.ts";
import { ask, PORTS, startPeer } from "./peers.ts";
import { longLabTest } from "./support.ts";

const SOURCE = "10.96.0.10";
const BYTES = 1_000_000;
/** Two nodes of one network: nothing would be easier than a direct path. */
const SITES = [{ nat: "cone", nodes: 2 }] as const;
/** Off is shown by nothing happening: longer than a LAN path ever takes. */
const NEVER_MS = 2_000;

longLabTest("tunnel.mode: eager has paths before anybody asks, off never has one", async (t) => {
  await withMesh({ sites: SITES, cloud: "none", web: [] }, async (mesh) => {
    const { topology } = mesh;
    const [from, to] = [topology.pod("edge-1-pod-1"), topology.pod("edge-2-pod-1")];
    const endpoints = [{ ip: to.ip, node: to.node.name }];
    await mesh.writeManifest(
      "source.yaml",
      serviceYaml({ name: "source", clusterIP: SOURCE, port: PORTS.source, targetPort: PORTS.source, endpoints }),
    );
    await startPeer(to.host);
    await mesh.startServer();
    for (const node of topology.nodes) {
      await mesh.join(node);
      await mesh.stopAgent(node);
    }
    const start = async (mode: string) => {
      for (const node of topology.nodes) await mesh.startAgent(node, { flags: ["--set", `tunnel.mode=${mode}`] });
    };
    const stop = async () => {
      for (const node of topology.nodes) await mesh.stopAgent(node);
    };
    const download = async () => {
      assert.equal((await ask(from.host, "download", SOURCE, BYTES)).received, BYTES);
    };

    await t.step("eager: a path on the LAN although nobody has sent a byte", async () => {
      await start("eager");
      await until("a path that nobody asked for", async () => await path(mesh) === "lan" || undefined, 15_000);
      assert.ok(await throughServer(mesh, download) < BYTES / 10, "bytes went through the server");
      await stop();
    });
    await t.step("off: every byte goes through the server, however long one waits", async () => {
      await start("off");
      await download();
      await pause(NEVER_MS);
      assert.ok(await throughServer(mesh, download) > BYTES, "bytes went another way");
      assert.equal(await path(mesh), "relay");
      await stop();
    });
  });
});

async function path(mesh: Mesh): Promise<string | undefined> {
  return (await mesh.status(mesh.topology.node("edge-1"))).peers.find((peer) => peer.node === "edge-2")?.path;
}

/** Bytes that the server's interface sent while something happened. */
async function throughServer(mesh: Mesh, happens: () => Promise<void>): Promise<number> {
  const meter = await mesh.topology.server.counters("mode");
  const sent = async () => (await meter.total({ direction: "out", protocol: "tcp" })).bytes;
  const before = await sent();
  await happens();
  return await sent() - before;
}
