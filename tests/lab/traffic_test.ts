/**
 * What users of the original expect of Service traffic, by its scenario numbers: balancing policies, affinity, Services
 * of others, endpoints outside, node ports, UDP, large answers, and pod networks that are the same on every node.
 */
import assert from "node:assert/strict";
import { pause, systemClock } from "../../lib/clock.ts";
import { startEcho, startNginx } from "../../lib/lab/backends.ts";
import { until } from "../../lib/lab/exec.ts";
import type { Pod } from "../../lib/lab/pod.ts";
import { SERVER_ADDRESSES } from "../../lib/lab/topology.ts";
import { requireTools } from "../../lib/lab/tools.ts";
import { allowed, curl, startAll, tell, withMesh } from "./fixture.ts";
import { manifest, type ServiceSpec } from "./manifests.ts";
import { labTest } from "./support.ts";
import { askUdp, startUdpPeer } from "./udp_peers.ts";

const MEGABYTES = 8;
const UDP_PORT = 9000;
/** A load balancer's address that nodes believe, and one that they do not. */
const BALANCED = "198.51.100.9";
const NOT_BELIEVED = "192.0.2.99";
/** curl's exit code for a refused connection. */
const CURL_REFUSED = 7;

labTest("Service traffic as users of the original know it, on nodes whose pods have the same addresses", async (t) => {
  await withMesh({
    // Two nodes in one LAN, one behind another NAT; all with Docker's network.
    sites: [{ nat: "cone", nodes: 2 }, { nat: "cone" }],
    cloud: "none",
    podsPerNode: 2,
    podNetwork: () => ({ cidr: "172.17.0.0/16", mode: "bridge" }),
  }, async (mesh) => {
    const { topology } = mesh;
    const [one, two, three] = ["edge-1", "edge-2", "edge-3"].map((name) => topology.node(name));
    const pods = [one!, two!, three!].map((node) => topology.pod(`${node.name}-pod-1`));
    const [client, other] = [topology.pod("edge-1-pod-2"), topology.pod("edge-2-pod-2")];
    assert.deepEqual(new Set(pods.map((pod) => pod.ip)).size, 1, "the pods were to have one address");
    const big = await startNginx(topology.pod("edge-3-pod-2").host, { port: 8081, text: "x".repeat(MEGABYTES << 20) });
    await startEcho(topology.pod("edge-3-pod-2").host, { port: 5353, protocol: "udp" });
    await startNginx(topology.server.host, { port: 8080, text: "outside the cluster" });
    const services: readonly ServiceSpec[] = [
      { name: "same", ip: "10.96.0.20", endpoints: pods },
      { name: "random", ip: "10.96.0.21", endpoints: pods, balance: "{ simple: RANDOM }" },
      { name: "source", ip: "10.96.0.22", endpoints: pods, balance: "{ consistentHash: { useSourceIp: true } }" },
      { name: "odd", ip: "10.96.0.23", endpoints: pods, balance: "{ simple: FASTEST_EVER }" },
      { name: "sticky", ip: "10.96.0.24", endpoints: pods, spec: "sessionAffinity: ClientIP" },
      {
        name: "theirs",
        ip: "10.96.0.25",
        endpoints: pods,
        labels: `service.edgemesh.kubeedge.io/service-proxy-name: ""`,
      },
      { name: "outside", ip: "10.96.0.26", endpoints: [{ ip: SERVER_ADDRESSES[1] }] },
      { name: "port", ip: "10.96.0.27", endpoints: [pods[2]!], nodePort: 30080, spec: "type: NodePort" },
      { name: "big", ip: "10.96.0.28", endpoints: [topology.pod("edge-3-pod-2")], targetPort: 8081 },
      {
        name: "echo",
        ip: "10.96.0.29",
        endpoints: [topology.pod("edge-3-pod-2")],
        port: 53,
        targetPort: 5353,
        protocol: "UDP",
      },
      {
        name: "balanced",
        ip: "10.96.0.30",
        endpoints: [pods[2]!],
        spec: "type: LoadBalancer",
        status: `{ loadBalancer: { ingress: [{ ip: ${BALANCED} }, { ip: ${NOT_BELIEVED} }] } }`,
      },
      ...udpServices(pods),
    ];
    await mesh.writeManifest("services.yaml", services.map(manifest).join("---\n"));
    await Promise.all(pods.map((pod) => startUdpPeer(pod.host, pod.node.name, UDP_PORT)));
    await mesh.startServer();
    await Promise.all(
      topology.nodes.map((node) => mesh.join(node, { flags: ["--set", "forward.externalIPs=198.51.100.0/24"] })),
    );
    const ipOf = (name: string) => services.find((s) => s.name === name)!.ip;
    const ask = (from: Pod, name: string, count: number) => shares(from, `http://${ipOf(name)}/`, count);

    await t.step("B09, A10: one pod address on three nodes is three endpoints, evenly used", async () => {
      const seen = await ask(client, "same", 12);
      assert.deepEqual(seen, Object.fromEntries(pods.map((pod) => [`${pod.name} on ${pod.node.name}`, 4])));
    });
    await t.step("A09: RANDOM uses all, and not in turn", async () => {
      const seen = await ask(client, "random", 60);
      tell(JSON.stringify(seen));
      assert.equal(Object.keys(seen).length, 3);
    });
    await t.step("A12: by source address a client stays, also over many connections", async () => {
      for (const from of [client, other]) assert.equal(Object.keys(await ask(from, "source", 12)).length, 1);
    });
    await t.step("a DestinationRule with a value nobody knows changes nothing", async () => {
      assert.equal(Object.keys(await ask(client, "odd", 6)).length, 3);
    });
    await t.step("A13: sessionAffinity keeps a client, among local and remote endpoints alike", async () => {
      const kept = new Set<string>();
      for (const from of [client, other, topology.pod("edge-3-pod-2")]) {
        const seen = Object.keys(await ask(from, "sticky", 6));
        assert.equal(seen.length, 1);
        kept.add(seen[0]!);
      }
      tell(`three clients at ${kept.size} endpoints`);
    });
    await t.step("A21, B14: a labelled Service is left to whoever else handles it", async () => {
      assert.doesNotMatch((await one!.host.execOk(["nft", "list", "ruleset"])).stdout, /10\.96\.0\.25/);
      await one!.host.execOk([
        "nft",
        `table ip theirs {
  chain pre {
    type nat hook prerouting priority dstnat
    ip daddr 10.96.0.25 tcp dport 80 dnat to ${pods[0]!.ip}:8080
  }
}`,
      ]);
      const seen = await ask(client, "theirs", 2);
      assert.deepEqual(seen, { "edge-1-pod-1 on edge-1": 2 });
      await one!.host.execOk(["nft", "delete table ip theirs"]);
    });
    await t.step(
      "A09, A10, A12, A13 over UDP: each client's flows go in turn, anywhere, by source, or stay",
      async () => {
        const nodes = pods.map((pod) => pod.node.name);
        await until("all three to answer", async () => {
          return new Set(await answers(client, ipOf("udp-turn"), 6)).size === 3 || undefined;
        });
        const turns = await answers(client, ipOf("udp-turn"), 12);
        assert.deepEqual(nodes.map((name) => turns.filter((answer) => answer === name).length), [4, 4, 4]);
        const random = await answers(client, ipOf("udp-random"), 40);
        assert.deepEqual(new Set(random), new Set(nodes));
        for (const name of ["udp-source", "udp-sticky"]) {
          for (const from of [client, other]) {
            const kept = new Set([...await answers(from, ipOf(name), 10), ...await answers(from, ipOf(name), 10)]);
            assert.equal(kept.size, 1, `${name} from ${from.name}: ${[...kept]}`);
          }
        }
      },
    );
    await t.step(
      "a load balancer's address inside the allow-list is served, one outside is named and left alone",
      async () => {
        // Not from the host itself, which has no route to anywhere.
        for (const from of [client, other]) {
          const { body, stderr } = await curl(from, `http://${BALANCED}/`);
          assert.equal(body, "edge-3-pod-1 on edge-3", `${from.name}: ${stderr}`);
        }
        assert.doesNotMatch((await one!.host.execOk(["nft", "list", "ruleset"])).stdout, /192\.0\.2\.99/);
        const { refused } = (await mesh.status(one!)).metadata;
        assert.ok(refused.some((text) => text.includes(NOT_BELIEVED)), refused.join("\n"));
      },
    );
    await t.step("A35: endpoints outside the cluster are reached from the client's node", async () => {
      assert.equal((await curl(client, `http://${ipOf("outside")}/`)).body, "outside the cluster");
    });
    await t.step("B04, B20: a node port from the host, from a pod, from the LAN; no socket is claimed", async () => {
      for (const from of [one!, client, two!]) {
        const { body, stderr } = await curl(from, `http://${one!.address}:30080/`);
        assert.equal(body, "edge-3-pod-1 on edge-3", `${from.name}: ${stderr}`);
      }
      assert.doesNotMatch((await one!.host.execOk(["ss", "-lnt"])).stdout, /:30080/);
    });
    await t.step(`B01: ${MEGABYTES} MB through the tunnel arrive whole`, async () => {
      const argv = ["curl", "-sS", "--max-time", "30", "-o", "/dev/null", "-w", "%{size_download} %{time_total}"];
      const { stdout } = await client.host.execOk([...argv, `http://${ipOf("big")}/`], { timeoutMs: 40_000 });
      const [bytes, seconds] = stdout.split(" ").map(Number);
      assert.equal(bytes, MEGABYTES << 20);
      tell(`${(bytes! * 8 / seconds! / 1e6).toFixed(0)} Mbit/s`);
    });
    await t.step("A08: UDP, found by name, answered from the Service's address", async () => {
      const { socat } = await requireTools(["socat"]);
      const talk = (name: string) =>
        client.host.exec(["sh", "-c", `echo hello ${name} | ${socat} -T2 - UDP:${name}:53`]);
      for (const name of [ipOf("echo"), "echo.default.svc.cluster.local"]) {
        const answer = await until("an echo", async () => (await talk(name)).stdout.trim() || undefined);
        assert.equal(answer, `hello ${name}`);
      }
    });
    await t.step("status says the way of each endpoint and why", async () => {
      const { forward } = await mesh.status(one!) as unknown as { forward?: { services?: unknown } };
      const text = JSON.stringify(forward ?? await mesh.status(one!));
      for (const why of ["the endpoint runs on this node", "whose pods are not reachable from here"]) {
        assert.match(text, new RegExp(why));
      }
    });
    await big.stop();
  });
});

