import assert from "node:assert/strict";
import { configPaths } from "../../lib/config.ts";
import { loadConfig } from "../../lib/config_load.ts";
import { LIVE, planReload } from "./reload.ts";

const agent = (text: string) => loadConfig("agent", { flags: {}, env: {}, file: { name: "a.yaml", text } }).config;

Deno.test("reload: what can change does, what cannot is named and stays as it was", () => {
  const before = agent("dns: { zone: a.local }\n");
  const wanted = agent(
    "nodeName: x\nlog: { level: debug }\ndns: { zone: b.local, enabled: false }\nforward: { hostPorts: [22], accessLog: true }\n",
  );
  const { next, applied, waiting } = planReload("agent", before, wanted);
  assert.deepEqual(applied, ["log.level", "dns.enabled", "forward.hostPorts", "forward.accessLog"]);
  assert.deepEqual(waiting, ["nodeName", "dns.zone"]);
  assert.deepEqual([next.log.level, next.dns.enabled, next.dns.zone, next.nodeName], [
    "debug",
    false,
    "a.local",
    undefined,
  ]);
  assert.deepEqual(next.forward.hostPorts, [22]);
  assert.deepEqual([before.log.level, before.dns.enabled, before.forward.hostPorts], ["info", true, []]);
});

Deno.test("reload: what waits for a restart is named again at the next reload; what is in force is not", () => {
  const wanted = agent("log: { level: debug }\ndns: { port: 5353 }\n");
  const first = planReload("agent", agent(""), wanted);
  const second = planReload("agent", first.next, wanted);
  assert.deepEqual([second.applied, second.waiting], [[], ["dns.port"]]);
  assert.deepEqual(planReload("agent", first.next, agent("")).applied, ["log.level"]);
});

Deno.test("reload: every live path exists", () => {
  for (const role of ["agent", "server"] as const) {
    for (const path of LIVE[role]) assert.ok(configPaths(role).includes(path), path);
  }
});
