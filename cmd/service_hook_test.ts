import assert from "node:assert/strict";
import { startsAgain } from "./service_hook.ts";

Deno.test("service-hook: an agent that is not started again leaves nothing; one that is keeps its rules", () => {
  const cases: readonly [string, string, boolean][] = [
    ["success", "0", false],
    ["timeout", "KILL", false],
    ["exit-code", "2", false],
    ["exit-code", "1", true],
    ["signal", "KILL", true],
    ["watchdog", "ABRT", true],
    ["core-dump", "SEGV", true],
  ];
  for (const [SERVICE_RESULT, EXIT_STATUS, again] of cases) {
    assert.equal(startsAgain({ SERVICE_RESULT, EXIT_STATUS }), again, `${SERVICE_RESULT} ${EXIT_STATUS}`);
  }
});
