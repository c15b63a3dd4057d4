/**
 * What users of meshes for the edge ask for by name: cloud to edge and back (A14, A15), another address (B11), a reboot
 * without the cloud (B12). Balancing (A10) and paths between edge sites (A16, A17) are in path_test.ts, where the wire is
 * watched.
 */
import assert from "node:assert/strict";
import { systemClock } from "../../lib/clock.ts";
import { until } from "../../lib/lab/exec.ts";
import { type Mesh, serviceYaml } from "../../lib/lab/mesh.ts";
import type { LabNode } from "../../lib/lab/node.ts";
import type { Pod } from "../../lib/lab/pod.ts";
import { requireTools } from "../../lib/lab/tools.ts";
import { allowed, curl, startAll, tell, webService, withMesh } from "./fixture.ts";
import { labTest } from "./support.ts";

const ECHO_PORT = 2701;
const OWN = "10.96.0.10";
const OTHER = "10.96.0.11";
const BACK = "10.96.0.12";
/** From the new address to traffic: the host's network settles, a connection to the server, a session with the peer. */
const MOVED_MS = 10_000;
const BOOT_MS = 2_000;
const RECOVER_MS = 3_000;

labTest("A14, A15: cloud to edge and edge to cloud, by name, across a NAT", async (t) => {
  await withMesh({ sites: [{ nat: "cone" }], cloud: "public", web: [] }, async (mesh) => {
    const { topology } = mesh;
    const [cloud, edge] = [topology.pod("cloud-1-pod-1"), topology.pod("edge-1-pod-1")];
    for (const [zone, pod, ip] of [["cloud", cloud, "10.96.0.20"], ["edge", edge, "10.96.0.21"]] as const) {
      const namespace = `${zone}zone`;
      const endpoints = [{ ip: pod.ip, node: pod.node.name }];
      await mesh.writeManifest(
        `${zone}.yaml`,
        serviceYaml({
          name: `tcp-echo-${zone}-svc`,
          namespace,
          clusterIP: ip,
          port: ECHO_PORT,
          targetPort: ECHO_PORT,
          endpoints,
        }),
      );
      await startBanner(pod, namespace);
    }
    await startAll(mesh);
    for (const [id, from, to, zone] of [["A14", cloud, edge, "edge"], ["A15", edge, cloud, "cloud"]] as const) {
      await t.step(`${id}: tcp-echo-${zone}-svc.${zone}zone from ${from.node.name}`, async () => {
        const { socat } = await requireTools(["socat"]);
        const started = systemClock.now();
        const { stdout } = await from.host.execOk(
          [socat, "-t", "3", "-", `TCP4:tcp-echo-${zone}-svc.${zone}zone.svc.cluster.local:${ECHO_PORT}`],
          { stdin: "hello\n" },
        );
        tell(`${id}: ${stdout.trim().replace("\n", "; ")} (${Math.round(systemClock.now() - started)} ms)`);
        assert.equal(stdout, `connected to node ${to.node.name}, namespace ${zone}zone\nhello\n`);
      });
    }
  });
});

labTest(
  "B11: a node that moves to another address is back, for its own requests and for those of others",
  async (t) => {
    await withMesh({ cloud: "none", defaultRoute: true }, async (mesh) => {
      const { topology } = mesh;
      const [one, two] = [topology.pod("edge-1-pod-1"), topology.pod("edge-2-pod-1")];
      await mesh.writeManifest("other.yaml", webService("other", OTHER, [two]));
      await mesh.writeManifest("back.yaml", webService("back", BACK, [one]));
      await startAll(mesh);
      const both = async () => {
        await answers(one, OTHER, two);
        await answers(two, BACK, one);
      };
      await both();
      await t.step("another address on its network, after the link was gone (Wi-Fi switch)", async () => {
        await moved(topology.node("edge-1"));
        tell(`another address: both directions after ${await within(both, MOVED_MS)} ms`);
      });
      await t.step("the provider gives the router another public address", async () => {
        await topology.sites[0]!.renumber("203.0.113.77");
        tell(`another public address: both directions after ${await within(both, 4 * MOVED_MS)} ms`);
      });
    });
  },
);

