import assert from "node:assert/strict";
import fc from "fast-check";
import { type EndpointLiteral, metaOf, service, slice } from "../../../tests/fixtures/meta_literal.ts";
import { parseCidr } from "../../addr.ts";
import type { IpPort } from "../../net.ts";
import { type Balance, DEFAULT_FORWARD_CONFIG, type ForwardConfig, type NodeFacts } from "../facts.ts";
import { planForwarding } from "../plan.ts";
import type { Plan, PlannedPort } from "../plan_model.ts";
import { compileRules, targetsOf } from "./compile.ts";
import { diffRulesets, diffState } from "./diff.ts";
import { FakeKernel } from "./fake.ts";
import { parseTable } from "./nft_parse.ts";
import { renderOperations } from "./nft_render.ts";
import { type Grammar, type Ruleset, TABLE } from "./ruleset.ts";
import { shardsFor, spread, type Target } from "./spread.ts";
import { Tracer } from "./trace.ts";
import { RuleWriter } from "./writer.ts";

const facts: NodeFacts = {
  node: "n1",
  addresses: ["192.0.2.1", "169.254.96.16"],
  podCidrs: [parseCidr("10.1.0.0/24")!],
  routable: [{ node: "n2", cidr: parseCidr("10.2.0.0/24")! }],
  mesh4: "169.254.96.16",
  mesh6: "fd96::16",
  hairpinLinks: ["cni0"],
};
const listeners = { tcp4: { ip: "169.254.96.16", port: 19001 }, tcp6: { ip: "fd96::16", port: 19001 }, udp: new Map() };

/** A cluster of a few Services; small numbers, so that changes meet each other. */
const endpoint = fc.record({ node: fc.constantFrom("n1", "n2", "n3", undefined), n: fc.integer({ min: 2, max: 6 }) });
const aService = fc.record({
  name: fc.constantFrom("a", "b", "c"),
  vip: fc.integer({ min: 1, max: 3 }),
  endpoints: fc.array(endpoint, { maxLength: 12 }),
  nodePort: fc.option(fc.integer({ min: 30000, max: 30002 }), { nil: undefined }),
  affinity: fc.option(fc.constantFrom(10, 20), { nil: undefined }),
  local: fc.boolean(),
  externalLocal: fc.boolean(),
  six: fc.boolean(),
});
const cluster = fc.uniqueArray(aService, { maxLength: 3, selector: (s) => s.name });
type Cluster = typeof cluster extends fc.Arbitrary<infer T> ? T : never;

function plan(of: Cluster, balance: Balance, previous?: Plan): Plan {
  const byNode: Record<string, string> = { n1: "10.1.0", n2: "10.2.0", n3: "10.3.0" };
  const literal = ({ node, n }: { node: string | undefined; n: number }): EndpointLiteral =>
    node === undefined ? { ip: `203.0.113.${n}` } : { ip: `${byNode[node]}.${n}`, node };
  const meta = metaOf({
    services: of.map((s) =>
      service(`ns/${s.name}`, {
        clusterIPs: s.six ? [`10.96.0.${s.vip}`, `fd00::${s.vip}`] : [`10.96.0.${s.vip}`],
        ports: [{ port: 80, ...(s.nodePort === undefined ? {} : { nodePort: s.nodePort }) }],
        ...(s.affinity === undefined ? {} : { affinitySeconds: s.affinity }),
        internalTrafficPolicy: s.local ? "Local" : "Cluster",
        externalTrafficPolicy: s.externalLocal ? "Local" : "Cluster",
      })
    ),
    slices: of.map((s) => slice(`ns/${s.name}`, s.endpoints.map(literal))),
  });
  return planForwarding(meta, facts, configOf(balance), previous);
}

/** One object per balance: plans keep identities only for the same configuration. */
const configs = new Map<Balance, ForwardConfig>();
function configOf(balance: Balance): ForwardConfig {
  let config = configs.get(balance);
  if (!config) {
    config = { ...DEFAULT_FORWARD_CONFIG, balance, refuseCidrs: [parseCidr("10.96.0.0/16")!] };
    configs.set(balance, config);
  }
  return config;
}

const run = fc.record({
  steps: fc.array(cluster, { minLength: 1, maxLength: 6 }),
  balance: fc.constantFrom<Balance>("round-robin", "random", "source-hash"),
  grammar: fc.constantFrom<Grammar>("full", "nft"),
});

async function listing(kernel: FakeKernel, ruleset: Ruleset) {
  return await kernel.list(new Map(ruleset.tables.map((t) => [t.name, t.sets])));
}

