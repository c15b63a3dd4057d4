/**
 * Which way bytes take between two sites, and how soon: judged by packet counters in the lab's internet and on the
 * nodes, never by what the agents say. The round trip between any two sites, and to the server, is 40 ms.
 */
import assert from "node:assert/strict";
import { pause, systemClock } from "../../lib/clock.ts";
import { startEcho } from "../../lib/lab/backends.ts";
import { type Meter, sumFlows } from "../../lib/lab/meter.ts";
import { type Mesh, serviceYaml } from "../../lib/lab/mesh.ts";
import type { Pod } from "../../lib/lab/pod.ts";
import { isRouted } from "../../lib/lab/nat.ts";
import type { Site } from "../../lib/lab/site.ts";
import type { Topology } from "../../lib/lab/topology.ts";
import { curl, type MeshOptions, startAll, tell, webService, withMesh } from "./fixture.ts";
import { ask, PORTS, startPeer } from "./peers.ts";
import { fixture, labTest } from "./support.ts";

/** What issue and users expect: from the first request to bytes on the direct path. */
const DIRECT_MS = 3_000;
/** A direct path exists when a TLS handshake and its first answer have passed: two certificates are more than this. */
const HANDSHAKE_BYTES = 2_500;
const WEB = "10.96.0.10";
const SOURCE = "10.96.0.11";
const ECHO = "10.96.0.12";
const MB = 1024 * 1024;
/** Programs that ask at the same time in A10. */
const CLIENTS = 25;

interface Way {
  /** Counts what passes directly between the two nodes, both ways, once. */
  readonly meter: Meter;
  readonly iface: string;
  readonly between: readonly [string, string];
  /** The same two nodes by IPv6, where both families lead there and either may win. */
  readonly between6?: readonly [string, string];
}

interface Pair {
  readonly mesh: Mesh;
  readonly from: Pod;
  readonly to: Pod;
  readonly way: Way;
  /** Addresses of its Services. */
  readonly web: string;
  readonly source: string;
}

/** The Services of a pair. */
async function serve({ mesh, to, web, source }: Pair): Promise<void> {
  const name = web.replaceAll(".", "-");
  const endpoints = [{ ip: to.ip, node: to.node.name }];
  await mesh.writeManifest(`web-${name}.yaml`, webService(`web-${name}`, web, [to]));
  await mesh.writeManifest(
    `source-${name}.yaml`,
    serviceYaml({ name: `source-${name}`, clusterIP: source, port: PORTS.source, targetPort: PORTS.source, endpoints }),
  );
}

/** Two nodes with everything started, the second one serving. */
async function withPair(
  options: MeshOptions & { readonly way: (mesh: Mesh) => Promise<Way>; readonly agent?: readonly string[] },
  test: (pair: Pair) => Promise<void>,
): Promise<void> {
  const { way, agent = [], ...mesh } = options;
  await withMesh({ cloud: "none", defaultRoute: true, web: ["edge-2-pod-1"], ...mesh }, async (mesh) => {
    const { topology } = mesh;
    const [from, to] = [topology.pod("edge-1-pod-1"), topology.pod("edge-2-pod-1")];
    const pair = { mesh, from, to, way: await way(mesh), web: WEB, source: SOURCE };
    await serve(pair);
    const echo = { name: "echo", clusterIP: ECHO, port: 7, targetPort: 7007 };
    await mesh.writeManifest("echo.yaml", serviceYaml({ ...echo, endpoints: [{ ip: to.ip, node: to.node.name }] }));
    await Promise.all([startPeer(to.host), startEcho(to.host, { port: 7007 })]);
    await mesh.startServer();
    await Promise.all(topology.nodes.map((node) => mesh.join(node, { flags: agent })));
    await test(pair);
  });
}

/** Between the public addresses of two sites: what leaves the first one's router. */
function wayBetween(a: string, b: string, ipv6 = false): (mesh: Mesh) => Promise<Way> {
  return ({ topology }) => {
    const [from, to] = [topology.site(a), topology.site(b)];
    const address = (site: Site) => {
      if (!ipv6 && !isRouted(site.kind)) return site.address;
      const node = topology.edges.find((edge) => "plug" in edge.attachment && edge.name === edgeOf(topology, site))!;
      return ipv6 ? node.address6! : node.address;
    };
    return Promise.resolve({
      meter: topology.internet.meter,
      iface: from.leg.port,
      between: [address(from), address(to)],
    });
  };
}

