/** The operating commands of the built executable on a mesh that works, and on what does not. */
import assert from "node:assert/strict";
import type { ExecResult } from "../../lib/lab/exec.ts";
import { startEcho } from "../../lib/lab/backends.ts";
import { until } from "../../lib/lab/exec.ts";
import { serviceYaml } from "../../lib/lab/mesh.ts";
import type { LabNode } from "../../lib/lab/node.ts";
import { startAll, tell, webService, withMesh } from "./fixture.ts";
import { labTest } from "./support.ts";

const WEB = "10.96.0.10";
const CANARY = "canary-in-the-mine-4711";
const CONFIG = "/etc/edgemesh/agent.yaml";

interface Line {
  readonly name: string;
  readonly state: string;
  readonly text: string;
  readonly hint?: string;
}

labTest("operating commands: check, ping, netcheck, config, bundle, reload", async (t) => {
  await withMesh({ cloud: "none" }, async (mesh) => {
    const { topology } = mesh;
    const node = topology.node("edge-1");
    const server = topology.server;

    await t.step("check --pre on a fresh host: nothing fails but what is said to be missing", async () => {
      const before = await checks(node, ["--pre", "--set", `server=${mesh.url}`]);
      assert.deepEqual(
        before.lines.filter((l) => l.state === "fail").map((l) => l.name),
        ["reach"],
        "no server runs yet",
      );
      assert.equal(before.code, 1);
      assert.match((await node.run(["check"])).stdout, /× No edgemesh agent is running here/);
      assert.equal((await node.run(["status"])).code, 3);
    });

    await mesh.writeManifest(
      "web.yaml",
      webService("web", WEB, [topology.pod("edge-1-pod-1"), topology.pod("edge-2-pod-1")]),
    );
    await mesh.writeManifest("empty.yaml", webService("empty", "10.96.0.11", []));
    await startAll(mesh);
    await node.host.setResolvConf("nameserver 169.254.96.16\n");

    await t.step("check on a mesh that works: no × on node and server; each warning has a hint", async () => {
      for (const [at, role] of [[node, "agent"], [server, "server"]] as const) {
        const { code, lines, text } = await checks(at, ["--role", role]);
        assert.equal(code, 0, text);
        for (const line of lines) assert.ok(line.state === "ok" || line.hint, text);
        tell(
          `${role}: ${lines.filter((l) => l.state === "ok").length} √, ${
            lines.filter((l) => l.state === "warn").map((l) => l.name).join(", ") || "no"
          } ‼`,
        );
      }
      const names = (await checks(node)).lines.filter((l) => l.state === "ok").map((l) => l.name);
      for (const name of ["ready", "rules", "dns", "connected", "certificate", "clock-skew", "snapshot", "routes"]) {
        assert.ok(names.includes(name), `${name} is not √`);
      }
    });

    await t.step("ping: a node, a Service, ourselves, somebody unknown", async () => {
      const first = await node.run(["ping", "edge-2", "-c", "3", "--no-until-direct", "--interval", "100ms"]);
      assert.equal(first.code, 0, first.stderr);
      assert.equal(
        first.stdout.match(/^pong from edge-2 via (relay\(server\)|direct|lan) in \d/gm)?.length,
        3,
        first.stdout,
      );
      assert.match(first.stdout, /edge-2: 3 sent, 3 received, 0 % loss, min\/avg\/p95 /);
      tell(first.stdout.trim());
      const service = await node.run(["ping", "web", "-c", "1"]);
      assert.equal(service.code, 0, service.stderr);
      assert.match(service.stdout, /default\/web .*way kernel, the endpoint runs on this node/);
      assert.match(service.stdout, /pong from edge-2/);
      assert.match((await node.run(["ping", "edge-1"])).stdout, /edge-1 is this node/);
      const nobody = await node.run(["ping", "edge-9", "-c", "1", "--timeout", "8s"]);
      assert.equal(nobody.code, 1);
      assert.match(nobody.stdout, /no reply from edge-9: (UNKNOWN_NODE|PEER_OFFLINE): .*; try: /);
      const wrong = await node.run(["ping", "wep.default"]);
      assert.equal(wrong.code, 1);
      assert.match(wrong.stderr, /^error: There is no Service or node wep\.default here; try: default\/web/);
    });

    await t.step("colours on a terminal only, and not where NO_COLOR asks for none", async () => {
      const line = `${node.command.join(" ")} check`;
      const onTerminal = async (env: Record<string, string>) =>
        (await node.host.exec(["script", "-qec", line, "/dev/null"], { env: { TERM: "xterm", ...env } })).stdout;
      assert.ok((await onTerminal({})).includes("\x1b[32m√"));
      assert.ok(!(await onTerminal({ NO_COLOR: "1" })).includes("\x1b"));
      assert.ok(!(await node.run(["check"])).stdout.includes("\x1b"));
    });

    await t.step("services, endpoints, connections, netcheck", async () => {
      assert.match(await out(node, ["services"]), /default +web +10\.96\.0\.10 +80\/TCP +2 +1 kernel, 1 tunnel/);
      assert.match(await out(node, ["endpoints", "web.default"]), /edge-2 +tunnel /);
      assert.equal((await node.run(["endpoints", "empty"])).code, 1);
      assert.match(await out(node, ["connections"]), /^\d+ of at most \d+ connections/m);
      const net = JSON.parse(await out(node, ["netcheck", "-o", "json"]));
      assert.equal(net.nat.kind, "unknown", JSON.stringify(net.nat));
      assert.match(net.nat.text, /one server address cannot tell/);
      assert.ok(net.reach[0].pinned && net.reach[0].tlsMs > 0, JSON.stringify(net.reach));
      tell((await out(node, ["netcheck"])).trim());
    });

    await t.step("connections: who, to which Service and endpoint, by which way, how old, how much", async () => {
      const pod = topology.pod("edge-1-pod-1");
      // Two of them, because one of the two endpoints is here and reached by the kernel alone.
      const hold = ["sh", "-c", `sleep 20 | socat - TCP4:${WEB}:80`];
      const held = await Promise.all([1, 2].map((n) => pod.host.start(`hold${n}`, hold)));
      const line = /^10\.244\.1\.\d+:\d+ +default\/web:80\/TCP +10\.244\.2\.\d+:8080 +edge-2 +tunnel +\d+s +0 B +0 B$/m;
      await until("the connection to be listed", async () => line.test(await out(node, ["connections"])) || undefined)
        .catch(async (error) => {
          tell(await out(node, ["connections"]));
          throw error;
        });
      const far = await out(topology.node("edge-2"), ["connections"]);
      assert.match(far, /^node edge-1 +default\/web:80\/TCP +10\.244\.2\.\d+:8080 +- +inbound +\d+s/m);
      await Promise.all(held.map((process) => process.kill()));
    });

    await t.step("connections: UDP flows, too, on both nodes", async () => {
      const back = topology.pod("edge-2-pod-1");
      const endpoints = [{ ip: back.ip, node: "edge-2" }];
      const udp = {
        name: "echo",
        clusterIP: "10.96.0.12",
        port: 5000,
        targetPort: 5001,
        protocol: "UDP",
        endpoints,
      } as const;
      await mesh.writeManifest("echo.yaml", serviceYaml(udp));
      await startEcho(back.host, { port: 5001, protocol: "udp" });
      const talk = ["sh", "-c", "while sleep 0.2; do echo hello; done | socat -T 20 - UDP4:10.96.0.12:5000"];
      const talker = await topology.pod("edge-1-pod-1").host.start("talk", talk);
      const line =
        /^10\.244\.1\.\d+:\d+ +default\/echo:5000\/UDP +10\.244\.2\.\d+:5001 +edge-2 +tunnel +\d+s +[1-9]\d* B +[1-9]\d* B$/m;
      await until(
        "the flow to be listed, with bytes both ways",
        async () => line.test(await out(node, ["connections"])) || undefined,
      );
      const far = await out(topology.node("edge-2"), ["connections"]);
      assert.match(far, /^node edge-1 +default\/echo:5000\/UDP +10\.244\.2\.\d+:5001 +- +inbound +\d+s +[1-9]/m);
      const { open } = JSON.parse(await out(node, ["connections", "-o", "json"])) as { open: { protocol: string }[] };
      assert.ok(open.some(({ protocol }) => protocol === "UDP"));
      await talker.kill();
    });

    await t.step("config: every problem with its line, origins, a schema", async () => {
      await Deno.writeTextFile(node.host.path(CONFIG), "nodeNam: x\ndns:\n  port: 0\n");
      const bad = await node.run(["config", "validate"]);
      assert.equal(bad.code, 2);
      assert.match(bad.stderr, /nodeNam is not a known key; did you mean nodeName\? \(.*agent\.yaml:1\)/);
      assert.match(bad.stderr, /dns\.port .*\(.*agent\.yaml:3\)/);
      assert.equal(JSON.parse(await out(node, ["config", "schema", "agent"])).type, "object");
    });

    await t.step(
      "SIGHUP: a broken file changes nothing; a good one changes what can change and names the rest",
      async () => {
        const agent = mesh.agent("edge-1");
        agent.signal("SIGHUP");
        await agent.waitFor({ log: /not reloaded; the old one stays/ });
        await Deno.writeTextFile(
          node.host.path(CONFIG),
          "log: { level: debug }\ndns: { enabled: false, port: 5353 }\n",
        );
        assert.match(await out(node, ["config", "show"]), /log\.level +debug +.*agent\.yaml:1/);
        agent.signal("SIGHUP");
        await agent.waitFor({ log: /need a restart were not made.*dns\.port/ });
        assert.match(await out(node, ["status", "--role", "agent"]), /dns +off/);
        await Deno.writeTextFile(node.host.path(CONFIG), "log: { level: info }\n");
        agent.signal("SIGHUP");
        await until("DNS to be back", async () => {
          const dns = (await checks(node)).lines.find((l) =>
            l.name === "dns" && l.state === "ok" && /answers .* with 10\.96\.0\.1/.test(l.text)
          );
          return dns === undefined ? undefined : true;
        });
        assert.match(await out(node, ["log", "level", "debug"]), /the agent logs at level debug/);
      },
    );

    await t.step("support-bundle: complete, and without the canary of environment and token file", async () => {
      await Deno.writeTextFile(node.host.path("/etc/edgemesh/join-token"), `${CANARY}-file\n`);
      const file = "/run/edgemesh/bundle.tar.gz";
      const made = await node.run(["support-bundle", "--file", file], { env: { CLOUD_TOKEN: `${CANARY}-env` } });
      assert.equal(made.code, 0, made.stderr);
      const listed = await node.host.execOk(["tar", "-tzf", file]);
      for (const name of ["status-agent.json", "check-agent.json", "rules.txt", "config-agent.json"]) {
        assert.ok(listed.stdout.includes(name), name);
      }
      const { stdout } = await node.host.execOk(["tar", "-xzOf", file]);
      assert.ok(stdout.includes("edge-1") && stdout.includes("table inet edgemesh"), "it says what it should");
      assert.ok(!stdout.includes(CANARY));
      assert.ok(!stdout.includes("PRIVATE KEY"));
    });

    await t.step("a closed pipe is no error", async () => {
      const { code, stderr } = await node.host.exec([
        "sh",
        "-c",
        `${node.command.join(" ")} config schema agent | head -1`,
      ]);
      assert.equal(code, 0);
      assert.equal(stderr, "");
    });
  });
});

async function checks(
  node: LabNode,
  flags: readonly string[] = [],
): Promise<ExecResult & { lines: Line[]; text: string }> {
  const result = await node.run(["check", "-o", "json", ...flags]);
  const { checks } = JSON.parse(result.stdout) as { checks: Line[] };
  return { ...result, lines: checks, text: result.stdout + result.stderr };
}

async function out(node: LabNode, args: readonly string[]): Promise<string> {
  const { code, stdout, stderr } = await node.run(args);
  assert.equal(code, 0, `${args.join(" ")}: ${stderr}${stdout}`);
  return stdout;
}
