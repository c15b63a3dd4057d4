/** A guard's policy that changes while the agent runs holds at once for what is known, without asking anybody. */
import assert from "node:assert/strict";
import { parseCidr } from "../addr.ts";
import { FakeClock } from "../clock.ts";
import { nullLogger } from "../log.ts";
import { DiskSnapshot } from "./disk/disk.ts";
import type { SnapshotFiles } from "./disk/disk.ts";
import { FanoutServer } from "./fanout/fanout_server.ts";
import type { GuardPolicy } from "./guard.ts";
import { Guard } from "./guard.ts";
import type { ObjectChange } from "./objects.ts";
import { put, remove } from "./objects.ts";
import { ServerSource } from "./fanout/source_server.ts";
import { MetaStore } from "./store/store.ts";
import { anEndpoint, aNode, aPod, aService, aSlice } from "./testing.ts";

const NARROW: GuardPolicy = {
  serviceCidrs: [parseCidr("10.96.0.0/16")!],
  externalCidrs: [],
  own: new Set(),
  vital: new Set(),
  zones: ["cluster.local"],
};
const WIDE: GuardPolicy = {
  ...NARROW,
  serviceCidrs: [...NARROW.serviceCidrs, parseCidr("10.97.0.0/16")!],
  externalCidrs: [parseCidr("203.0.113.0/24")!],
};

const web = aService({ externalIPs: ["203.0.113.9"] });
const other = aService({ name: "other", clusterIPs: ["10.97.0.1"] });
const slice = aSlice({
  endpoints: ["10.96.9.9", "10.1.0.1", "10.1.0.2", "10.1.0.3", "10.1.0.4"].map((ip) => anEndpoint(ip)),
});

/** A server and an agent behind a guard; bytes flow when a test says so. */
class Pair {
  readonly clock = new FakeClock();
  readonly cloud = new MetaStore({ clock: this.clock });
  readonly store = new MetaStore({ clock: this.clock });
  readonly guard = new Guard(NARROW);
  readonly source = new ServerSource({
    layer: this.store.layer("base"),
    guard: this.guard,
    clock: this.clock,
    log: nullLogger,
  });
  readonly #fanout = new FanoutServer({ clock: this.clock, source: "srv", epoch: "e1" });
  readonly failures: unknown[] = [];
  #down: Uint8Array[] = [];
  #detach = () => {};

  constructor() {
    this.#fanout.follow(this.cloud);
  }

  connect(): void {
    this.#detach();
    this.#down = [];
    const connection = this.#fanout.connect({
      node: "edge-1",
      send: (message) => {
        this.#down.push(message);
        return true;
      },
    });
    const link = {
      from: "srv",
      send: (message: Uint8Array) => connection.receive(message),
      fail: (error: unknown) => void this.failures.push(error),
    };
    this.receive = (count) => {
      for (let i = 0; i < count && this.#down.length > 0; i++) this.source.receive(link, this.#down.shift()!);
    };
    this.#detach = () => {
      connection.close();
      this.source.detach(link);
    };
    this.source.attach(link);
  }

  receive: (count: number) => void = () => {};

  tell(...changes: ObjectChange[]): void {
    this.cloud.layer("base").apply(changes, { synced: true });
    this.settle();
  }

  settle(): void {
    for (let i = 0; i < 5; i++) {
      this.receive(Infinity);
      this.clock.advance(200);
    }
  }

  adopt(policy: GuardPolicy): void {
    this.guard.policy = policy;
    this.source.revise();
  }

  names(): string[] {
    return [...this.store.snapshot.services()].map((s) => s.name).sort();
  }

  externals(): readonly string[] {
    return this.store.snapshot.service("shop", "web")!.externalIPs;
  }

  endpoints(): string[] {
    return this.store.snapshot.get("slice", "shop/web-abc12")!.endpoints.map((e) => e.ip);
  }

  stop(): void {
    this.#detach();
    this.#fanout.stop();
    assert.equal(this.clock.pending, 0);
  }
}

function following(): Pair {
  const pair = new Pair();
  pair.connect();
  pair.tell(put("service", web), put("service", other), put("slice", slice));
  assert.deepEqual([pair.names(), pair.externals(), pair.guard.book.size], [["web"], [], 3]);
  return pair;
}

Deno.test("guard policy: what becomes allowed is there at once, what is not any more is gone at once", () => {
  const pair = following();
  pair.adopt(WIDE);
  assert.deepEqual([pair.names(), pair.externals()], [["other", "web"], ["203.0.113.9"]]);
  assert.deepEqual([...pair.guard.book.all()].map((p) => p.object), ["EndpointSlice shop/web-abc12"]);
  assert.equal(pair.store.snapshot.serviceByIp("10.97.0.1")?.name, "other");
  pair.adopt(NARROW);
  assert.deepEqual([pair.names(), pair.externals(), pair.guard.book.size], [["web"], [], 3]);
  pair.adopt({ ...NARROW, own: new Set(["10.96.0.10"]) });
  assert.deepEqual(pair.names(), []);
  pair.adopt(NARROW);
  assert.deepEqual(pair.names(), ["web"]);
  pair.stop();
});