function wayToCloud(name: string): (mesh: Mesh) => Promise<Way> {
  return ({ topology }) => {
    const [site, cloud] = [topology.site(name), topology.node("cloud-1")];
    const edge = site.hasIpv6 ? topology.node(edgeOf(topology, site)).address6! : undefined;
    return Promise.resolve({
      meter: topology.internet.meter,
      iface: site.leg.port,
      between: [site.address, cloud.address],
      ...(edge === undefined ? {} : { between6: [edge, cloud.address6!] as const }),
    });
  };
}

async function lanWay({ topology }: Mesh): Promise<Way> {
  const [a, b] = [topology.node("edge-1"), topology.node("edge-2")];
  return { meter: await a.counters("lan"), iface: "eth0", between: [a.address, b.address] };
}

/** The first edge node of a site: nodes are numbered in the order of the sites. */
function edgeOf(topology: Topology, site: Site): string {
  const gateways = new Set<string>();
  for (const edge of topology.edges) {
    if (!("plug" in edge.attachment)) continue;
    gateways.add(edge.attachment.plug.gateway);
    if (gateways.size === topology.sites.indexOf(site) + 1) return edge.name;
  }
  throw new Error(`site ${site.name} has no node`);
}

async function request({ from, to, web }: Pair): Promise<number> {
  const { body, stderr, ms } = await curl(from, `http://${web}/`);
  assert.equal(body, `${to.name} on ${to.node.name}`, stderr);
  return ms;
}

async function directBytes({ way }: Pair): Promise<number> {
  const { meter, iface, between, between6 } = way;
  const flows = await meter.read();
  const bytes = (pair: Way["between"]) => sumFlows(flows, { iface, between: pair, protocol: "tcp" }).bytes;
  return bytes(between) + (between6 === undefined ? 0 : bytes(between6));
}

/** Requests until the direct path carries a handshake; milliseconds since the first one began. */
async function untilDirect(pair: Pair, limitMs = DIRECT_MS): Promise<number> {
  const before = await directBytes(pair);
  const start = systemClock.now();
  await request(pair);
  while (await directBytes(pair) - before < HANDSHAKE_BYTES) {
    assert.ok(systemClock.now() - start < limitMs, `no direct path within ${limitMs} ms`);
    await pause(20);
  }
  return systemClock.now() - start;
}

/** Moves bytes and says how many passed directly and how many through the server. */
async function transfer(pair: Pair, bytes: number): Promise<{ readonly direct: number; readonly server: number }> {
  const { internet, server } = pair.mesh.topology;
  const leg = pair.mesh.topology.leg(server);
  const through = async () => (await internet.meter.total({ iface: leg.port })).bytes;
  const [direct, relayed] = [await directBytes(pair), await through()];
  const { received, ended } = await ask(pair.from.host, "download", pair.source, bytes);
  assert.deepEqual([received, ended], [bytes, "cleanly"]);
  return { direct: await directBytes(pair) - direct, server: await through() - relayed };
}

/** The path that the agents show, for the message; the judgement is the counters'. */
async function shown({ mesh, from, to }: Pair): Promise<string> {
  const peer = (await mesh.status(from.node)).peers.find((p) => p.node === to.node.name);
  return peer === undefined ? "no peer" : `${peer.path}${peer.detail === undefined ? "" : ` (${peer.detail})`}`;
}

async function becomesDirect(pair: Pair, path: "lan" | "direct"): Promise<void> {
  const ms = await untilDirect(pair);
  // The first bytes may still end on the relay that carried the first request.
  await request(pair);
  const { direct, server } = await transfer(pair, 4 * MB);
  tell(
    `direct ${
      Math.round(ms)
    } ms after the first request began; of 4 MiB ${direct} bytes passed directly, ${server} at the server`,
  );
  assert.ok(direct >= 4 * MB, `only ${direct} bytes passed directly: ${await shown(pair)}`);
  assert.ok(server < MB / 4, `${server} bytes passed the server`);
  assert.equal((await shown(pair)).split(" ")[0], path);
}

