import assert from "node:assert/strict";
import { LanNodes } from "./lan_nodes.ts";

Deno.test("LAN nodes: reached in the LAN, reached otherwise, and after a change of network", () => {
  const seen: string[] = [];
  const nodes = new LanNodes(() => seen.push(nodes.names.join()));
  nodes.reached("b", "lan");
  nodes.reached("a", "lan");
  nodes.reached("a", "lan");
  nodes.reached("c", "relay");
  nodes.reached("b", "direct");
  nodes.clear();
  nodes.clear();
  assert.deepEqual(seen, ["b", "a,b", "a", ""]);
});
