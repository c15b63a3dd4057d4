/** Many behind one address, and one that talks to all (B13); a node of another mesh on the same LAN (A34). */
import assert from "node:assert/strict";
import { systemClock } from "../../lib/clock.ts";
import { until } from "../../lib/lab/exec.ts";
import type { Mesh } from "../../lib/lab/mesh.ts";
import type { Pod } from "../../lib/lab/pod.ts";
import { allowed, curl, startAll, tell, webService, withMesh } from "./fixture.ts";
import { labTest, longLabTest } from "./support.ts";

/** Agents behind one public address, each with a peer elsewhere: more than twice what the original's relay allows. */
const CROWD = 20;
/** From the server's return until everybody is served again; a start of twenty handshakes included. */
const BACK_MS = 10_000;

longLabTest(
  `B13: ${CROWD} agents behind one address, a hub that talks to all of them, and the relay restarts`,
  async (t) => {
    // Symmetric NATs on both sides: everything is relayed, or the relay would not be missed.
    const sites = [{ nat: "symrand", nodes: CROWD }, { nat: "symrand" }] as const;
    await withMesh({ sites, cloud: "none", defaultRoute: true }, async (mesh) => {
      const { topology } = mesh;
      const hub = topology.pod(`edge-${CROWD + 1}-pod-1`);
      const crowd = topology.nodes.slice(0, CROWD).map((node) => node.pods[0]!);
      for (const [i, pod] of crowd.entries()) {
        await mesh.writeManifest(`${i}.yaml`, webService(`s${i}`, address(i), [pod]));
      }
      await mesh.startServer();
      // A few at a time: it is one machine that starts them all.
      for (let i = 0; i < topology.nodes.length; i += 4) {
        await Promise.all(
          topology.nodes.slice(i, i + 4).map((node) => mesh.join(node)),
        );
      }
      await t.step("the hub reaches every one of them", async () => {
        tell(`all ${CROWD} answered ${await all(hub, crowd)} ms after the first was asked`);
        const paths = (await mesh.status(hub.node)).peers.map((peer) => peer.path);
        assert.deepEqual([paths.length, new Set(paths)], [CROWD, new Set(["relay"])]);
      });
      await t.step("T16: the server is killed and started: everybody is back", async () => {
        await mesh.stopServer("kill");
        await mesh.startServer();
        const ms = await all(hub, crowd);
        tell(`all ${CROWD} answered ${ms} ms after the server was ready again`);
        assert.ok(ms < allowed(BACK_MS), `only after ${ms} ms`);
      });
    });
  },
);

labTest("A34: a node of another mesh on the same LAN is nobody: neither server nor neighbours talk to it", async () => {
  const sites = [{ nat: "cone", nodes: 2 }] as const;
  await withMesh({ sites, cloud: "none", defaultRoute: true }, async (mesh) => {
    const { topology } = mesh;
    const [old, fresh] = [topology.pod("edge-1-pod-1"), topology.pod("edge-2-pod-1")];
    await mesh.writeManifest("one.yaml", webService("one", address(0), [old]));
    await mesh.writeManifest("two.yaml", webService("two", address(1), [fresh]));
    await startAll(mesh);
    await all(old, [old, fresh]);
    // The same address, the same names, other keys: what a second installation looks like to the first one's nodes.
    await mesh.stopServer();
    await mesh.stopAgent(fresh.node);
    await topology.server.host.execOk(["sh", "-c", "rm -rf /var/lib/edgemesh/server"]);
    await fresh.node.host.execOk(["sh", "-c", "rm -rf /var/lib/edgemesh/agent"]);
    await mesh.startServer();
    await mesh.join(fresh.node);
    await untilRefused(mesh, old);
    assert.equal((await curl(fresh, `http://${address(1)}/`)).body, "edge-2-pod-1 on edge-2");
    for (const [from, to] of [[old, 1], [fresh, 0]] as const) {
      assert.notEqual(
        (await curl(from, `http://${address(to)}/`)).code,
        0,
        `${from.name} reached a node of another mesh`,
      );
    }
  });
});

function address(i: number): string {
  return `10.96.3.${i + 1}`;
}

/** Milliseconds until each has answered once, all asked at the same time. */
async function all(from: Pod, to: readonly Pod[]): Promise<number> {
  const started = systemClock.now();
  await Promise.all(to.map((pod, i) =>
    until(`${from.name} to reach ${pod.name}`, async () => {
      const { body } = await curl(from, `http://${address(i)}/`, ["--max-time", "3"]);
      return body === `${pod.name} on ${pod.node.name}` || undefined;
    }, 60_000)
  ));
  return Math.round(systemClock.now() - started);
}

/** Its agent has met the new server and says that it is not its own. */
async function untilRefused(mesh: Mesh, pod: Pod): Promise<void> {
  await until(`${pod.node.name} to refuse the server`, async () => {
    const { servers } = await mesh.status(pod.node);
    return /authority|CERT_UNTRUSTED/.test(JSON.stringify(servers)) || undefined;
  }, 20_000);
}
