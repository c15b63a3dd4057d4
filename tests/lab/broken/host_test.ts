/** Broken hosts, produced for real: what status, check and the log say about each. */
import assert from "node:assert/strict";
import { missingText } from "../../../lib/readiness.ts";
import { until } from "../../../lib/lab/exec.ts";
import { builtCommand, fixture, labTest } from "../support.ts";
import { type Bed, errorSays, lineSays, NEAR, onBed, row, warningSays } from "./bed.ts";
import { curl } from "../fixture.ts";

const STATE = "/var/lib/edgemesh/agent";
/** Waits that are longer than what they show is worth in each run. */
const FULL = Deno.env.get("EDGEMESH_TEST") === "full";
const MESH = "169.254.96.16";

labTest("broken hosts: each is said with its reason and what to do, and the rest goes on", async (t) => {
  await onBed({}, async (bed) => {
    const step = (situation: string, fn: (say: (who: string, sentence: string) => void) => Promise<void>) =>
      t.step(situation, () => fn((who, sentence) => row(situation, who, sentence)));

    await step("port 53 taken", (say) => port53(bed, say));
    await step("no nf_tables", (say) => noNftables(bed, say));
    await step("T42: no CAP_NET_ADMIN", (say) => noNetAdmin(bed, say));
    if (FULL) await step("T42: no CAP_NET_BIND_SERVICE", (say) => noBindService(bed, say));
    await step("disk full", (say) => diskFull(bed, say));
    await step("resolv.conf loop", (say) => resolvLoop(bed, say));
    // That rules come back is in crash_test.ts; here is what is said.
    if (FULL) await step("foreign flush", (say) => foreignFlush(bed, say));
    await step("corrupt snapshot", (say) => corruptSnapshot(bed, say));
    await step("glibc too old", (say) => oldGlibc(bed, say));
    // The last ones: nothing mends the machine afterwards.
    await step("no default route", (say) => noRoute(bed, say));
  });
});

type Say = (who: string, sentence: string) => void;

async function port53(bed: Bed, say: Say): Promise<void> {
  const taker = await bed.node.host.start("taker", ["socat", "-u", "UDP4-RECV:53", "STDOUT"], {
    ready: { port: 53, protocol: "udp" },
  });
  const pre = (await bed.check(["--pre"])).find((line) => line.name === "port-dns")!;
  say("check --pre", lineSays(pre, /169\.254\.96\.16:53 \(DNS\) is held by socat \(pid \d+\)/, /stop it/));
  await bed.agent({ ready: /DNS cannot listen/ }, async (agent) => {
    const warning = await bed.warning("KERNEL");
    say("status", warningSays(warning, /DNS does not answer: .*EADDRINUSE.*held by socat \(pid \d+\)/, /stop socat/));
    const line = await bed.line("dns", "fail");
    lineSays(line, /DNS does not answer: .*held by socat/, /stop socat \(pid \d+\).*tries again every 5 s/);
    assert.match(await agent.log(), /DNS cannot listen; everything else goes on.*held by socat/);
    await serves(bed);
    await notReady(bed, /^waiting for dns: .*EADDRINUSE.*held by socat/);
    assert.doesNotMatch(await agent.log(), /agent ready/);
    await taker.kill();
    if (!FULL) return;
    await bed.line("dns", "ok");
    await agent.waitFor({ log: /agent ready/ });
  });
}

