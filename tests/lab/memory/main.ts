/**
 * `deno task lab:memory [--rounds N] [--way relay|direct|lan] [--engine fast|portable]`: whether memory is flat. For each
 * way between two agents and each TLS engine (or the one that is named), rounds of 1 000 streams and 1 000 UDP flows come
 * and go; a line for each says what the agents and the server hold when they are calm again. Fails where one holds more
 * from round to round, or more over its idle figure than what is loaded and compiled by the first use explains.
 */
import { until } from "../../../lib/lab/exec.ts";
import type { SiteSpec } from "../../../lib/lab/topology.ts";
import { withMesh } from "../fixture.ts";
import { calm, LOAD_FLAGS, mb, MemoryLoad } from "../memory_load.ts";
import { say } from "../support.ts";

const DEFAULT_ROUNDS = 6;
/**
 * Over idle, for good: functions that the first use compiles and V8 then optimizes, pages of the C heap around what V8 and
 * OpenSSL keep, pages of the program's file that were not needed before; 2 to 5 MB were measured.
 */
const WARM = 7_000_000;
/**
 * From the second round to the last: V8 still optimizes a function here and there, and calm is not twice the same to the
 * megabyte; 1.4 MB were measured, and no more after 13 rounds than after six. A kilobyte that each stream and flow leaves would be 8 MB in four rounds.
 */
const FLAT = 2_000_000;
/** The first round warms; what the second holds is compared with the last. */
const WARM_ROUNDS = 2;

type Way = "relay" | "direct" | "lan";
type Engine = "fast" | "portable";
const WAYS: Readonly<Record<Way, { readonly defaultRoute: boolean; readonly sites?: readonly SiteSpec[] }>> = {
  // Without a default route the two nodes reach the server's addresses and nothing else.
  relay: { defaultRoute: false },
  direct: { defaultRoute: true },
  lan: { defaultRoute: true, sites: [{ nat: "cone", nodes: 2 }] },
};
const ENGINES: readonly Engine[] = ["fast", "portable"];

const rounds = Number(flag("--rounds") ?? DEFAULT_ROUNDS);
if (!(rounds > WARM_ROUNDS)) {
  say(`--rounds must be more than ${WARM_ROUNDS}: the first ones only warm`);
  Deno.exit(2);
}
const ways = chosen("--way", Object.keys(WAYS) as Way[]);
const engines = chosen("--engine", ENGINES);
const failures: string[] = [];
for (const way of ways) for (const engine of engines) await run(way, engine);
for (const failure of failures) say(failure);
say(failures.length === 0 ? "flat" : "NOT flat");
if (failures.length > 0) Deno.exitCode = 1;

async function run(way: Way, engine: Engine): Promise<void> {
  await withMesh({ cloud: "none", web: ["edge-2-pod-1"], ...WAYS[way] }, async (mesh) => {
    const load = new MemoryLoad(mesh);
    await load.prepare();
    await mesh.startServer();
    const flags = [...LOAD_FLAGS, "--set", `tunnel.engine=${engine}`];
    await Promise.all(mesh.topology.nodes.map((node) => mesh.join(node, { flags })));
    const processes = [mesh.agent("edge-1"), mesh.agent("edge-2"), mesh.server];
    const idle = await calm(processes);
    const line = (when: string, held: readonly number[]) =>
      say(
        `${way}, ${engine}, ${when}: ${processes.map((p, i) => `${p.host.name} ${mb(held[i]!)}`).join(", ")} private`,
      );
    line("idle", idle);
    await load.streams(1);
    await until(`the way ${way}`, async () => (await load.path()) === way || undefined, 30_000);
    const held: (readonly number[])[] = [];
    for (let round = 1; round <= rounds; round++) {
      await load.round();
      held.push(await calm(processes));
      line(`round ${round}`, held.at(-1)!);
    }
    if ((await load.path()) !== way) failures.push(`${way}, ${engine}: the way changed`);
    for (const [i, { host }] of processes.entries()) {
      const [before, last] = [held[WARM_ROUNDS - 1]![i]!, held.at(-1)![i]!];
      const grown = `${way}, ${engine}, ${host.name}: ${mb(last)} at the end`;
      if (last - before > FLAT) failures.push(`${grown}, ${mb(before)} after round ${WARM_ROUNDS}`);
      if (last - idle[i]! > WARM) failures.push(`${grown}, ${mb(idle[i]!)} before any traffic`);
    }
  });
}

function chosen<T extends string>(name: string, all: readonly T[]): readonly T[] {
  const wanted = flag(name);
  if (wanted === undefined) return all;
  const found = all.filter((one) => one === wanted);
  if (found.length > 0) return found;
  say(`${name} must be one of ${all.join(", ")}, not ${wanted}`);
  Deno.exit(2);
}

function flag(name: string): string | undefined {
  return Deno.args.includes(name) ? Deno.args[Deno.args.indexOf(name) + 1] : undefined;
}
