import assert from "node:assert/strict";
import { cidrText } from "../../lib/addr.ts";
import { parseConfig } from "../../lib/config.ts";
import { metaOf } from "../../tests/fixtures/meta_literal.ts";
import { connectionLimit, nodeFacts } from "./facts.ts";

const node = (name: string, ...podCIDRs: string[]) => ({ name, internalIPs: [], podCIDRs, labels: {} });
const meta = metaOf({
  nodes: [
    node("n1", "10.244.1.0/24"),
    node("n2", "10.244.2.0/24", "fd00:2::/64"),
    node("n3", "10.244.3.0/24"),
    node("docker-a", "172.17.0.0/16"),
    node("docker-b", "172.17.0.0/16"),
    node("shadow", "10.244.1.128/25"),
  ],
});

function routable(...routableCIDRs: string[]): string[] {
  const parsed = parseConfig("agent", { mesh: { routableCIDRs } });
  assert.ok("config" in parsed);
  return nodeFacts({ config: parsed.config, meta, node: "n1" }).routable.map((r) => `${r.node} ${cidrText(r.cidr)}`);
}

Deno.test("facts: nothing is routable unless declared; then whole pod networks of other nodes inside it", () => {
  assert.deepEqual(routable(), []);
  assert.deepEqual(routable("10.244.0.0/16"), ["n2 10.244.2.0/24", "n3 10.244.3.0/24"]);
  assert.deepEqual(routable("10.244.3.0/24", "fd00::/16"), ["n2 fd00:2::/64", "n3 10.244.3.0/24"]);
  assert.deepEqual(routable("10.244.3.0/25"), []);
});

Deno.test("facts: a network that several nodes have, or our own pods, is never routable", () => {
  assert.deepEqual(routable("172.16.0.0/12", "10.244.1.0/24"), []);
});

Deno.test("facts: connections as configured, as far as there are descriptors", () => {
  const parsed = parseConfig("agent", { forward: { maxConnections: 1000 } });
  assert.ok("config" in parsed);
  const limits = [100, 1024, 2256, 2257, 65536].map((files) => connectionLimit(parsed.config, files));
  assert.deepEqual(limits, [16, 384, 1000, 1000, 1000]);
});
