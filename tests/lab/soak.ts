/**
 * Minutes of mixed load on the built executable, and whether its memory and descriptors stay where they are:
 *
 *   scripts/deno task lab:soak [--minutes N]
 *
 * Two sites behind NATs. Side by side: short and kept connections on the kernel, proxy and tunnel way, requests balanced
 * by header, bulk, UDP, names, and a Service whose endpoints change every few seconds. Exit code 1 when anything failed
 * that should not, when an agent or the server ends with more than it had after its first minutes, or when it is not back
 * near its idle figure once the load is over: what a heap holds under load also says how rarely it is collected.
 */
import { sleep, systemClock } from "../../lib/clock.ts";
import { startNginx } from "../../lib/lab/backends.ts";
import type { Mesh } from "../../lib/lab/mesh.ts";
import type { HostProcess } from "../../lib/lab/process.ts";
import type { Pod } from "../../lib/lab/pod.ts";
import { startAll, withMesh } from "./fixture.ts";
import { manifest, type ServiceSpec } from "./manifests.ts";
import { calm } from "./memory_load.ts";
import { say } from "./support.ts";
import { askUdp, startUdpPeer, type UdpRun } from "./udp_peers.ts";

const DEFAULT_MINUTES = 10;
const SAMPLE_MS = 5_000;
const CHURN_MS = 3_000;
const BULK_BYTES = 50_000_000;
const BULK_RATE = "4M";
const UDP = { size: 400, perSecond: 200, runMs: 20_000 } as const;
/** Requests a second of each paced load; each is a connection of its own. */
const PACE = 40;
/** What the end may hold more than the middle: the noise of one collection of garbage. */
const MEMORY_NOISE = 4_000_000;
/** What an agent that did everything may hold more than one that did nothing, when both are calm: compiled code, and buffers in use. */
const WARM = 16_000_000;
/** Descriptors are counted while connections come and go. */
const OPEN_NOISE = 24;

interface Sample {
  readonly memory: number;
  readonly files: number;
}

interface Tally {
  ok: number;
  failed: number;
  why: string;
}

const minutes = minutesOf(Deno.args);
const endsAt = () => started + minutes * 60_000;
let started = 0;
const tallies = new Map<string, Tally>();

await withMesh({ cloud: "none", podsPerNode: 2 }, async (mesh) => {
  const { topology } = mesh;
  const pod = (name: string) => topology.pod(name);
  const [client, near, far, other] = [1, 2].flatMap((n) => [pod(`edge-${n}-pod-1`), pod(`edge-${n}-pod-2`)]) as Four;
  const services: readonly ServiceSpec[] = [
    { name: "kernel", ip: "10.96.0.70", endpoints: [near] },
    { name: "proxy", ip: "10.96.0.71", endpoints: [near], balance: "{ simple: LEAST_CONN }" },
    { name: "tunnel", ip: "10.96.0.72", endpoints: [far] },
    {
      name: "hash",
      ip: "10.96.0.73",
      endpoints: [near, far, other],
      balance: "{ consistentHash: { httpHeaderName: X } }",
    },
    { name: "bulk", ip: "10.96.0.74", targetPort: 8081, endpoints: [other] },
    { name: "udp", ip: "10.96.0.75", port: 5300, targetPort: 9000, protocol: "UDP", endpoints: [far] },
  ];
  const moving = (to: Pod) => manifest({ name: "moving", ip: "10.96.0.76", endpoints: [to] });
  await mesh.writeManifest("services.yaml", services.map(manifest).join("---\n"));
  await mesh.writeManifest("moving.yaml", moving(far));
  await startNginx(other.host, { port: 8081, text: "x".repeat(BULK_BYTES) });
  await startUdpPeer(far.host, far.name, 9000);
  await startAll(mesh);
  const watched = new Map([["edge-1", mesh.agent("edge-1")], ["edge-2", mesh.agent("edge-2")], [
    "server",
    mesh.server,
  ]]);
  const samples = new Map<string, Sample[]>([...watched.keys()].map((name) => [name, []]));

  const processes = [...watched.values()];
  const idle = await calm(processes);

  started = systemClock.now();
  const paced = (name: string, flags: readonly string[] = []) => untilEnd(name, () => requests(client, name, flags));
  const loads = [
    paced("kernel", ["-H", "Connection: close"]),
    paced("proxy", ["-H", "Connection: close"]),
    paced("tunnel", ["-H", "Connection: close"]),
    paced("hash", ["-H", "Connection: close", "-H", "X: soak"]),
    untilEnd("kept", () => requests(client, "tunnel", [])),
    // Its endpoint changes below all the time, and no request may be lost by it.
    untilEnd("moving", () => requests(client, "moving", ["-H", "Connection: close"])),
    untilEnd("bulk", () => bulk(client)),
    untilEnd("udp", () => udp(client)),
    churn(mesh, [far, other], moving),
    watch(watched, samples),
  ];
  await Promise.all(loads);
  const after = await calm(processes);
  report(samples, idle, after);
});

