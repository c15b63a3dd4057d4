import assert from "node:assert/strict";
import { startEcho, startNginx, startRedis } from "../../lib/lab/backends.ts";
import { Capture } from "../../lib/lab/capture.ts";
import { exec, until } from "../../lib/lab/exec.ts";
import { enterCommand, Host, machines } from "../../lib/lab/host.ts";
import { Internet } from "../../lib/lab/internet.ts";
import { Lab } from "../../lib/lab/namespace.ts";
import type { FakeTime } from "../../lib/lab/process.ts";
import { stat } from "../../lib/lab/proc.ts";
import { records, removeLab, sweep } from "../../lib/lab/registry.ts";
import { requireTools } from "../../lib/lab/tools.ts";
import { buildTopology, SERVER_ADDRESSES } from "../../lib/lab/topology.ts";
import { allowed } from "./fixture.ts";
import { fixture, labTest, parsePing, say, sourceCommand } from "./support.ts";

const [SERVER, SERVER_2] = SERVER_ADDRESSES;

/** Two hosts with public addresses, and the internet between them. */
async function pair(lab: Lab, shape: { delayMs: number; jitterMs?: number; loss?: number }) {
  const [a, b] = await lab.namespaces(["a", "b"]);
  const internet = await Internet.create(lab, {
    command: sourceCommand(),
    shape: { jitterMs: 0, loss: 0, ...shape },
  });
  const legs = await Promise.all([
    internet.attach(a, { addresses: ["203.0.113.10", "2001:db8:ffff::10"], ifname: "eth0" }),
    internet.attach(b, { addresses: ["203.0.113.20", "2001:db8:ffff::20"], ifname: "eth0" }),
  ]);
  await internet.ready;
  return { a, b, internet, legs };
}

labTest("the internet delays each way by the given time, for both families, and not within a zone", async () => {
  const { ping } = await requireTools(["ping"]);
  await using topology = await buildTopology({
    command: sourceCommand(),
    ipv6: true,
    sites: [{ nat: "fw", ipv6: "fw" }],
  });
  const rtt = async (from: Host, to: string) => {
    // A virtual machine that is not scheduled adds to single packets; the smallest of 25 shows the lab's own delay.
    const { stdout } = await from.execOk([ping, "-q", "-c", "25", "-i", "0.02", to]);
    return parsePing(stdout).min;
  };
  const edge = topology.node("edge-1");
  for (
    const [from, to, expected] of [
      [edge.host, SERVER, 40],
      [edge.host, SERVER_2, 40],
      [edge.host, "2001:db8:ffff::a1", 40],
      [edge.host, topology.cloud!.address, 40],
      [topology.cloud!.host, SERVER, 0],
      [topology.cloud!.host, "2001:db8:ffff::a1", 0],
    ] as const
  ) {
    const measured = await rtt(from, to);
    assert.ok(isDelay(measured, expected), `${from.name} → ${to}: ${measured} ms instead of ${expected}`);
  }
  await topology.internet.shape({ delayMs: 5, jitterMs: 0, loss: 0 });
  const after = await rtt(edge.host, SERVER);
  assert.ok(isDelay(after, 10), `${after} ms instead of 10 after the change`);
});

labTest("loss and jitter are what was asked for, and change while running", async () => {
  const { ping } = await requireTools(["ping"]);
  await using lab = await Lab.open();
  const { a, internet } = await pair(lab, { delayMs: 1, loss: 0.2 });
  const lossy = parsePing((await a.exec([ping, "-q", "-c", "300", "-i", "0.002", "-W", "0.2", "203.0.113.20"])).stdout);
  // 1 - 0.8² = 36 % of 300: 108 ± 25 is three standard deviations.
  const lost = lossy.sent - lossy.received;
  assert.ok(lost >= 83 && lost <= 133, `${lost} of ${lossy.sent} lost`);
  const stats = await internet.shape({ delayMs: 1, jitterMs: 0, loss: 0 });
  assert.equal(stats.overflow, 0);
  assert.ok(stats.lost >= lost, `the box counts ${stats.lost}, ping ${lost}`);
  const clean = parsePing((await a.exec([ping, "-q", "-c", "50", "-i", "0.002", "203.0.113.20"])).stdout);
  assert.equal(clean.received, 50);
});

