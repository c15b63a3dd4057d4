/** scripts/install.sh from a release on a web server: what is published arrives whole, or nothing changes. */
import assert from "node:assert/strict";
import type { ExecOptions, ExecResult } from "../../lib/lab/exec.ts";
import { execOk } from "../../lib/lab/exec.ts";
import { Host } from "../../lib/lab/host.ts";
import { Lab } from "../../lib/lab/namespace.ts";
import { builtCommand, fixture, labTest } from "./support.ts";

const SCRIPTS = new URL("../../scripts", import.meta.url).pathname;
const [EXE] = builtCommand();
const ARCH = Deno.build.arch === "aarch64" ? "arm64" : "amd64";
const BIN_DIR = "/etc/test-bin";
const BIN = `${BIN_DIR}/edgemesh`;
const FLAGS = ["--node-name", "edge-1", "--server", "wss://203.0.113.1", "--ca-pin", `sha256:${"a".repeat(43)}`];

labTest("install: from a release on a web server; damaged, missing or changed files change nothing", async (t) => {
  await using lab = await Lab.open();
  const host = await Host.create(await lab.namespace("host"));
  // The lab's hosts share the machine's unpacked executable; this one must not take it away.
  await host.execOk(["mount", "-t", "tmpfs", "none", "/var/lib/edgemesh"]);
  const release = `${lab.dir}/release`;
  // The executable behind a short file: what is downloaded and hashed some forty times is small.
  const exe = `${lab.dir}/edgemesh`;
  await Deno.writeTextFile(exe, `#!/bin/sh\n${"# padding\n".repeat(20_000)}exec ${EXE} "$@"\n`, { mode: 0o755 });
  await execOk([`${SCRIPTS}/release.sh`, "--out", release, "--prebuilt", `${ARCH}=${exe}`]);
  const script = await Deno.readTextFile(`${release}/install.sh`);
  const web = await host.start("web", [...fixture("release_server"), release], { ready: { log: /listening \d+/ } });
  const port = /listening (\d+)/.exec(await web.log())![1]!;
  const base = (how: string) => `http://127.0.0.1:${port}/${how}`;
  const asked = async () => (await web.log()).trim().split("\n").slice(1).map((line) => line.split("/").at(-1));
  /** As from a pipe: the script on stdin. */
  const piped = (args: readonly string[], options: ExecOptions = {}): Promise<ExecResult> =>
    host.exec(["sh", "-s", "-", ...args], {
      stdin: script,
      ...options,
      env: { INSTALL_EDGEMESH_BIN_DIR: BIN_DIR, ...options.env },
    });
  const files = async () =>
    (await host.execOk([
      "sh",
      "-c",
      "find /etc /var/lib/edgemesh -xdev -type f -exec sha256sum {} + | grep -v /runtime/",
    ]))
      .stdout;
  const untouched = await files();

  await t.step("the release: hashes and manifest are those of its files", async () => {
    await execOk(["sha256sum", "--quiet", "-c", "SHA256SUMS"], { cwd: release });
    const manifest = JSON.parse(await Deno.readTextFile(`${release}/manifest.json`));
    assert.equal(manifest.apiVersion, "edgemesh.release/v1");
    assert.match(manifest.commit, /^([0-9a-f]{40}|unknown)$/);
    const { size } = await Deno.stat(exe);
    assert.equal(manifest.artefacts.length, 1);
    assert.deepEqual(
      { name: manifest.artefacts[0].name, size: manifest.artefacts[0].size, ran: manifest.artefacts[0].ranHere },
      { name: `edgemesh-linux-${ARCH}`, size, ran: true },
    );
  });
  await t.step("a piped script that was cut off anywhere runs nothing", async () => {
    // Without its line break alone it would be complete.
    const cuts = [...Array(12).keys()].map((n) => script.length - 2 - n);
    for (let at = 500; at < script.length - 20; at += 1500) cuts.push(at);
    for (const at of cuts) {
      await piped(["agent", "--release", base("good"), ...FLAGS], { stdin: script.slice(0, at) });
    }
    assert.equal(await files(), untouched);
    assert.deepEqual(await asked(), [], "something was downloaded");
  });
  const bad: readonly [string, RegExp][] = [
    ["gone", /^\[ERROR\] http:.*\/gone\/SHA256SUMS cannot be downloaded \(.*404.*\); try: /],
    ["half", /^\[ERROR\] http:.*\/half\/edgemesh-linux-\w+ cannot be downloaded \(.*404.*\); try: /],
    ["broken", /^\[ERROR\] http:.* cannot be downloaded \(.*\); try: /],
    ["short", /^\[ERROR\] The download of edgemesh-linux-\w+ is damaged .*; nothing was changed; try: /],
    ["changed", /^\[ERROR\] The download of edgemesh-linux-\w+ is damaged .*; nothing was changed; try: /],
    ["sums", /^\[ERROR\] The download of edgemesh-linux-\w+ is damaged .*; nothing was changed; try: /],
  ];
  const refusesBad = async (before: string, cases = bad) => {
    for (const [how, says] of cases) {
      const { code, stderr } = await piped(["agent", "--release", base(how), ...FLAGS]);
      assert.equal(code, 1, how);
      assert.match(stderr, says);
      assert.equal(stderr.trim().split("\n").length, 1, stderr);
      assert.equal(await files(), before, how);
    }
  };
  await t.step("what is missing, cut off or changed is refused on a fresh host", () => refusesBad(untouched));
  await t.step("wrong hosts and addresses are refused in one sentence", async () => {
    const fake = "/run/fake";
    await Deno.mkdir(host.path(fake));
    const tool = (name: string, body: string) =>
      Deno.writeTextFile(host.path(`${fake}/${name}`), `#!/bin/sh\n${body}\n`, { mode: 0o755 });
    const refused = async (args: readonly string[], says: RegExp, env: Record<string, string> = {}) => {
      const { code, stderr } = await piped(["agent", ...args, ...FLAGS], { env });
      assert.equal(code, 1, args.join(" "));
      assert.match(stderr, says);
    };
    await refused([], /No executable and no release given; try: --from dist\/edgemesh, or --release URL/);
    await refused(["--release", "http://198.51.100.1/x"], /Whoever is on the way .* can change what it sends; try: /);
    await refused(["--release", "ftp://x"], /is no https:\/\/ address; try: /);
    await refused(["--release", "https://198.51.100.1/x"], /cannot be downloaded \(curl: \(7\).*\); try: /);
    await refused(["--release", base("good"), "--sha256", "f".repeat(64)], /The release has .* not f{64}; try: /);
    await refused(["--release", base("good"), "--token-file", "-"], /the token cannot; try: EDGEMESH_TOKEN=/);
    await refused(
      ["--release", base("good"), "--set", "dns.zone=-"],
      /These settings cannot be used: .*dns\.zone.*; try: /,
    );
    const path = { PATH: `${fake}:${Deno.env.get("PATH")}` };
    await tool("ldd", "echo 'ldd (GNU libc) 2.17'");
    await refused([], /This system has glibc 2\.17; edgemesh needs 2\.28 or newer; try: Debian 11, /, path);
    await tool("ldd", "echo 'ldd (Debian GLIBC 2.28-1) 2.28'");
    await refused([], /No executable and no release/, path);
    await tool("ldd", "echo 'musl libc (x86_64)' >&2; exit 1");
    await refused([], /This system has no glibc/, path);
    await tool("ldd", "echo 'ldd (GNU libc) 2.36'");
    await tool("uname", `if [ "$1" = -m ]; then echo armv7l; else echo Linux; fi`);
    await refused([], /edgemesh has no build for armv7l; /, path);
    const other = ARCH === "amd64" ? "aarch64" : "x86_64";
    await tool("uname", `if [ "$1" = -m ]; then echo ${other}; else echo Linux; fi`);
    await refused(["--release", base("good")], /SHA256SUMS has no line for edgemesh-linux-a\w+64; try: /, path);
    assert.equal(await files(), untouched);
  });
  await t.step("from a pipe: token and settings from the environment; the script is kept for later", async () => {
    await Deno.mkdir(host.path("/run/openrc"));
    const env = { EDGEMESH_TOKEN: "id.secret", EDGEMESH_LOG_LEVEL: "debug", EDGEMESH_NODE_NAME: "not-this" };
    const { code, stdout, stderr } = await piped(["agent", "--release", base("good"), ...FLAGS], { env });
    assert.equal(code, 0, stderr);
    assert.match(stdout, /this host runs OpenRC, for which there is no unit; run this as a service:\n +set -a; /);
    await host.execOk(["cmp", BIN, exe]);
    await host.execOk(["cmp", `${BIN_DIR}/edgemesh-install`, `${release}/install.sh`]);
    const written = await Deno.readTextFile(host.path("/etc/edgemesh/agent.env"));
    assert.match(written, /^EDGEMESH_LOG_LEVEL=debug$/m);
    assert.match(written, /^EDGEMESH_NODE_NAME=edge-1$/m);
    assert.ok(!written.includes("secret"), written);
    const kept = "/var/lib/edgemesh/agent/join-token";
    assert.equal((await host.execOk(["sh", "-c", `stat -c %a ${kept}; cat ${kept}`])).stdout, "600\nid.secret\n");
  });
  await t.step("the same release again: its hash is asked for, nothing else", async () => {
    const before = (await asked()).length;
    const { stdout } = await host.execOk(["sh", `${BIN_DIR}/edgemesh-install`, "agent", "--release", base("good")], {
      env: { INSTALL_EDGEMESH_BIN_DIR: BIN_DIR },
    });
    assert.match(stdout, /is already the release's: nothing to download/);
    assert.deepEqual((await asked()).slice(before), ["SHA256SUMS"]);
  });
  await t.step("over an installed one, what is missing, cut off or changed leaves it as it was", async () => {
    // Another build, so that there is something to download.
    await host.execOk(["sh", "-c", `printf x >>${BIN}`]);
    await refusesBad(await files(), bad.filter(([how]) => ["half", "broken", "changed"].includes(how)));
  });
  await t.step("stopped in the middle of a download, it leaves nothing behind", async () => {
    const before = await files();
    const line = `sh ${BIN_DIR}/edgemesh-install agent --release ${base("stalled")}`;
    const run = await host.start("install", ["sh", "-c", line], { env: { INSTALL_EDGEMESH_BIN_DIR: BIN_DIR } });
    await web.waitFor({ log: /^stalled$/m });
    run.signal("SIGTERM");
    await run.ended;
    assert.equal(await files(), before);
  });
  await t.step("through a proxy, pinned by hash; then uninstalled by the script that was kept", async () => {
    const sums = await Deno.readTextFile(`${release}/SHA256SUMS`);
    const hash = /^([0-9a-f]{64}) {2}edgemesh-/m.exec(sums)![1]!;
    const args = ["agent", "--release", "http://releases.example.test/good", "--sha256", hash];
    const proxies = { HTTPS_PROXY: "http://proxy.example.test:3128", NO_PROXY: "10.0.0.0/8,.local" };
    const { code, stderr } = await piped(args, { env: { HTTP_PROXY: `http://127.0.0.1:${port}`, ...proxies } });
    assert.equal(code, 0, stderr);
    assert.match(await web.log(), /^http:\/\/releases\.example\.test\/good\/edgemesh-linux-/m);
    await host.execOk(["cmp", BIN, exe]);
    // What leads here leads the agent to its server.
    const written = await Deno.readTextFile(host.path("/etc/edgemesh/agent.env"));
    for (const [name, value] of Object.entries(proxies)) assert.ok(written.includes(`${name}=${value}\n`), written);
    await host.execOk(["sh", `${BIN_DIR}/edgemesh-install`, "uninstall", "--purge"], {
      env: { INSTALL_EDGEMESH_BIN_DIR: BIN_DIR },
    });
    assert.equal(await files(), untouched);
  });
});
