/**
 * `deno task lab:nat`: every kind of NAT with every other one, and the placements in which nodes share a router, with the
 * built executable in one standing topology. Prints each pair, writes docs/grid.md, and fails when a pair does not
 * connect or is relayed where plain hole punching always went direct. `lab:nat NAME…` tries the pairs whose name contains
 * one of the texts, and leaves the page alone; with `--alone` one after the other, for times that nothing else disturbs.
 */
import { systemClock } from "../../../lib/clock.ts";
import { Mesh, nodesYaml } from "../../../lib/lab/mesh.ts";
import { startNginx } from "../../../lib/lab/backends.ts";
import { buildTopology } from "../../../lib/lab/topology.ts";
import { webService } from "../fixture.ts";
import { builtCommand, say } from "../support.ts";
import { gridPage } from "./document.ts";
import { type Ends, FILE_BYTES, type Found, type Path, Place, Prober } from "./probe.ts";
import { type Pair, PAIRS, World } from "./world.ts";

/** Pairs at a time: two processors; each pair waits most of its time. */
const AT_ONCE = Deno.args.includes("--alone") ? 1 : 5;
/** Agents that start at a time. */
const JOINS = 6;
const ONE_WAY_MS = 20;
const PAGE = new URL("../../../docs/grid.md", import.meta.url).pathname;
const RANK: Readonly<Record<Path, number>> = { none: -2, mixed: -1, relay: 0, direct: 1, lan: 2 };

async function main(only: readonly string[]): Promise<number> {
  const started = systemClock.now();
  const pairs = PAIRS.filter(({ name }) => only.length === 0 || only.some((text) => name.includes(text)));
  const found = await withGrid(pairs, (mesh, ends) => probeAll(new Prober(mesh), ends));
  const bad = found.filter(({ pair, path }) => RANK[path] < RANK[pair.expected]);
  const seconds = (systemClock.now() - started) / 1000;
  say(
    `${found.length} pairs in ${Math.round(seconds)} s: ${count(found, "lan")} lan, ${count(found, "direct")} direct, ${
      count(found, "relay")
    } relayed; ${bad.length} worse than expected`,
  );
  const median = (values: readonly number[]) => Math.round(values.toSorted((a, b) => a - b)[values.length >> 1] ?? NaN);
  const direct = found.map((f) => f.directMs).filter((ms) => ms !== undefined);
  say(`first answer: median ${median(found.map((f) => f.firstMs))} ms; direct path: median ${median(direct)} ms`);
  for (const { pair, path, detail } of bad) say(`  ${pair.name}: ${path} instead of ${pair.expected}; ${detail}`);
  if (only.length === 0) await writePage(found, seconds);
  return bad.length === 0 ? 0 : 1;
}

/** A standing mesh with everybody who is in one of the pairs started. */
async function withGrid<T>(
  pairs: readonly Pair[],
  act: (mesh: Mesh, ends: ReadonlyMap<Pair, Ends>) => Promise<T>,
): Promise<T> {
  const world = new World(pairs);
  const topology = await buildTopology({ command: builtCommand(), oneWayDelayMs: ONE_WAY_MS, ...world.options });
  try {
    const mesh = new Mesh(topology);
    const used = new Set(pairs.flatMap(({ from, to }) => [from, to]));
    const byName = new Map([...used].map((name) => [name, new Place(mesh, world, name)] as const));
    const places = [...byName.values()];
    await mesh.writeManifest("nodes.yaml", nodesYaml(topology));
    await inTurns(places, JOINS, async ({ node, clusterIp }) => {
      const pod = node.pods[0]!;
      await startNginx(pod.host, { port: 8080, text: node.name.padEnd(FILE_BYTES, "\n") });
      await mesh.writeManifest(`${node.name}.yaml`, webService(node.name, clusterIp, [pod]));
    });
    await mesh.startServer();
    await inTurns(places, JOINS, ({ node, flags }) => mesh.join(node, { flags }));
    say(`${topology.sites.length} sites stand, ${places.length} agents are ready`);
    return await act(
      mesh,
      new Map(pairs.map((pair) => [pair, { from: byName.get(pair.from)!, to: byName.get(pair.to)! }])),
    );
  } finally {
    await topology.close();
  }
}

/** Several pairs at a time, never two that share an address: hole punching is between NATs that nobody else uses. */
async function probeAll(prober: Prober, pairs: ReadonlyMap<Pair, Ends>): Promise<readonly Found[]> {
  const busy = new Set<string>();
  const waiting = [...pairs];
  const found: Found[] = [];
  const running = new Set<Promise<void>>();
  const addresses = ({ from, to }: Ends) => [from.address, to.address];
  while (waiting.length > 0 || running.size > 0) {
    const next = running.size < AT_ONCE
      ? waiting.findIndex(([, ends]) => addresses(ends).every((a) => !busy.has(a)))
      : -1;
    if (next < 0) {
      await Promise.race(running);
      continue;
    }
    const [pair, ends] = waiting.splice(next, 1)[0]!;
    for (const address of addresses(ends)) busy.add(address);
    const run = prober.probe(pair, ends).then((result) => {
      found.push(result);
      tell(result, found.length, pairs.size);
      for (const address of addresses(ends)) busy.delete(address);
      running.delete(run);
    });
    running.add(run);
  }
  return found.sort((a, b) => PAIRS.indexOf(a.pair) - PAIRS.indexOf(b.pair));
}

function tell({ pair, path, firstMs, directMs, detail }: Found, n: number, of: number): void {
  const worse = RANK[path] < RANK[pair.expected] ? `  ← expected ${pair.expected}; ${detail}` : "";
  const direct = directMs === undefined ? "" : ` after ${Math.round(directMs)} ms`;
  say(`${n}/${of} ${pair.name}: ${path}${direct}, first answer ${Math.round(firstMs)} ms${worse}`);
}

function count(found: readonly Found[], path: Path): number {
  return found.filter((f) => f.path === path).length;
}

async function inTurns<T>(items: readonly T[], atOnce: number, act: (item: T) => Promise<unknown>): Promise<void> {
  const waiting = [...items];
  await Promise.all(Array.from({ length: atOnce }, async () => {
    for (let item = waiting.shift(); item !== undefined; item = waiting.shift()) await act(item);
  }));
}

async function writePage(found: readonly Found[], seconds: number): Promise<void> {
  const page = gridPage(found, {
    rttMs: 2 * ONE_WAY_MS,
    cpus: navigator.hardwareConcurrency,
    kernel: Deno.osRelease().split("-")[0]!,
    seconds,
  });
  await Deno.mkdir(PAGE.slice(0, PAGE.lastIndexOf("/")), { recursive: true });
  await Deno.writeTextFile(PAGE, page);
  await new Deno.Command(Deno.execPath(), { args: ["fmt", "--quiet", PAGE] }).output();
}

Deno.exit(await main(Deno.args.filter((arg) => arg !== "--alone")));