labTest(
  "SIGKILL under load: the kernel way loses nothing, the rest is refused and back after the restart",
  async (t) => {
    await withMesh({ cloud: "none", podsPerNode: 2 }, async (mesh) => {
      const { topology } = mesh;
      const node = topology.node("edge-1");
      const [client, here, there] = ["edge-1-pod-2", "edge-1-pod-1", "edge-2-pod-1"].map((name) => topology.pod(name));
      const [local, away] = ["10.96.0.31", "10.96.0.32"];
      await mesh.writeManifest(
        "services.yaml",
        [
          manifest({ name: "local", ip: local!, endpoints: [here!] }),
          manifest({ name: "away", ip: away!, endpoints: [there!] }),
        ]
          .join("---\n"),
      );
      await startAll(mesh);
      assert.equal((await curl(client!, `http://${away}/`)).body, "edge-2-pod-1 on edge-2");

      await t.step("short and long connections on the kernel way, while the agent is killed and started", async () => {
        const load = (close: boolean) => {
          const flags = close ? ["-H", "Connection: close"] : [];
          return client!.host.execOk(["wrk", "-t1", "-c8", "-d8s", ...flags, `http://${local}/`]);
        };
        const running = [load(false), load(true)];
        await pause(1500);
        await mesh.stopAgent(node, "kill");
        const { code, ms } = await curl(client!, `http://${away}/`);
        assert.equal(code, CURL_REFUSED);
        assert.ok(ms < allowed(1000), `refused after ${Math.round(ms)} ms`);
        await mesh.startAgent(node);
        const ready = systemClock.now();
        await until("the other node's Service to answer", async () => {
          return (await curl(client!, `http://${away}/`)).code === 0 || undefined;
        });
        const healed = systemClock.now() - ready;
        tell(`healed ${Math.round(healed)} ms after it was ready`);
        assert.ok(healed < allowed(1000), `healed after ${Math.round(healed)} ms`);
        for (const { stdout } of await Promise.all(running)) {
          assert.doesNotMatch(stdout, /Socket errors|Non-2xx/, stdout);
          tell(/Requests\/sec: .*/.exec(stdout)![0]);
        }
      });
    });
  },
);

