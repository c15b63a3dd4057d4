/** scripts/install.sh on hosts of the lab, from the built file, as a person would: install, start, upgrade, take away. */
import assert from "node:assert/strict";
import { execOk, type ExecOptions, type ExecResult } from "../../lib/lab/exec.ts";
import type { JoinToken } from "../../lib/lab/mesh.ts";
import type { LabNode } from "../../lib/lab/node.ts";
import { SERVER_ADDRESSES } from "../../lib/lab/topology.ts";
import { kernelState } from "../../cmd/demo/world.ts";
import { tell, withMesh } from "./fixture.ts";
import { builtCommand, labTest } from "./support.ts";

const FETCH_SYSTEMD = new URL("../../scripts/fetch_systemd.sh", import.meta.url).pathname;
/** Of 10, by systemd's own count. */
const MAX_EXPOSURE = 3.5;
const INSTALL = new URL("../../scripts/install.sh", import.meta.url).pathname;
const [EXE] = builtCommand();
const URL_ = `wss://${SERVER_ADDRESSES[0]}`;
/** On the host's own file systems: `/usr` is the real machine's. */
const BIN_DIR = "/etc/test-bin";
const BIN = `${BIN_DIR}/edgemesh`;
const ENV = { INSTALL_EDGEMESH_BIN_DIR: BIN_DIR };

