import assert from "node:assert/strict";
import { Registry } from "./metrics.ts";
import { lintMetrics } from "./metrics_lint.ts";

Deno.test("what the registry exposes passes the linter", () => {
  const r = new Registry();
  r.counter("edgemesh_x_total", "X", ["way"]).add(1, "kernel");
  r.gauge("edgemesh_rtt_seconds", "Y").set(0.5);
  r.histogram("edgemesh_connect_duration_seconds", "Z", [0.1], ["way"]).observe(0.2, "tunnel");
  assert.deepEqual(lintMetrics(r.expose()), []);
});

for (
  const [text, said] of [
    ["# HELP a_total A\n# TYPE a_total gauge\na_total 1\n", /gauge must not end in _total/],
    ["# HELP a A\n# TYPE a counter\na 1\n", /must end in _total/],
    ["# HELP a_ms A\n# TYPE a_ms gauge\na_ms 1\n", /use seconds/],
    ["# TYPE a gauge\na 1\n", /no HELP/],
    ["a 1\n", /no TYPE/],
    ["# HELP a A\n# TYPE a histogram\n", /histogram without unit/],
    ['# HELP a A\n# TYPE a gauge\na{client="1.2.3.4"} 1\n', /per client/],
    ['# HELP a A\n# TYPE a gauge\na{Way="x"} 1\n', /lower case/],
    ["# HELP a A\n# TYPE a gauge\na 1\na 2\n", /same labels/],
    ["# HELP a A\n# TYPE a gauge\na one\n", /not a sample/],
    ["# HELP a_gauge A\n# TYPE a_gauge gauge\na_gauge 1\n", /type is in its name/],
    ["# HELP a A\n# TYPE a gauge\na 1", /no end/],
  ] as const
) {
  Deno.test(`linter: ${JSON.stringify(text)}`, () => assert.match(lintMetrics(text).join("\n"), said));
}