/** One UDP Service per policy, on three pods that say whose they are. */
function udpServices(pods: readonly Pod[]): ServiceSpec[] {
  const policies: readonly [name: string, more: Partial<ServiceSpec>][] = [
    ["turn", {}],
    ["random", { balance: "{ simple: RANDOM }" }],
    ["source", { balance: "{ consistentHash: { useSourceIp: true } }" }],
    ["sticky", { spec: "sessionAffinity: ClientIP" }],
  ];
  return policies.map(([name, more], i) => ({
    name: `udp-${name}`,
    ip: `10.96.0.${90 + i}`,
    endpoints: pods,
    port: UDP_PORT,
    targetPort: UDP_PORT,
    protocol: "UDP",
    ...more,
  }));
}

/** Who answers so many flows at once, each from a port of its own. */
function answers(from: Pod, ip: string, flows: number): Promise<string[]> {
  return askUdp<string[]>(from.host, "names", ip, UDP_PORT, flows);
}

/** How often each endpoint answered so many connections. */
async function shares(from: Pod, url: string, count: number): Promise<Record<string, number>> {
  const argv = ["curl", "-sS", "--max-time", "30", "-H", "Connection: close", `${url}[1-${count}]`];
  const { stdout, stderr } = await from.host.exec(argv, { timeoutMs: 40_000 });
  const seen: Record<string, number> = {};
  for (const line of stdout.trim().split("\n")) seen[line] = (seen[line] ?? 0) + 1;
  assert.equal(Object.values(seen).reduce((a, b) => a + b, 0), count, stderr);
  return seen;
}
