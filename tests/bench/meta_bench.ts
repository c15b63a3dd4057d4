/**
 * How long the loop is held while 5 000 Services with 50 000 endpoints are listed for the first time and then again and
 * again, what of it is V8's collector, and what all of it weighs.
 *
 *   deno task bench:meta [--relists 12]
 *
 * Ends with exit code 1 when a relist held the loop for more than ten milliseconds of processor time in a turn in which
 * the machine did not stand still.
 */
// deno-lint-ignore-file no-console -- its output is its purpose
import { parseArgs } from "node:util";
import type { Collection } from "./meta_machine.ts";
import { above, longest, MetaMachine, undisturbed } from "./meta_machine.ts";
import type { Measured } from "./meta_scale.ts";

const MAX_TURN_MS = 10;

const { values } = parseArgs({ args: Deno.args, options: { relists: { type: "string", default: "12" } } });

await using machine = await MetaMachine.start();
const first = await machine.measured();
const relists: Measured[] = [];
for (let i = 0; i < Number(values.relists); i++) relists.push(await machine.relist());
const collections = await machine.collections(first.collectedAt);

const { services, endpoints, syncMs } = first;
console.log(`${services} Services, ${endpoints} endpoints; first sync ${syncMs.toFixed(0)} ms`);
console.log(`  ${told([first], collections)}`);
console.log(`${relists.length} relists`);
for (const relist of relists) console.log(`  ${told([relist], collections)}`);
const worst = relists.map((r) => longest(r.turns).cpu).sort((a, b) => a - b);
console.log(
  `longest turn of each: min ${worst[0]!.toFixed(1)}, median ${worst[worst.length >> 1]!.toFixed(1)}, ` +
    `max ${worst.at(-1)!.toFixed(1)} ms; ${told(relists, collections)}`,
);
const last = relists.at(-1) ?? first;
console.log(`one endpoint changed in ${(last.oneChange * 1000).toFixed(0)} µs`);
console.log(
  `above an empty process (${machine.empty.rss.toFixed(1)} MB RSS): ${above(first, machine.empty)} when synced`,
);
console.log(`  ${above(last, machine.empty)} in the end`);
const good = relists.map((r) => longest(r.turns)).every((t) => t.cpu <= MAX_TURN_MS || !undisturbed(t));
console.log(good ? "meta: ok" : "meta: FAILED");
Deno.exitCode = good ? 0 : 1;

/** The longest turn with what the collector had of it, and the collector's share of all turns. */
function told(measured: readonly Measured[], collections: readonly Collection[]): string {
  const turns = measured.flatMap((m) => m.turns);
  const worst = longest(turns);
  // V8 tells the end of a collection in whole milliseconds.
  const during = (turn: typeof worst) =>
    collections.filter((c) => c.at > turn.at - turn.wall - 1 && c.at < turn.at + 1);
  const inWorst = during(worst);
  const all = new Set(turns.flatMap(during));
  const ms = [...all].reduce((sum, c) => sum + c.ms + c.steps, 0);
  const cpu = turns.reduce((sum, t) => sum + t.cpu, 0);
  return `longest turn ${worst.cpu.toFixed(1)} ms of processor time (${worst.wall.toFixed(1)} on the clock), ` +
    `collector ${inWorst.reduce((sum, c) => sum + c.ms, 0).toFixed(1)} ms of it` +
    `${inWorst.length > 0 ? ` (${inWorst.map((c) => c.name).join(", ")})` : ""}; ` +
    `in turns of 1 ms and more ${cpu.toFixed(0)} ms, ${(ms / cpu * 100).toFixed(0)} % of them the collector's`;
}
