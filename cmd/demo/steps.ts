/** The steps of the demo, in the order a newcomer would try things. */
import { systemClock } from "../../lib/clock.ts";
import { until } from "../../lib/lab/exec.ts";
import { requireTools } from "../../lib/lab/tools.ts";
import { bytes, difference, megabytes, milliseconds, must, type Report } from "./report.ts";
import { curl, kernelState, output, type World } from "./world.ts";

const SERVER = "203.0.113.1";

/** Server up, all nodes joined. False: nothing else makes sense. */
export async function joinSteps(world: World, report: Report): Promise<boolean> {
  const { mesh, topology } = world;
  report.section("Join");
  return await report.step("server: authority made, listening", async () => {
    const started = systemClock.now();
    await mesh.startServer();
    return {
      value: milliseconds(systemClock.now() - started),
      command: "edgemesh server --manifests /etc/edgemesh/manifests",
    };
  }) && await report.step("five nodes joined with one-time tokens", async () => {
    const started = systemClock.now();
    await Promise.all(topology.nodes.map((node) => mesh.join(node)));
    return {
      value: milliseconds(systemClock.now() - started),
      command:
        "edgemesh token create; edgemesh agent --node-name edge-1 --server wss://… --ca-pin sha256:… --token-file FILE",
    };
  });
}

export async function trafficSteps(world: World, report: Report): Promise<void> {
  const { topology, atServer } = world;
  const pod = topology.pod("edge-1-pod-1");
  const cloudPod = topology.pod("cloud-1-pod-2");
  report.section("Traffic");
  await report.step("first request across both NATs", async () => {
    const { body, ms } = await curl(pod, "http://10.96.0.11/");
    must(body.includes("edge-2-pod-1"), `the answer is ${JSON.stringify(body)}`);
    must(ms < 1000, `it took ${milliseconds(ms)}, more than a second`);
    return { value: `${milliseconds(ms)} (relay, 40 ms to the server)`, command: "curl http://10.96.0.11/" };
  });
  await report.step("name resolved inside the node", async () => {
    const said = await output(pod, [
      "dig",
      "+noall",
      "+answer",
      "+stats",
      "+time=1",
      "web-edge.default.svc.cluster.local",
    ]);
    const address = /\sA\s+(\S+)/.exec(said)?.[1];
    must(address === "10.96.0.11", `dig says ${said}`);
    return {
      value: `${address} in ${/Query time: (\d+ msec)/.exec(said)?.[1] ?? "?"}`,
      command: "dig web-edge.default.svc.cluster.local",
    };
  });
  await report.step("edge → edge by name", async () => {
    const { body, ms } = await curl(pod, "http://web-edge.default.svc.cluster.local/");
    must(body.includes("on edge-2"), `the answer is ${JSON.stringify(body)}`);
    return { value: `${body} (${milliseconds(ms)})`, command: "curl http://web-edge.default.svc.cluster.local/" };
  });
  await report.step("edge → cloud", async () => {
    const { body, ms } = await curl(pod, "http://web-cloud/");
    must(body.includes("on cloud-1"), `the answer is ${JSON.stringify(body)}`);
    return { value: `${body} (${milliseconds(ms)})`, command: "curl http://web-cloud/" };
  });
  await report.step("cloud → edge", async () => {
    const { body, ms } = await curl(cloudPod, "http://web-edge/");
    must(body.includes("on edge-2"), `the answer is ${JSON.stringify(body)}`);
    return { value: `${body} (${milliseconds(ms)})`, command: "curl http://web-edge/" };
  });
  await report.step("redis SET and GET across both NATs", async () => {
    const { "redis-cli": redis } = await requireTools(["redis-cli"]);
    const set = await output(pod, [redis, "-h", "cache", "SET", "greeting", "hello"]);
    const get = await output(pod, [redis, "-h", "cache", "GET", "greeting"]);
    must(set === "OK" && get === "hello", `SET said ${set}, GET said ${get}`);
    return { value: "OK, hello", command: "redis-cli -h cache SET greeting hello" };
  });
  await report.step("UDP echo across both NATs", async () => {
    const { socat } = await requireTools(["socat"]);
    const said = await output(pod, ["sh", "-c", `echo hello | ${socat} -t 1 - UDP4:10.96.0.21:7`]);
    must(said === "hello", `the answer is ${JSON.stringify(said)}`);
    return { value: said, command: "echo hello | socat - UDP4:10.96.0.21:7" };
  });
  await report.step("even balancing over three endpoints", async () => {
    const count = new Map<string, number>();
    for (let i = 0; i < 30; i++) {
      const { body } = await curl(pod, "http://web/");
      const node = body.split(" ").pop()!;
      count.set(node, (count.get(node) ?? 0) + 1);
    }
    must(
      count.size === 3 && [...count.values()].every((n) => n === 10),
      `the shares are ${JSON.stringify(Object.fromEntries(count))}`,
    );
    return {
      value: [...count].map(([node, n]) => `${node} ${n}`).sort().join(", "),
      command: "for i in $(seq 30); do curl http://web/; done",
    };
  });
  await report.step("a Service without endpoints is refused at once", async () => {
    const result = await pod.host.exec(["curl", "-sS", "--max-time", "5", "-o", "/dev/null", "http://nothing/"]);
    must(result.code === 7, `curl ended with code ${result.code}: ${result.stderr.trim()}`);
    must(result.ms < 2000, `it took ${milliseconds(result.ms)}`);
    return { value: `connection refused in ${milliseconds(result.ms)}`, command: "curl http://nothing/" };
  });
  await report.step("path and bytes, counted at the server", async () => {
    const [edge1, edge2] = topology.sites.map((site) => site.address) as [string, string];
    const a = await atServer.total({ between: [edge1, SERVER] });
    const b = await atServer.total({ between: [edge2, SERVER] });
    const direct = await atServer.total({ between: [edge1, edge2] });
    must(a.bytes > 0 && b.bytes > 0 && direct.bytes === 0, "the counters do not show a relay");
    return {
      value: `edge-1 ${bytes(a.bytes)}, edge-2 ${bytes(b.bytes)}: all by relay`,
      command: "edgemesh status --peers",
    };
  });
}

