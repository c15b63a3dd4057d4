/**
 * What users of the original do with Services, by its scenario numbers, on nodes as they are: one beside a service proxy
 * that writes with iptables-legacy, one beside one that writes with iptables-nft, one with no such program at all.
 */
import assert from "node:assert/strict";
import { pause, systemClock } from "../../lib/clock.ts";
import { startNginx, startRedis } from "../../lib/lab/backends.ts";
import { until } from "../../lib/lab/exec.ts";
import type { Mesh } from "../../lib/lab/mesh.ts";
import type { LabNode } from "../../lib/lab/node.ts";
import type { Pod } from "../../lib/lab/pod.ts";
import { requireTools, type Tool } from "../../lib/lab/tools.ts";
import { allowed, curl, tell, withMesh } from "./fixture.ts";
import { manifest, type ServiceSpec } from "./manifests.ts";
import { fixture, labTest } from "./support.ts";
import { startMutualTls } from "./tls_backend.ts";

const TLS_NAME = "my-nginx.com";
const HOST_PORT = 9090;
const EXTERNAL = "198.51.100.7";
const NOT_ALLOWED = "192.0.2.77";
const FOUR_MB = 4 << 20;
/** What the original needed for 4 MB on a LAN where the direct way takes 40 ms. */
const ORIGINAL_MS = 321;
const WS_EVERY_MS = 100;
const STICKY_SECONDS = 1;
const CURL_TIMEOUT = 28;
/** What kube-proxy in its iptables mode writes for our Services on a node that cannot reach their pods. */
const NOWHERE = "10.255.255.1:9";

