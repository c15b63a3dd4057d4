import assert from "node:assert/strict";
import fc from "fast-check";
import { FakeClock } from "../../clock.ts";
import type { Kind } from "../model.ts";
import { KINDS } from "../model.ts";
import type { ObjectChange } from "../objects.ts";
import { put, remove } from "../objects.ts";
import type { LayerName } from "./precedence.ts";
import { effective } from "./precedence.ts";
import type { ChangeSet } from "./snapshot.ts";
import { MetaStore } from "./store.ts";
import { anEndpoint, aPod, aService, aSlice } from "../testing.ts";

Deno.test("store: without local objects readers see the base layer itself", () => {
  const store = new MetaStore({ clock: new FakeClock(), layers: ["local", "base"] });
  store.layer("local").apply([], { synced: true });
  assert.ok(!store.snapshot.synced, "the base has not been heard of: unknown names are not 'no' yet");
  store.layer("base").apply([put("service", aService())], { synced: true });
  assert.ok(store.snapshot.synced);
  assert.equal(store.snapshot, store.layer("base").snapshot);
});

Deno.test("store: a local object wins, and its removal brings the other back", () => {
  const store = new MetaStore({ clock: new FakeClock(), layers: ["base"] });
  const base = store.layer("base");
  const local = store.layer("local");
  base.apply([put("service", aService()), put("slice", aSlice())], { synced: true });
  local.apply([put("service", aService({ clusterIPs: ["10.96.9.9"] }))]);
  assert.deepEqual(store.snapshot.service("shop", "web")?.clusterIPs, ["10.96.9.9"]);
  assert.equal(store.snapshot.slicesOf("shop", "web").length, 1, "its endpoints are still the base's");
  base.apply([put("service", aService({ clusterIPs: ["10.96.5.5"] }))]);
  assert.deepEqual(store.snapshot.service("shop", "web")?.clusterIPs, ["10.96.9.9"]);
  local.apply([remove("service", "shop/web")]);
  assert.deepEqual(store.snapshot.service("shop", "web")?.clusterIPs, ["10.96.5.5"]);
});

Deno.test("store: local slices of a Service hide all base slices of it", () => {
  const store = new MetaStore({ clock: new FakeClock() });
  store.layer("base").apply([put("slice", aSlice()), put("slice", aSlice({ name: "web-2" }))]);
  store.layer("local").apply([put("slice", aSlice({ name: "mine", endpoints: [anEndpoint("10.5.0.1")] }))]);
  assert.deepEqual(store.snapshot.slicesOf("shop", "web").map((s) => s.name), ["mine"]);
  assert.deepEqual(store.snapshot.slicesByIp("10.1.0.5"), []);
  store.layer("base").apply([put("slice", aSlice({ name: "web-3" }))]);
  assert.equal(store.snapshot.slicesOf("shop", "web").length, 1);
  store.layer("local").apply([remove("slice", "shop/mine")]);
  assert.equal(store.snapshot.slicesOf("shop", "web").length, 3);
});

