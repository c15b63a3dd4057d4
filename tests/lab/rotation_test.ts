/** The authority is replaced while the mesh works; who was away all the time is told what to do. */
import assert from "node:assert/strict";
import { startEcho } from "../../lib/lab/backends.ts";
import { until } from "../../lib/lab/exec.ts";
import { type Mesh, serviceYaml } from "../../lib/lab/mesh.ts";
import type { LabNode } from "../../lib/lab/node.ts";
import { curl, startAll, tell, webService, withMesh } from "./fixture.ts";
import { longLabTest } from "./support.ts";
import { finish, watch } from "./watch.ts";

const WEB = "10.96.0.12";
const ECHO = "10.96.0.13";

interface CaStatus {
  readonly pin: string;
  readonly ready: number;
  readonly rotation?: { readonly phase: string; readonly next: string };
}

longLabTest(
  "T07: the authority is rotated with an overlap: no stream ends, the server may crash meanwhile, and who was away is told how to come back",
  async (t) => {
    await withMesh({ sites: [{ nat: "cone", nodes: 3 }], cloud: "none" }, async (mesh) => {
      const { topology } = mesh;
      const { server } = topology;
      const away = topology.node("edge-3");
      const [client, backend] = [topology.pod("edge-1-pod-1"), topology.pod("edge-2-pod-1")];
      await mesh.writeManifest("web.yaml", webService("web", WEB, [backend]));
      const endpoints = [{ ip: backend.ip, node: backend.node.name }];
      await mesh.writeManifest(
        "echo.yaml",
        serviceYaml({ name: "echo", clusterIP: ECHO, port: 7, targetPort: 7007, endpoints }),
      );
      await startEcho(backend.host, { port: 7007 });
      await startAll(mesh);
      await mesh.stopAgent(away);
      const answers = async () => {
        const { body, stderr } = await curl(client, `http://${WEB}/`);
        assert.equal(body, "edge-2-pod-1 on edge-2", stderr);
      };
      await until("the Service to answer", () => answers().then(() => true, () => undefined));
      const stream = await watch(client, ECHO);
      const before = await ca(mesh, ["status"]);

      await t.step("announced: the agents that are there know it within seconds", async () => {
        await ca(mesh, ["rotate", "--overlap", "1h"]);
        await until(
          "two of three to know it",
          async () => (await ca(mesh, ["status"])).ready === 2 || undefined,
          10_000,
        );
        const refused = await server.run(["server", "ca", "switch"]);
        assert.equal(refused.code, 2);
        assert.match(refused.stderr, /1 of 3 nodes would be left behind: edge-3/);
        tell(refused.stderr.trim());
      });
      await t.step("the server is killed between two steps, and goes on where it was", async () => {
        await mesh.stopServer("kill");
        await mesh.startServer();
        const status = await ca(mesh, ["status"]);
        assert.deepEqual([status.pin, status.rotation?.phase], [before.pin, "announced"]);
      });
      await t.step("switched: they have certificates of the new one; the old one is still trusted", async () => {
        await ca(mesh, ["switch", "--force"]);
        await until(
          "two of three to have one",
          async () => (await ca(mesh, ["status"])).ready === 2 || undefined,
          15_000,
        );
        await answers();
      });
      await t.step("finished: the old one is dropped, and no stream has ended", async () => {
        const status = await ca(mesh, ["finish", "--force"]);
        assert.equal(status.rotation, undefined);
        assert.notEqual(status.pin, before.pin);
        for (const node of ["edge-1", "edge-2"]) await trusts(topology.node(node), [status.pin]);
        await answers();
        tell(`longest silence of the stream over the whole rotation: ${await finish(stream)} ms`);
        for (const name of ["edge-1", "edge-2"]) {
          await mesh.stopAgent(topology.node(name));
          await mesh.startAgent(topology.node(name));
        }
        await until("the Service to answer after restarts", () => answers().then(() => true, () => undefined), 15_000);
      });
      await t.step("who was away all the time is told what to do, and it works", async () => {
        await mesh.startAgent(away, { waitReady: false });
        const said = await until("its status to say so", async () => {
          const status = await mesh.status(away).catch(() => undefined); // It is starting.
          const detail = status?.servers[0]?.detail ?? "";
          return /join/.test(detail) ? detail : undefined;
        }, 15_000);
        tell(said);
        assert.match(said, /not from this mesh's authority .*, but from sha256:/);
        await mesh.stopAgent(away);
        await mesh.join(away);
        await until("it to be connected", async () => (await mesh.status(away)).mode === "online" || undefined, 15_000);
      });
    });
  },
);

async function ca(mesh: Mesh, args: readonly string[]): Promise<CaStatus> {
  const { server } = mesh.topology;
  const { stdout } = await server.host.execOk([...server.command, "server", "ca", ...args, "-o", "json"]);
  return JSON.parse(stdout) as CaStatus;
}

/** Waits until a node trusts exactly these authorities. */
async function trusts(node: LabNode, pins: readonly string[]): Promise<void> {
  await until(`${node.name} to trust ${pins.join()}`, async () => {
    const text = await Deno.readTextFile(node.host.path("/var/lib/edgemesh/agent/identity.json"));
    const { bundlePem } = JSON.parse(text) as { bundlePem: string };
    return bundlePem.split("BEGIN CERTIFICATE").length - 1 === pins.length || undefined;
  }, 15_000);
}