labTest("Services in use: protocols, programs and neighbours", async (t) => {
  await withMesh(
    { sites: [{ nat: "cone", nodes: 2 }, { nat: "cone" }], cloud: "none", podsPerNode: 2 },
    async (mesh) => {
      const { topology } = mesh;
      const [one, two, three] = ["edge-1", "edge-2", "edge-3"].map((name) => topology.node(name)) as Nodes;
      const pod = (name: string) => topology.pod(name);
      const [client, near, far, other] = ["edge-1-pod-1", "edge-1-pod-2", "edge-3-pod-1", "edge-2-pod-1"].map(pod) as [
        Pod,
        Pod,
        Pod,
        Pod,
      ];
      const six = await addIpv6([one, two, three]);
      const tls = await startMutualTls(far.host, { port: 8443, name: TLS_NAME, text: "Welcome to nginx!" });
      await Promise.all([
        startBanner(far, 2701),
        startRedis(far.host, { port: 6379 }),
        startNginx(other.host, { port: 8084, text: "x".repeat(FOUR_MB) }),
        startNginx(three.host, { port: HOST_PORT, text: "the host of edge-3" }),
        start(far, ["ws-serve", "12348"], 12348),
        start(far, ["grpc-serve", "50051", far.name], 50051),
      ]);
      const all = [near, other, far];
      const services: readonly ServiceSpec[] = [
        { name: "hostname-svc", ip: "10.96.0.40", port: 12345, endpoints: [far] },
        { name: "nginx-https", ip: "10.96.0.41", port: 443, targetPort: 8443, endpoints: [far] },
        { name: "tcp-echo-service", ip: "10.96.0.42", port: 2701, targetPort: 2701, endpoints: [far] },
        { name: "ws-svc", ip: "10.96.0.43", port: 12348, targetPort: 12348, endpoints: [far] },
        { name: "grpc", ip: "10.96.0.44", port: 50051, targetPort: 50051, endpoints: [far] },
        { name: "redis", ip: "10.96.0.45", port: 6379, targetPort: 6379, endpoints: [far] },
        {
          name: "hashed",
          ip: "10.96.0.46",
          endpoints: all,
          balance: "{ consistentHash: { httpHeaderName: User-Agent } }",
        },
        { name: "four", ip: "10.96.0.47", targetPort: 8084, endpoints: [other] },
        { name: "self", ip: "10.96.0.48", endpoints: [client] },
        { name: "host", ip: "10.96.0.49", targetPort: HOST_PORT, endpoints: [{ ip: three.address, node: three }] },
        { name: "least", ip: "10.96.0.50", endpoints: all, balance: "{ simple: LEAST_CONN }" },
        { name: "only-here", ip: "10.96.0.51", endpoints: [far], spec: "internalTrafficPolicy: Local" },
        {
          name: "external",
          ip: "10.96.0.52",
          endpoints: [far],
          spec: `externalIPs: ["${EXTERNAL}", "${NOT_ALLOWED}"]`,
        },
        {
          name: "sticky",
          ip: "10.96.0.53",
          endpoints: all,
          spec:
            `sessionAffinity: ClientIP\n  sessionAffinityConfig: { clientIP: { timeoutSeconds: ${STICKY_SECONDS} } }`,
          balance: "{ simple: RANDOM }",
        },
        {
          name: "dual",
          ip: "10.96.0.54",
          ip6: "fd00:10:96::54",
          endpoints: all.flatMap((p) => [{ ip: p.ip, node: p.node }, { ip: six(p), node: p.node }]),
        },
        { name: "lan", ip: "10.96.0.55", endpoints: [other, far], annotations: "edgemesh.io/prefer: lan" },
        {
          name: "theirs",
          ip: "10.96.0.56",
          endpoints: [far],
          labels: `service.kubernetes.io/service-proxy-name: kube-proxy`,
        },
      ];
      const ipOf = (name: string) => services.find((s) => s.name === name)!.ip;
      await mesh.writeManifest("services.yaml", services.map(manifest).join("---\n"));
      await mesh.writeManifest("nodes.yaml", dualStackNodes([one, two, three]));

      const legacy = new KubeProxy(one, "iptables-legacy", ipOf("hostname-svc"), { ip: ipOf("theirs"), pod: near });
      const modern = new KubeProxy(two, "iptables-nft", ipOf("hostname-svc"), {
        ip: ipOf("theirs"),
        pod: pod("edge-2-pod-2"),
      });
      await Promise.all([legacy.start(), modern.start(), hidePrograms(three)]);
      await mesh.startServer();
      await Promise.all([
        mesh.join(one, { flags: ["--set", "forward.externalIPs=198.51.100.0/24"] }),
        mesh.join(two),
        mesh.join(three, { flags: ["--set", `forward.hostPorts=${HOST_PORT}`] }),
      ]);
      const chat = await client.host.start("ws-client", [
        ...fixture("protocol_peer"),
        ...["ws-ask", "ws://ws-svc:12348/echo", String(WS_EVERY_MS)],
      ], { ready: { log: /^recv: message 0$/m } });
      const chatting = systemClock.now();

      await t.step("A04: HTTP by name, from a pod and by address from its host", async () => {
        assert.equal((await curl(client, "http://hostname-svc:12345/")).body, "edge-3-pod-1 on edge-3");
        assert.equal((await curl(one, `http://${ipOf("hostname-svc")}:12345/`)).body, "edge-3-pod-1 on edge-3");
      });
      await t.step("A05: HTTPS with certificates on both sides passes untouched", async () => {
        const { ca, cert, key } = tls.client;
        const shown = ["--cert", cert, "--key", key];
        assert.equal((await curl(client, "https://nginx-https/", ["-k", ...shown])).body, "Welcome to nginx!");
        const hosts = client.host.path("/etc/hosts");
        await Deno.writeTextFile(hosts, `${ipOf("nginx-https")} ${TLS_NAME}\n`, { append: true });
        const verified = await curl(client, `https://${TLS_NAME}/`, ["--cacert", ca, ...shown]);
        assert.equal(verified.body, "Welcome to nginx!", verified.stderr);
        assert.match((await curl(client, `https://${TLS_NAME}/`, ["--cacert", ca])).body, /400 No required SSL cert/);
      });
      await t.step("A06: TCP: the server speaks first, then echoes line by line", async () => {
        const { socat } = await requireTools(["socat"]);
        const { stdout, stderr } = await client.host.exec([
          ...["sh", "-c", `printf 'one\\ntwo\\n' | ${socat} -t3 - TCP:tcp-echo-service:2701`],
        ]);
        assert.equal(stdout, "Welcome, you are connected to edge-3-pod-1 on edge-3\none\ntwo\n", stderr);
      });
      await t.step(
        "A11: one User-Agent, one pod, whoever asks; several pods for several; and through the tunnel",
        async () => {
          const asked = async (from: Pod, agent: string) =>
            (await curl(from, `http://${ipOf("hashed")}/`, ["-A", agent])).body;
          const agents = Array.from({ length: 12 }, (_, i) => `agent-${i}`);
          const first = await Promise.all(agents.map((agent) => asked(client, agent)));
          assert.deepEqual(await Promise.all(agents.map((agent) => asked(client, agent))), first);
          assert.deepEqual(await Promise.all(agents.map((agent) => asked(pod("edge-2-pod-2"), agent))), first);
          assert.equal(new Set(first).size, 3, JSON.stringify(first));
          // A pod is added: keys that move go to it and to no other.
          const more = services.map((s) =>
            s.name === "hashed" ? { ...s, endpoints: [...all, pod("edge-2-pod-2")] } : s
          );
          await mesh.writeManifest("services.yaml", more.map(manifest).join("---\n"));
          const added = "edge-2-pod-2 on edge-2";
          const next = await until("the new pod to be used", async () => {
            const bodies = await Promise.all(agents.map((agent) => asked(client, agent)));
            return bodies.includes(added) ? bodies : undefined;
          });
          next.forEach((body, i) => assert.ok(body === first[i] || body === added, `${agents[i]} went to ${body}`));
          tell(`${next.filter((body) => body === added).length} of ${agents.length} moved to the fourth pod`);
        },
      );
      await t.step(
        `A13: kept for ${STICKY_SECONDS} s after the last connection, before any DestinationRule`,
        async () => {
          const seen = new Set<string>();
          await until("another endpoint after the time was over", async () => {
            const pair = [];
            for (let i = 0; i < 3; i++) pair.push((await curl(client, `http://${ipOf("sticky")}/`)).body);
            assert.equal(new Set(pair).size, 1, `moved within its time: ${pair.join(", ")}`);
            seen.add(pair[0]!);
            if (seen.size > 1) return true;
            await pause(STICKY_SECONDS * 1000 + 300);
            return undefined;
          }, 30_000);
        },
      );
      await t.step(
        "A23, B08, B15: before kube-proxy in either start order, and its own Services stay its own",
        async () => {
          for (const proxy of [legacy, modern]) {
            const from = proxy.node.pods[0]!;
            for (let round = 0; round < 2; round++) {
              for (const who of [from, proxy.node]) {
                const { body, stderr } = await curl(who, `http://${ipOf("hostname-svc")}:12345/`);
                assert.equal(body, "edge-3-pod-1 on edge-3", `${proxy.program}: ${stderr}`);
              }
              const theirs = await curl(from, `http://${ipOf("theirs")}/`);
              assert.equal(theirs.body, `${proxy.own.pod.name} on ${proxy.node.name}`, theirs.stderr);
              assert.equal(await proxy.misled(), 0, `${proxy.program} was asked about our Services`);
              await proxy.restart();
            }
          }
          const without = await curl(pod("edge-3-pod-2"), `http://${ipOf("hostname-svc")}:12345/`);
          assert.equal(without.body, "edge-3-pod-1 on edge-3", without.stderr);
        },
      );
      await t.step("A36: gRPC: a call, a stream of answers and a status in trailers, on one connection", async () => {
        const { stdout } = await client.host.execOk([...fixture("protocol_peer"), "grpc-ask", "grpc", "50051"]);
        const [said, counted, failed] = JSON.parse(stdout) as { answers: string[]; status: string; message: string }[];
        assert.deepEqual(said, { answers: ["edge-3-pod-1 heard hello"], status: "0" });
        assert.deepEqual([counted!.answers.length, counted!.answers.at(-1), counted!.status], [50, "49", "0"]);
        assert.deepEqual(failed, { answers: [], status: "5", message: "no such thing" });
      });
      await t.step("B01: redis: a large value and a thousand pipelined commands", async () => {
        const { "redis-cli": cli } = await requireTools(["redis-cli"]);
        const run = (script: string) => client.host.execOk(["sh", "-c", script, cli!, "redis"], { timeoutMs: 30_000 });
        await run(`head -c 5000000 /dev/zero | tr '\\0' r | "$0" -h "$1" -x set large`);
        assert.equal((await run(`"$0" -h "$1" strlen large`)).stdout.trim(), "5000000");
        assert.equal((await run(`"$0" -h "$1" get large | wc -c`)).stdout.trim(), "5000001");
        await run(`for i in $(seq 1000); do echo incr n; done | "$0" -h "$1" --pipe`);
        assert.equal((await run(`"$0" -h "$1" get n`)).stdout.trim(), "1000");
      });
      await t.step("a pod reaches itself through its own Service, by address and by name", async () => {
        for (const host of [ipOf("self"), "self"]) {
          assert.equal((await curl(client, `http://${host}/`)).body, "edge-1-pod-1 on edge-1");
        }
      });
      await t.step("a hostNetwork endpoint on another node, on a port that node has opened", async () => {
        assert.equal((await curl(client, `http://${ipOf("host")}/`)).body, "the host of edge-3");
      });
      await t.step("least connections: the agent carries local endpoints too, and status says why", async () => {
        const bodies = await Promise.all(Array.from({ length: 6 }, () => curl(client, `http://${ipOf("least")}/`)));
        assert.equal(new Set(bodies.map(({ body }) => body)).size, 3);
        const status = (await mesh.status(one)).services.find((s) => s.service === "default/least")!;
        const ways = status.endpoints.map((e) => `${e.way}: ${e.why}`).sort();
        assert.equal(ways[0], "proxy: the kernel cannot do this Service's balancing");
        assert.match(ways[1]!, /^tunnel: the endpoint runs on edge-[23], whose pods are not reachable from here$/);
      });
      await t.step("internalTrafficPolicy Local without a local endpoint: dropped, as kube-proxy does", async () => {
        const { code } = await curl(client, `http://${ipOf("only-here")}/`, ["--max-time", "1"]);
        assert.equal(code, CURL_TIMEOUT);
        assert.equal((await curl(far, `http://${ipOf("only-here")}/`)).body, "edge-3-pod-1 on edge-3");
      });
      await t.step("an external address inside the allow-list is served, one outside is not touched", async () => {
        assert.equal((await curl(client, `http://${EXTERNAL}/`)).body, "edge-3-pod-1 on edge-3");
        assert.doesNotMatch((await one.host.execOk(["nft", "list", "ruleset"])).stdout, /192\.0\.2\.77/);
      });
      await t.step("dual stack: both families, balanced over kernel and tunnel slots", async () => {
        for (const host of [ipOf("dual"), "[fd00:10:96::54]"]) {
          const bodies = [];
          for (let i = 0; i < 6; i++) {
            const { body, stderr } = await curl(client, `http://${host}/`, ["-H", "Connection: close"]);
            assert.notEqual(body, "", `${host}: ${stderr}`);
            bodies.push(body);
          }
          assert.deepEqual(
            counts(bodies),
            Object.fromEntries(all.map((p) => [`${p.name} on ${p.node.name}`, 2])),
            host,
          );
        }
        const named = await curl(client, "http://dual/", ["-6"]);
        assert.match(named.body, /^edge-\d-pod-\d on/, named.stderr);
      });
      await t.step("edgemesh.io/prefer: lan: the endpoint in the LAN alone, once the LAN is known", async () => {
        await until("a LAN path", async () => await onLan(mesh, one), 20_000);
        await until("the endpoint of the LAN alone", async () => {
          const bodies = [];
          for (let i = 0; i < 4; i++) bodies.push((await curl(client, `http://${ipOf("lan")}/`)).body);
          return bodies.every((body) => body === "edge-2-pod-1 on edge-2") || undefined;
        });
        assert.equal((await curl(far, `http://${ipOf("lan")}/`)).code, 0);
      });
      await t.step("B03: 4 MB over the LAN, beside the direct way between the hosts", async () => {
        await startNginx(two.host, { port: 8085, text: "x".repeat(FOUR_MB) });
        const ms = async (from: Pod | LabNode, url: string) => {
          const { stdout } = await from.host.execOk([
            "curl",
            "-sS",
            "-o",
            "/dev/null",
            "-w",
            "%{size_download} %{time_total}",
            url,
          ]);
          const [bytes, seconds] = stdout.split(" ").map(Number);
          assert.equal(bytes, FOUR_MB);
          return seconds! * 1000;
        };
        const [meshed, direct]: [number[], number[]] = [[], []];
        for (let i = 0; i < 5; i++) {
          direct.push(await ms(one, `http://${two.address}:8085/`));
          meshed.push(await ms(client, `http://${ipOf("four")}/`));
        }
        const median = (list: number[]) => list.sort((a, b) => a - b)[2]!;
        const [here, there] = [median(meshed), median(direct)];
        tell(`4 MB: ${here.toFixed(0)} ms from pod to pod, ${there.toFixed(0)} ms from host to host with no mesh`);
        assert.ok(here < allowed(ORIGINAL_MS), `${here} ms`);
      });
      await t.step("A07: a WebSocket stayed open all the while, and no answer is missing", async () => {
        const lines = [...(await chat.log()).matchAll(/^recv: message (\d+)$/gm)].map((m) => Number(m[1]));
        assert.deepEqual(lines, lines.map((_, i) => i));
        const due = (systemClock.now() - chatting) / WS_EVERY_MS;
        tell(`${lines.length} answers in ${Math.round(systemClock.now() - chatting)} ms`);
        assert.ok(lines.length > due / 3, `${lines.length} of ${Math.round(due)}`);
        await chat.stop();
      });
    },
  );
});