/** One world for all pairs: each of them never spoke before its step. */
const WORLD = {
  sites: [
    { name: "home", nat: "cone", nodes: 2 },
    { name: "office", nat: "cone" },
    { name: "campus-a", nat: "fw" },
    { name: "campus-b", nat: "fw" },
    { name: "strict", nat: "conerst" },
    { name: "openwrt", nat: "owrt" },
    { name: "mobile-a", nat: "symrand", ipv6: "fw" },
    { name: "mobile-b", nat: "symrand", ipv6: "fw" },
    { name: "counting", nat: "symseq" },
    { name: "flat", nat: "cone", behind: "cgn" },
  ],
  providers: [{ name: "cgn", nat: "eimrand" }],
  ipv6: true,
} as const satisfies MeshOptions;
const [HOME_1, HOME_2, OFFICE, CAMPUS_A, CAMPUS_B, STRICT, OPENWRT, MOBILE_A, MOBILE_B, COUNTING, FLAT] = [
  ...["edge-1", "edge-2", "edge-3", "edge-4", "edge-5", "edge-6", "edge-7", "edge-8", "edge-9", "edge-10", "edge-11"],
] as [string, string, string, string, string, string, string, string, string, string, string];

const PAIRS: readonly {
  readonly name: string;
  readonly from: string;
  readonly to: string;
  readonly way: (mesh: Mesh) => Promise<Way>;
  readonly path: "lan" | "direct";
}[] = [
  { name: "same LAN, without a byte leaving the site", from: HOME_1, to: HOME_2, way: lanWay, path: "lan" },
  { name: "A16: two home NATs", from: HOME_1, to: OFFICE, way: wayBetween("home", "office"), path: "direct" },
  { name: "A16: two firewalls", from: CAMPUS_A, to: CAMPUS_B, way: wayBetween("campus-a", "campus-b"), path: "direct" },
  {
    name: "A16: NATs that answer RST",
    from: STRICT,
    to: OPENWRT,
    way: wayBetween("strict", "openwrt"),
    path: "direct",
  },
  {
    name: "A16: symmetric NATs, and IPv6 behind firewalls",
    from: MOBILE_A,
    to: MOBILE_B,
    way: wayBetween("mobile-a", "mobile-b", true),
    path: "direct",
  },
  {
    name: "A16: a symmetric NAT that counts up, and a home NAT",
    from: COUNTING,
    to: OFFICE,
    way: wayBetween("counting", "office"),
    path: "direct",
  },
  {
    name: "A16: a firewall, and a home behind a provider's NAT with random ports",
    from: CAMPUS_A,
    to: FLAT,
    way: wayBetween("campus-a", "cgn"),
    path: "direct",
  },
  {
    name: "A14: cloud to edge: the edge dials",
    from: "cloud-1",
    to: OFFICE,
    way: wayToCloud("office"),
    path: "direct",
  },
  {
    name: "A15: edge to cloud, behind a symmetric NAT",
    from: MOBILE_A,
    to: "cloud-1",
    way: wayToCloud("mobile-a"),
    path: "direct",
  },
];

labTest(`direct within ${DIRECT_MS / 1000} s of the first request, wherever the NATs allow it`, async (t) => {
  await withMesh({ ...WORLD, defaultRoute: true, podsPerNode: 1 }, async (mesh) => {
    const { topology } = mesh;
    const pairs = await Promise.all(PAIRS.map(async ({ name, from, to, way, path }, i) => {
      const pair: Pair = {
        mesh,
        from: topology.pod(`${from}-pod-1`),
        to: topology.pod(`${to}-pod-1`),
        way: await way(mesh),
        web: `10.96.1.${i + 1}`,
        source: `10.96.2.${i + 1}`,
      };
      return { name, path, pair };
    }));
    const relayed: Pair = {
      ...pairs[0]!.pair,
      from: topology.pod(`${MOBILE_B}-pod-1`),
      to: topology.pod(`${OFFICE}-pod-1`),
      way: await wayBetween("mobile-b", "office")(mesh),
      web: "10.96.1.100",
      source: "10.96.2.100",
    };
    for (const pair of [...pairs.map((p) => p.pair), relayed]) await serve(pair);
    await Promise.all([...new Set(pairs.map(({ pair }) => pair.to))].map((pod) => startPeer(pod.host)));
    await startAll(mesh);
    for (const { name, path, pair } of pairs) await t.step(name, () => becomesDirect(pair, path));
    await t.step("a symmetric NAT and a home NAT: relayed, and status says why in one sentence", async () => {
      await request(relayed);
      // A round of punching takes five seconds.
      await pause(7_000);
      const { direct, server } = await transfer(relayed, MB);
      assert.ok(server >= 2 * MB, `only ${server} bytes passed the server`);
      assert.ok(direct < MB / 10, `${direct} bytes passed directly`);
      const text = await shown(relayed);
      tell(text);
      assert.match(
        text,
        /^relay \(no direct path to edge-3: .*NAT of this site gives each destination another port.*next try in \d+ s\)$/,
      );
    });
  });
});