Deno.test("store: the merged state follows its rule after any history, and listeners hear exactly the difference", () => {
  const name = fc.constantFrom("a", "b", "c");
  const change: fc.Arbitrary<ObjectChange> = fc.oneof(
    fc.tuple(name, fc.nat(3)).map(([name, n]) => put("service", aService({ name, clusterIPs: [`10.96.0.${n + 1}`] }))),
    fc.tuple(name, name, fc.nat(3)).map(([name, service, n]) =>
      put("slice", aSlice({ name, service, endpoints: [anEndpoint(`10.1.0.${n + 1}`)] }))
    ),
    name.map((name) => put("pod", aPod({ name }))),
    fc.tuple(fc.constantFrom<Kind>("service", "slice", "pod"), name).map(([k, n]) => remove(k, `shop/${n}`)),
  );
  const step = fc.tuple(
    fc.constantFrom<LayerName>("local", "base"),
    fc.array(change, { maxLength: 5 }),
    fc.boolean(),
  );
  fc.assert(fc.property(fc.array(step, { maxLength: 15 }), (steps) => {
    const store = new MetaStore({ clock: new FakeClock() });
    const heard = new Map<string, unknown>();
    store.subscribe((snapshot, changes) => {
      for (const [kind, keys] of changes.changed) {
        for (const key of keys) heard.set(`${kind} ${key}`, snapshot.get(kind, key));
      }
    });
    for (const [layer, changes, whole] of steps) {
      if (whole) {
        const staging = store.layer(layer).stage();
        staging.add(changes);
        staging.commit();
      } else store.layer(layer).apply(changes);
      const layers = { local: store.layer("local").snapshot, base: store.layer("base").snapshot };
      for (const kind of KINDS) {
        const keys = new Set([...layers.local.entries(kind), ...layers.base.entries(kind)].map(([k]) => k));
        for (const [key] of store.snapshot.entries(kind)) keys.add(key);
        for (const key of keys) {
          const wanted = effective(kind, key, layers);
          assert.deepEqual(store.snapshot.get(kind, key), wanted);
          assert.deepEqual(heard.get(`${kind} ${key}`), wanted, "a listener that keeps up knows the state");
        }
      }
    }
  }));
});

Deno.test("store: a complete state removes what it does not mention, in one step", () => {
  const store = new MetaStore({ clock: new FakeClock() });
  store.layer("base").apply([put("service", aService()), put("service", aService({ name: "old" }))]);
  const seen: ChangeSet[] = [];
  store.subscribe((_, changes) => seen.push(changes));
  const staging = store.layer("base").stage();
  staging.add([put("service", aService()), put("service", aService({ name: "new" }))]);
  assert.equal(store.snapshot.service("shop", "new"), undefined, "nothing is seen before the commit");
  staging.commit({ synced: true, version: { source: "s", epoch: "e", number: 7 } });
  assert.equal(seen.length, 1);
  assert.deepEqual([...seen[0]!.changed.get("service")!].sort(), ["shop/new", "shop/old"]);
  assert.equal(store.snapshot.version.number, 7);
});

Deno.test("store: the first change is told at once, later ones once per window", () => {
  const clock = new FakeClock();
  const store = new MetaStore({ clock });
  const calls: string[][] = [];
  const stop = store.subscribe((_, c) => calls.push([...c.services].sort()), { coalesceMs: 100 });
  const change = (name: string) => store.layer("base").apply([put("service", aService({ name }))]);
  change("a");
  assert.deepEqual(calls, [["shop/a"]]);
  change("b");
  change("c");
  clock.advance(99);
  assert.equal(calls.length, 1);
  clock.advance(1);
  assert.deepEqual(calls[1], ["shop/b", "shop/c"]);
  clock.advance(100);
  change("d");
  assert.equal(calls.length, 3, "after a quiet window the next is told at once again");
  change("e");
  stop();
  clock.advance(1000);
  assert.equal(calls.length, 3);
  assert.equal(clock.pending, 0);
});

Deno.test("store: a listener that changes the store, and one that throws, harm nobody", () => {
  const store = new MetaStore({ clock: new FakeClock() });
  const order: string[] = [];
  store.subscribe((snapshot) => {
    order.push(`first ${snapshot.count("service")}`);
    if (snapshot.count("service") < 3) {
      store.layer("base").apply([put("service", aService({ name: `n${snapshot.count("service")}` }))]);
    }
  });
  store.subscribe(() => {
    throw new Error("boom");
  });
  store.subscribe((snapshot) => order.push(`last ${snapshot.count("service")}`));
  store.layer("base").apply([put("service", aService())]);
  assert.deepEqual(order.filter((o) => o.startsWith("first")), ["first 1", "first 2", "first 3"]);
  assert.equal(order.at(-1), "last 3");
});