type Nodes = [LabNode, LabNode, LabNode];

/** What a service proxy with iptables leaves on a node: first in line, as after each of its starts. */
class KubeProxy {
  constructor(
    readonly node: LabNode,
    public program: Tool,
    readonly ours: string,
    readonly own: { readonly ip: string; readonly pod: Pod },
  ) {}

  async start(): Promise<void> {
    await requireTools([this.program]);
    if ((await this.node.host.exec([this.program, "-t", "nat", "-S"])).code !== 0) {
      tell(`${this.program} does not work on this kernel; iptables-nft stands in for it`);
      this.program = "iptables-nft";
    }
    const dnat = (ip: string, port: number, to: string) =>
      this.#run(`-A KUBE-SERVICES -d ${ip}/32 -p tcp --dport ${port} -j DNAT --to-destination ${to}`);
    await this.#run("-N KUBE-SERVICES");
    await dnat(this.ours, 12345, NOWHERE);
    await dnat(this.own.ip, 80, `${this.own.pod.ip}:8080`);
    for (const hook of ["PREROUTING", "OUTPUT"]) await this.#run(`-I ${hook} -j KUBE-SERVICES`);
  }

  /** It puts its jumps to the front again. */
  async restart(): Promise<void> {
    for (const hook of ["PREROUTING", "OUTPUT"]) {
      await this.#run(`-D ${hook} -j KUBE-SERVICES`);
      await this.#run(`-I ${hook} -j KUBE-SERVICES`);
    }
  }

