/**
 * What the tunnel costs between two nodes, direct and relayed, beside chisel and a plain TCP connection over the same
 * links, in interleaved rounds of one run:
 *
 *   scripts/deno task bench:tunnel [--rounds N] [--seconds S] [--only direct,relayed] [--set key=value]… [--out FILE]
 *
 * Uses the built executable. `--set` goes to both agents (`tunnel.engine=portable`). Raw rounds go to FILE as JSON lines.
 * Needs root, wrk, iperf3 and go (scripts/fetch_tunnels.sh builds chisel); or EDGEMESH_TUNNELS.
 */
// deno-lint-ignore-file no-console -- a bench prints its results
import { pause } from "../../lib/clock.ts";
import { builtCommand } from "../lab/support.ts";
import { Machine, type Target, type Way } from "./tunnel_machine.ts";

/** What the tunnel must reach against chisel in the same run; the last two are limits of our own. */
const GOALS = {
  direct: { gbits: 2, requests: 1.5, connections: 2 },
  relayed: { gbits: 3.5, requests: 3, connections: 4 },
} as const;
const IDLE_RATE = 20;
/** What an agent gives back once it has had nothing to do for a while. */
const CALM_MS = 15_000;
const MANY = 64;

interface Options {
  readonly rounds: number;
  readonly seconds: number;
  readonly only: ReadonlySet<string>;
  readonly flags: readonly string[];
  readonly out: string | undefined;
}

/** One round of one target; CPU and memory per process: client side, far side, relay. */
interface Round {
  readonly gbits1: number;
  readonly gbits4: number;
  readonly cpuPerGb: readonly number[];
  readonly requests: number;
  readonly cpuPer10k: readonly number[];
  readonly connections: number;
  readonly cpuPer10kConnections: readonly number[];
  readonly idleP50: number;
  readonly idleP99: number;
  readonly memory: readonly number[];
  readonly errors: string | undefined;
}

async function measure(machine: Machine, target: Target, seconds: number): Promise<Round> {
  const idle = await machine.paced(target, IDLE_RATE, seconds);
  const one = await machine.bulk(target, { streams: 1, seconds });
  const four = await machine.bulk(target, { streams: 4, seconds });
  const many = await machine.wrk(target, { connections: MANY, seconds });
  const close = await machine.wrk(target, { connections: MANY, seconds, close: true });
  return {
    gbits1: one.gbits,
    gbits4: four.gbits,
    cpuPerGb: four.cpuPerGb,
    requests: many.perSecond,
    cpuPer10k: many.cpuPer10k,
    connections: close.perSecond,
    cpuPer10kConnections: close.cpuPer10k,
    idleP50: idle.p50,
    idleP99: idle.p99,
    memory: await machine.memory(target),
    errors: many.errors ?? close.errors,
  };
}

async function run(options: Options): Promise<void> {
  await using stack = new AsyncDisposableStack();
  const machines: Machine[] = [];
  for (const way of ["direct", "relayed"] as const) {
    if (!options.only.has(way)) continue;
    const machine = await Machine.start(way, builtCommand()[0], options.flags);
    stack.use(machine);
    machines.push(machine);
    console.log(`edgemesh ${way}: ${machine.about}`);
  }
  const rows = new Map<string, Round[]>();
  for (let round = 0; round < options.rounds; round++) {
    for (const machine of machines) {
      for (const target of machine.targets) {
        const row = await measure(machine, target, options.seconds);
        rows.set(target.name, [...rows.get(target.name) ?? [], row]);
        const line = JSON.stringify({ at: new Date().toISOString(), round, name: target.name, ...row });
        if (options.out !== undefined) await Deno.writeTextFile(options.out, `${line}\n`, { append: true });
        if (Deno.env.get("BENCH_VERBOSE")) console.error(line);
      }
    }
  }
  print(rows, options.rounds);
  await pause(CALM_MS);
  for (const machine of machines) {
    for (const target of machine.targets) {
      if (target.processes.length === 0) continue;
      const memory = await machine.memory(target);
      console.log(
        `${target.name}: ${memory.map((mb) => mb.toFixed(0)).join("/")} MB private ${CALM_MS / 1000} s after`,
      );
    }
  }
}

function print(rows: ReadonlyMap<string, readonly Round[]>, rounds: number): void {
  console.log(`\nMedians of ${rounds} interleaved rounds; CPU and memory: client side / far side / relay`);
  const head = ["", "Gbit/s 1/4", "CPU s/GB", "req/s", "s/10k", "conn/s", "s/10k", "idle p50/p99 µs", "private MB"];
  const table = [head];
  for (const [name, all] of rows) {
    const one = (of: (row: Round) => number) => median(all.map(of));
    const each = (of: (row: Round) => readonly number[], digits: number) =>
      of(all[0]!).map((_, i) => one((row) => of(row)[i]!).toFixed(digits)).join("/") || "-";
    table.push([
      name,
      `${one((r) => r.gbits1).toFixed(2)}/${one((r) => r.gbits4).toFixed(2)}`,
      each((r) => r.cpuPerGb, 2),
      one((r) => r.requests).toFixed(0),
      each((r) => r.cpuPer10k, 3),
      one((r) => r.connections).toFixed(0),
      each((r) => r.cpuPer10kConnections, 2),
      `${one((r) => r.idleP50).toFixed(0)}/${one((r) => r.idleP99).toFixed(0)}`,
      each((r) => r.memory, 0),
    ]);
    for (const row of all) if (row.errors) console.log(`${name}: ${row.errors}`);
  }
  const widths = head.map((_, i) => Math.max(...table.map((row) => row[i]!.length)));
  for (const row of table) console.log(row.map((cell, i) => cell.padEnd(widths[i]!)).join("  "));
  for (const way of ["direct", "relayed"] as const) compare(rows, way);
}

function compare(rows: ReadonlyMap<string, readonly Round[]>, way: Way): void {
  const [ours, theirs] = [rows.get(`edgemesh ${way}`), rows.get(`chisel ${way}`)];
  if (!ours || !theirs) return;
  const ratio = (of: (row: Round) => number) => median(ours.map(of)) / median(theirs.map(of));
  const of = (name: string, value: number, goal: number) =>
    `${name} ×${value.toFixed(2)} (goal ${goal}${value >= goal ? "" : ", missed"})`;
  console.log(
    `${way} against chisel: ` + [
      of("Gbit/s", ratio((r) => r.gbits4), GOALS[way].gbits),
      of("req/s", ratio((r) => r.requests), GOALS[way].requests),
      of("conn/s", ratio((r) => r.connections), GOALS[way].connections),
      `idle round trip ×${ratio((r) => r.idleP50).toFixed(2)} (goal ≤ 1)`,
    ].join(", "),
  );
}

function median(values: readonly number[]): number {
  return [...values].sort((a, b) => a - b)[values.length >> 1]!;
}

function parseArgs(args: readonly string[]): Options {
  const value = (name: string) => {
    const i = args.indexOf(name);
    return i < 0 ? undefined : args[i + 1];
  };
  return {
    rounds: Number(value("--rounds") ?? 3),
    seconds: Number(value("--seconds") ?? 3),
    only: new Set(value("--only")?.split(",") ?? ["direct", "relayed"]),
    flags: args.flatMap((arg, i) => arg === "--set" ? ["--set", args[i + 1] ?? ""] : []),
    out: value("--out"),
  };
}

await run(parseArgs(Deno.args));