Deno.test("rules: a series of changes ends where writing everything at once does", async () => {
  await fc.assert(
    fc.asyncProperty(run, async ({ steps, balance, grammar }) => {
      const kernel = new FakeKernel(grammar);
      const writer = new RuleWriter(kernel);
      let previous: Plan | undefined;
      let ruleset: Ruleset | undefined;
      for (const step of steps) {
        previous = plan(step, balance, previous);
        ruleset = compileRules(previous, listeners, { previous: ruleset, grammar });
        await writer.apply(ruleset);
        assert.deepEqual(diffState(await listing(kernel, ruleset), ruleset), [], "the listing is what was wanted");
      }
      const fresh = new FakeKernel(grammar);
      const whole = compileRules(plan(steps.at(-1)!, balance), listeners, { grammar });
      await new RuleWriter(fresh).apply(whole);
      assert.deepEqual(await listing(kernel, whole), await listing(fresh, whole));
      assert.deepEqual(diffRulesets(ruleset, ruleset!), []);
    }),
    { numRuns: 150 },
  );
});

Deno.test("rules: packets meet exactly the targets that the plan allows, and nothing else", async () => {
  await fc.assert(
    fc.asyncProperty(cluster, run, async (of, { balance, grammar }) => {
      const kernel = new FakeKernel(grammar);
      const p = plan(of, balance);
      await new RuleWriter(kernel).apply(compileRules(p, listeners, { grammar }));
      const ports = [...p.services.values()].flatMap((s) => s.ports);
      for (const port of ports) for (const frontend of port.frontends) checkFrontend(kernel, port, frontend);
    }),
    { numRuns: 150 },
  );
});

function checkFrontend(kernel: FakeKernel, port: PlannedPort, frontend: PlannedPort["frontends"][number]): void {
  const ip = frontend.kind === "node-port" ? "192.0.2.1" : frontend.ip;
  if (frontend.kind === "node-port" && port.family === 6) return;
  const tracer = new Tracer(kernel, { hostAddresses: facts.addresses });
  const inside = port.family === 4 ? "10.1.0." : "fd00:1::";
  const outside = port.family === 4 ? "198.51.100." : "2001:db8::";
  for (const [clients, external] of [[inside, port.externalFromHere], [outside, port.external]] as const) {
    const verdict = frontend.kind === "cluster-ip" ? port.internal : external;
    const only = { ...port, external: verdict, externalFromHere: verdict };
    const allowed = new Set(targetsOf(only, frontend, listeners).map((t) => `${t.ip}:${t.port}`));
    const seen = new Set<string>();
    // Each client once, so that affinity does not keep it; enough of them for every slot's turn.
    for (let i = 0; i < 100; i++) {
      const from = { ip: `${clients}${i}`, port: 9 };
      const traced = tracer.trace({ protocol: "tcp", from, to: { ip, port: frontend.port }, via: "p" });
      if (verdict.verdict === "forward") {
        assert.equal(traced.fate, "forwarded");
        if (traced.fate === "forwarded") seen.add(`${traced.to.ip}:${traced.to.port}`);
      } else assert.equal(traced.fate, verdict.verdict);
    }
    for (const target of seen) assert.ok(allowed.has(target), `${target} is not allowed`);
    if (port.balance === "round-robin" && port.affinitySeconds === undefined) assert.deepEqual(seen, allowed);
  }
}

const web: PlannedPort = plan([{
  name: "a",
  vip: 1,
  endpoints: [{ node: "n1", n: 2 }],
  nodePort: undefined,
  affinity: undefined,
  local: false,
  externalLocal: false,
  six: false,
}], "round-robin").services.get("ns/a")!.ports[0]!;

function targets(shares: readonly number[]): Target[] {
  return shares.map((share, i) => ({
    to: { ip: `10.0.0.${i}`, port: 80 },
    keys: Array.from({ length: share }, (_, j) => `${i}/${j}`),
  }));
}

/** Sends packets through the chains of one spread. */
async function trace(of: ReturnType<typeof spread>, shards: number, clients: readonly string[]): Promise<IpPort[]> {
  const kernel = new FakeKernel(shards > 0 ? "full" : "nft");
  const sets = Array.from({ length: shards }, (_, i) => ({
    name: `slots4-${i}`,
    key: ["u32", "u32", "u32"] as const,
    value: ["ipv4", "port"] as const,
  }));
  const hook = { type: "nat", at: "prerouting", priority: 0 } as const;
  await kernel.commit([
    { op: "table", table: { name: TABLE, owned: false, sets, chains: [{ name: "in", hook, rules: [] }] } },
    ...of.chains.map((chain) => ({ op: "add-chain", table: TABLE, chain }) as const),
    ...of.chains.map((chain) => ({ op: "fill-chain", table: TABLE, chain }) as const),
    ...(of.slots ? [{ op: "add", table: TABLE, set: of.slots.set, elements: of.slots.elements } as const] : []),
    {
      op: "fill-chain",
      table: TABLE,
      chain: { name: "in", hook, rules: [{ match: [], action: { goto: of.chains[0]!.name } }] },
    },
  ]);
  const tracer = new Tracer(kernel);
  return clients.map((ip) => {
    const traced = tracer.trace({
      protocol: "tcp",
      from: { ip, port: 1 },
      to: { ip: "10.96.0.1", port: 80 },
      via: "p",
    });
    assert.equal(traced.fate, "forwarded");
    return traced.fate === "forwarded" ? traced.to : { ip: "", port: 0 };
  });
}

