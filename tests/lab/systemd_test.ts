/**
 * Server and agent as services of a real systemd (PID 1 of its own namespaces): installed by scripts/install.sh with its
 * defaults, ready by notification, confined, restarted when they hang or die, upgraded, rolled back, taken away.
 */
import assert from "node:assert/strict";
import { pause } from "../../lib/clock.ts";
import { until } from "../../lib/lab/exec.ts";
import type { JoinToken } from "../../lib/lab/mesh.ts";
import { SERVER_ADDRESSES } from "../../lib/lab/topology.ts";
import { allowed, tell, webService, withMesh } from "./fixture.ts";
import { longLabTest } from "./support.ts";
import {
  bootNode,
  confined,
  difference,
  EXE,
  filesOf,
  identityOf,
  INSTALL,
  install,
  kernelOf,
  replaced,
  replacedBy,
} from "./systemd_fixture.ts";
import { releaseSteps } from "./systemd_release.ts";
import { ownUserSteps } from "./systemd_user.ts";

const URL_ = `wss://${SERVER_ADDRESSES[0]}`;
const VIRTUAL = "10.96.0.10";

longLabTest("systemd: the life of server and agent as its services, from install to uninstall", async (t) => {
  await withMesh({ sites: [{ nat: "cone" }], cloud: "none" }, async (mesh) => {
    const { topology } = mesh;
    await mesh.writeManifest("web.yaml", webService("web", VIRTUAL, [topology.pod("edge-1-pod-1")]));
    await using server = await bootNode(topology.server);
    await using edge = await bootNode(topology.node("edge-1"));
    tell(`booted in ${Math.round(server.bootMs)} and ${Math.round(edge.bootMs)} ms`);
    const [files, kernel] = [await filesOf(edge), await kernelOf(edge)];
    const webAnswers = async () => {
      const { stdout } = await edge.execOk(["curl", "-sS", "--max-time", "5", `http://${VIRTUAL}/`]);
      assert.equal(stdout, "edge-1-pod-1 on edge-1\n");
    };

    await t.step("the server: ready by notification, with its status", async () => {
      const said = await install(server, [
        "server",
        "--from",
        EXE,
        "--url",
        URL_,
        "--manifests",
        "/etc/edgemesh/manifests",
      ]);
      assert.match(said, /edgemesh-server is ready/);
      assert.equal(await server.property("edgemesh-server", "StatusText"), `serving ${URL_}`);
      assert.equal(await server.property("edgemesh-server", "UnitFileState"), "enabled");
      await confined(server, "server");
    });
    await t.step("the agent: joined, ready, confined, and its Services answer", async () => {
      const token = JSON.parse(
        (await server.execOk(["edgemesh", "token", "create", "-o", "json"])).stdout,
      ) as JoinToken;
      const flags = ["--node-name", "edge-1", "--server", URL_, "--ca-pin", token.pin, "--token-file", "-"];
      const said = await install(edge, ["agent", "--from", EXE, ...flags], `${token.token}\n`);
      assert.match(said, /edgemesh-agent is ready/);
      assert.equal(await edge.property("edgemesh-agent", "StatusText"), "node edge-1");
      await confined(edge, "agent");
      await webAnswers();
      const { stdout } = await edge.execOk(["systemctl", "show", "-p", "WatchdogUSec", "-p", "Type", "edgemesh-agent"]);
      assert.deepEqual(stdout.trim().split("\n").sort(), ["Type=notify", "WatchdogUSec=1min"]);
    });
    await t.step("installed again with the same: nothing happens to the running service", async () => {
      const before = await edge.property("edgemesh-agent", "InvocationID");
      assert.match(await install(edge, ["agent", "--from", EXE]), /is running, and nothing has changed/);
      assert.equal(await edge.property("edgemesh-agent", "InvocationID"), before);
    });
    await t.step("reload takes a change and keeps the process", async () => {
      const before = await edge.property("edgemesh-agent", "MainPID");
      await edge.execOk(["sh", "-c", "printf 'dns:\\n  ttlSeconds: 7\\n' >/etc/edgemesh/agent.yaml"]);
      await edge.execOk(["systemctl", "reload", "edgemesh-agent"]);
      await until("the new value", async () => {
        const { stdout } = await edge.execOk(["journalctl", "--unit=edgemesh-agent", "--output=cat", "--no-pager"]);
        return /ttlSeconds/.test(stdout) ? true : undefined;
      });
      assert.equal(await edge.property("edgemesh-agent", "MainPID"), before);
      await edge.execOk(["rm", "/etc/edgemesh/agent.yaml"]);
      await edge.execOk(["systemctl", "reload", "edgemesh-agent"]);
    });
    await t.step("killed: started again after two seconds", async () => {
      const ms = await replaced(edge, ["kill", "-KILL", await edge.property("edgemesh-agent", "MainPID")]);
      tell(`ready again ${Math.round(ms)} ms after SIGKILL`);
      assert.ok(ms >= 2000, "RestartSec was not kept");
      assert.ok(ms < allowed(10_000), `${ms} ms`);
      await webAnswers();
    });
    await t.step("hung: the watchdog kills it, and it is started again", async () => {
      // A minute as installed; three seconds here, so that the test need not wait for it.
      const dropIn = "/etc/systemd/system/edgemesh-agent.service.d";
      const line =
        `mkdir ${dropIn}; printf '[Service]\\nWatchdogSec=3\\n' >${dropIn}/test.conf; systemctl daemon-reload`;
      await edge.execOk(["sh", "-ec", line]);
      await edge.execOk(["systemctl", "restart", "edgemesh-agent"]);
      const invocation = await edge.property("edgemesh-agent", "InvocationID");
      // Turning, it is left alone for longer than the watchdog's time.
      await pause(4000);
      assert.equal(await edge.property("edgemesh-agent", "InvocationID"), invocation);
      const ms = await replaced(edge, ["kill", "-STOP", await edge.property("edgemesh-agent", "MainPID")]);
      tell(`ready again ${Math.round(ms)} ms after SIGSTOP, watchdog 3 s`);
      const { stdout } = await edge.execOk(["journalctl", "--unit=edgemesh-agent", "--output=cat", "--no-pager"]);
      assert.match(stdout, /Watchdog timeout \(limit 3s\)!/);
      await edge.execOk(["sh", "-ec", `rm -r ${dropIn}; systemctl daemon-reload`]);
      await webAnswers();
    });
    await t.step("an upgrade: a new process of the new build, the same identity", async () => {
      const identity = await identityOf(edge);
      await edge.execOk(["sh", "-ec", `{ cat ${EXE}; echo another; } >/etc/other; chmod 755 /etc/other`]);
      // What follows the archive is looked at when it is unpacked only, and that has been done.
      const ms = await replacedBy(edge, async () => {
        const said = await install(edge, ["agent", "--from", "/etc/other"]);
        assert.match(said, /installed .*\n.*edgemesh-agent is ready/);
      });
      tell(`upgraded in ${Math.round(ms)} ms`);
      await edge.execOk(["cmp", "/usr/local/bin/edgemesh", "/etc/other"]);
      await edge.execOk(["cmp", "/usr/local/bin/edgemesh.previous", EXE]);
      assert.equal(await identityOf(edge), identity);
      await webAnswers();
    });
    await t.step("back to the executable before, by hand, and forth", async () => {
      for (const now of [EXE, "/etc/other"]) {
        await install(edge, ["agent", "--from", "/usr/local/bin/edgemesh.previous"]);
        await edge.execOk(["cmp", "/usr/local/bin/edgemesh", now]);
        await webAnswers();
      }
    });
    for (
      const [how, body, says] of [
        ["ends at its start", "echo broken build >&2; exit 1", /The new edgemesh-agent does not start; the one before/],
        ["never becomes ready", "exec sleep 600", /The new edgemesh-agent was not ready after 8 s; the one before/],
      ] as const
    ) {
      await t.step(`an upgrade to a build that ${how} is taken back`, async () => {
        const script =
          `#!/bin/sh\ncase $1 in agent) case $2 in --help) ;; *) ${body} ;; esac ;; esac\nexec ${EXE} "$@"\n`;
        await edge.execOk(["sh", "-ec", 'cat >"$0"; chmod 755 "$0"', "/etc/bad"], { stdin: script });
        const identity = await identityOf(edge);
        const env = { INSTALL_EDGEMESH_READY_SECONDS: "8" };
        const command = ["edgemesh-install", "agent", "--from", "/etc/bad", "--log-level", "debug"];
        const { code, stderr } = await edge.exec(command, { env, timeoutMs: 60_000 });
        assert.equal(code, 1);
        assert.match(stderr, says);
        await edge.execOk(["cmp", "/usr/local/bin/edgemesh", "/etc/other"]);
        assert.equal(await edge.property("edgemesh-agent", "ActiveState"), "active");
        assert.doesNotMatch((await edge.execOk(["cat", "/etc/edgemesh/agent.env"])).stdout, /debug/);
        assert.equal(await identityOf(edge), identity);
        await webAnswers();
      });
    }
    await t.step("wrong settings in the file: it stops trying, and says why", async () => {
      await edge.execOk(["sh", "-c", "echo nonsense: 1 >/etc/edgemesh/agent.yaml"]);
      await edge.exec(["systemctl", "restart", "edgemesh-agent"]);
      assert.equal(await edge.property("edgemesh-agent", "ActiveState"), "failed");
      const { code, stderr } = await edge.exec(["edgemesh-install", "agent", "--from", EXE, "--log-level", "debug"]);
      assert.equal(code, 1);
      assert.match(stderr, /These settings cannot be used: .*nonsense/);
      await edge.execOk(["sh", "-ec", "rm /etc/edgemesh/agent.yaml; systemctl restart edgemesh-agent"]);
      await webAnswers();
    });
    await ownUserSteps(t, { edge, kernel, webAnswers });
    await releaseSteps(t, { edge, webAnswers });
    await t.step(
      "uninstall keeps the identity, and leaves it to root; installed again, the node is who it was",
      async () => {
        const identity = await identityOf(edge);
        const settings = (await edge.execOk(["cat", "/etc/edgemesh/agent.env"])).stdout.trim().split("\n").filter((l) =>
          !l.includes("TOKEN")
        );
        await edge.execOk(["edgemesh-install", "uninstall"]);
        assert.equal(await identityOf(edge), identity);
        const { stdout } = await edge.execOk(["find", "/var/lib/edgemesh", "!", "-user", "root"]);
        assert.equal(stdout, "");
        assert.equal((await edge.exec(["getent", "passwd", "edgemesh"])).code, 2);
        const { stdout: said } = await edge.execOk(["sh", INSTALL, "agent", "--from", EXE], {
          env: Object.fromEntries(settings.map((l) => l.split("=") as [string, string])),
          timeoutMs: 60_000,
        });
        assert.match(said, /edgemesh-agent is ready/);
        assert.equal(await identityOf(edge), identity);
        await webAnswers();
      },
    );
    await t.step(
      "T43: uninstall --purge: files, units, rules, links and routes are as before the install",
      async () => {
        const { stdout } = await edge.execOk(["edgemesh-install", "uninstall", "--purge"]);
        assert.match(stdout, /uninstalled agent and server/);
        await edge.execOk(["rm", "/etc/other", "/etc/bad"]);
        assert.deepEqual(difference(files, await filesOf(edge)), []);
        assert.equal(await kernelOf(edge), kernel);
        const units = await edge.execOk([
          "systemctl",
          "list-units",
          "--all",
          "--no-legend",
          "--plain",
          "edgemesh*.service",
        ]);
        assert.equal(units.stdout, "");
        assert.equal((await edge.exec(["pgrep", "-a", "edgemesh"])).stdout, "");
      },
    );
  });
});
