/**
 * What forwarding costs, as ratios to the direct connection and to peers, in interleaved rounds of one run:
 *
 *   scripts/deno task bench:forward [--rounds N] [--seconds S] [--only tcp,idle,paced,udp,short,rules] [--out FILE]
 *
 * A client namespace, a host and a pod, joined by veth pairs. The host has the agent (kernel way and proxy way), HAProxy
 * and nginx stream. Raw rounds go to FILE as JSON lines. Needs root, wrk and iperf3; peers come from Debian
 * (scripts/fetch_peers.sh) or from EDGEMESH_PEERS.
 */
// deno-lint-ignore-file no-console -- a bench prints its results
import { Lab } from "../../lib/lab/namespace.ts";
import { rulesBench } from "./forward_rules.ts";
import { Machine, type Target } from "./forward_machine.ts";
import type { LoadJob, Paced } from "./forward_load.ts";

interface Options {
  readonly rounds: number;
  readonly seconds: number;
  readonly only: ReadonlySet<string>;
  readonly out: string | undefined;
}

const raw: string[] = [];

/** The parts of the bench, in the order they run. */
const PARTS = ["rules", "tcp", "paced", "idle", "udp", "short"] as const;
const RATES = [20, 100, 500, 1000, 2000] as const;
const IDLE_CONNECTIONS = 5000;
const UDP_RATE = 20_000;

/** Requests, bytes and new connections; CPU is the forwarding process's own. */
async function tcp(machine: Machine): Promise<void> {
  const table = new Table("TCP", ["req/s c64", "p50 µs c1", "CPU s/10k req", "conn/s", "Gbit/s", "CPU s/GB"]);
  for (let round = 0; round < options.rounds; round++) {
    for (const target of machine.targets) {
      const one = await machine.wrk(target, { connections: 1, seconds: options.seconds });
      const many = await machine.wrk(target, { connections: 64, seconds: options.seconds });
      const close = await machine.wrk(target, { connections: 64, seconds: options.seconds, close: true });
      const bulk = await machine.iperf(target, options.seconds);
      table.add(target.name, [
        many.requestsPerSecond,
        one.p50,
        many.cpu / many.requests * 10_000,
        close.requestsPerSecond,
        bulk.gbits,
        bulk.cpu / bulk.gigabytes,
      ], round);
    }
  }
  table.print();
}

async function paced(machine: Machine): Promise<void> {
  const table = new Table("Paced, p50/p99 µs", RATES.flatMap((rate) => [`${rate}/s p50`, `${rate}/s p99`]));
  for (let round = 0; round < options.rounds; round++) {
    for (const target of machine.targets) {
      const row: number[] = [];
      for (const rate of RATES) {
        const ms = options.seconds * 1000;
        const job: LoadJob = { do: "paced", to: target.http, rate, connections: 16, ms };
        const { p50, p99 } = await machine.load<Paced>(job);
        row.push(p50, p99);
      }
      table.add(target.name, row, round);
    }
  }
  table.print();
}

/** Private memory per open connection that does nothing. */
async function idle(machine: Machine): Promise<void> {
  const table = new Table(`${IDLE_CONNECTIONS} idle connections`, ["KB private per connection"]);
  for (const target of machine.targets) {
    if (target.process === undefined) continue;
    const before = await machine.privateKb(target);
    const held = await machine.hold({ do: "idle", to: target.http, connections: IDLE_CONNECTIONS });
    const after = await machine.privateKb(target);
    await held.close();
    table.add(target.name, [(after - before) / IDLE_CONNECTIONS], 0);
  }
  table.print();
}

async function udp(machine: Machine): Promise<void> {
  const table = new Table(`UDP, 16 clients, ${UDP_RATE} packets/s`, ["lost ‰", "CPU µs/packet"]);
  for (let round = 0; round < options.rounds; round++) {
    for (const target of machine.targets) {
      if (target.udp === undefined) continue;
      const job: LoadJob = { do: "udp", to: target.udp, clients: 16, rate: UDP_RATE, ms: options.seconds * 1000 };
      const before = await machine.cpu(target);
      const { sent, received } = await machine.load<{ sent: number; received: number }>(job);
      const cpu = await machine.cpu(target) - before;
      table.add(target.name, [(sent - received) / sent * 1000, cpu / sent * 1e6], round);
    }
  }
  table.print();
}

/** 10 000 short connections while a stream runs: none refused, and the stream goes on. */
async function short(machine: Machine): Promise<void> {
  const table = new Table("10 000 short connections beside a stream", [
    "failed",
    "conn/s",
    "stream: share of its lone rate",
  ]);
  for (const target of machine.targets) {
    const alone = await machine.iperf(target, options.seconds);
    const [beside, connections] = await Promise.all([
      machine.iperf(target, options.seconds * 2),
      machine.load<{ ok: number; failed: number; ms: number }>({
        do: "short",
        to: target.http,
        connections: 10_000,
        parallel: 64,
      }),
    ]);
    table.add(target.name, [
      connections.failed,
      connections.ok / connections.ms * 1000,
      beside.gbits / alone.gbits,
    ], 0);
  }
  table.print();
}

/** Collects rounds and prints medians, with ratios to the direct connection. */
class Table {
  readonly #title: string;
  readonly #columns: readonly string[];
  readonly #rows = new Map<string, number[][]>();

  constructor(title: string, columns: readonly string[]) {
    this.#title = title;
    this.#columns = columns;
  }

  add(name: Target["name"], values: readonly number[], round: number): void {
    note(JSON.stringify({ table: this.#title, round, name, values }));
    this.#rows.set(name, [...this.#rows.get(name) ?? [], [...values]]);
  }

  print(): void {
    console.log(`\n${this.#title} (medians of ${options.rounds} rounds; × is the ratio to direct)`);
    const direct = this.#rows.get("direct");
    for (const [i, column] of this.#columns.entries()) {
      const median = (rows: readonly number[][]) => rows.map((row) => row[i]!).sort((a, b) => a - b)[rows.length >> 1]!;
      const base = direct && median(direct);
      const cells = [...this.#rows].map(([name, rows]) => {
        const value = median(rows);
        const ratio = base !== undefined && base !== 0 && Number.isFinite(base) ? ` ×${(value / base).toFixed(2)}` : "";
        return `${name} ${Number.isNaN(value) ? "-" : value.toPrecision(4)}${ratio}`;
      });
      console.log(`  ${column.padEnd(34)} ${cells.join("   ")}`);
    }
  }
}

function note(line: string): void {
  raw.push(line);
  if (Deno.env.get("BENCH_VERBOSE")) console.error(line);
}

function parseArgs(args: readonly string[]): Options {
  const value = (name: string) => {
    const i = args.indexOf(name);
    return i < 0 ? undefined : args[i + 1];
  };
  return {
    rounds: Number(value("--rounds") ?? 3),
    seconds: Number(value("--seconds") ?? 3),
    only: new Set(value("--only")?.split(",") ?? PARTS),
    out: value("--out"),
  };
}

const options: Options = parseArgs(Deno.args);
if (options.only.has("rules")) await rulesBench(note);
if ([...options.only].some((part) => part !== "rules")) {
  await using lab = await Lab.open();
  await using machine = await Machine.start(lab);
  if (options.only.has("tcp")) await tcp(machine);
  if (options.only.has("paced")) await paced(machine);
  if (options.only.has("idle")) await idle(machine);
  if (options.only.has("udp")) await udp(machine);
  if (options.only.has("short")) await short(machine);
}
if (options.out !== undefined) await Deno.writeTextFile(options.out, raw.join("\n") + "\n");
