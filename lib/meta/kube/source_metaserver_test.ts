import assert from "node:assert/strict";
import { FakeClock } from "../../clock.ts";
import { createLogger, memorySink } from "../../log.ts";
import { CORE_RESOURCES } from "../../../tests/kube/fake_apiserver.ts";
import { FakeMetaServer } from "../../../tests/kube/fake_metaserver.ts";
import {
  ENDPOINTS,
  kubeEndpoints,
  kubeNode,
  kubeService,
  kubeSlice,
  NODES,
  SERVICES,
  SLICES,
} from "../../../tests/kube/objects.ts";
import { FetchApi } from "./kube_api.ts";
import { MetaServerSource } from "./source_metaserver.ts";
import { MetaStore } from "../store/store.ts";
import { virtually } from "../testing.ts";

class Rig implements AsyncDisposable {
  readonly server: FakeMetaServer;
  readonly clock = new FakeClock();
  readonly store = new MetaStore({ clock: this.clock });
  readonly sink = memorySink("info");
  source!: MetaServerSource;

  private constructor(resources: readonly string[]) {
    this.server = new FakeMetaServer(resources);
  }

  static async open(setup: (server: FakeMetaServer) => void, resources = CORE_RESOURCES): Promise<Rig> {
    const rig = new Rig(resources);
    setup(rig.server);
    await rig.server.start();
    await rig.follow();
    return rig;
  }

  async follow(): Promise<void> {
    const { clock } = this;
    const load = () => Promise.resolve({ server: this.server.url, caCerts: [] });
    this.source = new MetaServerSource({
      api: new FetchApi(load, { clock, address: this.server.url }),
      layer: this.store.layer("base"),
      clock,
      log: createLogger(this.sink),
      pods: "none",
      routes: false,
      random: () => 0.5,
    });
    await this.source.start();
  }

  async until(what: string, condition: () => boolean, limit: number): Promise<number> {
    const took = await virtually(this.clock, condition, limit);
    if (took !== undefined) return took;
    assert.fail(`not within ${limit} ms: ${what}; ${JSON.stringify(this.source.resources())} ${this.services()}`);
  }

  async pass(ms: number): Promise<void> {
    const end = this.clock.now() + ms;
    await this.until("time", () => this.clock.now() >= end, ms);
  }

  services(): string {
    return [...this.store.snapshot.entries("service")].map(([k]) => k.split("/")[1]).sort().join();
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.source.stop();
    await this.server.stop();
    assert.equal(this.clock.pending, 0, "no timer is left");
  }
}

function shop(server: FakeMetaServer): void {
  for (const [i, name] of ["a", "b", "c", "d"].entries()) server.put(SERVICES, kubeService(name, `10.96.0.${i + 1}`));
  server.put(SLICES, kubeSlice("a-1", "a", ["10.1.0.1"]));
  server.put(NODES, kubeNode("edge-1"));
}

Deno.test("MetaServer: list and watch both: objects the first replay misses are there, live changes come", async () => {
  await using rig = await Rig.open((s) => {
    s.missInFirstReplay = 1;
    shop(s);
  });
  await rig.until("synced", () => rig.source.status().state === "synced", 2000);
  assert.equal(rig.services(), "a,b,c,d");
  await rig.until("watched", () => rig.server.openWatches >= 4, 2000);
  rig.server.put(SERVICES, kubeService("e", "10.96.0.5"));
  rig.server.delete(SERVICES, "shop/b");
  await rig.until("followed", () => rig.services() === "a,c,d,e", 1000);
  await rig.pass(10_000);
  assert.equal(rig.services(), "a,c,d,e");
  assert.equal(rig.store.snapshot.slicesByIp("10.1.0.1").length, 1);
});

Deno.test("MetaServer: no discovery is asked for, ever", async () => {
  await using rig = await Rig.open(shop);
  await rig.pass(30_000);
  for (const path of ["/api", "/apis", "/api/v1", "/apis/discovery.k8s.io", "/version"]) {
    assert.equal(rig.server.count(`LIST ${path}`), 0);
  }
});

