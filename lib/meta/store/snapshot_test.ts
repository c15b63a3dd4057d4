import assert from "node:assert/strict";
import { lostClaims } from "./claims.ts";
import { problemText } from "../problems.ts";
import fc from "fast-check";
import type { Kind, Kinds } from "../model.ts";
import type { ObjectChange } from "../objects.ts";
import { put, remove } from "../objects.ts";
import { mergeChangeSets, Snapshot } from "./snapshot.ts";
import { anEndpoint, aNode, aPod, aService, aSlice, bigCluster, snapshotOf } from "../testing.ts";

Deno.test("snapshot: finds what was put by every index", () => {
  const s = snapshotOf([
    put("service", aService()),
    put("slice", aSlice()),
    put("node", aNode()),
    put("pod", aPod()),
    put("namespace", { name: "empty", labels: {} }),
  ]);
  assert.equal(s.service("shop", "web")?.name, "web");
  assert.equal(s.serviceByIp("10.96.0.10")?.name, "web");
  assert.deepEqual(s.slicesOf("shop", "web").map((x) => x.name), ["web-abc12"]);
  assert.deepEqual(s.slicesByIp("10.1.0.5").map((x) => x.name), ["web-abc12"]);
  assert.deepEqual(s.podsByIp("10.1.0.5").map((p) => p.name), ["web-1"]);
  assert.equal(s.pod("shop", "web-1")?.node, "edge-1");
  assert.equal(s.node("edge-1")?.podCIDRs[0], "10.1.0.0/24");
  assert.ok(s.hasNamespace("empty") && s.hasNamespace("shop") && !s.hasNamespace("other"));
  assert.equal(s.size, 5);
});

Deno.test("snapshot: the one before stays as it was, and a removal leaves nothing in any index", () => {
  const before = snapshotOf([put("service", aService()), put("slice", aSlice()), put("pod", aPod())]);
  const { snapshot: after, changes } = before.apply([
    remove("service", "shop/web"),
    remove("slice", "shop/web-abc12"),
    remove("pod", "shop/web-1"),
  ]);
  assert.deepEqual([...changes.changed.keys()].sort(), ["pod", "service", "slice"]);
  assert.deepEqual([...changes.services], ["shop/web"]);
  assert.equal(before.serviceByIp("10.96.0.10")?.name, "web");
  assert.equal(after.serviceByIp("10.96.0.10"), undefined);
  assert.deepEqual(after.slicesByIp("10.1.0.5"), []);
  assert.deepEqual(after.slicesOf("shop", "web"), []);
  assert.deepEqual(after.podsByIp("10.1.0.5"), []);
  assert.ok(!after.hasNamespace("shop"));
});

Deno.test("snapshot: putting an equal object changes nothing and keeps the snapshot", () => {
  const before = snapshotOf([put("slice", aSlice())]);
  const { snapshot, changes } = before.apply([put("slice", aSlice()), remove("pod", "not/there")]);
  assert.equal(snapshot, before);
  assert.equal(changes.changed.size, 0);
});

Deno.test("snapshot: a slice that moves to another Service leaves the old one", () => {
  const before = snapshotOf([put("slice", aSlice()), put("slice", aSlice({ name: "web-2" }))]);
  const { snapshot, changes } = before.apply([put("slice", aSlice({ service: "api" }))]);
  assert.deepEqual([...changes.services].sort(), ["shop/api", "shop/web"]);
  assert.deepEqual(snapshot.slicesOf("shop", "web").map((s) => s.name), ["web-2"]);
  assert.deepEqual(snapshot.slicesOf("shop", "api").map((s) => s.name), ["web-abc12"]);
});

Deno.test("snapshot: two claims on one external IP: a cluster IP wins, then the oldest, then the name", () => {
  const ip = "203.0.113.7";
  const claim = (name: string, created?: number, port = 80) =>
    put(
      "service",
      aService({
        name,
        clusterIPs: [],
        externalIPs: [ip],
        ports: [{ name: "", protocol: "TCP", port }],
        ...(created === undefined ? {} : { created }),
      }),
    );
  const s = snapshotOf([claim("b-young", 300), claim("z-old", 100), claim("a-unknown"), claim("other-port", 50, 443)]);
  assert.equal(s.ownerOf(ip, "TCP", 80)?.name, "z-old");
  assert.equal(s.ownerOf(ip, "TCP", 443)?.name, "other-port");
  assert.equal(s.ownerOf(ip, "UDP", 80), undefined);
  assert.equal(s.serviceByIp(ip), undefined);
  const contested = [...s.contested()];
  assert.equal(contested.length, 1);
  assert.deepEqual(contested[0]!.services.map((x) => x.name), ["other-port", "z-old", "b-young", "a-unknown"]);
  assert.deepEqual(lostClaims(s).map((p) => [p.code, problemText(p)]), [
    [
      "CLAIM_LOST",
      "Service shop/b-young: spec.externalIPs 203.0.113.7:80: TCP belongs to Service shop/z-old, which claims it, too",
    ],
    [
      "CLAIM_LOST",
      "Service shop/a-unknown: spec.externalIPs 203.0.113.7:80: TCP belongs to Service shop/z-old, which claims it, too",
    ],
  ]);
  const owner = s.apply([put("service", aService({ name: "vip", clusterIPs: [ip], created: 900 }))]).snapshot;
  assert.equal(owner.ownerOf(ip, "TCP", 80)?.name, "vip");
  assert.equal(owner.serviceByIp(ip)?.name, "vip");
  const alone = owner.apply(["b-young", "z-old", "a-unknown", "other-port"].map((n) => remove("service", `shop/${n}`)));
  assert.equal([...alone.snapshot.contested()].length, 0);
  assert.deepEqual(lostClaims(alone.snapshot), []);
});

