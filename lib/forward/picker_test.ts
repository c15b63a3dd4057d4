import assert from "node:assert/strict";
import fc from "fast-check";
import type { Balance } from "./facts.ts";
import { AFFINITY_MAX, EJECT_AFTER, EJECT_MS, Picker } from "./picker.ts";
import type { PlannedPort, Slot } from "./plan_model.ts";

const slots: readonly Slot[] = ["a", "b", "c", "d"].map((node, i) => ({
  key: `${node}/10.0.0.${i}:80`,
  endpoint: { ip: `10.0.0.${i}`, port: 80 },
  node,
  way: "tunnel",
  reason: "other-node",
}));

function port(balance: Balance, affinitySeconds?: number): PlannedPort {
  return {
    id: "x/y TCP/80 v4",
    namespace: "x",
    service: "y",
    portName: "",
    protocol: "TCP",
    port: 80,
    family: 4,
    frontends: [],
    balance,
    affinitySeconds,
    internal: { verdict: "forward", slots },
    external: { verdict: "forward", slots },
    externalFromHere: { verdict: "forward", slots },
  };
}

const at = (now: number, ip = "10.1.0.1") => ({ ip, now });

Deno.test("picker: round robin is exact for any number of endpoints", () => {
  fc.assert(fc.property(fc.integer({ min: 1, max: 4 }), fc.integer({ min: 1, max: 5 }), (count, rounds) => {
    const picker = new Picker();
    const seen = new Map<string, number>();
    for (let i = 0; i < count * rounds; i++) {
      const { key } = picker.pick(port("round-robin"), slots.slice(0, count), at(0));
      seen.set(key, (seen.get(key) ?? 0) + 1);
    }
    assert.deepEqual([...seen.values()], new Array(count).fill(rounds));
  }));
});

Deno.test("picker: random uses the whole range", () => {
  for (const [value, node] of [[0, "a"], [0.26, "b"], [0.999, "d"]] as const) {
    assert.equal(new Picker(() => value).pick(port("random"), slots, at(0)).node, node);
  }
});

Deno.test("picker: by source, a client keeps its endpoint, clients spread, and few move when one goes", () => {
  const picker = new Picker();
  const clients = Array.from({ length: 400 }, (_, i) => `10.1.${i >> 8}.${i & 255}`);
  const choose = (from: readonly Slot[]) => clients.map((ip) => picker.pick(port("source-hash"), from, at(0, ip)).node);
  const before = choose(slots);
  assert.deepEqual(choose(slots), before);
  for (const node of ["a", "b", "c", "d"]) {
    const share = before.filter((n) => n === node).length;
    assert.ok(share > 60 && share < 140, `${node}: ${share} of 400`);
  }
  const after = choose(slots.filter((s) => s.node !== "c"));
  before.forEach((node, i) => node !== "c" && assert.equal(after[i], node));
});

Deno.test("picker: A11: by request, equal keys meet at one endpoint, few move when one is added, none is in turn", () => {
  const picker = new Picker();
  const keys = Array.from({ length: 1000 }, (_, i) => `agent-${i}`);
  const choose = (from: readonly Slot[], ip: string) =>
    keys.map((key) => picker.pick(port("request-hash"), from, { ...at(0, ip), key }).node);
  const three = choose(slots.slice(0, 3), "10.1.0.1");
  assert.deepEqual(choose(slots.slice(0, 3), "10.9.9.9"), three, "the client's address must not count");
  const four = choose(slots, "10.1.0.1");
  const moved = four.filter((node, i) => node !== three[i]);
  // A quarter of the keys is the new one's; no other key moves.
  assert.ok(moved.length > 200 && moved.length < 300, `${moved.length} of 1000 moved`);
  assert.deepEqual(new Set(moved), new Set(["d"]));
  const turns = slots.map(() => picker.pick(port("request-hash"), slots, at(0)).node);
  assert.deepEqual(turns.sort(), ["a", "b", "c", "d"]);
});

