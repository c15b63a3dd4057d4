/** Each NAT kind against a real kernel: how it maps ports, whom it lets in, what an uninvited caller hears. */
import assert from "node:assert/strict";
import { startEcho, startObserver } from "../../lib/lab/backends.ts";
import { until } from "../../lib/lab/exec.ts";
import type { Host } from "../../lib/lab/host.ts";
import type { NatKind } from "../../lib/lab/nat.ts";
import type { LabNode } from "../../lib/lab/node.ts";
import type { Site } from "../../lib/lab/site.ts";
import { requireTools } from "../../lib/lab/tools.ts";
import { buildTopology, SERVER_ADDRESSES, type Topology } from "../../lib/lab/topology.ts";
import { labTest, sourceCommand } from "./support.ts";

const [SERVER, SERVER_2] = SERVER_ADDRESSES;
/** Where the server listens in these tests; 443 because one kind lets nothing else out. */
const PORTS = [443, 8443] as const;
const LOCAL_PORT = 40_001;
/** How long silence is listened to. An answer takes milliseconds, on a busy machine a few hundred. */
const PATIENCE_S = 1.5;
/** The same for UDP, where an answer ends the wait and only silence lasts so long. */
const UDP_PATIENCE_S = 4;

type Mapping = "own address" | "same port" | "one other port" | "ascending ports" | "unrelated ports";
type Answer = "open" | "reset" | "silence";

interface Behaviour {
  readonly mapping: Mapping;
  /** What the host that was contacted gets when it calls back from another port. */
  readonly fromContacted: Answer;
  /** What an address gets that was never contacted. */
  readonly fromStranger: Answer;
  readonly udp: boolean;
}

const EXPECTED: Record<NatKind, Behaviour> = {
  public: { mapping: "own address", fromContacted: "open", fromStranger: "open", udp: true },
  fw: { mapping: "own address", fromContacted: "silence", fromStranger: "silence", udp: true },
  fwrst: { mapping: "own address", fromContacted: "reset", fromStranger: "reset", udp: true },
  cone: { mapping: "same port", fromContacted: "silence", fromStranger: "silence", udp: true },
  conerst: { mapping: "same port", fromContacted: "reset", fromStranger: "reset", udp: true },
  owrt: { mapping: "same port", fromContacted: "reset", fromStranger: "reset", udp: true },
  adf: { mapping: "same port", fromContacted: "open", fromStranger: "silence", udp: true },
  fullcone: { mapping: "same port", fromContacted: "open", fromStranger: "open", udp: true },
  eimrand: { mapping: "one other port", fromContacted: "silence", fromStranger: "silence", udp: true },
  symrand: { mapping: "unrelated ports", fromContacted: "silence", fromStranger: "silence", udp: true },
  symseq: { mapping: "ascending ports", fromContacted: "silence", fromStranger: "silence", udp: true },
  "cone-udpblock": { mapping: "same port", fromContacted: "silence", fromStranger: "silence", udp: false },
  "https-only": { mapping: "same port", fromContacted: "silence", fromStranger: "silence", udp: false },
};
const KINDS = Object.keys(EXPECTED) as NatKind[];

/** Connects from a fixed local port and gives back what the observer saw. */
async function observed(host: Host, to: string, port: number, localPort = LOCAL_PORT): Promise<string> {
  const { socat } = await requireTools(["socat"]);
  const target = `TCP4:${to}:${port},sourceport=${localPort},reuseaddr,connect-timeout=3`;
  return (await host.execOk([socat, "-T3", "-", target])).stdout.trim();
}

/** What a caller hears who connects uninvited. */
async function call(from: Host, to: string, port: number, source: string): Promise<Answer> {
  const { socat } = await requireTools(["socat"]);
  const target = `TCP4:${to}:${port},bind=${source},connect-timeout=${PATIENCE_S}`;
  const { code, stderr } = await from.exec([socat, "-u", "OPEN:/dev/null", target]);
  if (code === 0) return "open";
  if (/Connection refused/.test(stderr)) return "reset";
  assert.match(stderr, /timed out|No route/, `unexpected: ${stderr}`);
  return "silence";
}