async function noNftables(bed: Bed, say: Say): Promise<void> {
  const under = fixture("without_netfilter");
  const pre = await bed.node.host.exec([...under, ...bed.node.command, "check", "--pre"]);
  assert.match(pre.stdout, /× the kernel's nf_tables cannot be used: .*EPROTONOSUPPORT.*\n.*try: modprobe nf_tables/);
  await bed.agent({ under, ready: /Kernel rules could not be written/ }, async (agent) => {
    const warning = await bed.warning("KERNEL");
    await notReady(bed, /^waiting for kernel rules: .*Protocol not supported/);
    const hint = /modprobe nf_tables, or a kernel that has it/;
    say("status", warningSays(warning, /kernel rules are not current: .*Protocol not supported/, hint));
    lineSays(await bed.line("rules", "fail"), /Protocol not supported/, hint);
    assert.match(await agent.log(), /netlink does not work here.*EPROTONOSUPPORT/);
    assert.match(await bed.sh(`dig +short +time=2 @${MESH} near.default.svc.cluster.local`), new RegExp(NEAR));
  });
}

async function noNetAdmin(bed: Bed, say: Say): Promise<void> {
  const under = without("net_admin");
  const pre = await bed.node.host.exec([...under, ...bed.node.command, "check", "--pre"]);
  assert.match(pre.stdout, /× CAP_NET_ADMIN is missing\n {4}try: run as root/);
  await bed.agent({ under, ready: /connected to server/ }, async (agent) => {
    const hint = /run as root or grant CAP_NET_ADMIN/;
    const warning = await bed.warning("KERNEL");
    say("status", warningSays(warning, /no mesh link.*Cannot create link edgemesh0.*EPERM/, hint));
    lineSays(await bed.line("dns", "fail"), /Cannot create link edgemesh0.*EPERM/, hint);
    lineSays(await bed.line("rules", "fail"), /EPERM|not permitted/, /CAP_NET_ADMIN/);
    await notReady(bed, /^waiting for mesh link: Cannot create link edgemesh0.*EPERM/);
    assert.match(await agent.log(), /There is no mesh link: .*; the tunnel goes on/);
    // The tunnel does: this node is there for others.
    assert.equal((await bed.status()).mode, "online");
  });
}

/** What health checks, status and systemd are told, all alike: not ready, and why. */
async function notReady(bed: Bed, why: RegExp): Promise<void> {
  const probe = ["curl", "-sS", "-w", "%{http_code}", "http://127.0.0.1:9464/readyz"];
  let told: readonly [string, string] = ["", ""];
  // Two questions are asked at two moments: what is missing may change in between.
  const status = await until("readyz and status to say the same", async () => {
    const status = await bed.status();
    const said = (status.missing ?? []).map((what) => `waiting for ${missingText(what)}\n`).join("");
    told = [(await bed.node.host.execOk(probe)).stdout, `${said}503`];
    return told[0] === told[1] ? status : undefined;
  }).catch((error) => assert.deepEqual(told[0], told[1], error.message) as never);
  assert.match(told[0], why);
  assert.equal(status.ready, false);
  assert.deepEqual(status.waitingFor, status.missing!.map(({ name }) => name));
  const { code, stdout: shown } = await bed.node.run(["status"]);
  assert.equal(code, 1);
  assert.ok(shown.includes(missingText(status.missing![0]!)), shown);
}

async function noBindService(bed: Bed, say: Say): Promise<void> {
  await bed.agent({ under: without("net_bind_service"), ready: /DNS cannot listen/ }, async () => {
    const warning = await bed.warning("KERNEL");
    await notReady(bed, /^waiting for dns: Cannot bind UDP socket .*permission denied/);
    say("status", warningSays(warning, /Cannot bind UDP socket .*:53: permission denied/, /CAP_NET_BIND_SERVICE/));
    lineSays(await bed.line("dns", "fail"), /EACCES/, /CAP_NET_BIND_SERVICE/);
    await serves(bed);
  });
}

async function diskFull(bed: Bed, say: Say): Promise<void> {
  // A disk of its own for the state, so small that it can be filled.
  await bed.sh(`cp -a ${STATE} /run/state && mount -t tmpfs -o size=256k,mode=700 full ${STATE} &&
    cp -a /run/state/. ${STATE}/ && rm -rf /run/state`);
  try {
    await bed.agent({ ready: /agent ready/ }, async () => {
      await bed.sh(`dd if=/dev/zero of=${STATE}/fill bs=4k 2>/dev/null; true`);
      const line = await bed.line("snapshot", "fail");
      say("check", lineSays(line, /snapshot on disk cannot be written: No space left on device/, /df/));
      await serves(bed);
      await bed.sh(`rm ${STATE}/fill`);
      await bed.line("snapshot", "ok");
    });
  } finally {
    await bed.sh(`cp -a ${STATE} /run/state && umount ${STATE} && cp -a /run/state/. ${STATE}/`);
  }
}

async function resolvLoop(bed: Bed, say: Say): Promise<void> {
  await bed.node.host.setResolvConf(`nameserver ${MESH}\n`);
  await bed.agent({ ready: /agent ready/ }, async (agent) => {
    const warning = await bed.warning("DNS_LOOP");
    const what =
      /names outside the cluster cannot be resolved: .*resolv\.conf names 169\.254\.96\.16:53, which is this/;
    say("status", warningSays(warning, what, /dns\.upstreams/));
    lineSays(await bed.line("upstreams", "fail"), what, /dns\.upstreams/);
    assert.match(await agent.log(), /No upstream resolver is known/);
    const { stdout } = await bed.node.host.exec(["dig", "+time=2", "+tries=1", `@${MESH}`, "example.org"]);
    assert.match(stdout, /SERVFAIL/, "answered at once, and no query goes round");
  });
  await bed.node.host.setResolvConf("nameserver 203.0.113.53\n");
}

async function foreignFlush(bed: Bed, say: Say): Promise<void> {
  await bed.agent({ ready: /agent ready/ }, async (agent) => {
    await bed.sh("nft flush ruleset");
    const line = await bed.line("rules-foreign", "warn");
    say(
      "check",
      lineSays(line, /something else changed our rules (once|\d+ times); they were repaired/, /nft flush ruleset/),
    );
    assert.match(await agent.log(), /Kernel rules were changed by somebody else and are repaired/);
    await serves(bed);
  });
}

async function corruptSnapshot(bed: Bed, say: Say): Promise<void> {
  await bed.sh(`for f in ${STATE}/snapshot*.jsonl; do head -c 200 "$f" >/run/x; cat /run/x >"$f"; done`);
  await bed.mesh.stopServer("kill");
  await bed.agent({}, async (agent) => {
    const warning = await bed.warning("SNAPSHOT_INVALID");
    const what = /could not be used at the start: snapshot\.jsonl: .*truncated/;
    say("status", warningSays(warning, what, /written anew/));
    lineSays(await bed.line("snapshot-loaded", "warn"), what, /check the disk/);
    lineSays(await bed.line("metadata", "fail"), /nothing is known/, /edgemesh netcheck/);
    await notReady(bed, /^waiting for metadata/m);
    assert.match(await agent.log(), /snapshot on disk not used/);
    const unreachable = await bed.line("connected", "fail");
    row(
      "unreachable server (nothing listens)",
      "check",
      lineSays(unreachable, /ECONNREFUSED/, /nothing listens there/),
    );
    await bed.mesh.startServer();
    await bed.line("metadata", "ok");
    await serves(bed);
  });
  assert.match(await bed.sh(`head -c 20 ${STATE}/snapshot.jsonl`), /./);
}

/** The loader's own refusal: a C library whose symbols of one version have another name. */
async function oldGlibc(bed: Bed, say: Say): Promise<void> {
  const libc = /(\/\S+libc\.so\.6)/.exec((await bed.node.host.execOk(["ldd", "/bin/sh"])).stdout)![1]!;
  const bytes = await Deno.readFile(libc);
  const version = new TextEncoder().encode("\0GLIBC_2.18\0");
  const at = bytes.findIndex((_, i) => version.every((b, k) => bytes[i + k] === b));
  assert.ok(at > 0, "the C library has no version to take away");
  bytes[at + 5] = "X".charCodeAt(0);
  await Deno.writeFile(bed.node.host.path("/run/libc.so.6"), bytes, { mode: 0o755 });
  const script = `mount -t tmpfs -o mode=700 none /var/lib/edgemesh/runtime 2>/dev/null
    mount --bind /run/libc.so.6 ${libc} && exec ${builtCommand()[0]} version`;
  const { code, stderr } = await bed.node.host.exec(["unshare", "--mount", "sh", "-c", script]);
  assert.equal(code, 1, stderr);
  say(
    "edgemesh",
    errorSays(stderr, /C library is too old: it lacks GLIBC_2\.18; edgemesh needs glibc 2\.28/, /newer system/),
  );
}

async function noRoute(bed: Bed, say: Say): Promise<void> {
  await bed.sh("ip route flush table main scope global");
  assert.doesNotMatch(await bed.sh("ip route"), /default/);
  await bed.agent({}, async () => {
    const line = await bed.line("connected", "fail");
    say("check", lineSays(line, /wss:\/\/203\.0\.113\.1 is not connected: .*ENETUNREACH/, /no route there: ip route/));
    const warning = await bed.warning("SERVER_UNREACHABLE");
    warningSays(warning, /ENETUNREACH.*Services on this node .*go on/, /no route there/);
    await serves(bed);
  });
}

/** What needs neither the broken part nor a server works: a Service whose endpoint is here. */
async function serves(bed: Bed): Promise<void> {
  const pod = bed.mesh.topology.pod("edge-1-pod-1");
  await until("the own-node Service to answer", async () => {
    for (const from of [pod, bed.node]) {
      if ((await curl(from, `http://${NEAR}/`, ["--max-time", "1"])).body !== "edge-1-pod-1 on edge-1") {
        return undefined;
      }
    }
    return true;
  });
}

function without(capability: string): readonly string[] {
  return ["setpriv", "--bounding-set", `-${capability}`, "--inh-caps", `-${capability}`];
}
