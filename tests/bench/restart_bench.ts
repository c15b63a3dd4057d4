/**
 * How soon a node is whole again, from exec of the built executable, in rounds:
 *
 *   scripts/deno task bench:restart [--rounds N] [--only kill,offline,server] [--delay ONE-WAY-MS]
 *
 * - kill: SIGKILL and a new start under a watching client of a Service behind another NAT (relayed, then direct).
 * - offline: a start with every server dead; a Service of the own node, which a clean stop had taken out of the kernel.
 * - server: the server is back after an outage; the same Service behind the other NAT.
 *
 * Times of the client are its own (fixtures/reach_watch.ts); the agent's are from its log. Needs root and dist/edgemesh.
 */
// deno-lint-ignore-file no-console -- a bench prints its results
import { pause, systemClock } from "../../lib/clock.ts";
import { until } from "../../lib/lab/exec.ts";
import type { Mesh } from "../../lib/lab/mesh.ts";
import type { Pod } from "../../lib/lab/pod.ts";
import type { HostProcess } from "../../lib/lab/process.ts";
import { startAll, webService, withMesh } from "../lab/fixture.ts";
import { fixture } from "../lab/support.ts";

const NEAR = "10.96.0.10";
const FAR = "10.96.0.11";
/** Outages of the server: waits between attempts have grown by then. */
const OUTAGES_MS = [500, 3_000, 8_000] as const;

const flag = (name: string, other: string) => {
  const at = Deno.args.indexOf(`--${name}`);
  return at < 0 ? other : Deno.args[at + 1] ?? other;
};
const rounds = Number(flag("rounds", "10"));
const parts = new Set(flag("only", "kill,offline,server").split(","));
const delay = Number(flag("delay", "20"));

type Row = Record<string, number>;

await withMesh({ cloud: "none", podsPerNode: 2, oneWayDelayMs: delay }, async (mesh) => {
  const { topology } = mesh;
  await mesh.writeManifest("near.yaml", webService("near", NEAR, [topology.pod("edge-1-pod-2")]));
  await mesh.writeManifest("far.yaml", webService("far", FAR, [topology.pod("edge-2-pod-1")]));
  await startAll(mesh);
  const pod = topology.pod("edge-1-pod-1");
  const far = await watch(pod, FAR);
  const near = await watch(pod, NEAR);
  await Promise.all([outcome(far, "answered", 0), outcome(near, "answered", 0)]);
  // The snapshot of a node that has just joined is on disk after a second.
  await pause(2_000);
  console.log(`one-way delay ${delay} ms, ${rounds} rounds, load ${Deno.loadavg()[0]!.toFixed(1)}`);
  if (parts.has("kill")) await repeat("killed, from exec", () => killed(mesh, far));
  if (parts.has("offline")) await repeat("servers dead, from exec", () => offline(mesh, near));
  if (parts.has("server")) {
    for (const ms of OUTAGES_MS) {
      await repeat(`server back after ${ms} ms, from its readiness`, () => serverBack(mesh, far, ms));
    }
  }
});

async function killed(mesh: Mesh, far: HostProcess): Promise<Row> {
  const node = mesh.topology.node("edge-1");
  await pause(1_000);
  await mesh.stopAgent(node, "kill");
  await outcome(far, "refused", systemClock.wall() - 100);
  const started = systemClock.wall();
  const process = await mesh.startAgent(node, { waitReady: false });
  const [accepted, answered] = [
    await outcome(far, "accepted", started),
    await outcome(far, "answered", started),
  ];
  return { accepted: accepted - started, answered: answered - started, ready: await ready(process) };
}

async function offline(mesh: Mesh, near: HostProcess): Promise<Row> {
  const node = mesh.topology.node("edge-1");
  await mesh.stopServer("kill");
  await mesh.stopAgent(node);
  await outcome(near, "refused", systemClock.wall() - 100).catch(() => {});
  const started = systemClock.wall();
  const process = await mesh.startAgent(node, { waitReady: false });
  const answered = await outcome(near, "answered", started);
  const row = { answered: answered - started, ready: await ready(process) };
  await mesh.startServer();
  await until("the server to be back", async () => (await mesh.status(node)).mode === "online" || undefined, 60_000);
  return row;
}

async function serverBack(mesh: Mesh, far: HostProcess, outageMs: number): Promise<Row> {
  const node = mesh.topology.node("edge-1");
  // Both agents are new, so that no direct path is left to serve meanwhile.
  await mesh.stopServer("kill");
  await Promise.all(mesh.topology.edges.map((edge) => mesh.stopAgent(edge, "kill")));
  await Promise.all(mesh.topology.edges.map((edge) => mesh.startAgent(edge)));
  await pause(outageMs);
  await mesh.startServer();
  const started = systemClock.wall();
  const answered = await outcome(far, "answered", started);
  const online = /connected to server/.exec(await mesh.agent(node.name).log()) ? 1 : 0;
  return { answered: answered - started, online };
}

function watch(pod: Pod, ip: string): Promise<HostProcess> {
  return pod.host.start(`watch-${ip}`, [...fixture("reach_watch"), ip, "80"], { ready: { log: /^open/m } });
}

/** When a client first saw an outcome after a moment (wall clock). */
function outcome(client: HostProcess, what: string, after: number): Promise<number> {
  return until(`${client.name}: ${what}`, async () => {
    for (const [, at] of (await client.log()).matchAll(new RegExp(`^${what} (\\d+)`, "gm"))) {
      if (Number(at) >= after) return Number(at);
    }
    return undefined;
  }, 30_000);
}

function ready(process: HostProcess): Promise<number> {
  return until("the agent to be ready", async () => {
    const ms = /"agent ready".*"ms":(\d+)/.exec(await process.log())?.[1];
    return ms === undefined ? undefined : Number(ms);
  });
}

async function repeat(what: string, round: () => Promise<Row>): Promise<void> {
  const columns = new Map<string, number[]>();
  for (let i = 0; i < rounds; i++) {
    for (const [name, ms] of Object.entries(await round())) columns.set(name, [...columns.get(name) ?? [], ms]);
  }
  for (const [name, all] of columns) {
    const sorted = all.toSorted((a, b) => a - b);
    const [min, median, max] = [sorted[0], sorted[sorted.length >> 1], sorted.at(-1)];
    console.log(`${what}: ${name} min ${min} median ${median} max ${max} ms (${all.join(" ")})`);
  }
}