Deno.test("MetaServer: an outage: what is known stays; what changed, came and went meanwhile is right after it", async () => {
  await using rig = await Rig.open(shop);
  await rig.until("synced", () => rig.source.status().state === "synced", 2000);
  await rig.until("watched", () => rig.server.openWatches >= 4, 2000);
  await rig.pass(5000);
  rig.server.goOffline();
  await rig.pass(60_000);
  assert.equal(rig.services(), "a,b,c,d", "lists of the edge's own store remove nothing");
  assert.match(rig.source.status().lastError!, /the cloud does not answer/);
  rig.server.put(SERVICES, kubeService("a", "10.96.0.99"));
  rig.server.put(SERVICES, kubeService("new", "10.96.0.50"));
  rig.server.delete(SERVICES, "shop/b");
  await rig.pass(30_000);
  rig.server.goOnline();
  const took = await rig.until("right", () => rig.services() === "a,c,d,new", 10_000);
  assert.ok(took <= 8_000, `${took} ms`);
  assert.deepEqual(rig.store.snapshot.service("shop", "a")?.clusterIPs, ["10.96.0.99"]);
});

Deno.test("MetaServer: a new watch replays deleted objects: they never come back, not even for a moment", async () => {
  await using rig = await Rig.open(shop);
  await rig.until("synced", () => rig.source.status().state === "synced", 2000);
  await rig.until("watched", () => rig.server.openWatches >= 4, 2000);
  rig.server.goOffline();
  rig.server.delete(SERVICES, "shop/b");
  await rig.pass(30_000);
  rig.server.goOnline();
  await rig.until("gone", () => rig.services() === "a,c,d", 10_000);
  let seen = false;
  const stop = rig.store.subscribe((s) => seen ||= s.service("shop", "b") !== undefined);
  for (let i = 0; i < 3; i++) {
    rig.server.endWatches();
    await rig.pass(10_000);
  }
  stop();
  assert.equal(seen, false);
  assert.equal(rig.services(), "a,c,d");
});

for (const localVersion of [true, false]) {
  Deno.test(`MetaServer: a start while the cloud is away is not synced (local lists ${localVersion ? "with" : "without"} a version)`, async () => {
    await using rig = await Rig.open((s) => {
      s.localVersion = localVersion;
      shop(s);
    });
    await rig.until("synced", () => rig.source.status().state === "synced", 2000);
    await rig.until("watched", () => rig.server.openWatches >= 4, 2000);
    await rig.source.stop();
    rig.server.goOffline();
    const fresh = new MetaStore({ clock: rig.clock });
    (rig as { store: MetaStore }).store = fresh;
    await rig.follow();
    await rig.pass(60_000);
    assert.ok(!fresh.snapshot.synced, "part of the truth must not become 'no such name'");
    if (localVersion) assert.equal(rig.services(), "a,b,c,d", "but what the edge has is served");
    rig.server.goOnline();
    await rig.until("synced", () => fresh.snapshot.synced, 40_000);
    assert.equal(rig.services(), "a,b,c,d");
  });
}

Deno.test("MetaServer: what the cloud does not know is unknown, not empty: nothing is removed, Endpoints stand in for slices", async () => {
  await using rig = await Rig.open((s) => {
    shop(s);
    s.put(ENDPOINTS, kubeEndpoints("a", [["10.1.0.7"]]));
  }, CORE_RESOURCES.filter((r) => r !== SLICES));
  await rig.until("synced", () => rig.source.status().state === "synced", 5000);
  assert.equal(rig.store.snapshot.slicesOf("shop", "a")[0]?.name, "a~0");
  rig.server.resources.delete(NODES);
  await rig.pass(400_000);
  assert.equal(rig.store.snapshot.count("node"), 1, "not known is not gone");
  rig.server.resources.add(SLICES);
  await rig.until("slices", () => rig.store.snapshot.slicesOf("shop", "a")[0]?.name === "a-1", 60_000);
});

