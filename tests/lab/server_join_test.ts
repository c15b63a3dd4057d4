/** A second server of the mesh: how it comes, what the two know of each other, and what agents notice. */
import assert from "node:assert/strict";
import { systemClock } from "../../lib/clock.ts";
import { until } from "../../lib/lab/exec.ts";
import type { Mesh } from "../../lib/lab/mesh.ts";
import { allowed, curl, tell, webService, withMesh } from "./fixture.ts";
import { labTest } from "./support.ts";
import {
  configureServers,
  connected,
  joinSecond,
  RUN_DIR,
  startFirst,
  startSecond,
  STATE,
  URLS,
} from "./two_servers.ts";

/** From `edgemesh node remove` on one server to the node's end on the other (T07). */
const REVOKED_MS = 5_000;
const WEB = "10.96.0.12";

labTest(
  "A19, A20, T07: a second server joins; agents use it by a reload, obey both, and lose the first without a restart",
  async (t) => {
    const sites = [{ nat: "symrand" }, { nat: "symrand" }] as const;
    await withMesh({ sites, cloud: "none", defaultRoute: true }, async (mesh) => {
      const { topology } = mesh;
      const { server } = topology;
      const [one, two] = [topology.node("edge-1"), topology.node("edge-2")];
      const [client, backend] = [topology.pod("edge-1-pod-1"), topology.pod("edge-2-pod-1")];
      await mesh.writeManifest("web.yaml", webService("web", WEB, [backend]));
      const first = await startFirst(mesh);
      for (const node of [one, two]) await configureServers(node, [URLS[0]]);
      const agents = await Promise.all([one, two].map(async (node) => {
        await mesh.join(node);
        await mesh.stopAgent(node);
        // Its servers are what the file says, not flags that would win over it.
        return await mesh.startAgent(node);
      }));
      const reload = async (urls: readonly string[]) => {
        for (const node of [one, two]) await configureServers(node, urls);
        for (const agent of agents) agent.signal("SIGHUP");
        const wanted = [...urls].sort().join();
        await until(`both agents to be connected to ${wanted}`, async () => {
          const all = await Promise.all([one, two].map((node) => connected(mesh, node)));
          return all.every((now) => [...now].sort().join() === wanted) || undefined;
        }, 15_000);
      };
      const answers = async () => {
        const { body, stderr } = await curl(client, `http://${WEB}/`);
        assert.equal(body, "edge-2-pod-1 on edge-2", stderr);
      };

      await t.step(
        "`edgemesh server join`: the key in no log, no arguments, and no file that others can read",
        async () => {
          const { said, token } = await joinSecond(mesh);
          tell(said);
          const key = (await Deno.readTextFile(server.host.path(`${STATE[1]}/ca.key`))).split("\n")[1]!;
          assert.equal(
            await Deno.readTextFile(server.host.path(`${STATE[0]}/ca.key`)).then((pem) => pem.split("\n")[1]),
            key,
          );
          for await (const entry of Deno.readDir(server.host.path(STATE[1]))) {
            const { mode } = await Deno.stat(server.host.path(`${STATE[1]}/${entry.name}`));
            assert.equal(mode! & 0o777, 0o600, entry.name);
          }
          const log = said + await first.log();
          assert.ok(!log.includes(key) && !log.includes(token.split(".")[1]!), "a secret is in the output");
          const again = await server.host.exec([
            ...server.command,
            ...["server", "join", "--name", "server-3", "--url", URLS[1], "--state-dir", "/var/lib/edgemesh/server3"],
            ...["--server", URLS[0], "--ca-pin", (await mesh.serverStatus()).pin, "--token-file", "-"],
          ], { stdin: token });
          assert.equal(again.code, 1);
          assert.match(again.stderr, /for server server-2|used up/);
        },
      );
      await startSecond(mesh);

      await t.step("A19: a server added to the configuration is used after a reload", async () => {
        const ms = await timed(() => reload(URLS));
        tell(`connected to both ${ms} ms after SIGHUP`);
        await answers();
      });
      await t.step(
        "A20: the first one is taken out of the configuration and stopped: the peers move, nothing restarts",
        async () => {
          await reload([URLS[1]]);
          await mesh.stopServer();
          await answers();
          for (const agent of agents) assert.ok(agent.running);
          await startFirst(mesh);
          await reload(URLS);
        },
      );
      await t.step("T07: removed on the first, the node is cut off by the second", async () => {
        const removed = systemClock.now();
        await server.host.execOk([...server.command, "node", "remove", "edge-2"]);
        await until(
          "the second server to cut it off",
          async () => !(await online(mesh, 1)).includes("edge-2") || undefined,
          15_000,
        );
        const ms = Math.round(systemClock.now() - removed);
        tell(`the other server had cut it off after ${ms} ms`);
        assert.ok(ms <= allowed(REVOKED_MS), `only after ${ms} ms`);
        const { stdout } = await server.host.execOk([...server.command, "node", "list", "--run-dir", RUN_DIR[1]]);
        assert.match(stdout, /edge-2\s+revoked/);
      });
    });
  },
);

async function timed(work: () => Promise<void>): Promise<number> {
  const since = systemClock.now();
  await work();
  return Math.round(systemClock.now() - since);
}

/** Nodes that a server has. */
async function online(mesh: Mesh, index: 0 | 1): Promise<readonly string[]> {
  const { server } = mesh.topology;
  const argv = ["status", "--role", "server", "--run-dir", RUN_DIR[index], "-o", "json"];
  const { stdout } = await server.host.exec([...server.command, ...argv]);
  return (JSON.parse(stdout) as { agents: readonly { node: string }[] }).agents.map((agent) => agent.node);
}