interface Watched {
  readonly ended: string;
  readonly sent: number;
  readonly received: number;
  readonly wrong: number;
  readonly longestMs: number;
}

/** Watches one connection through the mesh while something happens; every byte must come back in order. */
async function watched(pair: Pair, happens: () => Promise<void>): Promise<number> {
  const { host } = pair.from;
  const process = await host.start("watch", [...fixture("stream_watch"), ECHO, "7"], { ready: { log: /^open/m } });
  await happens();
  process.signal("SIGUSR2");
  await process.ended;
  const result = JSON.parse((await process.log()).trim().split("\n").at(-1)!) as Watched;
  assert.deepEqual([result.ended, result.wrong, result.received], ["cleanly", 0, result.sent], "the stream broke");
  return result.longestMs;
}

/** Waits until bytes pass directly again. */
async function untilBytesPass(pair: Pair, limitMs: number): Promise<number> {
  const start = systemClock.now();
  const before = await directBytes(pair);
  while (await directBytes(pair) - before < HANDSHAKE_BYTES) {
    assert.ok(
      systemClock.now() - start < limitMs,
      `nothing passes directly within ${limitMs} ms: ${await shown(pair)}`,
    );
    await pause(100);
  }
  return systemClock.now() - start;
}

labTest("a direct path that is cut costs a pause and no byte; it comes back after the cut", async () => {
  const sites = [{ nat: "cone" }, { nat: "cone" }] as const;
  const [a, b] = ["203.0.113.10", "203.0.113.20"];
  await withPair({ sites, way: wayBetween("site-1", "site-2") }, async (pair) => {
    const { internet } = pair.mesh.topology;
    await untilDirect(pair);
    const longest = await watched(pair, async () => {
      await pause(1_000);
      await internet.cutPair(a, b);
      await pause(8_000);
      const { server } = await transfer(pair, MB);
      assert.ok(server > MB, "while the direct path is cut bytes pass the server");
      await internet.healPair(a, b);
      const ms = await untilBytesPass(pair, 45_000);
      tell(`direct again ${Math.round(ms)} ms after the cut was healed`);
    });
    tell(`longest pause of a stream that was echoed every 20 ms: ${longest} ms`);
    assert.ok(longest < 4_000, `the stream stood still for ${longest} ms`);
    const { direct, server } = await transfer(pair, MB);
    assert.ok(direct >= MB && server < MB / 4, `${direct} direct, ${server} at the server`);
  });
});

labTest("a node gets another address under a stream: a pause, no byte lost, and direct again", async () => {
  const sites = [{ nat: "cone" }, { nat: "cone" }] as const;
  await withPair({ sites, way: wayBetween("site-1", "site-2") }, async (pair) => {
    const { ns } = pair.from.node.host;
    await untilDirect(pair);
    const longest = await watched(pair, async () => {
      await pause(1_000);
      await ns.ip(
        "addr flush dev eth0",
        "addr add 192.168.1.77/24 dev eth0",
        "route add default via 192.168.1.1 dev eth0",
      );
      const start = systemClock.now();
      // What is left of the old connections is less than this.
      await pause(2_000);
      await untilBytesPass(pair, 20_000);
      tell(`direct again ${Math.round(systemClock.now() - start)} ms after the change`);
      await pause(1_000);
    });
    tell(`longest pause of a stream that was echoed every 20 ms: ${longest} ms`);
    assert.ok(longest < 6_000, `the stream stood still for ${longest} ms`);
    const { direct, server } = await transfer(pair, MB);
    assert.ok(direct >= MB && server < MB / 4, `${direct} direct, ${server} at the server: ${await shown(pair)}`);
  });
});

