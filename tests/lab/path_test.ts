/**
 * Which way bytes take between two sites, and how soon: judged by packet counters in the lab's internet and on the
 * nodes, never by what the agents say. The round trip between any two sites, and to the server, is 40 ms.
 */
import assert from "node:assert/strict";
import { pause, systemClock } from "../../lib/clock.ts";
import type { Meter } from "../../lib/lab/meter.ts";
import { type Mesh, serviceYaml } from "../../lib/lab/mesh.ts";
import type { Pod } from "../../lib/lab/pod.ts";
import type { SiteSpec } from "../../lib/lab/topology.ts";
import { curl, type MeshOptions, startAll, tell, webService, withMesh } from "./fixture.ts";
import { ask, PORTS, startPeer } from "./peers.ts";
import { labTest } from "./support.ts";

/** What issue and users expect: from the first request to bytes on the direct path. */
const DIRECT_MS = 3_000;
/** A direct path exists when a TLS handshake and its first answer have passed: two certificates are more than this. */
const HANDSHAKE_BYTES = 2_500;
const WEB = "10.96.0.10";
const SOURCE = "10.96.0.11";
const MB = 1024 * 1024;

interface Way {
  /** Counts what passes directly between the two nodes, both ways, once. */
  readonly meter: Meter;
  readonly iface: string;
  readonly between: readonly [string, string];
}

interface Pair {
  readonly mesh: Mesh;
  readonly from: Pod;
  readonly to: Pod;
  readonly way: Way;
}

/** Two nodes with everything started, `to` serving. */
async function withPair(
  options: MeshOptions & { readonly from?: string; readonly to?: string; readonly way: (mesh: Mesh) => Promise<Way> },
  test: (pair: Pair) => Promise<void>,
): Promise<void> {
  const { from = "edge-1-pod-1", to = "edge-2-pod-1", way, ...mesh } = options;
  await withMesh({ cloud: "none", defaultRoute: true, web: [to], ...mesh }, async (mesh) => {
    const pair = { mesh, from: mesh.topology.pod(from), to: mesh.topology.pod(to), way: await way(mesh) };
    await mesh.writeManifest("web.yaml", webService("web", WEB, [pair.to]));
    await mesh.writeManifest(
      "source.yaml",
      serviceYaml({
        name: "source",
        clusterIP: SOURCE,
        port: PORTS.source,
        targetPort: PORTS.source,
        endpoints: [{ ip: pair.to.ip, node: pair.to.node.name }],
      }),
    );
    await startPeer(pair.to.host);
    await startAll(mesh);
    await test(pair);
  });
}

const publicWay = (a: string, b: string) => (mesh: Mesh): Promise<Way> =>
  Promise.resolve({ meter: mesh.topology.internet.meter, iface: mesh.topology.sites[0]!.leg.port, between: [a, b] });

const lanWay = async (mesh: Mesh): Promise<Way> => {
  const [a, b] = [mesh.topology.node("edge-1"), mesh.topology.node("edge-2")];
  return { meter: await a.counters("lan"), iface: "eth0", between: [a.address, b.address] };
};

async function request({ from, to }: Pair): Promise<number> {
  const { body, stderr, ms } = await curl(from, `http://${WEB}/`);
  assert.equal(body, `${to.name} on ${to.node.name}`, stderr);
  return ms;
}

async function directBytes({ way }: Pair): Promise<number> {
  const { meter, ...filter } = way;
  return (await meter.total({ ...filter, protocol: "tcp" })).bytes;
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
  const { received, ended } = await ask(pair.from.host, "download", SOURCE, bytes);
  assert.deepEqual([received, ended], [bytes, "cleanly"]);
  return { direct: await directBytes(pair) - direct, server: await through() - relayed };
}

/** The path that the agents show, for the message; the judgement is the counters'. */
async function shown({ mesh, from, to }: Pair): Promise<string> {
  const peer = (await mesh.status(from.node)).peers.find((p) => p.node === to.node.name);
  return peer === undefined ? "no peer" : `${peer.path}${peer.detail === undefined ? "" : ` (${peer.detail})`}`;
}

