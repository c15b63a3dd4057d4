import assert from "node:assert/strict";
import { configPaths } from "../lib/config.ts";
import { checkConfig } from "../lib/config_load.ts";
import { shownConfig } from "./config.ts";

Deno.test("config: every path is shown with the place it was said, secrets are not", () => {
  const { config, origin } = checkConfig("agent", {
    flags: { nodeName: "edge-1" },
    env: { EDGEMESH_DNS_ZONE: "edge.local" },
    file: { name: "a.yaml", text: "tokenFile: em_abcdefgh.canary7canary7canary7canar\nforward:\n  accessLog: true\n" },
  });
  const shown = shownConfig("agent", config!, origin);
  assert.deepEqual(Object.keys(shown.origin), configPaths("agent"));
  const { nodeName, "dns.zone": zone, "forward.accessLog": access, tokenFile, "dns.port": port } = shown.origin;
  assert.deepEqual([nodeName, zone, access, tokenFile, port], [
    "flag",
    "environment EDGEMESH_DNS_ZONE",
    "a.yaml:3",
    "a.yaml:1",
    "default",
  ]);
  assert.ok(!JSON.stringify(shown).includes("canary"));
  assert.equal(shown.config.nodeName, "edge-1");
});

Deno.test("config: problems are told with path and place, all of them", () => {
  const { config, problems } = checkConfig("server", {
    flags: {},
    env: {},
    file: { name: "s.yaml", text: "listen: 443\n\nurl: http://x\nserviceCIDRs:\n  - 10.0.0.1/8\n" },
  });
  assert.equal(config, undefined);
  assert.deepEqual(problems.map((p) => [p.path, p.where]), [
    ["listen", "s.yaml:1"],
    ["url", "s.yaml:3"],
    ["serviceCIDRs.0", "s.yaml:4"],
  ]);
});