async function udpAnswers(from: Host, to: string, port: number): Promise<boolean> {
  const { socat } = await requireTools(["socat"]);
  const wait = String(UDP_PATIENCE_S);
  // One datagram, and the first answer ends the wait.
  const target = `UDP4:${to}:${port},readbytes=5`;
  const { stdout } = await from.exec([socat, "-t", wait, "-T", wait, "-", target], { stdin: "ping\n" });
  return stdout === "ping\n";
}

function mappingOf(site: Site, node: LabNode, seen: readonly string[]): Mapping {
  const addresses = new Set(seen.map((s) => s.split(":")[0]));
  assert.equal(addresses.size, 1, seen.join(" "));
  const ports = seen.map((s) => Number(s.split(":")[1]));
  const same = new Set(ports).size === 1;
  if (addresses.has(node.address)) {
    assert.ok(same && ports[0] === LOCAL_PORT);
    return "own address";
  }
  assert.ok(addresses.has(site.address), `${seen[0]} is not ${site.address}`);
  if (same) return ports[0] === LOCAL_PORT ? "same port" : "one other port";
  return ports.every((p, i) => i === 0 || p === ports[i - 1]! + 1) ? "ascending ports" : "unrelated ports";
}

async function behaviourOf(topology: Topology, kind: NatKind): Promise<Behaviour> {
  const index = KINDS.indexOf(kind);
  const [site, node] = [topology.sites[index]!, topology.edges[index]!];
  const server = topology.server.host;
  const seen: string[] = [];
  // The second address is contacted from another local port, so that it stays a stranger to the mapping.
  for (const port of kind === "https-only" ? PORTS.slice(0, 1) : PORTS) {
    seen.push(await observed(node.host, SERVER, port));
  }
  const mapping = seen.length > 1 ? mappingOf(site, node, seen) : mappingOf(site, node, [seen[0]!, seen[0]!]);
  await startEcho(node.host, { port: LOCAL_PORT });
  const [address, port] = seen.at(-1)!.split(":") as [string, string];
  const [fromContacted, fromStranger, udp] = await Promise.all([
    call(server, address, Number(port), SERVER),
    call(server, address, Number(port), SERVER_2),
    udpAnswers(node.host, SERVER, 5000),
  ]);
  return { mapping, fromContacted, fromStranger, udp };
}

labTest("every NAT kind maps, filters and refuses as it says", async (t) => {
  await using topology = await buildTopology({
    command: sourceCommand(),
    oneWayDelayMs: 0,
    cloud: "none",
    podsPerNode: 0,
    sites: KINDS.map((nat) => ({ nat })),
  });
  await startEcho(topology.server.host, { port: 5000, protocol: "udp" });
  for (const port of PORTS) await startObserver(topology.server.host, { port });
  // Sites know nothing of each other, so all kinds are tried at once: most of the time is waiting for silence.
  const behaviours = await Promise.all(KINDS.map((kind) => behaviourOf(topology, kind)));
  for (const [i, kind] of KINDS.entries()) {
    await t.step(kind, () => assert.deepEqual(behaviours[i], EXPECTED[kind]));
  }
  await t.step("https-only lets no other port out", async () => {
    const node = topology.edges[KINDS.indexOf("https-only")]!;
    assert.equal(await call(node.host, SERVER, 8443, "0.0.0.0"), "silence");
  });
  await t.step("a symmetric NAT differs by address as well as by port", async () => {
    const node = topology.edges[KINDS.indexOf("symrand")]!;
    const seen = new Set<string>();
    for (const address of SERVER_ADDRESSES) {
      for (const p of PORTS) seen.add(await observed(node.host, address, p, 40_007));
    }
    assert.ok(seen.size >= 3, [...seen].join(" "));
  });
});

