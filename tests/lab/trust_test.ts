/** Who still talks to whom when certificates expire, clocks are wrong and no server is there; and who does not any more. */
import assert from "node:assert/strict";
import { systemClock } from "../../lib/clock.ts";
import { startEcho } from "../../lib/lab/backends.ts";
import { until } from "../../lib/lab/exec.ts";
import { type Mesh, serviceYaml } from "../../lib/lab/mesh.ts";
import type { LabNode } from "../../lib/lab/node.ts";
import type { FakeTime } from "../../lib/lab/process.ts";
import { requireTools } from "../../lib/lab/tools.ts";
import { allowed, curl, startAll, tell, webService, withMesh } from "./fixture.ts";
import { labTest } from "./support.ts";

const NODES = ["edge-1", "edge-2", "edge-3"] as const;
const ECHO = "10.96.0.20";
const ECHO_PORT = 7007;
/** From the operator's command to the end of the node's streams. */
const CUT_MS = 5_000;
const DAY = 86_400;
/** Certificates last a day: so far ahead, they have been expired for another. */
const EXPIRED: FakeTime = { offsetSeconds: 2 * DAY + 3600 };
const EPOCH: FakeTime = { startAt: new Date(0) };

labTest(
  "trust: expired certificates, a clock at 1970 and no server keep nobody apart; a revocation does",
  async (t) => {
    await withMesh({ sites: [{ nat: "cone", nodes: 3 }], cloud: "none" }, async (mesh) => {
      const { topology } = mesh;
      const { socat } = await requireTools(["socat"]);
      const [one, two, three] = NODES.map((name) => topology.node(name)) as [LabNode, LabNode, LabNode];
      for (const [i, name] of NODES.entries()) {
        await mesh.writeManifest(
          `web-${i}.yaml`,
          webService(`web-${i}`, address(name), [topology.pod(`${name}-pod-1`)]),
        );
      }
      const echoPod = topology.pod("edge-1-pod-1");
      await mesh.writeManifest(
        "echo.yaml",
        serviceYaml({
          name: "echo",
          clusterIP: ECHO,
          port: ECHO_PORT,
          targetPort: ECHO_PORT,
          endpoints: [{ ip: echoPod.ip, node: "edge-1" }],
        }),
      );
      await startEcho(echoPod.host, { port: ECHO_PORT });
      await startAll(mesh);
      for (const a of NODES) for (const b of NODES) if (a !== b) await talks(mesh, a, b);

      await t.step("`edgemesh node remove` ends the node's streams within five seconds", async () => {
        const argv = [socat, "-u", `TCP4:${ECHO}:${ECHO_PORT}`, "STDOUT"];
        const stream = await topology.pod("edge-3-pod-1").host.start("stream", argv);
        await until("the stream to stand", async () => {
          const { peers } = await mesh.status(one);
          return peers.some((peer) => peer.node === "edge-3" && peer.streams > 0) || undefined;
        });
        assert.ok(stream.running);
        const removed = systemClock.now();
        const { code, stdout, stderr } = await topology.server.run(["node", "remove", "edge-3"]);
        assert.equal(code, 0, stderr);
        tell(stdout.trim());
        await stream.ended;
        const ms = Math.round(systemClock.now() - removed);
        tell(`its stream ended ${ms} ms after the command was typed`);
        assert.ok(ms < allowed(CUT_MS), `only after ${ms} ms`);
        await silent(mesh, "edge-3", "edge-1");
        await silent(mesh, "edge-1", "edge-3");
      });
      await t.step("it stays out after a restart, and says why", async () => {
        await mesh.stopAgent(three);
        await mesh.startAgent(three, { waitReady: false });
        const warning = await until("status to say why", async () => {
          const result = await three.run(["status"]);
          return /revoked[^\n]*/i.exec(result.stdout)?.[0];
        }, 20_000);
        tell(warning);
        for (const other of ["edge-1", "edge-2"] as const) await silent(mesh, "edge-3", other);
        assert.ok(!(await mesh.serverStatus()).agents.some((agent) => agent.node === "edge-3"));
      });
      await t.step(
        "server gone, one certificate expired for a day, the other node's clock at 1970: both still talk",
        async () => {
          for (const node of [one, two, three]) await mesh.stopAgent(node);
          await mesh.stopServer("kill");
          await mesh.startAgent(one, { clock: EXPIRED });
          await mesh.startAgent(two, { clock: EPOCH });
          await talks(mesh, "edge-1", "edge-2");
          await talks(mesh, "edge-2", "edge-1");
          const status = await mesh.status(one);
          assert.equal(status.mode, "offline");
          assert.deepEqual(status.peers.filter((p) => p.node === "edge-2").map((p) => p.path), ["lan"]);
          const warning = status.warnings.find((w) => w.code === "CERT_EXPIRED");
          assert.ok(warning, `no word about the certificate: ${JSON.stringify(status.warnings)}`);
          tell(warning.text);
        },
      );
      await t.step("the revoked node is refused by its neighbours too", async () => {
        await mesh.startAgent(three, { waitReady: false });
        await until("its own-node Service to answer", async () => (await ask(mesh, "edge-3", "edge-3")) || undefined);
        for (const other of ["edge-1", "edge-2"] as const) {
          await silent(mesh, "edge-3", other);
          await silent(mesh, other, "edge-3");
        }
      });
      await t.step("`edgemesh node reset` and a new token: it is back with a new key, and all accept it", async () => {
        for (const node of [one, two, three]) await mesh.stopAgent(node);
        await mesh.startServer();
        await Promise.all([one, two].map((node) => mesh.startAgent(node)));
        const { code, stdout, stderr } = await topology.server.run(["node", "reset", "edge-3"]);
        assert.equal(code, 0, stderr);
        tell(stdout.trim());
        const cleaned = await three.run(["cleanup", "--state"]);
        assert.equal(cleaned.code, 0, cleaned.stderr);
        await mesh.join(three);
        for (const other of ["edge-1", "edge-2"] as const) {
          await talks(mesh, "edge-3", other);
          await talks(mesh, other, "edge-3");
        }
      });
    });
  },
);

function address(node: string): string {
  return `10.96.0.1${node.slice(-1)}`;
}

/** Whether a pod of one node gets an answer of the other's Service. */
async function ask(mesh: Mesh, from: string, to: string): Promise<boolean> {
  const { body } = await curl(mesh.topology.pod(`${from}-pod-1`), `http://${address(to)}/`, ["--max-time", "3"]);
  return body === `${to}-pod-1 on ${to}`;
}

/** Neighbours find each other again within seconds. */
async function talks(mesh: Mesh, from: string, to: string): Promise<void> {
  await until(`${from} to reach ${to}`, async () => (await ask(mesh, from, to)) || undefined, 15_000);
}

async function silent(mesh: Mesh, from: string, to: string): Promise<void> {
  assert.equal(await ask(mesh, from, to), false, `${from} still reaches ${to}`);
}