labTest("the delay box carries more than 200 Mbit/s", async () => {
  const { socat } = await requireTools(["socat"]);
  await using lab = await Lab.open();
  const { a, b } = await pair(lab, { delayMs: 2 });
  const [hostA, hostB] = await Promise.all([Host.create(a), Host.create(b)]);
  const MIB = 64;
  const argv = [socat, "-U", "TCP4-LISTEN:9000,reuseaddr,fork", `SYSTEM:head -c ${MIB}M /dev/zero`];
  await hostB.start("source", argv, { ready: { port: 9000 } });
  let best = 0;
  // A virtual machine is not always scheduled: the best of a few runs shows what the box can.
  for (let i = 0; i < 3; i++) {
    const { ms, stdout } = await hostA.execOk(["sh", "-c", `${socat} -u TCP4:203.0.113.20:9000 - | wc -c`]);
    assert.equal(Number(stdout), MIB * 1024 * 1024);
    best = Math.max(best, (MIB * 8 * 1.048576) / (ms / 1000));
  }
  say(`delay box: ${best.toFixed(0)} Mbit/s`);
  assert.ok(best > 200 / allowed(1), `${best.toFixed(0)} Mbit/s`);
});

labTest("meters count what crossed which interface between whom, and captures show it", async () => {
  const { socat, curl } = await requireTools(["socat", "curl"]);
  await using topology = await buildTopology({ command: sourceCommand(), oneWayDelayMs: 0, cloud: "none" });
  const [one, two] = topology.edges as [typeof topology.edges[0], typeof topology.edges[0]];
  const meter = await topology.server.counters("test");
  const capture = await Capture.start(topology.server.host.ns, { filter: "tcp port 80" });
  await startNginx(topology.server.host, { port: 80, text: "x".repeat(10_000) });
  await one!.host.execOk([curl, "-s", `http://${SERVER}/`]);
  const site = topology.site("site-1").address;
  const received = await meter.total({ between: [site, SERVER], direction: "in", protocol: "tcp" });
  const sent = await meter.total({ between: [site, SERVER], direction: "out", protocol: "tcp" });
  assert.ok(received.packets >= 4 && received.bytes < 2_000, JSON.stringify(received));
  assert.ok(sent.bytes > 10_000 && sent.bytes < 12_000, JSON.stringify(sent));
  assert.deepEqual(await meter.total({ address: one!.address }), { packets: 0, bytes: 0 }, "a private address outside");
  assert.deepEqual(await meter.total({ address: topology.site("site-2").address }), { packets: 0, bytes: 0 });
  const inTransit = await topology.internet.meter.total({
    iface: topology.leg(topology.server).port,
    direction: "out",
    between: [site, SERVER],
  });
  assert.deepEqual(inTransit, received, "the internet's count on the server's leg");
  const syns = await capture.packets("tcp[tcpflags] & tcp-syn != 0 and tcp[tcpflags] & tcp-ack == 0");
  assert.equal(syns.length, 1, syns.join("\n"));
  await meter.reset();
  // Hosts greet their neighbours over IPv6 whenever they like.
  assert.deepEqual(await meter.total({ protocol: "tcp" }), { packets: 0, bytes: 0 });
  const dead = await two!.host.exec([socat, "-u", "OPEN:/dev/null", `TCP4:${SERVER}:81,connect-timeout=2`]);
  assert.notEqual(dead.code, 0);
  assert.ok((await meter.total({ address: topology.site("site-2").address })).packets >= 2, "SYN and RST");
});

labTest("a node without default route reaches the server and nothing else", async () => {
  const { ping } = await requireTools(["ping"]);
  await using topology = await buildTopology({ command: sourceCommand(), oneWayDelayMs: 0, defaultRoute: false });
  const { host } = topology.node("edge-1");
  assert.equal((await host.exec(["ip", "route", "show", "default"])).stdout, "");
  for (const address of SERVER_ADDRESSES) {
    assert.equal((await host.exec([ping, "-c", "1", "-W", "2", address])).code, 0);
  }
  const elsewhere = await host.exec([ping, "-c", "1", "-W", "1", topology.cloud!.address]);
  assert.match(elsewhere.stderr, /Network is unreachable/);
});

