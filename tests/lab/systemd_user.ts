/** The agent's service as a user of its own: what root does around it, what it may, who may ask it, where it came from. */
import assert from "node:assert/strict";
import { until } from "../../lib/lab/exec.ts";
import type { Systemd } from "../../lib/lab/systemd.ts";
import { tell } from "./fixture.ts";
import { confined, EXE, identityOf, install, kernelOf, replacedBy } from "./systemd_fixture.ts";

export interface Installed {
  /** A host on which the agent's service runs. */
  readonly edge: Systemd;
  /** What `kernelOf` gave before the install. */
  readonly kernel: string;
  /** Asserts that a Service of the node answers. */
  webAnswers(): Promise<void>;
}

/** Steps of a test; the agent's service runs before and after. Needs an executable /etc/bad that is never ready. */
export async function ownUserSteps(t: Deno.TestContext, { edge, kernel, webAnswers }: Installed): Promise<void> {
  await t.step(
    "T42: dns.integrate: root changes the host's resolver for the agent, and back when it is killed",
    async () => {
      const resolver = async () => (await edge.execOk(["cat", "/etc/resolv.conf"])).stdout;
      const before = await resolver();
      assert.doesNotMatch(before, /edgemesh/);
      await edge.execOk(["sh", "-c", "printf 'dns:\n  integrate: file\n' >/etc/edgemesh/agent.yaml"]);
      await edge.execOk(["systemctl", "restart", "edgemesh-agent"]);
      assert.match(await resolver(), /^# edgemesh begin.*\nnameserver 169\.254\.96\.16\n/);
      const reload = async (enabled: boolean) => {
        const yaml = `dns:\n  integrate: file\n  enabled: ${enabled}\n`;
        await edge.execOk([
          "sh",
          "-c",
          'printf "$0" >/etc/edgemesh/agent.yaml; systemctl reload edgemesh-agent',
          yaml,
        ]);
      };
      await reload(false);
      assert.equal(await resolver(), before, "DNS is switched off");
      await reload(true);
      assert.match(await resolver(), /edgemesh/);
      await replacedBy(edge, async () => {
        await edge.execOk(["kill", "-KILL", await edge.property("edgemesh-agent", "MainPID")]);
        await until("the host to have its resolver back", async () => await resolver() === before || undefined);
      });
      assert.match(await resolver(), /edgemesh/);
      await edge.execOk(["systemctl", "stop", "edgemesh-agent"]);
      assert.equal(await resolver(), before);
      await edge.execOk(["rm", "/etc/edgemesh/agent.yaml"]);
      await edge.execOk(["systemctl", "start", "edgemesh-agent"]);
      await webAnswers();
    },
  );
  await t.step("T42: an agent that does not stop when told is killed, and nothing of it stays", async () => {
    // Told by a signal that it does not hear: one that hangs would be woken by the telling.
    const dropIn = "/run/systemd/system/edgemesh-agent.service.d";
    const line =
      `mkdir -p ${dropIn}; printf '[Service]\nTimeoutStopSec=1\nKillSignal=SIGWINCH\n' >${dropIn}/test.conf; systemctl daemon-reload`;
    await edge.execOk(["sh", "-ec", line]);
    await edge.execOk(["systemctl", "stop", "edgemesh-agent"], { timeoutMs: 30_000 });
    assert.equal(await edge.property("edgemesh-agent", "Result"), "timeout");
    assert.equal(await kernelOf(edge), kernel);
    await edge.execOk(["sh", "-ec", `rm -r ${dropIn}; systemctl daemon-reload; systemctl start edgemesh-agent`]);
    await webAnswers();
  });
  await t.step("T42: without one of its capabilities the agent runs, is not ready, and says why", async () => {
    const dropIn = "/run/systemd/system/edgemesh-agent.service.d";
    const only = (name: string) =>
      `AmbientCapabilities=\nAmbientCapabilities=${name}\nCapabilityBoundingSet=\nCapabilityBoundingSet=${name}\n`;
    for (
      const [capability, says] of [
        ["CAP_NET_BIND_SERVICE", /^waiting for mesh link: Cannot create link edgemesh0.*EPERM/],
        ["CAP_NET_ADMIN", /^waiting for dns: Cannot bind UDP socket .*:53: permission denied/],
      ] as const
    ) {
      const line = `mkdir -p ${dropIn}; printf "[Service]\n$0" >${dropIn}/test.conf; systemctl daemon-reload`;
      await edge.execOk(["sh", "-ec", line, only(capability)]);
      await edge.execOk(["systemctl", "restart", "--no-block", "edgemesh-agent"]);
      const text = await until("systemd to be told", async () => {
        const text = await edge.property("edgemesh-agent", "StatusText");
        return says.test(text) ? text : undefined;
      });
      tell(`only ${capability}: ${text}`);
      assert.equal(await edge.property("edgemesh-agent", "ActiveState"), "activating");
      if (capability === "CAP_NET_ADMIN") await webAnswers();
    }
    await edge.execOk(["sh", "-ec", `rm -r ${dropIn}; systemctl daemon-reload; systemctl restart edgemesh-agent`]);
    await webAnswers();
  });
  await t.step("T42: a DNS port that is taken: the agent is not ready, and root's check names who has it", async () => {
    await edge.execOk(["systemctl", "stop", "edgemesh-agent"]);
    const run = ["systemd-run", "--quiet", "--unit=taker", "socat", "-u", "UDP4-RECV:53", "STDOUT"];
    await edge.execOk(run);
    await edge.execOk(["systemctl", "start", "--no-block", "edgemesh-agent"]);
    await until(
      "systemd to be told",
      async () =>
        /^waiting for dns: .*EADDRINUSE.*held by another program/.test(
          await edge.property("edgemesh-agent", "StatusText"),
        ) || undefined,
    );
    await webAnswers();
    const { code, stdout } = await edge.exec(["edgemesh", "check"]);
    assert.equal(code, 1);
    assert.match(stdout, /× DNS does not answer: .*held by socat \(pid \d+\)\n {4}try: stop socat \(pid \d+\)/);
    await edge.execOk(["systemctl", "stop", "taker"]);
    await until(
      "the agent to be ready",
      async () => await edge.property("edgemesh-agent", "ActiveState") === "active" || undefined,
    );
  });
  await t.step("check sees whom a pod asks for names, although the agent itself may not look", async () => {
    const pod = [
      'ip addr add 10.9.9.9/32 dev lo; ip link set lo up; echo "nameserver 9.9.9.9" >/tmp/pod.conf',
      "mount --bind /tmp/pod.conf /etc/resolv.conf; exec sleep 600",
    ].join("; ");
    await edge.execOk(["systemd-run", "--quiet", "--unit=pod", "unshare", "-n", "-m", "sh", "-ec", pod]);
    const line = /‼ container at 10\.9\.9\.9 asks 9\.9\.9\.9, which does not know names of the cluster\n {4}try: set /;
    await until("the pod to be seen", async () => {
      return line.test((await edge.exec(["edgemesh", "check"])).stdout) || undefined;
    });
    await edge.execOk(["sh", "-ec", "systemctl stop pod; rm /tmp/pod.conf"]);
  });
  await t.step("T44: who is in the group reads, who is not is told so, and only root changes", async () => {
    await edge.execOk([
      "sh",
      "-ec",
      "useradd -r -M -s /bin/sh stranger; useradd -r -M -s /bin/sh -G edgemesh reader",
    ]);
    const modes = await edge.execOk(["sh", "-c", "cd /run/edgemesh && stat -c '%n %a %U:%G' . agent.*sock"]);
    assert.equal(
      modes.stdout,
      ". 750 edgemesh:edgemesh\nagent.root.sock 600 edgemesh:edgemesh\nagent.sock 660 edgemesh:edgemesh\n",
    );
    const as = (who: string, ...args: string[]) =>
      edge.exec([
        "setpriv",
        `--reuid=${who}`,
        `--regid=${who}`,
        "--init-groups",
        "env",
        "HOME=/nonexistent",
        "edgemesh",
        ...args,
      ]);
    const read = await as("reader", "status");
    assert.equal(read.code, 0, read.stderr);
    assert.match(read.stdout, /edge-1/);
    assert.match((await as("reader", "check")).stdout, /‼ whom pods ask for names only root may see/);
    const change = await as("reader", "log", "level", "debug");
    assert.equal(change.code, 1);
    assert.match(
      change.stderr,
      /^error: \/run\/edgemesh\/agent\.root\.sock cannot be opened by this user; try: run as root/,
    );
    const none = await as("stranger", "status");
    assert.equal(none.code, 1);
    assert.match(
      none.stderr,
      /^error: \/run\/edgemesh\/agent\.sock cannot be opened by this user; try: run as root, or join the group edgemesh/,
    );
    await edge.execOk(["sh", "-ec", "userdel stranger; userdel reader"]);
  });
  await t.step(
    "T42: state of an agent that ran as root is taken over, and given back when the new one fails",
    async () => {
      const identity = await identityOf(edge);
      const unit = "/etc/systemd/system/edgemesh-agent.service";
      const owner = async () =>
        (await edge.execOk(["sh", "-c", "stat -c %U /var/lib/edgemesh/agent /var/lib/edgemesh/agent/* | sort -u"]))
          .stdout.trim();
      // As versions before had it: root, with the same few capabilities.
      await edge.execOk([
        "sh",
        "-ec",
        `systemctl stop edgemesh-agent
      sed -i -E '/^(User|Group|AmbientCapabilities|Exec(StartPre|StartPost|StopPost)|Environment|CacheDirectory.*)=|^ExecReload=\\+/d' ${unit}
      sed -i 's|^StateDirectory=.*|StateDirectory=edgemesh|' ${unit}
      chown -R root: /var/lib/edgemesh /run/edgemesh; systemctl daemon-reload; systemctl start edgemesh-agent`,
      ]);
      assert.equal(await owner(), "root");
      await webAnswers();
      const env = { INSTALL_EDGEMESH_READY_SECONDS: "8" };
      const { code, stderr } = await edge.exec(["edgemesh-install", "agent", "--from", "/etc/bad"], {
        env,
        timeoutMs: 60_000,
      });
      assert.equal(code, 1);
      assert.match(stderr, /the one before runs again, with its settings/);
      assert.equal(await owner(), "root");
      assert.equal(await identityOf(edge), identity);
      await webAnswers();
      assert.match(await install(edge, ["agent", "--from", EXE]), /edgemesh-agent is ready/);
      assert.equal(await owner(), "edgemesh");
      assert.equal(await identityOf(edge), identity);
      await confined(edge, "agent");
      await webAnswers();
    },
  );
}