labTest("hosts of one site, of isolated networks, and behind one provider meet only where they may", async (t) => {
  await using topology = await buildTopology({
    command: sourceCommand(),
    oneWayDelayMs: 0,
    cloud: "none",
    podsPerNode: 0,
    providers: [{ name: "cgn", nat: "fullcone", hairpin: true }, { name: "cgn-plain", nat: "cone" }],
    sites: [
      { nat: "cone", nodes: 2 },
      { nat: "fullcone", nodes: 2, ownLans: true, isolated: true, hairpin: true },
      { nat: "cone", behind: "cgn" },
      { nat: "fullcone", behind: "cgn" },
      { nat: "cone", behind: "cgn-plain" },
    ],
  });
  const node = (n: number) => topology.node(`edge-${n}`);
  await startObserver(topology.server.host, { port: 443 });
  await startEcho(node(2).host, { port: LOCAL_PORT });

  await t.step("same network: direct", async () => {
    assert.equal(await call(node(1).host, node(2).address, LOCAL_PORT, "0.0.0.0"), "open");
  });
  await t.step("isolated networks: not direct, but by hairpin", async () => {
    const [address, port] = (await observed(node(4).host, SERVER, 443)).split(":") as [string, string];
    await startEcho(node(4).host, { port: LOCAL_PORT });
    assert.equal(await call(node(3).host, node(4).address, LOCAL_PORT, "0.0.0.0"), "silence");
    assert.equal(await call(node(3).host, address, Number(port), "0.0.0.0"), "open");
  });
  await t.step("behind one provider: its address outside, its hairpin inside", async () => {
    const provider = topology.site("cgn");
    const [address, port] = (await observed(node(6).host, SERVER, 443)).split(":") as [string, string];
    assert.equal(address, provider.address);
    await startEcho(node(6).host, { port: LOCAL_PORT });
    assert.equal(topology.site("site-4").address, "100.64.4.2");
    assert.equal(await call(node(5).host, address, Number(port), "0.0.0.0"), "open");
    assert.equal((await observed(node(7).host, SERVER, 443)).split(":")[0], topology.site("cgn-plain").address);
  });
});

labTest("IPv6 passes a stateful firewall outwards only", async () => {
  const { socat } = await requireTools(["socat"]);
  await using topology = await buildTopology({
    command: sourceCommand(),
    oneWayDelayMs: 0,
    ipv6: true,
    cloud: "none",
    podsPerNode: 0,
    sites: [{ nat: "fw", ipv6: "fw" }, { nat: "cone", ipv6: "open" }, { nat: "cone" }],
  });
  const [guarded, open, none] = topology.edges as [LabNode, LabNode, LabNode];
  for (const host of [guarded.host, open.host, topology.server.host]) {
    await host.start("echo6", [socat, "TCP6-LISTEN:7000,fork,reuseaddr", "PIPE"], { ready: { port: 7000 } });
  }
  const reaches = async (from: Host, to: string) => {
    const target = `TCP6:[${to}]:7000,connect-timeout=${PATIENCE_S}`;
    return (await from.exec([socat, "-t2", "-T2", "-", target], { stdin: "six\n" })).stdout === "six\n";
  };
  const server6 = topology.server.address6!;
  assert.equal(await reaches(guarded.host, server6), true);
  assert.equal(await reaches(topology.server.host, guarded.address6!), false);
  assert.equal(await reaches(topology.server.host, open.address6!), true);
  assert.equal(await reaches(open.host, guarded.address6!), false);
  assert.equal(await reaches(guarded.host, open.address6!), true);
  assert.equal(none.address6, undefined);
  assert.equal(await reaches(none.host, server6), false);
});