export async function survivalSteps(world: World, report: Report): Promise<void> {
  const { mesh, topology } = world;
  const pod = topology.pod("edge-1-pod-1");
  report.section("It survives");
  await report.step("own-node Service with the agent frozen", async () => {
    const agent = mesh.agent("edge-1");
    agent.freeze();
    try {
      const { body, ms } = await curl(pod, "http://10.96.0.13/", 2);
      must(body.includes("on edge-1"), `the answer is ${JSON.stringify(body)}`);
      return {
        value: `${milliseconds(ms)}, by the kernel alone`,
        command: "kill -STOP $(pgrep -f 'edgemesh.*agent'); curl http://10.96.0.13/",
      };
    } finally {
      agent.thaw();
    }
  });
  await report.step("server restarted, next request answered", async () => {
    await mesh.stopServer();
    const started = systemClock.now();
    await mesh.startServer();
    const up = systemClock.now() - started;
    const from = systemClock.now();
    await until("an answer after the restart", async () => {
      return await curl(pod, "http://10.96.0.11/", 1).then(() => true, () => undefined);
    }, 10_000);
    return {
      value: `server up in ${milliseconds(up)}, answered ${milliseconds(systemClock.now() - from)} later`,
      command: "systemctl restart edgemesh-server",
    };
  });
}

export async function securitySteps(world: World, report: Report): Promise<void> {
  const { topology, mesh } = world;
  report.section("It refuses");
  await report.step("a node with a foreign certificate", async () => {
    const stranger = world.cloud;
    const dir = "/var/lib/stranger";
    const other = await stranger.start("stranger", [
      ...[
        "server",
        "--listen",
        "127.0.0.1:9443",
        "--state-dir",
        dir,
        "--run-dir",
        "/run/stranger",
        "--set",
        "observeListen=off",
      ],
    ], { ready: { log: /server ready/ } });
    const ask = (files: readonly string[]) =>
      stranger.host.exec([
        "curl",
        "-sSk",
        "--max-time",
        "5",
        "-o",
        "/dev/null",
        "-w",
        "%{http_code}",
        ...files,
        `${mesh.url.replace("wss", "https")}/v1/control`,
      ]);
    const foreign = await ask(["--cert", `${dir}/server.crt`, "--key", `${dir}/server.key`]);
    await other.stop();
    must(/^4\d\d$/.test(foreign.stdout) || foreign.code !== 0, `the server answered ${foreign.stdout}`);
    const agents = (await mesh.serverStatus()).agents.length;
    must(agents === topology.nodes.length, `${agents} agents are connected now`);
    return {
      value: foreign.code === 0 ? `HTTP ${foreign.stdout}` : foreign.stderr.trim(),
      command: "curl --cert foreign.crt --key foreign.key https://…/v1/control",
    };
  });
  await report.step("a join token that was used already", async () => {
    const token = await mesh.token();
    const file = "/etc/edgemesh/token";
    const args = (
      name: string,
    ) => ["agent", "--node-name", name, "--server", token.url, "--ca-pin", token.pin, "--token-file", file];
    const node = world.cloud;
    const attempt = async (name: string) => {
      await Deno.writeTextFile(node.host.path(file), token.token);
      return await node.run([
        ...args(name),
        "--state-dir",
        `/var/lib/try-${name}`,
        "--run-dir",
        `/run/try-${name}`,
        "--set",
        "forward.enabled=false",
        "--set",
        "dns.enabled=false",
        "--set",
        "tunnel.enabled=false",
        "--set",
        "mesh.interface=try0",
      ], { timeoutMs: 4000 });
    };
    // The first use joins and would run on: it is ended by its deadline.
    await attempt("first");
    const second = await attempt("second");
    must(second.code === 1 && second.stderr.includes("used"), `exit code ${second.code}: ${second.stderr.trim()}`);
    return {
      value: second.stderr.trim().split("\n").pop()!.replace(/^error: /, ""),
      command: "edgemesh agent --token-file OLD",
    };
  });
}

export async function costSteps(world: World, report: Report): Promise<void> {
  const { mesh, topology } = world;
  report.section("Cost");
  await report.step("memory of an agent and of the server", async () => {
    const agent = await mesh.agent("edge-2").memory();
    const server = await mesh.server.memory();
    return {
      value: `agent ${megabytes(agent.private)} private, ${megabytes(agent.rss)} RSS; server ${
        megabytes(server.private)
      } private`,
      command: "edgemesh status",
    };
  });
  await report.step("clean-up leaves the node as it was", async () => {
    for (const node of topology.nodes) await mesh.stopAgent(node);
    const after = await kernelState(world.edge1);
    must(
      after === world.before,
      `rules, links, addresses, routes or sysctls differ:\n${difference(world.before, after)}`,
    );
    return {
      value: `${after.split("\n").length} lines of rules, links, routes, sysctls compared`,
      command: "systemctl stop edgemesh-agent",
    };
  });
}