  /** Connections to our Service that it has taken. */
  async misled(): Promise<number> {
    const { stdout } = await this.node.host.execOk([
      this.program,
      "-t",
      "nat",
      "-L",
      "KUBE-SERVICES",
      "-v",
      "-n",
      "-x",
    ]);
    return Number(new RegExp(`^\\s*(\\d+) .*${NOWHERE.replaceAll(".", "\\.")}`, "m").exec(stdout)![1]);
  }

  #run(rule: string) {
    return this.node.host.execOk([this.program, "-t", "nat", ...rule.split(" ")]);
  }
}

/** A node on which nobody ever installed nft or iptables. */
async function hidePrograms(node: LabNode): Promise<void> {
  for (const program of ["nft", "xtables-nft-multi", "xtables-legacy-multi", "conntrack"]) {
    const path = `/usr/sbin/${program}`;
    await node.host.exec(["sh", "-c", `[ ! -e ${path} ] || mount --bind /dev/null ${path}`]);
  }
  assert.notEqual((await node.host.exec(["nft", "list", "tables"])).code, 0, "nft is still there");
}

/** Gives every pod an IPv6 address, as a dual-stack CNI does; returns who has which. */
async function addIpv6(nodes: readonly LabNode[]): Promise<(pod: Pod) => string> {
  const addresses = new Map<Pod, string>();
  await Promise.all(nodes.map(async (node, n) => {
    const gateway = `fd00:244:${n + 1}::1`;
    for (const [i, pod] of node.pods.entries()) {
      const ip = `fd00:244:${n + 1}::${i + 2}`;
      addresses.set(pod, ip);
      await node.host.ns.ip(`addr add ${gateway}/128 dev pod${i + 2} nodad`, `-6 route add ${ip}/128 dev pod${i + 2}`);
      await pod.host.ns.ip(
        `addr add ${ip}/128 dev eth0 nodad`,
        `-6 route add ${gateway}/128 dev eth0`,
        `-6 route add default via ${gateway} dev eth0`,
      );
    }
  }));
  return (pod) => addresses.get(pod)!;
}

