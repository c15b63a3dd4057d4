/** What happens between rulesets: changes, crashes, the deeds of others, removal. */
import { strict as assert } from "node:assert";
import { cidrText, parseCidr } from "../../lib/addr.ts";
import { AGENT_TABLE, type Ruleset, TABLE } from "../../lib/forward/rules/ruleset.ts";
import { type Literals, service, slice } from "../fixtures/meta_literal.ts";
import { away, type Case, here, MACHINE, server, tcp, times, VIP, VIP6, web } from "./rules_bench.ts";

/** In this order. */
export const CHANGES: [string, Case][] = [];
const test = (title: string, body: Case) => void CHANGES.push([title, body]);

test("a change touches only what changed, and counters of others go on", async (bench, rules) => {
  const literals = (last: number): Literals => ({
    services: [service("shop/web", { clusterIPs: [VIP] }), service("shop/other", { clusterIPs: ["10.96.0.11"] })],
    slices: [slice("shop/web", [here(5), here(last)]), slice("shop/other", [here(5), here(6)])],
  });
  const first = rules(literals(6));
  await bench.apply(first);
  const before = server(await bench.ask(tcp("10.96.0.11")));
  const second = rules(literals(7), {}, first);
  // One endpoint replaced: its slot is deleted and added (or its Service's chain filled anew), and its pod may now be
  // its own client. Nothing else.
  assert.deepEqual(await bench.apply(second), { operations: bench.grammar === "full" ? 3 : 2 });
  assert.deepEqual(await times(4, bench, tcp(VIP)), { "10.1.0.5:8080": 2, "10.1.0.7:8080": 2 });
  assert.notEqual(server(await bench.ask(tcp("10.96.0.11"))), before);
  assert.deepEqual(await bench.apply(rules(literals(7), {}, second)), { operations: 0 });
});

test("one, two, one, no endpoints, gone: chains come and go with them", async (bench, rules) => {
  let last: Ruleset | undefined;
  const step = async (literals: Literals) => {
    last = rules(literals, {}, last);
    await bench.apply(last);
  };
  await step(web([here(5)]));
  assert.equal(server(await bench.ask(tcp(VIP))), "10.1.0.5:8080");
  await step(web([here(5), here(6)]));
  assert.deepEqual(await times(2, bench, tcp(VIP)), { "10.1.0.5:8080": 1, "10.1.0.6:8080": 1 });
  await step(web([here(6)]));
  assert.deepEqual(await times(2, bench, tcp(VIP)), { "10.1.0.6:8080": 2 });
  await step(web([]));
  assert.equal(await bench.ask(tcp(VIP)), "reject");
  await step({});
  const listing = await bench.list();
  for (const table of [TABLE, AGENT_TABLE]) {
    assert.deepEqual(Object.keys(listing[table]!.chains).filter((c) => c.startsWith("svc-")), []);
    for (const [set, elements] of Object.entries(listing[table]!.sets)) {
      if (set !== "pods4") assert.deepEqual(elements, {}, set);
    }
  }
});

test("a new process takes over what it finds and changes only the difference", async (bench, rules) => {
  const ruleset = rules(web([here(5), here(6)]));
  await bench.apply(ruleset);
  await bench.crash();
  // What an owner's death took must come back (a table and the node's pod network in it), the rest is not touched.
  const { operations } = await bench.apply(rules(web([here(5), here(6)])));
  assert.equal(operations, bench.ownsTables ? 2 : 0);
  assert.deepEqual(await times(2, bench, tcp(VIP)), { "10.1.0.5:8080": 1, "10.1.0.6:8080": 1 });
});

test(
  "a crash: kernel-way Services go on, agent-bound ones are refused or die with the listener",
  async (bench, rules) => {
    await bench.apply(rules({
      services: [service("shop/here", { clusterIPs: [VIP] }), service("shop/away", { clusterIPs: ["10.96.0.12"] })],
      slices: [slice("shop/here", [here(5)]), slice("shop/away", [away(2)])],
    }));
    await bench.crash();
    assert.equal(server(await bench.ask(tcp(VIP, "pod"))), "10.1.0.5:8080");
    const listing = await bench.list();
    assert.equal(AGENT_TABLE in listing, !bench.ownsTables);
    if (bench.ownsTables) assert.equal(await bench.ask(tcp("10.96.0.12", "pod")), "reject");
  },
);

test("the listing shows what was applied", async (bench, rules) => {
  await bench.apply(rules(web([here(5), here(6), away(1)]), { refuseCidrs: [parseCidr(MACHINE.serviceCidr4)!] }));
  const { sets } = (await bench.list())[TABLE]!;
  assert.deepEqual(sets.vips6, { [VIP6]: "" });
  assert.deepEqual(sets.refused4, { [cidrText(parseCidr(MACHINE.serviceCidr4)!)]: "" });
  assert.deepEqual(sets.services4, {
    [`${VIP} . tcp . 80`]: "goto svc-shop/web/tcp/80/v4/in",
    [`${VIP} . udp . 80`]: "goto svc-shop/web/udp/80/v4/in",
  });
  assert.deepEqual(await bench.repair(), { operations: 0 });
});

test("a foreign flush, a foreign element and a foreign deletion are repaired", async (bench, rules) => {
  if (!bench.foreign) return;
  await bench.apply(rules(web([here(5), here(6)])));
  const good = await bench.list();
  for (
    const script of [
      `flush chain inet ${TABLE} dispatch`,
      `flush map inet ${TABLE} services4`,
      `flush chain inet ${TABLE} svc-shop/web/tcp/80/v4/in`,
      `add element inet ${TABLE} vips4 { 10.96.7.7 }`,
      `add element inet ${TABLE} refused4 { 10.97.0.0/24 }`,
      `add element inet ${TABLE} refused4 { 10.98.0.1-10.98.0.9 }`,
      `add rule inet ${TABLE} dispatch accept`,
      `delete table inet ${TABLE}`,
    ]
  ) {
    await bench.foreign(script);
    assert.ok((await bench.repair()).operations > 0, script);
    assert.deepEqual(await bench.list(), good, script);
    assert.deepEqual(await bench.repair(), { operations: 0 }, script);
  }
  assert.deepEqual(await times(2, bench, tcp(VIP)), { "10.1.0.5:8080": 1, "10.1.0.6:8080": 1 });
});

test("a change that no longer fits a foreign state is applied all the same", async (bench, rules) => {
  if (!bench.foreign) return;
  const first = rules(web([here(5), here(6)]));
  await bench.apply(first);
  await bench.foreign("flush ruleset");
  await bench.apply(rules(web([here(5), here(7)]), {}, first));
  assert.deepEqual(await times(2, bench, tcp(VIP)), { "10.1.0.5:8080": 1, "10.1.0.7:8080": 1 });
});

test("removal leaves nothing, twice", async (bench, rules) => {
  await bench.apply(rules(web([here(5)])));
  await bench.remove("all");
  await bench.remove("all");
  assert.deepEqual(await bench.list(), {});
  assert.deepEqual(await bench.ask(tcp(VIP, "pod")), "silent");
});
