/**
 * What every back end of the rule writer must do, said once: as packets see it and as a listing shows it. The fake
 * and the real kernel run the same suite; that is what makes tests over the fake worth something.
 */
import { type RulesBench, rulesFor } from "./rules_bench.ts";
import { CHANGES } from "./rules_changes.ts";
import { PACKETS } from "./rules_packets.ts";

/** Registers the suite for one back end, as steps of one test: the machine around it is costly to make. */
export function rulesContract(name: string, open: () => Promise<RulesBench>): void {
  Deno.test(`rules contract, ${name}`, async (t) => {
    const bench = await open();
    try {
      for (const [title, body] of [...PACKETS, ...CHANGES]) {
        await t.step(title, async () => {
          await bench.remove("all");
          await body(bench, rulesFor(bench.grammar));
        });
      }
    } finally {
      await bench.close();
    }
  });
}