labTest("a site can be cut, unplugged, renumbered and rebooted, and comes back", async (t) => {
  const { ping, socat } = await requireTools(["ping", "socat"]);
  await using topology = await buildTopology({
    command: sourceCommand(),
    oneWayDelayMs: 0,
    podsPerNode: 0,
    sites: [{ nat: "cone", strict: true }, { nat: "cone" }],
  });
  const [one, two] = topology.edges as [LabNode, LabNode];
  const [site, other] = topology.sites as [Site, Site];
  const reaches = async (from: LabNode, to: string) =>
    (await from.host.exec([ping, "-c", "1", "-W", "1", to])).code === 0;
  const carrier = async () => (await site.router.execOk(["cat", "/sys/class/net/wan/carrier"])).stdout.trim();

  await t.step("cut: silent, and nobody's link changes", async () => {
    await site.cut();
    assert.equal(await reaches(one, SERVER), false);
    assert.equal(await carrier(), "1");
    assert.equal(await reaches(two, SERVER), true);
    await site.heal();
    assert.equal(await reaches(one, SERVER), true);
  });
  await t.step("unplug: the router sees it", async () => {
    await site.unplug();
    assert.equal(await carrier(), "0");
    assert.equal(await reaches(one, SERVER), false);
    await site.replug();
    // A router that asked for its gateway's hardware address while it was down asks again after a second.
    await until("the site's return", async () => await reaches(one, SERVER) ? true : undefined);
  });
  await t.step("a pair of addresses is cut for each other only", async () => {
    await topology.internet.cutPair(site.address, SERVER);
    assert.deepEqual([await reaches(one, SERVER), await reaches(one, SERVER_2), await reaches(two, SERVER)], [
      false,
      true,
      true,
    ]);
    await topology.internet.healPair(site.address, SERVER);
    assert.equal(await reaches(one, SERVER), true);
  });
  await t.step("a node's own cable", async () => {
    assert.ok("plug" in one.attachment);
    const { plug } = one.attachment;
    await plug.cut();
    assert.equal(await reaches(one, SERVER), false);
    await plug.heal();
    assert.equal(await reaches(one, SERVER), true);
    await plug.unplug();
    assert.equal((await one.host.execOk(["cat", "/sys/class/net/eth0/carrier"])).stdout, "0\n");
    await plug.replug();
    await until("the node's return", async () => await reaches(one, SERVER) ? true : undefined);
    assert.equal(await reaches(one, SERVER), true);
  });
  await t.step("another public address", async () => {
    await startObserver(topology.server.host, { port: 443 });
    const before = site.address;
    assert.equal((await observed(one.host, SERVER, 443)).split(":")[0], before);
    await site.renumber("203.0.113.77");
    assert.equal(site.address, "203.0.113.77");
    assert.equal((await observed(one.host, SERVER, 443, 40_009)).split(":")[0], "203.0.113.77");
    assert.equal(await reaches(topology.cloud!, "203.0.113.77"), true);
    assert.equal(await reaches(topology.cloud!, before), false, "nobody has the old address");
  });
  await t.step("a reboot of a strict NAT ends what was open", async () => {
    await startEcho(topology.server.host, { port: 7000 });
    const script = `( echo first; sleep 0.5; echo second; sleep 0.5 ) | ${socat} -T2 - TCP4:${SERVER}:7000`;
    const connections = [one, two].map((node) => node.host.exec(["sh", "-c", script]));
    await Promise.all([site.router, other.router].map((router) => untilTracked(router)));
    await Promise.all([site.reboot(), other.reboot()]);
    const [strict, loose] = await Promise.all(connections);
    assert.equal(strict!.stdout, "first\n");
    assert.equal(loose!.stdout, "first\nsecond\n", "an ordinary Linux router picks connections up again");
  });
});

/** Waits until the router has seen the first echo come back: the connection is established and in use. */
async function untilTracked(router: Site["router"]): Promise<void> {
  const { conntrack } = await requireTools(["conntrack"]);
  await until("an established connection", async () => {
    const { stdout } = await router.execOk([conntrack, "-L", "-p", "tcp", "--state", "ESTABLISHED"]);
    return /dport=7000.*ASSURED/.test(stdout) ? true : undefined;
  });
}