Deno.test("snapshot: any history of changes gives the indexes a fresh build would give", () => {
  const ip = fc.constantFrom("10.0.0.1", "10.0.0.2", "10.0.0.3", "fd00::1");
  const name = fc.constantFrom("a", "b", "c");
  const ips = fc.uniqueArray(ip, { maxLength: 2 });
  const change: fc.Arbitrary<ObjectChange> = fc.oneof(
    fc.tuple(name, ips, ips).map(([name, clusterIPs, externalIPs]) =>
      put("service", aService({ name, clusterIPs, externalIPs }))
    ),
    fc.tuple(name, name, fc.array(ip, { maxLength: 3 })).map(([name, service, list]) =>
      put("slice", aSlice({ name, service, endpoints: list.map((x) => anEndpoint(x)) }))
    ),
    fc.tuple(name, ips).map(([name, ips]) => put("pod", aPod({ name, ips }))),
    fc.tuple(fc.constantFrom<Kind>("service", "slice", "pod"), name).map(([k, n]) => remove(k, `shop/${n}`)),
  );
  fc.assert(fc.property(fc.array(fc.array(change, { maxLength: 6 }), { maxLength: 10 }), (batches) => {
    let s = Snapshot.empty();
    for (const batch of batches) s = s.apply(batch).snapshot;
    const all: ObjectChange[] = [];
    for (const kind of ["service", "slice", "pod"] as const) {
      for (const [key, object] of s.entries(kind)) all.push({ kind, key, object } as ObjectChange);
    }
    const fresh = Snapshot.empty().apply(all).snapshot;
    for (const x of ["10.0.0.1", "10.0.0.2", "10.0.0.3", "fd00::1"]) {
      assert.deepEqual(s.slicesByIp(x), fresh.slicesByIp(x));
      assert.deepEqual(s.podsByIp(x), fresh.podsByIp(x));
      assert.deepEqual(s.serviceByIp(x), fresh.serviceByIp(x));
      assert.deepEqual(s.ownerOf(x, "TCP", 80), fresh.ownerOf(x, "TCP", 80));
    }
    for (const n of ["a", "b", "c"]) assert.deepEqual(s.slicesOf("shop", n), fresh.slicesOf("shop", n));
    assert.deepEqual([...s.contested()], [...fresh.contested()]);
    assert.equal(s.hasNamespace("shop"), [...s.objects("service")].length > 0);
  }));
});

Deno.test("snapshot: change sets merge", () => {
  const a = Snapshot.empty().apply([put("service", aService())], { synced: true });
  const b = a.snapshot.apply([put("slice", aSlice()), remove("service", "shop/web")]);
  const merged = mergeChangeSets(a.changes, b.changes);
  assert.deepEqual([...merged.changed.get("service")!], ["shop/web"]);
  assert.deepEqual([...merged.changed.get("slice")!], ["shop/web-abc12"]);
  assert.ok(merged.becameSynced);
});

Deno.test("snapshot: one endpoint of 50 000 changes in under a millisecond", () => {
  let s = Snapshot.empty();
  for (const batch of bigCluster(5000, 10)) s = s.apply(batch).snapshot;
  assert.equal(s.count("slice"), 5000);
  const times: number[] = [];
  for (let i = 0; i < 200; i++) {
    const old = s.get("slice", `ns-${i % 50}/service-${i}-x7k2p`) as Kinds["slice"];
    const [first, ...rest] = old.endpoints;
    const changed = put("slice", { ...old, endpoints: [{ ...first!, ready: !first!.ready }, ...rest] });
    const from = performance.now();
    s = s.apply([changed]).snapshot;
    times.push(performance.now() - from);
  }
  const median = times.sort((a, b) => a - b)[times.length >> 1]!;
  assert.ok(median < 1, `median ${median.toFixed(3)} ms`);
});
