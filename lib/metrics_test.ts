import assert from "node:assert/strict";
import { Registry } from "./metrics.ts";

Deno.test("Registry exposes counters, gauges and cumulative histograms", () => {
  const r = new Registry();
  const c = r.counter("edgemesh_requests_total", "Requests", ["way"]);
  c.add(2, "kernel");
  c.add(1, 'a"b\n');
  r.observed("edgemesh_peers", "Peers", () => 3);
  const h = r.histogram("edgemesh_connect_seconds", "Connect time", [0.1, 1]);
  for (const v of [0.05, 0.5, 5]) h.observe(v);
  const text = r.expose();
  for (
    const line of [
      'edgemesh_requests_total{way="kernel"} 2',
      'edgemesh_requests_total{way="a\\"b\\n"} 1',
      "edgemesh_peers 3",
      'edgemesh_connect_seconds_bucket{le="0.1"} 1',
      'edgemesh_connect_seconds_bucket{le="1"} 2',
      'edgemesh_connect_seconds_bucket{le="+Inf"} 3',
      "edgemesh_connect_seconds_count 3",
    ]
  ) assert.ok(text.split("\n").includes(line), `${line} is missing in\n${text}`);
});

Deno.test("Registry refuses names that Prometheus' linter would refuse, and repeats", () => {
  const r = new Registry();
  assert.throws(() => r.counter("edgemesh_requests", "x"), RangeError);
  assert.throws(() => r.gauge("Requests", "x"), RangeError);
  r.gauge("edgemesh_peers", "x");
  assert.throws(() => r.gauge("edgemesh_peers", "x"), RangeError);
});

Deno.test("Registry bounds the label sets of a metric", () => {
  const r = new Registry();
  const c = r.counter("edgemesh_x_total", "x", ["who"]);
  for (let i = 0; i < 5000; i++) c.add(1, `name-${i}`);
  const lines = r.expose().split("\n").filter((l) => l.startsWith("edgemesh_x_total{"));
  assert.ok(lines.length <= 2001);
  assert.ok(lines.some((l) => l.startsWith('edgemesh_x_total{who="other"} ')));
});