labTest(
  "B12: an edge node reboots while the cloud cannot be reached: it serves its own pods, and is back with the cloud",
  async (t) => {
    await withMesh({ cloud: "none", podsPerNode: 2 }, async (mesh) => {
      const { topology } = mesh;
      const node = topology.node("edge-1");
      const [pod, own, other] = ["edge-1-pod-1", "edge-1-pod-2", "edge-2-pod-1"].map((name) => topology.pod(name));
      await mesh.writeManifest("own.yaml", webService("own", OWN, [own!]));
      await mesh.writeManifest("other.yaml", webService("other", OTHER, [other!]));
      await startAll(mesh);
      await answers(pod!, OTHER, other!);
      const site = topology.sites[0]!;
      await t.step("own-node Services by name from disk, with nothing left in the kernel", async () => {
        // The first copy is written a second after the first sync.
        await mesh.agent("edge-1").waitFor({ file: "/var/lib/edgemesh/agent/snapshot.jsonl" });
        await site.cut();
        await powerCut(mesh, node);
        assert.notEqual((await curl(pod!, `http://${OWN}/`, ["--max-time", "1"])).code, 0);
        const started = systemClock.now();
        await mesh.startAgent(node, { waitReady: false });
        await until("the own-node Service by name", async () => {
          return (await curl(pod!, "http://own/", ["--max-time", "1"])).body === "edge-1-pod-2 on edge-1" || undefined;
        });
        const ms = Math.round(systemClock.now() - started);
        tell(`own-node Service by name ${ms} ms after exec`);
        assert.ok(ms < allowed(BOOT_MS), `only after ${ms} ms`);
      });
      await t.step("the uplink is back: so are the other sites", async () => {
        await site.heal();
        tell(`other sites after ${await within(() => answers(pod!, OTHER, other!), RECOVER_MS)} ms`);
      });
    });
  },
);

/** An echo that says where it is first. */
async function startBanner(pod: Pod, namespace: string): Promise<void> {
  const { socat } = await requireTools(["socat"]);
  const banner = `connected to node ${pod.node.name}\\, namespace ${namespace}`;
  const argv = [socat, `TCP4-LISTEN:${ECHO_PORT},fork,reuseaddr`, `SYSTEM:echo ${banner}; cat`];
  await pod.host.start("banner", argv, { ready: { port: ECHO_PORT } });
}

async function answers(from: Pod, ip: string, to: Pod): Promise<void> {
  await until(`${from.name} to reach ${to.name}`, async () => {
    const { body } = await curl(from, `http://${ip}/`, ["--max-time", "2"]);
    return body === `${to.name} on ${to.node.name}` || undefined;
  }, 60_000);
}

/** Milliseconds that something takes; fails beyond the limit. */
async function within(run: () => Promise<void>, limitMs: number): Promise<number> {
  const started = systemClock.now();
  await run();
  const ms = Math.round(systemClock.now() - started);
  assert.ok(ms < allowed(limitMs), `only after ${ms} ms`);
  return ms;
}

/** Its link goes down, and comes up with another address of the same network. */
async function moved(node: LabNode): Promise<void> {
  if (!("plug" in node.attachment)) throw new Error(`${node.name} is not in a site`);
  const { plug } = node.attachment;
  await plug.unplug();
  const other = plug.address.replace(/\d+$/, "177");
  await plug.ns.ip(`addr del ${plug.address}/24 dev ${plug.ifname}`, `addr add ${other}/24 dev ${plug.ifname}`);
  await plug.replug();
  await plug.ns.ip(`route replace default via ${plug.gateway} dev ${plug.ifname}`);
}

/** What a power cut leaves of the agent: its state directory, and nothing in the kernel. */
async function powerCut(mesh: Mesh, node: LabNode): Promise<void> {
  await mesh.stopAgent(node, "kill");
  await node.host.execOk([
    ...["sh", "-c", "nft delete table inet edgemesh; ip link delete edgemesh0; rm -rf /run/edgemesh; conntrack -F"],
  ]);
}