labTest(
  "install: server and agent from a file; both run from what was installed, and nothing is left of them",
  async (t) => {
    await withMesh({ sites: [{ nat: "cone" }], cloud: "none", web: [] }, async (mesh) => {
      const { topology } = mesh;
      const [server, edge] = [topology.server, topology.node("edge-1")];
      await Promise.all([server, edge].map(alone));
      const untouched = await files(edge);
      const kernel = await kernelState(edge);
      let token: JoinToken | undefined;

      await t.step("--dry-run says what it would do, and changes nothing", async () => {
        const { stdout } = await installed(edge, ["agent", "--from", EXE, "--dry-run", "--node-name", "edge-1"]);
        assert.match(stdout, new RegExp(`would install .* as ${BIN}`));
        assert.match(stdout, /would write \/etc\/edgemesh\/agent\.env/);
        assert.match(stdout, /would write \/etc\/systemd\/system\/edgemesh-agent\.service/);
        assert.deepEqual(await files(edge), untouched);
      });
      await t.step("what is wrong is said in one sentence before anything is changed", async () => {
        const bad: [string[], RegExp][] = [
          [["agent", "--from", "/nonexistent"], /There is no file \/nonexistent; try: /],
          [["agent", "--from", "/etc/hostname"], /does not run on this host; try: /],
          [["agent", "--from", EXE, "--node-nam", "edge-1"], /edgemesh agent has no flag --node-nam; try: /],
          [["agent", "--from", EXE, "--node-name"], /Flag --node-name has no value; try: /],
          [["agent", "--from", EXE, "--set", "dns.zone"], /--set dns\.zone has no value; try: /],
          [["agent", "--from", EXE, "--manifests", "/it's"], /holds a quote.*; try: /],
        ];
        for (const [args, says] of bad) {
          const { code, stderr } = await install(edge, args);
          assert.equal(code, 1, args.join(" "));
          assert.match(stderr, says);
          assert.match(stderr, /^\[ERROR\] .*\n$/);
        }
        assert.equal((await install(edge, [])).code, 2);
        assert.equal((await install(edge, ["agnet"])).code, 2);
        const later = (await files(edge)).filter((line) => !/^\/var\/lib\/edgemesh( |\/runtime)/.test(line));
        assert.deepEqual(later, untouched);
      });
      await t.step("a system without glibc is refused", async () => {
        const dir = "/run/musl";
        await Deno.mkdir(edge.host.path(dir));
        const ldd = '#!/bin/sh\necho "musl libc (x86_64)" >&2\nexit 1\n';
        await Deno.writeTextFile(`${edge.host.path(dir)}/ldd`, ldd, { mode: 0o755 });
        const { code, stderr } = await install(edge, ["agent", "--from", EXE], {
          env: { ...ENV, PATH: `${dir}:${Deno.env.get("PATH")}` },
        });
        assert.equal(code, 1);
        assert.match(stderr, /This system has no glibc \(Alpine and other musl systems are not supported\); try: /);
        await Deno.remove(edge.host.path(dir), { recursive: true });
      });
      await t.step("the server, with settings that need quoting; it runs from its environment file", async () => {
        const manifests = "/etc/edgemesh/my manifests $(touch /run/owned)";
        await Deno.mkdir(server.host.path(manifests), { recursive: true });
        await installed(server, ["server", "--from", EXE, "--url", URL_, "--manifests", manifests]);
        await startFromEnv(server, "server", /server ready/);
        const { stdout } = await server.host.execOk([BIN, "token", "create", "-o", "json"]);
        token = JSON.parse(stdout) as JoinToken;
        await assert.rejects(Deno.stat(server.host.path("/run/owned")), Deno.errors.NotFound);
      });
      await t.step("the agent, token from stdin: private files, sane unit", async () => {
        const flags = [
          "--node-name",
          "edge-1",
          "--server",
          URL_,
          "--server",
          "wss://203.0.113.2",
          "--ca-pin",
          token!.pin,
        ];
        const more = ["--set", "dns.extraZones=a.test,b.test", "--log-level=debug", "--token-file", "-"];
        await installed(edge, ["agent", "--from", EXE, ...flags, ...more], { stdin: `${token!.token}\n` });
        const env = await Deno.readTextFile(edge.host.path("/etc/edgemesh/agent.env"));
        assert.deepEqual(env.trim().split("\n").sort(), [
          `EDGEMESH_CA_PIN=${token!.pin}`,
          "EDGEMESH_DNS_EXTRA_ZONES=a.test,b.test",
          "EDGEMESH_LOG_LEVEL=debug",
          "EDGEMESH_NODE_NAME=edge-1",
          `EDGEMESH_SERVER=${URL_},wss://203.0.113.2`,
          "EDGEMESH_TOKEN_FILE=/var/lib/edgemesh/agent/join-token",
        ]);
        assert.ok(!env.includes(token!.token), "the token itself is in the environment file");
        const modes = "/etc/edgemesh/agent.env /var/lib/edgemesh/agent /var/lib/edgemesh/agent/join-token";
        const { stdout } = await edge.host.execOk(["sh", "-c", `stat -c %a ${modes} ${BIN}`]);
        assert.equal(stdout, "600\n700\n600\n755\n");
        await verifyUnit(edge, "agent");
        await verifyUnit(server, "server");
      });
      await t.step("it joins, and the token is gone", async () => {
        const agent = await startFromEnv(edge, "agent", /agent ready/);
        assert.match(await agent.log(), /"joined","node":"edge-1"/);
        await assert.rejects(Deno.stat(edge.host.path("/var/lib/edgemesh/agent/join-token")), Deno.errors.NotFound);
        await agent.stop();
      });
      await t.step("a second run changes nothing; without flags the settings stay", async () => {
        const before = await files(edge);
        const { stdout } = await installed(edge, ["agent", "--from", EXE]);
        assert.match(stdout, /is already this build/);
        assert.deepEqual(await files(edge), before);
      });
      await t.step("an upgrade keeps state and settings, and the executable before it", async () => {
        // Another build: what follows the archive is not looked at by anyone but the comparison.
        const other = "/etc/other-build";
        await edge.host.execOk(["sh", "-c", `cp '${EXE}' ${other}; sed -i '1a # another build' ${other}`]);
        await edge.host.execOk([
          "sh",
          "-c",
          `skip=$(sed -n 's/^skip=//p' ${other} | tr -d ' ');
        sed -i "s/^skip=.*/skip=$((skip + 16))/" ${other}`,
        ]);
        const state = await digest(edge, "/var/lib/edgemesh/agent /etc/edgemesh");
        const { stdout } = await installed(edge, ["agent", "--from", other, "--log-level", "info"]);
        assert.match(stdout, /installed \/etc\/test-bin\/edgemesh \(edgemesh /);
        await edge.host.execOk(["cmp", BIN, other]);
        await edge.host.execOk(["cmp", `${BIN}.previous`, EXE]);
        await edge.host.execOk(["sed", "-i", "s/LEVEL=info/LEVEL=debug/", "/etc/edgemesh/agent.env"]);
        const sorted = (text: string) => text.split("\n").filter((line) => !line.includes("agent.env")).sort();
        assert.deepEqual(sorted(await digest(edge, "/var/lib/edgemesh/agent /etc/edgemesh")), sorted(state));
        const agent = await startFromEnv(edge, "agent", /agent ready/);
        assert.doesNotMatch(await agent.log(), /"joined"/);
        await agent.stop();
        await Deno.remove(edge.host.path(other));
      });
      await t.step("uninstall takes all but the identity; --purge takes that, too", async () => {
        // Killed, so that rules, link and routes are still there: taking them away is the uninstaller's work.
        const killed = await startFromEnv(edge, "agent", /agent ready/);
        await killed.kill();
        assert.notEqual(await kernelState(edge), kernel);
        const { stdout } = await installed(edge, ["uninstall"]);
        assert.match(stdout, /kept \/var\/lib\/edgemesh \(identity and state\); --purge removes it/);
        const kept = (await files(edge)).filter((line) => !untouched.includes(line));
        assert.ok(kept.length > 0 && kept.every((line) => line.startsWith("/var/lib/edgemesh")), kept.join("\n"));
        assert.equal(await kernelState(edge), kernel, "rules, links, addresses, routes or sysctls differ");
        await installed(edge, ["uninstall", "--purge"]);
        assert.deepEqual(await files(edge), untouched);
      });
    });
  },
);

/** Notes what it is told, and answers as systemd would; `outcomes` says what becomes of each start, line by line. */
const FAKE_SYSTEMCTL = `#!/bin/sh
cd /run/fake
case $1 in
  show) case $2 in *ActiveState) cat state ;; *InvocationID) cat id ;; *) echo 5 ;; esac ;;
  is-active | --quiet) exit 3 ;;
  restart)
    echo "$*" >>calls
    echo $$ >id
    head -n 1 outcomes >state
    sed -i 1d outcomes ;;
  *) echo "$*" >>calls ;;
esac
`;

labTest(
  "install: a fake systemd is told to start what changed, and gets everything back when the new one fails",
  async () => {
    await withMesh({ sites: [{ nat: "cone" }], cloud: "none", web: [] }, async (mesh) => {
      const edge = mesh.topology.node("edge-1");
      await alone(edge);
      // What systemd does itself is tested with a real one in systemd_test.ts.
      await Deno.mkdir(edge.host.path("/run/systemd/system"), { recursive: true });
      const fake = edge.host.path("/run/fake");
      await Deno.mkdir(fake);
      await Deno.writeTextFile(`${fake}/systemctl`, FAKE_SYSTEMCTL, { mode: 0o755 });
      await Promise.all(["state", "id"].map((name) => Deno.writeTextFile(`${fake}/${name}`, "inactive\n")));
      const env = { ...ENV, PATH: `/run/fake:${Deno.env.get("PATH")}`, INSTALL_EDGEMESH_READY_SECONDS: "1" };
      const run = async (args: readonly string[], ...outcomes: readonly string[]) => {
        await Deno.writeTextFile(`${fake}/calls`, "");
        await Deno.writeTextFile(`${fake}/outcomes`, outcomes.join("\n") + "\n");
        const result = await install(edge, args, { env });
        const calls = (await Deno.readTextFile(`${fake}/calls`)).trim().split("\n").filter((c) => c !== "");
        return { ...result, calls };
      };
      const agent = ["agent", "--from", EXE, "--node-name", "edge-1"];
      const reset = "reset-failed --quiet edgemesh-agent";
      const restart = [reset, "restart --no-block edgemesh-agent"];
      const start = ["stop edgemesh-agent", ...restart];
      const enable = "enable --quiet edgemesh-agent";
      const first = await run(agent, "active");
      assert.deepEqual([first.code, first.calls], [0, ["daemon-reload", enable, ...start]], first.stderr);
      const again = await run(agent);
      assert.deepEqual([again.code, again.calls], [0, ["daemon-reload", enable]]);
      assert.match(again.stdout, /is running, and nothing has changed/);
      const changed = await run([...agent, "--log-level", "debug", "--no-enable"], "active");
      assert.deepEqual(changed.calls, ["daemon-reload", ...restart]);
      assert.deepEqual((await run([...agent, "--no-start"])).calls, ["daemon-reload", enable]);
      for (const [outcome, says] of [["failed", "does not start"], ["activating", "does not start"]] as const) {
        await edge.host.execOk(["sh", "-c", `{ cat '${EXE}'; echo '${outcome}'; } >/etc/other; chmod 755 /etc/other`]);
        const before = await digest(edge, "/etc/edgemesh /etc/systemd/system/edgemesh-agent.service");
        const failed = await run(["agent", "--from", "/etc/other", "--log-level", "info"], outcome, "active");
        assert.equal(failed.code, 1);
        assert.match(failed.stderr, new RegExp(`The new edgemesh-agent ${says}; the one before runs again, with`));
        assert.deepEqual(failed.calls, ["daemon-reload", enable, ...restart, "daemon-reload", ...start]);
        await edge.host.execOk(["cmp", BIN, EXE]);
        assert.equal(await digest(edge, "/etc/edgemesh /etc/systemd/system/edgemesh-agent.service"), before);
      }
      await Deno.remove(edge.host.path("/etc/other"));
      const gone = await run(["uninstall", "agent"]);
      assert.deepEqual(gone.calls, [
        "disable --quiet --now edgemesh-agent",
        reset,
        "daemon-reload",
      ]);
    });
  },
);

/**
 * The lab's hosts share the machine's unpacked executable. What is uninstalled here must not take it away from others,
 * so this host gets none of it.
 */
async function alone(node: LabNode): Promise<void> {
  // /var/lib is the host's own layer over the machine's: removing there hides.
  const own = "umount /var/lib/edgemesh/runtime /var/lib/edgemesh && rm -rf /var/lib/edgemesh";
  // Shared memory is the machine's, too. The folder for programs is there, as /usr/local/bin is on any host.
  const more = `mount -t tmpfs none /dev/shm && mkdir ${BIN_DIR}`;
  await node.host.execOk(["sh", "-ec", `[ "$(stat -f -c %T /var/lib)" = overlayfs ] && ${own} && ${more}`]);
}

function install(node: LabNode, args: readonly string[], options: ExecOptions = {}): Promise<ExecResult> {
  return node.host.exec(["sh", INSTALL, ...args], { env: ENV, ...options });
}

async function installed(node: LabNode, args: readonly string[], options: ExecOptions = {}): Promise<ExecResult> {
  const result = await install(node, args, options);
  assert.equal(result.code, 0, result.stderr || result.stdout);
  return result;
}

/** Starts a role the way install.sh says it is started where systemd does not run. */
function startFromEnv(node: LabNode, role: "agent" | "server", ready: RegExp) {
  const line = `set -a; . /etc/edgemesh/${role}.env; set +a; exec ${BIN} ${role}`;
  return node.host.start(role, ["sh", "-c", line], { ready: { log: ready } });
}

/** Every file the product could have touched, with type, mode and size of files; not what systemd-analyze leaves. */
async function files(node: LabNode): Promise<string[]> {
  const places = "/etc /var/lib /var/lib/edgemesh /run /dev/shm";
  const find =
    `find ${places} -xdev \\( -type d -printf '%p %y %m\\n' -o -printf '%p %y %m %s\\n' \\) | grep -v ^/run/systemd | sort -u`;
  return (await node.host.execOk(["sh", "-c", find])).stdout.trim().split("\n");
}

async function digest(node: LabNode, places: string): Promise<string> {
  return (await node.host.execOk(["sh", "-c", `find ${places} -type f -exec sha256sum {} +`])).stdout;
}

async function verifyUnit(node: LabNode, role: "agent" | "server"): Promise<void> {
  const unit = `/etc/systemd/system/edgemesh-${role}.service`;
  const text = await Deno.readTextFile(node.host.path(unit));
  assert.match(text, new RegExp(`^ExecStart=${BIN} ${role}$`, "m"));
  assert.match(text, new RegExp(`^EnvironmentFile=-/etc/edgemesh/${role}\\.env$`, "m"));
  const root = (await execOk([FETCH_SYSTEMD], { timeoutMs: 120_000 })).stdout.trim();
  const analyze = (args: string) => {
    const script = `lib=$(echo ${root}/usr/lib/*-linux-gnu); export LD_LIBRARY_PATH=$lib:$lib/systemd; ` +
      `exec ${root}/usr/bin/systemd-analyze --no-pager ${args} ${unit}`;
    return node.host.exec(["sh", "-c", script]);
  };
  const { stderr } = await analyze("verify");
  assert.equal(stderr.split("\n").filter((line) => line.includes("edgemesh")).join("\n"), "");
  const { code, stdout } = await analyze(`security --offline=yes --threshold=${MAX_EXPOSURE * 10}`);
  const score = /exposure level for \S+: ([\d.]+)/.exec(stdout)?.[1];
  tell(`systemd-analyze security: ${role} ${score}`);
  assert.equal(code, 0, stdout);
  assert.ok(Number(score) <= MAX_EXPOSURE, stdout);
}