labTest("pods have the node's network, the mesh's resolver and real programs", async () => {
  const { curl } = await requireTools(["curl"]);
  const networks = [
    { cidr: "10.244.0.0/24" },
    { cidr: "172.17.0.0/16" },
    { cidr: "172.17.0.0/16", mode: "bridge" as const },
  ];
  await using topology = await buildTopology({
    command: sourceCommand(),
    oneWayDelayMs: 0,
    podsPerNode: 2,
    podNetwork: (n) => networks[n]!,
  });
  await startNginx(topology.server.host, { port: 80, text: "outside\n" });
  for (const name of ["edge-1", "edge-2"]) {
    const [one, two] = [topology.pod(`${name}-pod-1`), topology.pod(`${name}-pod-2`)];
    assert.deepEqual([one.ip, two.ip], ["172.17.0.2", "172.17.0.3"], "the same on both nodes");
    await Promise.all([startNginx(one.host, { port: 8080, text: `${name}\n` }), startRedis(two.host, { port: 6379 })]);
    assert.equal((await two.host.execOk([curl, "-s", `http://${one.ip}:8080/`])).stdout, `${name}\n`);
    assert.equal((await topology.node(name).host.execOk([curl, "-s", `http://${one.ip}:8080/`])).stdout, `${name}\n`);
    const outside = await one.host.execOk([curl, "-s", "--max-time", "5", `http://${SERVER}/`]);
    assert.equal(outside.stdout, "outside\n", "through the node and the site's NAT");
    assert.match(await Deno.readTextFile(one.host.path("/etc/resolv.conf")), /^nameserver 169\.254\.96\.16\n/);
  }
});

labTest("a host has files, a name and an environment of its own", async () => {
  await using lab = await Lab.open();
  const [a, b] = await lab.namespaces(["a", "b"]);
  const [one, two] = await Promise.all([
    Host.create(a, { hostname: "edge-one", resolvConf: "nameserver 192.0.2.1\n" }),
    Host.create(b),
  ]);
  const before = await Deno.readTextFile("/etc/resolv.conf");
  const script = `hostname; cat /etc/resolv.conf
    echo changed >/etc/resolv.conf.new && mv /etc/resolv.conf.new /etc/resolv.conf
    mkdir -p /var/lib/edgemesh/agent /run/edgemesh /etc/edgemesh; touch /etc/edgemesh/here /run/edgemesh/here`;
  Deno.env.set("EDGEMESH_LAB_TEST_LEAK", "1");
  const { stdout } = await one.execOk(["sh", "-c", `${script}; env`]).finally(() =>
    Deno.env.delete("EDGEMESH_LAB_TEST_LEAK")
  );
  assert.ok(stdout.startsWith("edge-one\nnameserver 192.0.2.1\n"), stdout);
  assert.doesNotMatch(stdout, /EDGEMESH_LAB_TEST_LEAK|_proxy=/i);
  assert.equal(await Deno.readTextFile(one.path("/etc/resolv.conf")), "changed\n");
  assert.equal(await Deno.readTextFile("/etc/resolv.conf"), before);
  for (const path of ["/etc/edgemesh/here", "/run/edgemesh/here", "/var/lib/edgemesh/agent"]) {
    assert.equal((await one.exec(["test", "-e", path])).code, 0, path);
    assert.equal((await two.exec(["test", "-e", path])).code, 1, `${path} on the other host`);
  }
  await two.setResolvConf("nameserver 192.0.2.2\n");
  assert.equal((await two.exec(["cat", "/etc/resolv.conf"])).stdout, "nameserver 192.0.2.2\n");
});

