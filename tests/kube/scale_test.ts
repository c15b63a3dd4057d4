/** 5 000 Services with 50 000 endpoints: memory above an empty process, every turn of the loop, one change. */
// deno-lint-ignore-file no-console -- the numbers are for whoever runs it
import assert from "node:assert/strict";
import { above, longest, MetaMachine, undisturbed } from "../bench/meta_machine.ts";
import { allowed } from "../lab/fixture.ts";

const MAX_MB = 60;
/** Of the main thread's processor time, in any turn of any list that is taken anew. */
const MAX_TURN_MS = 10;
const MAX_CHANGE_MS = 1;
const RELISTS = 3;
/** Further ones, for those in which the machine stood still. */
const SPARE = 2;

Deno.test("scale: 5 000 Services and 50 000 endpoints, listed and listed again", async () => {
  await using machine = await MetaMachine.start();
  const { empty } = machine;
  let last = await machine.measured();
  assert.deepEqual([last.services, last.endpoints], [5000, 50_000]);
  console.log(`  above an empty process of ${empty.rss.toFixed(1)} MB RSS after the first sync ${above(last, empty)}`);
  console.log(`  first sync ${last.syncMs.toFixed(0)} ms, longest turn ${longest(last.turns).cpu.toFixed(1)} ms`);

  const turns: number[] = [];
  for (let spare = SPARE; turns.length < RELISTS;) {
    last = await machine.relist();
    assert.deepEqual([last.services, last.endpoints], [5000, 50_000]);
    const turn = longest(last.turns);
    if (turn.cpu > MAX_TURN_MS && !undisturbed(turn) && spare-- > 0) {
      console.log(`  the machine stood still for ${turn.wall.toFixed(0)} ms: once more`);
    } else turns.push(turn.cpu);
  }
  console.log(
    `  relists: longest turns ${turns.map((t) => t.toFixed(1)).join(", ")} ms; above it ${above(last, empty)}`,
  );
  console.log(`  one endpoint changed in ${(last.oneChange * 1000).toFixed(0)} µs`);
  assert.ok(last.oneChange < allowed(MAX_CHANGE_MS), `one change ${last.oneChange} ms`);
  assert.ok(last.rss - empty.rss <= MAX_MB, `${above(last, empty)} above an empty process`);
  assert.ok(Math.max(...turns) <= allowed(MAX_TURN_MS), `longest turns of relists ${turns} ms`);
});