Deno.test("MetaServer: edgecore restarts: followed again", async () => {
  await using rig = await Rig.open(shop);
  await rig.until("synced", () => rig.source.status().state === "synced", 2000);
  await rig.server.stop();
  await rig.pass(30_000);
  assert.equal(rig.services(), "a,b,c,d");
  rig.server.put(SERVICES, kubeService("after", "10.96.0.60"));
  await rig.server.start();
  await rig.until("right", () => rig.services() === "a,after,b,c,d", 10_000);
});

Deno.test("MetaServer: another cluster behind the same address, whose versions are lower, is taken over", async () => {
  await using rig = await Rig.open(shop);
  await rig.until("synced", () => rig.source.status().state === "synced", 2000);
  rig.server.replaceCluster();
  rig.server.put(SERVICES, kubeService("other", "10.96.0.70"));
  await rig.until("taken over", () => rig.services() === "other", 320_000);
});

Deno.test("MetaServer: a silent change of everything is noticed by the timed list", async () => {
  await using rig = await Rig.open(shop);
  await rig.until("synced", () => rig.source.status().state === "synced", 2000);
  await rig.pass(10_000);
  rig.server.goOffline();
  rig.server.delete(SERVICES, "shop/c");
  // So short an outage that no probe falls into it.
  rig.server.goOnline();
  await rig.until("noticed", () => rig.services() === "a,b,d", 310_000);
});

/** Lines about answers that cannot be understood. */
function warnings(rig: Rig): string[] {
  return rig.sink.lines.filter((line) => line.includes("WARN"));
}

Deno.test("MetaServer: lists in protobuf from the start: nothing is known, which is not 'nothing', and why is said once", async () => {
  await using rig = await Rig.open((s) => {
    shop(s);
    s.protobuf.add(`LIST ${SERVICES}`);
  });
  await rig.pass(60_000);
  assert.equal(rig.store.snapshot.synced, false);
  assert.equal(rig.source.status().state, "starting");
  assert.match(
    rig.source.status().lastError!,
    /^A list of services was answered in protobuf although JSON was asked for/,
  );
  assert.equal(warnings(rig).length, 1, warnings(rig).join("\n"));
  assert.ok(rig.server.count(`LIST ${SERVICES}`) < 40, `${rig.server.count(`LIST ${SERVICES}`)} lists in a minute`);
  rig.server.protobuf.clear();
  await rig.until("synced", () => rig.store.snapshot.synced, 10_000);
  assert.equal(rig.services(), "a,b,c,d");
});

Deno.test("MetaServer: lists that turn to protobuf remove nothing, and status says why they are not believed", async () => {
  await using rig = await Rig.open(shop);
  await rig.until("synced", () => rig.source.status().state === "synced", 2000);
  rig.server.protobuf.add(`LIST ${SERVICES}`);
  await rig.pass(400_000);
  assert.equal(rig.services(), "a,b,c,d");
  assert.equal(rig.source.status().state, "degraded");
  assert.match(rig.source.status().lastError!, /services was answered in protobuf/);
  assert.equal(warnings(rig).length, 1);
  rig.server.protobuf.clear();
  await rig.until("synced", () => rig.source.status().state === "synced", 10_000);
});

Deno.test("MetaServer: a watch in protobuf is made good for by lists, at a bounded rate, and said once", async () => {
  await using rig = await Rig.open((s) => {
    shop(s);
    s.protobuf.add(`WATCH ${SERVICES}`);
  });
  await rig.until("synced", () => rig.source.status().state === "synced", 2000);
  await rig.pass(20_000);
  rig.server.put(SERVICES, kubeService("e", "10.96.0.5"));
  rig.server.delete(SERVICES, "shop/b");
  await rig.until("listed", () => rig.services() === "a,c,d,e", 10_000);
  const before = rig.server.count(`WATCH ${SERVICES}`) + rig.server.count(`LIST ${SERVICES}`);
  await rig.pass(60_000);
  const asked = rig.server.count(`WATCH ${SERVICES}`) + rig.server.count(`LIST ${SERVICES}`) - before;
  assert.ok(asked < 60, `${asked} requests in a minute`);
  assert.deepEqual(warnings(rig).length, 1);
  assert.match(warnings(rig)[0]!, /A watch of services was answered in protobuf/);
});