labTest("a program is started until ready, frozen, stopped, killed and measured", async () => {
  const { socat } = await requireTools(["socat"]);
  await using lab = await Lab.open();
  const host = await Host.create(await lab.namespace("a"));
  const echo = await startEcho(host, { port: 7000 });
  const ask = () => host.exec([socat, "-t2", "-T2", "-", "TCP4:127.0.0.1:7000"], { stdin: "hello\n" });
  assert.equal((await ask()).stdout, "hello\n");
  echo.freeze();
  assert.equal((await ask()).stdout, "", "a frozen program accepts and says nothing");
  echo.thaw();
  assert.equal((await ask()).stdout, "hello\n");
  const memory = await echo.memory();
  assert.ok(memory.private > 50_000 && memory.private < memory.rss && memory.rss < 50_000_000, JSON.stringify(memory));
  await echo.kill();
  assert.equal(echo.running, false);

  // Children of the program are part of it: memory, processor time and signals cover them.
  const busy = await host.start("busy", ["sh", "-c", "while :; do :; done & echo child $!; wait"], {
    ready: { log: /child \d+/ },
  });
  const child = Number(/child (\d+)/.exec(await busy.log())![1]);
  await until("processor time", () => busy.cpuSeconds() >= 0.05 ? true : undefined);
  assert.equal((await busy.stop()).signal, "SIGTERM");
  await until("the child's end", () => stat(child) === undefined ? true : undefined);

  await host.start("file", ["sh", "-c", "sleep 0.05; touch /run/ready; exec sleep 100"], {
    ready: { file: "/run/ready" },
  });
  await assert.rejects(
    host.start("dies", ["sh", "-c", "echo the reason; exit 3"], { ready: { port: 1 } }),
    (error: Error & { code?: string }) =>
      error.code === "PEER_GONE" && /exit code 3[\s\S]*the reason/.test(error.message),
  );
  await assert.rejects(
    host.start("late", ["sleep", "100"], { ready: { log: /never/ }, readyTimeoutMs: 50 }),
    { code: "TIMEOUT" },
  );
  const stubborn = await host.start("stubborn", ["sh", "-c", "trap '' TERM; echo up; while :; do sleep 1; done"], {
    ready: { log: /up/ },
  });
  await assert.rejects(stubborn.stop(100), /did not end within 100 ms of SIGTERM/);
});

labTest("a node's clock can be wrong while its timers run right", async () => {
  await using lab = await Lab.open();
  const host = await Host.create(await lab.namespace("a"));
  const probe = async (clock: FakeTime) => {
    const program = await host.start("clock", fixture("clock_probe"), { clock });
    assert.equal((await program.ended).code, 0, await program.log());
    return JSON.parse(await program.log()) as { wall: number; wallPassed: number; monoPassed: number };
  };
  const near = (actual: number, expected: number, what: string) =>
    assert.ok(Math.abs(actual - expected) < 20_000, `${what}: ${new Date(actual).toISOString()}`);

  const born = await probe({ startAt: new Date(0) });
  near(born.wall, 0, "a board without battery");
  const ahead = await probe({ offsetSeconds: 40 * 86_400 });
  near(ahead.wall, Date.now() + 40 * 86_400_000, "40 days ahead");
  const behind = await probe({ offsetSeconds: -3_600 });
  near(behind.wall, Date.now() - 3_600_000, "an hour behind");
  const frozen = await probe({ frozenAt: new Date("2030-01-01T00:00:00Z") });
  assert.equal(frozen.wall, Date.parse("2030-01-01T00:00:00Z"));
  assert.equal(frozen.wallPassed, 0);
  for (const { monoPassed } of [born, ahead, behind, frozen]) {
    assert.ok(monoPassed >= 99 && monoPassed < 2_000, `${monoPassed}`);
  }
});