Deno.test("picker: least connections evens out what is unequal", () => {
  const picker = new Picker();
  const p = port("least-connections");
  for (let i = 0; i < 3; i++) picker.opened(p, slots[0]!);
  const got = Array.from({ length: 9 }, () => {
    const slot = picker.pick(p, slots, at(0));
    picker.opened(p, slot);
    return slot.node!;
  });
  assert.deepEqual(got.filter((n) => n === "a").length, 0);
  picker.closed(p, slots[1]!);
  assert.equal(picker.pick(p, slots, at(0)).node, "b");
});

Deno.test("picker: an endpoint that fails is left out, longer each time, and back at its first answer", () => {
  const picker = new Picker();
  const p = port("round-robin");
  const down = slots[0]!;
  const used = (now: number) => {
    const nodes = new Set(Array.from({ length: 8 }, () => picker.pick(p, slots, at(now)).node));
    return nodes.has(down.node);
  };
  for (let i = 0; i < EJECT_AFTER - 1; i++) picker.failed(p, down, 0);
  assert.ok(used(0), "one failure may be an accident");
  picker.failed(p, down, 0);
  assert.ok(!used(0));
  assert.deepEqual(picker.ejected(p, slots, 0), [down.key]);
  assert.ok(used(EJECT_MS));
  picker.failed(p, down, EJECT_MS);
  assert.ok(!used(EJECT_MS * 3 - 1));
  assert.ok(used(EJECT_MS * 3));
  picker.opened(p, down);
  picker.failed(p, down, EJECT_MS * 3);
  assert.ok(used(EJECT_MS * 3), "it has answered meanwhile");
});

Deno.test("picker: one that is left out for long stays out while others come back", () => {
  const picker = new Picker();
  const p = port("round-robin");
  const [long, short] = [slots[0]!, slots[1]!];
  const used = (now: number) => new Set(Array.from({ length: 8 }, () => picker.pick(p, slots, at(now)).node));
  for (let i = 0; i <= EJECT_AFTER; i++) picker.failed(p, long, 0);
  for (let i = 0; i < EJECT_AFTER; i++) picker.failed(p, short, 0);
  assert.deepEqual([used(0).has(long.node), used(0).has(short.node)], [false, false]);
  assert.deepEqual([used(EJECT_MS).has(long.node), used(EJECT_MS).has(short.node)], [false, true]);
  assert.equal(used(EJECT_MS * 2).size, slots.length);
});

Deno.test("picker: when all are left out, all are tried", () => {
  const picker = new Picker();
  const p = port("round-robin");
  for (const slot of slots) for (let i = 0; i < EJECT_AFTER; i++) picker.failed(p, slot, 0);
  assert.equal(new Set(Array.from({ length: 4 }, () => picker.pick(p, slots, at(0)).node)).size, 4);
});

Deno.test("picker: what this connection has tried is not tried again while something else is left", () => {
  const picker = new Picker();
  const failed = new Set<string>();
  for (let i = 0; i < 4; i++) {
    const slot = picker.pick(port("round-robin", 60), slots, at(0), failed);
    assert.ok(!failed.has(slot.key));
    failed.add(slot.key);
  }
  picker.pick(port("round-robin", 60), slots, at(0), failed);
});

Deno.test("picker: affinity is capped, and the longest unused client is forgotten first", () => {
  const picker = new Picker();
  const p = port("round-robin", 1000);
  const first = picker.pick(p, slots, at(0, "first"));
  for (let i = 0; i < AFFINITY_MAX - 1; i++) picker.pick(p, slots, at(0, `c${i}`));
  assert.equal(picker.pick(p, slots, at(0, "first")).key, first.key);
  for (let i = 0; i < 1000; i++) picker.pick(p, slots, at(0, `d${i}`));
  assert.equal(picker.remembered, AFFINITY_MAX);
  assert.equal(picker.pick(p, slots, at(0, "first")).key, first.key);
});