type Four = [Pod, Pod, Pod, Pod];

/** Repeats a load until the time is over, and counts. */
async function untilEnd(name: string, run: () => Promise<Tally>): Promise<void> {
  const tally: Tally = { ok: 0, failed: 0, why: "" };
  tallies.set(name, tally);
  while (systemClock.now() < endsAt()) {
    const { ok, failed, why } = await run();
    tally.ok += ok;
    tally.failed += failed;
    tally.why ||= why;
  }
}

/** Ten seconds of requests by name at an even pace. */
async function requests(from: Pod, name: string, flags: readonly string[]): Promise<Tally> {
  const count = PACE * 10;
  const { stdout, stderr } = await from.host.exec([
    ...["curl", "-sS", "--rate", `${PACE}/s`, "--max-time", "20", "-o", "/dev/null", "-w", "%{http_code}\n", ...flags],
    `http://${name}/[1-${count}]`,
  ], { timeoutMs: 120_000 });
  const ok = stdout.split("\n").filter((code) => code === "200").length;
  return { ok, failed: count - ok, why: stderr.trim().split("\n")[0] ?? "" };
}

async function bulk(from: Pod): Promise<Tally> {
  const { stdout, stderr } = await from.host.exec([
    ...["curl", "-sS", "--limit-rate", BULK_RATE, "-o", "/dev/null", "-w", "%{size_download}", "http://bulk/"],
  ], { timeoutMs: 120_000 });
  const whole = Number(stdout) === BULK_BYTES;
  return { ok: whole ? 1 : 0, failed: whole ? 0 : 1, why: stderr.trim() };
}

async function udp(from: Pod): Promise<Tally> {
  const run = await askUdp<UdpRun>(from.host, "rate", "10.96.0.75", 5300, UDP.size, UDP.perSecond, UDP.runMs);
  const failed = run.sent - run.received + run.duplicates + run.wrong;
  return { ok: run.received, failed, why: failed > 0 ? JSON.stringify(run) : "" };
}

async function churn(mesh: Mesh, pods: readonly Pod[], yaml: (to: Pod) => string): Promise<void> {
  for (let i = 0; systemClock.now() < endsAt(); i++) {
    await sleep(systemClock, CHURN_MS);
    await mesh.writeManifest("moving.yaml", yaml(pods[i % pods.length]!));
  }
}

async function watch(watched: ReadonlyMap<string, HostProcess>, samples: Map<string, Sample[]>): Promise<void> {
  while (systemClock.now() < endsAt()) {
    await sleep(systemClock, SAMPLE_MS);
    for (const [name, process] of watched) {
      const { private: memory } = await process.memory();
      let files = 0;
      for await (const _ of Deno.readDir(`/proc/${process.pid}/fd`)) files++;
      samples.get(name)!.push({ memory, files });
    }
  }
}

/** Memory settles in the first minutes; the last fifth is compared with the middle one. `idle`, `after`: when all is calm. */
function report(
  samples: ReadonlyMap<string, readonly Sample[]>,
  idle: readonly number[],
  after: readonly number[],
): void {
  let bad = 0;
  say(`${minutes} minutes`);
  for (const [name, { ok, failed, why }] of tallies) {
    say(`  ${name.padEnd(7)} ${String(ok).padStart(7)} done, ${failed} failed${why === "" ? "" : ` (${why})`}`);
    if (failed > 0) bad++;
  }
  for (const [i, [name, all]] of [...samples].entries()) {
    const parts = [0, 1, 2, 3, 4].map((i) => all.slice(i * all.length / 5, (i + 1) * all.length / 5));
    const memory = parts.map((part) => median(part.map((s) => s.memory)));
    const files = parts.map((part) => Math.max(...part.map((s) => s.files)));
    say(`  ${name.padEnd(7)} private MB by fifths ${memory.map(mb).join(" ")}, most descriptors ${files.join(" ")}`);
    say(`          calm ${mb(idle[i]!)} before, ${mb(after[i]!)} after`);
    if (after[i]! > idle[i]! + WARM) bad++;
    if (memory[4]! > memory[2]! + MEMORY_NOISE || files[4]! > files[2]! + OPEN_NOISE) bad++;
  }
  say(bad === 0 ? "flat" : "NOT flat, or something failed");
  if (bad > 0) Deno.exitCode = 1;
}

function minutesOf(args: readonly string[]): number {
  const at = args.indexOf("--minutes");
  const minutes = at < 0 ? DEFAULT_MINUTES : Number(args[at + 1]);
  if (minutes > 0) return minutes;
  say("usage: deno task lab:soak [--minutes N]");
  Deno.exit(2);
}

function median(list: readonly number[]): number {
  return [...list].sort((a, b) => a - b)[Math.floor(list.length / 2)] ?? NaN;
}

function mb(bytes: number): string {
  return (bytes / 1e6).toFixed(1);
}