async function becomesDirect(name: string, pair: Pair, path: "lan" | "direct"): Promise<void> {
  const ms = await untilDirect(pair);
  // The first bytes may still end on the relay that carried the first request.
  await request(pair);
  const { direct, server } = await transfer(pair, 4 * MB);
  tell(
    `${name}: direct ${
      Math.round(ms)
    } ms after the first request began; of 4 MiB ${direct} bytes passed directly, ${server} at the server`,
  );
  assert.ok(direct >= 4 * MB, `only ${direct} bytes passed directly: ${await shown(pair)}`);
  assert.ok(server < MB / 4, `${server} bytes passed the server`);
  assert.equal((await shown(pair)).split(" ")[0], path);
  if (Deno.env.get("DEBUG_PATH")) {
    for (const node of [pair.from.node, pair.to.node]) {
      for (const e of (await pair.mesh.status(node)).peers[0]!.events) tell(`${node.name} ${e.at.slice(17)} ${e.kind} ${e.path ?? ""} ${e.text} ${e.reason ?? ""}`);
    }
  }
}

const pairs: readonly {
  readonly sites: readonly [SiteSpec, SiteSpec];
  readonly way: (mesh: Mesh) => Promise<Way>;
  readonly ipv6?: boolean;
}[] = [
  { sites: [{ nat: "cone" }, { nat: "cone" }], way: publicWay("203.0.113.10", "203.0.113.20") },
  { sites: [{ nat: "fw" }, { nat: "fw" }], way: publicWay("198.18.1.2", "198.18.2.2") },
  { sites: [{ nat: "conerst" }, { nat: "owrt" }], way: publicWay("203.0.113.10", "203.0.113.20") },
  {
    sites: [{ nat: "symrand", ipv6: "fw" }, { nat: "symrand", ipv6: "fw" }],
    way: publicWay("2001:db8:1::2", "2001:db8:2::2"),
    ipv6: true,
  },
];

for (const { sites, way, ipv6 } of pairs) {
  const name = sites.map((site) => `${site.nat}${site.ipv6 ? ` with IPv6 ${site.ipv6}` : ""}`).join(" and ");
  labTest(`A16: ${name}: direct within ${DIRECT_MS / 1000} s of the first request`, async () => {
    await withPair({ sites, way, ...(ipv6 ? { ipv6 } : {}) }, (pair) => becomesDirect(name, pair, "direct"));
  });
}

labTest("same LAN: direct, without a byte leaving the site", async () => {
  const sites = [{ nat: "cone", nodes: 2 }] as const;
  await withPair({ sites, way: lanWay }, (pair) => becomesDirect("same LAN", pair, "lan"));
});

labTest(
  "A14, A15: cloud to edge and edge to cloud: the edge dials the cloud's public listener, whoever begins",
  async (t) => {
    const way = publicWay("203.0.113.10", "203.0.113.3");
    const sites = [{ nat: "symrand" }] as const;
    for (const [from, to] of [["cloud-1-pod-1", "edge-1-pod-1"], ["edge-1-pod-1", "cloud-1-pod-1"]] as const) {
      await t.step(`${from} → ${to}`, async () => {
        await withPair(
          { sites, cloud: "datacenter", from, to, way },
          (pair) => becomesDirect(`${from} → ${to}`, pair, "direct"),
        );
      });
    }
  },
);

labTest("symrand and cone: relayed, and status says why in one sentence", async () => {
  const sites = [{ nat: "symrand" }, { nat: "cone" }] as const;
  await withPair({ sites, way: publicWay("203.0.113.10", "203.0.113.20") }, async (pair) => {
    await request(pair);
    await pause(7_000);
    const { direct, server } = await transfer(pair, MB);
    assert.ok(server >= 2 * MB, `only ${server} bytes passed the server`);
    assert.ok(direct < MB / 10, `${direct} bytes passed directly`);
    const text = await shown(pair);
    tell(text);
    assert.match(
      text,
      /^relay \(no direct path to edge-2: .*NAT of this site gives each destination another port.*next try in \d+ s\)$/,
    );
  });
});