labTest("a lab leaves nothing behind: namespaces, processes, mounts, files, links, rules", async () => {
  const outside = async () => {
    const parts = [];
    for (
      const argv of [["ip", "-o", "link"], ["ip", "rule"], ["ip", "route", "show", "table", "all"], [
        "nft",
        "list",
        "ruleset",
      ]]
    ) {
      parts.push((await exec(argv)).stdout);
    }
    return parts;
  };
  const before = await outside();
  const topology = await buildTopology({ command: sourceCommand() });
  const { id, dir } = topology.lab;
  const redis = await startRedis(topology.pod("edge-1-pod-1").host, { port: 6379 });
  assert.deepEqual(await outside(), before, "while the lab stands");
  await topology.close();
  assert.equal(stat(redis.pid), undefined);
  assert.deepEqual(await outside(), before);
  await assertGone(id, dir);
});

labTest("sweep removes the lab of a killed owner and leaves living ones alone", async () => {
  await using alive = await Lab.open();
  const kept = await alive.namespace("kept");
  const [program, ...args] = fixture("lab_owner");
  const owner = new Deno.Command(program!, { args, stdout: "piped" }).spawn();
  const reader = owner.stdout.getReader();
  const said = new TextDecoder().decode((await reader.read()).value);
  const { id, dir, pid } = JSON.parse(said) as { id: string; dir: string; pid: number };
  await reader.cancel();
  assert.equal((await sweep()).includes(id), false, "a living owner's lab");
  assert.notEqual(stat(pid), undefined);
  owner.kill("SIGKILL");
  await owner.status;
  await sweep();
  await until("the sweep", () => stat(pid) === undefined ? true : undefined);
  await assertGone(id, dir);
  assert.equal((await kept.exec(["true"])).code, 0);
  assert.deepEqual((await sweep()).includes(id), false, "nothing left to sweep");
});

labTest("a lab that was kept outlives its owner, is entered by name, and goes when it is removed", async () => {
  await using lab = await Lab.open();
  const host = await Host.create(await lab.namespace("machine"));
  await lab.keep();
  const record = (await records()).find((r) => r.id === lab.id)!;
  assert.equal(record.kept, true);
  assert.deepEqual(await machines(record), ["machine"]);
  const argv = await enterCommand(record, "machine", ["cat", "/etc/hostname"]);
  assert.equal((await exec(argv!)).stdout, "machine\n");
  assert.equal((await host.exec(["hostname"])).stdout, "machine\n");
  assert.equal(await enterCommand(record, "nobody", ["true"]), undefined);
  await removeLab(record);
  assert.equal(await enterCommand(record, "machine", ["true"]), undefined);
  await assertGone(lab.id, lab.dir);
});

labTest("a kept lab is not swept once its owner is gone", async () => {
  const [program, ...args] = fixture("lab_owner");
  const owner = new Deno.Command(program!, { args: [...args, "keep"], stdout: "piped" }).spawn();
  const reader = owner.stdout.getReader();
  const { id } = JSON.parse(new TextDecoder().decode((await reader.read()).value)) as { id: string };
  await reader.cancel();
  owner.kill("SIGKILL");
  await owner.status;
  assert.equal((await sweep()).includes(id), false);
  const record = (await records()).find((r) => r.id === id)!;
  await removeLab(record);
  await assertGone(id, record.dir);
});

labTest("the standard topology stands and goes; the times are printed", async () => {
  const started = performance.now();
  const topology = await buildTopology({ command: sourceCommand() });
  const up = performance.now();
  await topology.close();
  say(`standard topology: up in ${Math.round(up - started)} ms, down in ${Math.round(performance.now() - up)} ms`);
  await assertGone(topology.lab.id, topology.lab.dir);
});

async function assertGone(id: string, dir: string): Promise<void> {
  assert.doesNotMatch((await exec(["ip", "netns", "list"])).stdout, new RegExp(`em-${id}-`));
  assert.equal(await Deno.stat(dir).catch(() => "gone"), "gone");
  assert.equal(await Deno.stat(`/run/edgemesh-lab/${id}.json`).catch(() => "gone"), "gone");
  assert.ok(!(await Deno.readTextFile("/proc/self/mountinfo")).includes(id), "a mount is left");
}

/** Never early; late by what a machine takes that has other things to do. */
function isDelay(measuredMs: number, expectedMs: number): boolean {
  return measuredMs >= expectedMs - 1 && measuredMs <= expectedMs + allowed(1);
}
