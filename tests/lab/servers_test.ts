/** Two servers of one authority (A18 of the conformance list): what their agents notice when one of them dies or falls silent. */
import assert from "node:assert/strict";
import { pause, systemClock } from "../../lib/clock.ts";
import { startEcho } from "../../lib/lab/backends.ts";
import { until } from "../../lib/lab/exec.ts";
import { type Mesh, serviceYaml } from "../../lib/lab/mesh.ts";
import type { LabNode } from "../../lib/lab/node.ts";
import type { Pod } from "../../lib/lab/pod.ts";
import type { HostProcess } from "../../lib/lab/process.ts";
import { allowed, curl, tell, webService, withMesh } from "./fixture.ts";
import { longLabTest } from "./support.ts";
import { connected, joinSecond, startFirst, startSecond, URLS } from "./two_servers.ts";
import { finish, watch } from "./watch.ts";

const DIRECT_ECHO = "10.96.0.10";
const RELAYED_ECHO = "10.96.0.11";
const WEB = "10.96.0.12";
/** A relayed stream is on the other server by then; a direct one must not notice at all. */
const MOVE_MS = 2_000;
const UNNOTICED_MS = 1_000;
/** A new connection right after a server has died: it waits for the move, and a round trip more. */
const NEW_MS = 2_500;
/** A relayed stream has moved to legs by then, whose end is noticed by nothing but the silence of their server. */
const LEGS_MS = 6_000;

/** A pair that is connected directly, and one that only servers can connect. */
const SITES = [{ nat: "cone" }, { nat: "cone" }, { nat: "symrand" }] as const;

longLabTest(
  "A18, T17: one of two servers dies, hangs or is cut off: direct paths do not notice, relayed streams move",
  async (t) => {
    await withMesh({ sites: SITES, cloud: "none", defaultRoute: true, web: ["edge-3-pod-1"] }, async (mesh) => {
      const { topology } = mesh;
      const [client, direct, relayed] = ["edge-1-pod-1", "edge-2-pod-1", "edge-3-pod-1"].map((name) =>
        topology.pod(name)
      ) as [Pod, Pod, Pod];
      const echo = (name: string, clusterIP: string, { ip, node }: Pod) =>
        serviceYaml({ name, clusterIP, port: 7, targetPort: 7007, endpoints: [{ ip, node: node.name }] });
      await mesh.writeManifest("direct.yaml", echo("direct", DIRECT_ECHO, direct));
      await mesh.writeManifest("relayed.yaml", echo("relayed", RELAYED_ECHO, relayed));
      await mesh.writeManifest("web.yaml", webService("web", WEB, [relayed]));
      await Promise.all([direct, relayed].map((pod) => startEcho(pod.host, { port: 7007 })));

      const first = await startFirst(mesh);
      await Promise.all(topology.nodes.map((node) => mesh.join(node)));
      await Promise.all(topology.nodes.map((node) => mesh.stopAgent(node)));
      await joinSecond(mesh);
      const servers: (HostProcess | undefined)[] = [first, await startSecond(mesh)];
      await Promise.all(
        topology.nodes.map((node) => mesh.startAgent(node, { flags: URLS.flatMap((url) => ["--server", url]) })),
      );
      const node = client.node;
      await until("every agent to be connected to both servers", async () => {
        const all = await Promise.all(topology.nodes.map((each) => connected(mesh, each)));
        return all.every((urls) => urls.length === 2) || undefined;
      });

      const [viaLan, viaRelay] = [await watch(client, DIRECT_ECHO), await watch(client, RELAYED_ECHO)];
      await until("a direct path to edge-2", async () => await pathTo(mesh, node, "edge-2") === "direct" || undefined);
      assert.equal(await pathTo(mesh, node, "edge-3"), "relay");
      // What came before does not count: the watch tells the longest wait of its whole life.
      await Promise.all([viaLan, viaRelay].map(finish));

      const cut = async (index: 0 | 1) => {
        const ip = URLS[index].slice("wss://".length);
        await topology.server.host.ns.nft(`table ip cut${index} {
          chain in { type filter hook input priority 0; ip daddr ${ip} drop; }
          chain out { type filter hook output priority 0; ip saddr ${ip} drop; }
        }`);
      };
      const ways: readonly Way[] = [
        {
          how: "is killed",
          die: (index) => servers[index]!.kill(),
          async revive(index) {
            servers[index] = index === 0 ? await startFirst(mesh) : await startSecond(mesh);
          },
        },
        {
          how: "hangs (SIGSTOP): connected, and says nothing",
          die: (index) => Promise.resolve(servers[index]!.freeze()),
          revive: (index) => Promise.resolve(servers[index]!.thaw()),
        },
        {
          how: "is cut off: every packet is dropped",
          die: (index) => cut(index),
          revive: (index) => topology.server.host.ns.nft(`delete table ip cut${index}`),
        },
      ];
      for (const { how, die, revive } of ways) {
        for (const index of [0, 1] as const) {
          await t.step(`server ${index + 1} ${how}`, async () => {
            const streams = [await watch(client, DIRECT_ECHO), await watch(client, RELAYED_ECHO)];
            await pause(LEGS_MS);
            await die(index);
            const died = systemClock.now();
            const { body, stderr } = await curl(client, `http://${WEB}/`);
            const ms = Math.round(systemClock.now() - died);
            await pause(3_000);
            const [lan, relay] = await Promise.all(streams.map(finish)).finally(() => revive(index));
            tell(`longest silence: direct ${lan} ms, relayed ${relay} ms; a new connection ${ms} ms`);
            await until("every agent to be connected to both again", async () => {
              const all = await Promise.all(topology.nodes.map((each) => connected(mesh, each)));
              return all.every((urls) => urls.length === 2) || undefined;
            }, 60_000);
            assert.equal(body, "edge-3-pod-1 on edge-3", stderr);
            assert.ok(ms <= allowed(NEW_MS), `a new connection took ${ms} ms`);
            assert.ok(lan! <= allowed(UNNOTICED_MS), `the direct stream was silent for ${lan} ms`);
            assert.ok(relay! <= allowed(MOVE_MS), `the relayed stream was silent for ${relay} ms`);
            assert.equal(await pathTo(mesh, node, "edge-2"), "direct");
          });
        }
      }
    });
  },
);

/** How a server can die, and be back. */
interface Way {
  readonly how: string;
  die(index: 0 | 1): Promise<unknown>;
  revive(index: 0 | 1): Promise<unknown>;
}

async function pathTo(mesh: Mesh, node: LabNode, peer: string): Promise<string | undefined> {
  return (await mesh.status(node)).peers.find((p) => p.node === peer)?.path;
}