Deno.test("guard policy: an equal one is no work and no change", () => {
  const pair = following();
  const before = pair.store.snapshot;
  pair.adopt({ ...NARROW, serviceCidrs: [parseCidr("10.96.0.0/16")!], own: new Set() });
  assert.equal(pair.store.snapshot, before);
  pair.stop();
});

Deno.test("guard policy: without a server, too; what was removed or mended meanwhile stays so", () => {
  const pair = following();
  pair.tell(remove("service", "shop/other"), put("service", { ...web, externalIPs: ["203.0.113.10"] }));
  pair.tell(put("service", aService({ name: "late", clusterIPs: ["10.97.0.2"] })));
  pair.connect();
  pair.adopt(WIDE);
  assert.deepEqual([pair.names(), pair.externals()], [["late", "web"], ["203.0.113.10"]]);
  pair.stop();
});

Deno.test("guard policy: a difference to a slice is one to what was told, refused endpoints included", () => {
  const pair = following();
  assert.deepEqual(pair.endpoints(), ["10.1.0.1", "10.1.0.2", "10.1.0.3", "10.1.0.4"]);
  pair.tell(put("slice", { ...slice, endpoints: [...slice.endpoints.slice(0, 4), anEndpoint("10.1.0.9")] }));
  assert.deepEqual(pair.endpoints(), ["10.1.0.1", "10.1.0.2", "10.1.0.3", "10.1.0.9"]);
  pair.adopt({ ...NARROW, serviceCidrs: [] });
  assert.deepEqual(pair.endpoints(), ["10.96.9.9", "10.1.0.1", "10.1.0.2", "10.1.0.3", "10.1.0.9"]);
  pair.stop();
});

Deno.test("guard policy: changed in the middle of a complete state, or of one that breaks off", () => {
  const pair = following();
  const many = Array.from({ length: 400 }, (_, i) => put("service", aService({ name: `s-${i}`, clusterIPs: [] })));
  pair.tell(...many);
  const expected = 402;
  const half = new Pair();
  half.cloud.layer("base").apply([put("service", web), put("service", other), ...many], { synced: true });
  half.connect();
  half.receive(3);
  half.adopt(WIDE);
  assert.equal(half.store.snapshot.synced, false, "in the middle of it");
  half.settle();
  assert.equal(half.names().length, expected);
  // A server that counts anew sends everything; the connection breaks in the middle, and the policy changes then.
  const again = new Pair();
  again.cloud.layer("base").apply([put("service", web), put("service", other), ...many], { synced: true });
  again.connect();
  again.receive(3);
  again.connect();
  again.adopt(WIDE);
  again.settle();
  assert.equal(again.names().length, expected);
  for (const p of [pair, half, again]) {
    assert.deepEqual(p.failures, []);
    p.stop();
  }
});

Deno.test("guard policy: every kind it judges", () => {
  const guard = new Guard(NARROW);
  const store = new MetaStore({ clock: new FakeClock() });
  const layer = store.layer("base");
  const route = {
    apiVersion: "networking.istio.io/v1",
    kind: "VirtualService",
    namespace: "shop",
    name: "v",
    labels: {},
    spec: { hosts: ["a.example"] },
  };
  layer.apply(guard.filter([
    put("node", aNode({ podCIDRs: ["10.97.0.0/24"] })),
    put("pod", aPod()),
    put("route", route),
  ]));
  const revise = (policy: GuardPolicy) => {
    guard.policy = policy;
    layer.apply(guard.revise(layer.snapshot));
    return [layer.snapshot.node("edge-1")!.podCIDRs.length, layer.snapshot.count("route"), layer.snapshot.count("pod")];
  };
  assert.deepEqual(revise(NARROW), [1, 0, 1]);
  assert.deepEqual(revise(WIDE), [0, 0, 1]);
  assert.deepEqual(revise({ ...NARROW, zones: ["example", "cluster.local"] }), [1, 1, 1]);
  assert.deepEqual(revise({ ...NARROW, vital: new Set(["10.97.0.7"]) }), [0, 0, 1]);
});

Deno.test("guard policy: what was refused survives a restart, for a policy that is wider then", async () => {
  const pair = following();
  const disk = new Map<string, Uint8Array>();
  const files: SnapshotFiles = {
    read: (name) => Promise.resolve(disk.get(name)),
    write: async (name, chunks) =>
      void disk.set(name, new Uint8Array(await new Blob([...chunks] as BlobPart[]).arrayBuffer())),
    rename: (from, to) => {
      disk.set(to, disk.get(from)!);
      disk.delete(from);
      return Promise.resolve();
    },
  };
  const options = { files, clock: pair.clock, log: nullLogger };
  await new DiskSnapshot({ ...options, layer: pair.store.layer("base"), guard: pair.guard }).stop();
  for (const [policy, names] of [[NARROW, ["web"]], [WIDE, ["other", "web"]]] as const) {
    const store = new MetaStore({ clock: pair.clock });
    const guard = new Guard(policy);
    const loading = new DiskSnapshot({ ...options, layer: store.layer("base"), guard }).load();
    pair.clock.advance(0);
    assert.ok(await loading);
    assert.deepEqual([...store.snapshot.services()].map((s) => s.name).sort(), names);
    if (policy !== NARROW) continue;
    guard.policy = WIDE;
    store.layer("base").apply(guard.revise(store.snapshot));
    assert.equal(store.snapshot.count("service"), 2);
  }
  pair.stop();
});