for (const shards of [0, 4]) {
  Deno.test(`spread (${shards ? "slot maps" : "trees"}): shares are exact for any number of targets and any shares`, async () => {
    const shares = fc.array(fc.integer({ min: 1, max: 4 }), { minLength: 2, maxLength: 120 });
    await fc.assert(
      fc.asyncProperty(shares, async (of) => {
        const total = of.reduce((a, b) => a + b);
        const got = await trace(spread("svc-x", web, targets(of), shards), shards, new Array(total).fill("10.1.0.9"));
        of.forEach((share, i) => assert.equal(got.filter((to) => to.ip === `10.0.0.${i}`).length, share));
      }),
      { numRuns: 40 },
    );
  });

  Deno.test(`spread (${shards ? "slot maps" : "trees"}): by source, clients stay, and few move when a target goes`, async () => {
    const port = { ...web, balance: "source-hash" as const };
    const clients = Array.from({ length: 300 }, (_, i) => `10.1.${i >> 8}.${i & 255}`);
    const all = targets([1, 1, 1, 1, 1]);
    const before = await trace(spread("svc-x", port, all, shards), shards, clients);
    assert.deepEqual(await trace(spread("svc-x", port, all, shards), shards, clients), before);
    const after = await trace(spread("svc-x", port, all.filter((_, i) => i !== 2), shards), shards, clients);
    before.forEach((to, i) => to.ip !== "10.0.0.2" && assert.deepEqual(after[i], to));
    for (let i = 0; i < 5; i++) {
      const share = before.filter((to) => to.ip === `10.0.0.${i}`).length;
      assert.ok(share > 20 && share < 120, `target ${i} has ${share} of 300`);
    }
  });
}

Deno.test("spread: chains stay short and the tree stays flat", () => {
  for (const count of [2, 8, 9, 64, 65, 1000]) {
    const { chains } = spread("svc-x", web, targets(new Array(count).fill(1)), 0);
    const depth = Math.max(...chains.map((c) => c.name.split("/").length));
    assert.ok(chains.every((c) => c.rules.length <= 8));
    assert.ok(depth <= Math.ceil(Math.log2(count) / 3) + 1, `${count}: ${depth}`);
  }
});

Deno.test("spread: maps double only when they are twice too full, and never shrink", () => {
  assert.deepEqual([0, 1, 64, 65, 5000].map((ports) => shardsFor(ports, 0)), [1, 1, 1, 2, 128]);
  assert.deepEqual([[128, 1], [129, 1], [0, 128]].map(([ports, before]) => shardsFor(ports!, before!)), [1, 2, 128]);
});

Deno.test("nft: what is rendered is said in words that nft has had since 0.9.8", () => {
  const p = plan([{
    name: "a",
    vip: 1,
    endpoints: [{ node: "n1", n: 2 }, { node: "n1", n: 3 }],
    nodePort: 30000,
    affinity: 10,
    local: false,
    externalLocal: false,
    six: true,
  }], "round-robin");
  const text = renderOperations(diffRulesets(undefined, compileRules(p, listeners, { grammar: "nft" })));
  assert.doesNotMatch(text, /undefined|\[object|NaN/);
  assert.match(text, /numgen inc mod 2 < 1 dnat ip to 10\.1\.0\.2:8080/);
  assert.match(text, /update @affinity4 \{ .* timeout 10s : ip daddr \. th dport \}/);
  assert.doesNotMatch(text, /update @affinity6/);
});

Deno.test("nft: a listing of foreign shapes is read as something that is not ours", () => {
  const json = JSON.stringify({
    nftables: [
      { metainfo: {} },
      { chain: { name: "dispatch", table: TABLE } },
      { rule: { chain: "dispatch", expr: [{ accept: null }] } },
      { rule: { chain: "unknown", expr: [] } },
      { set: { name: "vips4", elem: ["10.96.0.1", { range: ["10.0.0.1", "10.0.0.9"] }] } },
      { map: { name: "services4", elem: [[{ concat: ["10.96.0.1", "tcp", 80] }, { accept: null }]] } },
      { counter: { name: "x" } },
    ],
  });
  const state = parseTable(json, []);
  assert.deepEqual(state.chains.get("dispatch")!.tags, [""]);
  assert.deepEqual([...state.sets.get("vips4")!.keys()], ["10.96.0.1", '{"range":["10.0.0.1","10.0.0.9"]}']);
  assert.deepEqual([...state.sets.get("services4")!], [["10.96.0.1 . tcp . 80", "accept"]]);
  assert.throws(() => parseTable("{}", []), /nftables/);
});