function dualStackNodes(nodes: readonly LabNode[]): string {
  return nodes.map((node, n) =>
    `apiVersion: v1
kind: Node
metadata: { name: ${node.name} }
spec: { podCIDR: ${node.podNetwork!.cidr}, podCIDRs: ["${node.podNetwork!.cidr}", "fd00:244:${n + 1}::/64"] }
status: { addresses: [{ type: InternalIP, address: ${node.address} }] }
`
  ).join("---\n");
}

async function startBanner(pod: Pod, port: number): Promise<void> {
  const { socat } = await requireTools(["socat"]);
  const greeting = `Welcome, you are connected to ${pod.name} on ${pod.node.name}`;
  await pod.host.start("banner", [socat!, `TCP4-LISTEN:${port},fork,reuseaddr`, `SYSTEM:echo "${greeting}"; cat`], {
    ready: { port },
  });
}

async function start(pod: Pod, args: readonly string[], port: number): Promise<void> {
  await pod.host.start(args[0]!, [...fixture("protocol_peer"), ...args], { ready: { port } });
}

async function onLan(mesh: Mesh, node: LabNode): Promise<true | undefined> {
  return (await mesh.status(node)).peers.some((peer) => peer.path === "lan") || undefined;
}

function counts(list: readonly string[]): Record<string, number> {
  const out: Record<string, number> = {};
  for (const item of list) out[item] = (out[item] ?? 0) + 1;
  return out;
}
