import assert from "node:assert/strict";
import { type Selectable, selectEndpoints } from "./select.ts";

const VECTORS = new URL("../../../shared/vectors/kubeproxy-topology.json", import.meta.url);

interface VectorEndpoint {
  readonly endpoint: string;
  readonly ready: boolean;
  readonly serving: boolean;
  readonly terminating: boolean;
  readonly isLocal: boolean;
  readonly zoneHints?: readonly string[] | null;
}

interface Vector {
  readonly name: string;
  readonly zone: string | null;
  readonly internalPolicyLocal: boolean;
  readonly externalPolicyLocal: boolean;
  readonly nodePort: number;
  readonly endpoints: readonly VectorEndpoint[];
  readonly cluster: readonly string[] | null;
  readonly local: readonly string[] | null;
  readonly all: readonly string[];
  readonly hasAny: boolean;
}

Deno.test("select: every row of kube-proxy's topology table", async (t) => {
  let text: string;
  try {
    text = await Deno.readTextFile(VECTORS);
  } catch (error) {
    if (!(error instanceof Deno.errors.NotFound)) throw error;
    // deno-lint-ignore no-console -- a skipped test says so
    console.log(`skipped: ${VECTORS.pathname} is absent`);
    return;
  }
  const cases = (JSON.parse(text) as { cases: readonly Vector[] }).cases;
  assert.ok(cases.length >= 26);
  for (const c of cases) {
    await t.step(c.name, () => {
      const endpoints = c.endpoints.map((e) => ({
        id: e.endpoint,
        ready: e.ready,
        serving: e.serving,
        terminating: e.terminating,
        local: e.isLocal,
        hintZones: e.zoneHints ?? [],
      }));
      const got = selectEndpoints(endpoints, {
        internalLocal: c.internalPolicyLocal,
        externalLocal: c.externalPolicyLocal,
        externallyAccessible: c.nodePort !== 0,
      }, { node: "here", ...(c.zone === null ? {} : { zone: c.zone }) });
      assert.deepEqual(got.cluster?.map((e) => e.id) ?? null, c.cluster);
      assert.deepEqual(got.local?.map((e) => e.id) ?? null, c.local);
      assert.deepEqual([...got.all].map((e) => e.id).sort(), [...c.all].sort());
      assert.equal(got.hasAny, c.hasAny);
    });
  }
});

const ready = { ready: true, serving: true, terminating: false, local: false };
const cluster = { internalLocal: false, externalLocal: false, externallyAccessible: false };

Deno.test("select: node hints win over zone hints, and only when all ready endpoints carry them", () => {
  const a: Selectable = { ...ready, hintNodes: ["n1"], hintZones: ["z1"] };
  const b: Selectable = { ...ready, hintNodes: ["n2"], hintZones: ["z1"] };
  const bare: Selectable = { ...ready, hintZones: ["z1"] };
  const here = { node: "n1", zone: "z1" };
  assert.deepEqual(selectEndpoints([a, b], cluster, here).cluster, [a]);
  assert.deepEqual(selectEndpoints([a, b, bare], cluster, here).cluster, [a, b, bare]);
  assert.deepEqual(selectEndpoints([a, b], cluster, { node: "n3", zone: "z1" }).cluster, [a, b]);
});

Deno.test("select: an unready endpoint that is not terminating is never used", () => {
  const down: Selectable = { ready: false, serving: true, terminating: false, local: true };
  const got = selectEndpoints([down], { internalLocal: true, externalLocal: true, externallyAccessible: true }, {
    node: "n",
  });
  assert.deepEqual([got.cluster, got.local, got.all, got.hasAny], [[], [], [], false]);
});