labTest(
  "A17: same LAN: with the uplink cut, the server dead and the agents started anew, they find each other",
  async (t) => {
    const sites = [{ nat: "cone", nodes: 2 }] as const;
    await withPair({ sites, way: lanWay }, async (pair) => {
      const { mesh, from, to } = pair;
      const site = mesh.topology.sites[0]!;
      await t.step("the uplink is cut before they ever spoke", async () => {
        await site.cut();
        const ms = await untilDirect(pair);
        tell(`first answer and LAN path ${Math.round(ms)} ms after the first request`);
        const { direct } = await transfer(pair, MB);
        assert.ok(direct >= MB);
      });
      await t.step("the server dies, the stream goes on", async () => {
        const longest = await watched(pair, async () => {
          await mesh.stopServer("kill");
          await pause(2_000);
        });
        assert.ok(longest < 1_000, `the stream stood still for ${longest} ms`);
      });
      await t.step("both agents start anew with nobody to ask", async () => {
        await Promise.all([mesh.stopAgent(from.node, "kill"), mesh.stopAgent(to.node)]);
        await Promise.all([mesh.startAgent(from.node), mesh.startAgent(to.node)]);
        const ms = await request(pair);
        tell(`first request after the restart: ${Math.round(ms)} ms`);
        const { direct } = await transfer(pair, MB);
        assert.ok(direct >= MB);
        assert.equal((await mesh.status(from.node)).mode, "offline");
      });
    });
  },
);

labTest(
  "discovery can be switched off: then nothing is said on the LAN, and no LAN path found without a server",
  async () => {
    const sites = [{ nat: "cone", nodes: 2 }] as const;
    await withPair({ sites, way: lanWay, agent: ["--set", "tunnel.discovery=false"] }, async (pair) => {
      const { mesh, from } = pair;
      const meter = await from.node.counters("multicast");
      await mesh.topology.sites[0]!.cut();
      const { code, stderr } = await curl(from, `http://${WEB}/`);
      assert.notEqual(code, 0, stderr);
      assert.equal((await meter.total({ address: "239.255.96.16" })).packets, 0);
      tell(await shown(pair));
      // Whether its connection is given up before the answer is depends on when it was last heard.
      const why = /^none \(.*no direct path to edge-2: (the server does not answer|no server is connected)\)$/;
      assert.match(await shown(pair), why);
    });
  },
);

labTest("A10: 10 000 requests over five pods on four nodes: none fails, each pod gets its fifth", async () => {
  const sites = [{ nat: "cone", nodes: 2 }, { nat: "cone" }, { nat: "fw" }] as const;
  await withMesh({ sites, cloud: "none", defaultRoute: true, podsPerNode: 2 }, async (mesh) => {
    const { topology } = mesh;
    const names = ["edge-1-pod-1", "edge-2-pod-1", "edge-2-pod-2", "edge-3-pod-1", "edge-4-pod-1"];
    const pods = names.map((name) => topology.pod(name));
    await mesh.writeManifest("web.yaml", webService("web", WEB, pods));
    await startAll(mesh);
    const from = topology.pod("edge-1-pod-2");
    const start = systemClock.now();
    // A connection per request, as the balancing is per connection.
    const argv = [
      "curl",
      "-sS",
      "-H",
      "Connection: close",
      "--max-time",
      "30",
      `http://${WEB}/?[1-${10_000 / CLIENTS}]`,
    ];
    const clients = Array.from({ length: CLIENTS }, () => from.host.exec(argv, { timeoutMs: 200_000 }));
    const results = await Promise.all(clients);
    const seconds = (systemClock.now() - start) / 1000;
    for (const { code, stderr } of results) assert.equal(code, 0, stderr.slice(0, 500));
    const counts = new Map<string, number>();
    for (const line of results.flatMap(({ stdout }) => stdout.trim().split("\n"))) {
      counts.set(line, (counts.get(line) ?? 0) + 1);
    }
    tell(`10 000 requests in ${seconds.toFixed(1)} s: ${[...counts].map(([k, n]) => `${k} ${n}`).join(", ")}`);
    assert.equal([...counts.values()].reduce((sum, n) => sum + n, 0), 10_000);
    for (const pod of pods) {
      const n = counts.get(`${pod.name} on ${pod.node.name}`) ?? 0;
      assert.ok(n >= 1_700 && n <= 2_300, `${pod.name} got ${n} of 10 000 requests`);
    }
  });
});
