import assert from "node:assert/strict";
import { FULL_SCOPE, scopeFor, scopeLabels } from "./scope.ts";

const RULES = [
  { nodes: ["edge-1"], namespaces: ["shop"], pods: undefined },
  { nodes: ["store-*-till", "*-cam"], serviceLabels: { tier: "edge" } },
  { nodes: ["*"], namespaces: ["common"], pods: "none" },
] as const;

Deno.test("scope: the first rule that names the node, and everything without one", () => {
  assert.deepEqual(scopeFor("edge-1", RULES), { namespaces: ["shop"] });
  for (const node of ["store-7-till", "store--till", "x-cam"]) {
    assert.deepEqual(scopeFor(node, RULES), { serviceLabels: { tier: "edge" } }, node);
  }
  for (const node of ["edge-10", "store-till", "cam"]) {
    assert.deepEqual(scopeFor(node, RULES), { namespaces: ["common"], pods: "none" }, node);
  }
  assert.equal(scopeFor("edge-1", []), FULL_SCOPE);
  assert.deepEqual(scopeLabels(RULES), ["tier"]);
});
