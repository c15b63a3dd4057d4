import assert from "node:assert/strict";
import { FakeClock } from "../../clock.ts";
import { createLogger, memorySink } from "../../log.ts";
import type { FakeOptions, Obj } from "../../../tests/kube/fake_apiserver.ts";
import { CORE_RESOURCES, FakeApiServer, status } from "../../../tests/kube/fake_apiserver.ts";
import {
  ENDPOINTS,
  kubeEndpoints,
  kubeNode,
  kubePod,
  kubeService,
  kubeSlice,
  NODES,
  PODS,
  SERVICES,
  SLICES,
} from "../../../tests/kube/objects.ts";
import { FetchApi } from "./kube_api.ts";
import type { KubeSourceOptions } from "./source_kube.ts";
import { KubeSource } from "./source_kube.ts";
import { MetaStore } from "../store/store.ts";
import { virtually } from "../testing.ts";

/** A fake server and a source that follows it. Time is virtual, bytes are real. */
class Rig implements AsyncDisposable {
  readonly api: FakeApiServer;
  readonly clock = new FakeClock();
  readonly store: MetaStore;
  readonly sink = memorySink("info");
  source!: KubeSource;
  token: string | undefined;
  tokenReads = 0;

  private constructor(options: FakeOptions) {
    this.api = new FakeApiServer(options);
    this.store = new MetaStore({ clock: this.clock });
  }

  static async open(
    setup: (api: FakeApiServer) => void = () => {},
    options: FakeOptions & Partial<KubeSourceOptions> & { token?: string } = {},
  ): Promise<Rig> {
    const rig = new Rig(options);
    rig.token = options.token;
    await rig.api.start();
    setup(rig.api);
    const { clock } = rig;
    const load = () => {
      rig.tokenReads++;
      return Promise.resolve({
        server: rig.api.url,
        caCerts: [],
        ...(rig.token === undefined ? {} : { token: rig.token }),
      });
    };
    rig.source = new KubeSource({
      api: new FetchApi(load, { clock, address: rig.api.url }),
      layer: rig.store.layer("base"),
      clock,
      log: createLogger(rig.sink),
      pods: "all",
      routes: false,
      random: () => 0.5,
      ...options,
    });
    await rig.source.start();
    return rig;
  }

  /** Virtual milliseconds until a condition holds; fails after `limit`. */
  async until(what: string, condition: () => boolean, limit: number): Promise<number> {
    const took = await virtually(this.clock, condition, limit);
    if (took !== undefined) return took;
    const state = JSON.stringify(this.source.resources());
    assert.fail(`not within ${limit} ms: ${what}; ${state}\n${this.sink.lines.join("\n")}`);
  }

  async pass(ms: number): Promise<void> {
    const end = this.clock.now() + ms;
    await this.until("time", () => this.clock.now() >= end, ms);
  }

  /** The state is that of the server, within so many virtual milliseconds. */
  converge(limit: number): Promise<number> {
    return this.until("converged", () => this.same(), limit);
  }

  same(): boolean {
    const s = this.store.snapshot;
    const keys = (kind: "service" | "slice" | "node" | "pod") => [...s.entries(kind)].map(([k]) => k).sort().join();
    return s.synced && keys("service") === this.api.keys(SERVICES).join() &&
      keys("slice") === this.api.keys(SLICES).join() && keys("node") === this.api.keys(NODES).join() &&
      keys("pod") === this.api.keys(PODS).join();
  }

  warnings(): string[] {
    return this.sink.lines.filter((l) => l.includes("WARN"));
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.api.hang = false;
    await this.source.stop();
    await this.api.stop();
    assert.equal(this.clock.pending, 0, "no timer is left");
  }
}

function shop(api: FakeApiServer): void {
  api.put(SERVICES, kubeService("web", "10.96.0.10"));
  api.put(SERVICES, kubeService("api", "10.96.0.11"));
  api.put(SLICES, kubeSlice("web-1", "web", ["10.1.0.1", "10.1.0.2"]));
  api.put(NODES, kubeNode("edge-1"));
  api.put(PODS, kubePod("web-1", "edge-1", "10.1.0.1"));
}

Deno.test("kube: lists, then follows every kind of change", async () => {
  await using rig = await Rig.open(shop);
  await rig.converge(1000);
  const s = () => rig.store.snapshot;
  assert.equal(s().serviceByIp("10.96.0.10")?.name, "web");
  assert.equal(s().node("edge-1")?.zone, "z1");
  assert.equal(rig.source.status().state, "synced");
  assert.match(s().version.source, /^kube:http:/);

  rig.api.put(SERVICES, kubeService("new", "10.96.0.12"));
  rig.api.put(SERVICES, kubeService("web", "10.96.0.99"));
  rig.api.delete(SERVICES, "shop/api");
  rig.api.put(SLICES, kubeSlice("web-1", "web", ["10.1.0.7"]));
  rig.api.put(PODS, kubePod("done", "edge-1", "10.1.0.8", "Succeeded"));
  await rig.until("changed", () => s().slicesByIp("10.1.0.7").length === 1 && s().count("service") === 2, 1000);
  assert.equal(s().serviceByIp("10.96.0.99")?.name, "web");
  assert.equal(s().service("shop", "api"), undefined);
  assert.equal(s().count("pod"), 1, "a finished pod is none");
  rig.api.put(PODS, kubePod("web-1", "edge-1", "10.1.0.1", "Failed"));
  await rig.until("pod gone", () => s().count("pod") === 0, 1000);
  assert.equal(rig.api.count(`LIST ${SERVICES}`), 1);
});

Deno.test("kube: a list of many pages is taken as one", async () => {
  await using rig = await Rig.open((api) => {
    for (let i = 0; i < 1234; i++) api.put(SERVICES, kubeService(`s-${i}`, `10.97.${i >> 8}.${i & 255}`));
  });
  await rig.converge(5000);
  assert.equal(rig.store.snapshot.count("service"), 1234);
  assert.equal(rig.api.count(`PAGE ${SERVICES}`), 2);
});

Deno.test("kube: the token of a page expires in the middle: the list begins anew, nothing is lost", async () => {
  let pages = 0;
  await using rig = await Rig.open((api) => {
    for (let i = 0; i < 1100; i++) api.put(SERVICES, kubeService(`s-${i}`, `10.97.${i >> 8}.${i & 255}`));
    api.intercept = (path, query) => {
      if (path === SERVICES && query.has("continue") && ++pages === 2) api.compact();
      return false;
    };
  });
  await rig.converge(5000);
  assert.equal(rig.api.count(`LIST ${SERVICES}`), 2);
});

/** Faults from which the state must come back: what is done, how long it may take, and whether a list is allowed. */
const FAULTS: [string, (rig: Rig) => unknown, number, boolean][] = [
  ["watches end in an orderly way", (r) => r.api.endWatches(), 1_000, false],
  ["connections are reset", (r) => r.api.reset(), 3_000, false],
  [
    "history is compacted and watches end",
    (r) => {
      r.api.put(NODES, kubeNode("other"));
      r.api.compact();
      r.api.endWatches();
    },
    3_000,
    true,
  ],
  [
    "a watch event says 410",
    (r) => {
      const gone = { type: "ERROR", object: { kind: "Status", code: 410, reason: "Expired" } };
      r.api.inject(SERVICES, JSON.stringify(gone) + "\n", true);
    },
    3_000,
    true,
  ],
  [
    "a watch event says 500",
    (r) => {
      r.api.inject(SERVICES, JSON.stringify({ type: "ERROR", object: { code: 500 } }) + "\n", true);
    },
    3_000,
    false,
  ],
  ["a line is cut in the middle", (r) => r.api.inject(SERVICES, '{"type":"ADDED","object":{"meta', true), 3_000, false],
  ["a line is not JSON", (r) => r.api.inject(SERVICES, "<html>502</html>\n"), 3_000, true],
  ["an event has no object", (r) => r.api.inject(SERVICES, '{"type":"ADDED"}\n'), 3_000, true],
  ["an event is of no known type", (r) => r.api.inject(SERVICES, '{"type":"X","object":{}}\n'), 3_000, true],
  [
    "a line of ten megabytes",
    (r) => {
      const object = { ...kubeService("big", "10.96.9.9"), x: "x".repeat(10 << 20) };
      r.api.inject(SERVICES, JSON.stringify({ type: "ADDED", object }) + "\n");
    },
    5_000,
    true,
  ],
  [
    "only bookmarks for a while",
    (r) => {
      r.api.bookmark();
      r.api.bookmark();
    },
    1_000,
    false,
  ],
];

for (const [name, fault, limit, mayList] of FAULTS) {
  Deno.test(`kube: ${name}: converges, ${mayList ? "by a list" : "without a list"}`, async () => {
    await using rig = await Rig.open(shop);
    await rig.converge(1000);
    await rig.until("watched", () => rig.api.openWatches >= 5, 1000);
    const lists = rig.api.count(`LIST ${SERVICES}`);
    fault(rig);
    rig.api.put(SERVICES, kubeService("after", "10.96.0.77"));
    rig.api.delete(SERVICES, "shop/api");
    await rig.converge(limit);
    assert.equal(rig.api.count(`LIST ${SERVICES}`) - lists, mayList ? 1 : 0);
  });
}

Deno.test("kube: the API restarts: converges within five seconds of its return, without a list", async () => {
  await using rig = await Rig.open(shop);
  await rig.converge(1000);
  await rig.until("watched", () => rig.api.openWatches >= 5, 1000);
  await rig.api.stop();
  await rig.until("noticed", () => rig.source.status().state === "degraded", 10_000);
  assert.match(rig.source.status().lastError!, /cannot be reached/);
  await rig.pass(60_000);
  rig.api.put(SERVICES, kubeService("meanwhile", "10.96.0.78"));
  rig.api.delete(SLICES, "shop/web-1");
  assert.ok(rig.store.snapshot.synced, "what was learned stays and is served");
  await rig.api.start();
  await rig.converge(5_000);
  await rig.until("synced", () => rig.source.status().state === "synced", 5_000);
  assert.equal(rig.api.count(`LIST ${SERVICES}`), 1);
});

Deno.test("kube: the API falls silent for five minutes: noticed within a minute, converges when it speaks again", async () => {
  await using rig = await Rig.open(shop);
  await rig.converge(1000);
  await rig.until("watched", () => rig.api.openWatches >= 5, 1000);
  rig.api.silence();
  rig.api.put(SERVICES, kubeService("unheard", "10.96.0.79"));
  const took = await rig.converge(60_000);
  assert.ok(took > 40_000, `${took} ms: a quiet watch is not given up at once`);
  assert.equal(rig.api.count(`LIST ${SERVICES}`), 1, "and no list was needed");
  // Now nothing is answered at all, as behind a firewall that drops.
  await rig.until("watched again", () => rig.api.openWatches >= 5, 2000);
  rig.api.silence();
  rig.api.hang = true;
  await rig.pass(300_000);
  assert.equal(rig.source.status().state, "degraded");
  rig.api.put(SERVICES, kubeService("later", "10.96.0.80"));
  rig.api.hang = false;
  await rig.converge(10_000);
});

Deno.test("kube: 429 with Retry-After is honoured", async () => {
  let refused = 0;
  await using rig = await Rig.open((api) => {
    shop(api);
    api.intercept = (path, _query, response) => {
      if (path !== SERVICES || refused >= 2) return false;
      refused++;
      status(response, 429, "TooManyRequests", "slow down", { "retry-after": "7" });
      return true;
    };
  });
  const took = await rig.converge(30_000);
  assert.ok(took >= 14_000 && took < 17_000, `${took} ms`);
});

Deno.test("kube: a rotated token is read anew after a 401", async () => {
  await using rig = await Rig.open((api) => {
    shop(api);
    api.tokens.add("old");
  }, { token: "old" });
  await rig.converge(1000);
  rig.api.tokens.clear();
  rig.api.tokens.add("new");
  rig.token = "new";
  rig.api.endWatches();
  rig.api.put(SERVICES, kubeService("after", "10.96.0.77"));
  await rig.converge(5000);
  assert.equal(rig.api.count(`LIST ${SERVICES}`), 1);
});

Deno.test("kube: a wrong token is a state, not an end", async () => {
  await using rig = await Rig.open((api) => {
    shop(api);
    api.tokens.add("right");
  }, { token: "wrong" });
  await rig.until("failing", () => rig.source.status().lastError !== undefined, 5000);
  assert.match(rig.source.status().lastError!, /status 401/);
  assert.ok(!rig.store.snapshot.synced);
  rig.token = "right";
  await rig.converge(5000);
});

Deno.test("kube: missing rights are told once per resource, the rest goes on, granted rights are taken up", async () => {
  await using rig = await Rig.open((api) => {
    shop(api);
    api.forbidden.add(NODES);
  });
  await rig.until("synced", () => rig.source.status().state === "synced", 2000);
  assert.equal(rig.store.snapshot.count("service"), 2);
  await rig.pass(120_000);
  assert.equal(rig.warnings().filter((l) => l.includes("nodes")).length, 1);
  assert.match(rig.source.status().problems.map((p) => `${p.object}: ${p.code}`).join(), /nodes: SOURCE_FORBIDDEN/);
  rig.api.forbidden.clear();
  await rig.converge(31_000);
  await rig.until("mended", () => rig.source.status().problems.length === 0, 1000);
});

Deno.test("kube: without EndpointSlices (old server, or rights of the original) Endpoints serve, until slices do", async () => {
  await using rig = await Rig.open((api) => {
    shop(api);
    api.forbidden.add(SLICES);
    api.put(ENDPOINTS, kubeEndpoints("web", [["10.1.0.1"], ["10.1.0.2"]]));
    api.put(ENDPOINTS, kubeEndpoints("api", [["10.1.0.3"]]));
  });
  const names = () => [...rig.store.snapshot.entries("slice")].map(([k]) => k).sort().join();
  await rig.until("by endpoints", () => names() === "shop/api~0,shop/web~0,shop/web~1", 2000);
  await rig.until("synced", () => rig.source.status().state === "synced", 2000);
  rig.api.put(ENDPOINTS, kubeEndpoints("web", [["10.1.0.9"]]));
  rig.api.delete(ENDPOINTS, "shop/api");
  await rig.until("followed", () => names() === "shop/web~0", 2000);
  rig.api.forbidden.clear();
  await rig.until("by slices", () => names() === "shop/web-1", 31_000);
  rig.api.put(ENDPOINTS, kubeEndpoints("late", [["10.1.0.4"]]));
  await rig.pass(500);
  assert.equal(names(), "shop/web-1");
});

const HTTPROUTES = "/apis/gateway.networking.k8s.io/v1/httproutes";
const OLD_ROUTES = "/apis/gateway.networking.k8s.io/v1beta1/httproutes";
const aRoute: Obj = { metadata: { namespace: "shop", name: "r" }, spec: { hostnames: ["a.example"] } };

Deno.test("kube: CRDs that are missing, come late, are of an older version, or go away", async () => {
  await using rig = await Rig.open(shop, { routes: true });
  const routes = () => [...rig.store.snapshot.routes("gateway.networking.k8s.io", "HTTPRoute")];
  await rig.until("synced", () => rig.source.status().state === "synced", 3000);
  rig.api.resources.add(OLD_ROUTES);
  rig.api.put(OLD_ROUTES, aRoute);
  await rig.until("old version", () => routes().length === 1, 31_000);
  assert.equal(routes()[0]!.apiVersion, "gateway.networking.k8s.io/v1beta1");
  rig.api.put(OLD_ROUTES, { ...aRoute, spec: { hostnames: ["b.example"] } });
  await rig.until("changed", () => JSON.stringify(routes()).includes("b.example"), 1000);
  rig.api.resources.delete(OLD_ROUTES);
  rig.api.resources.add(HTTPROUTES);
  rig.api.put(HTTPROUTES, aRoute);
  rig.api.endWatches();
  await rig.until("new version", () => routes()[0]?.apiVersion.endsWith("/v1") === true, 40_000);
  rig.api.resources.delete(HTTPROUTES);
  rig.api.endWatches();
  await rig.until("gone", () => routes().length === 0, 120_000);
  assert.equal(rig.source.status().state, "synced");
});

Deno.test("kube: objects that cannot be used are left out with a problem that goes when they are mended", async () => {
  await using rig = await Rig.open((api) => {
    shop(api);
    api.put(SERVICES, kubeService("bad", "010.96.0.1"));
    api.put(SLICES, kubeSlice("web-2", "web", ["127.0.0.1", "10.1.0.3"]));
  });
  await rig.converge(1000);
  const problems = () => rig.source.status().problems.map((p) => `${p.object} ${p.field} ${p.value}`).sort();
  assert.deepEqual(problems(), [
    "EndpointSlice shop/web-2 endpoints[0].addresses[0] 127.0.0.1",
    "Service shop/bad spec.clusterIPs[0] 010.96.0.1",
  ]);
  rig.api.put(SERVICES, kubeService("bad", "10.96.0.1"));
  rig.api.delete(SLICES, "shop/web-2");
  await rig.until("mended", () => problems().length === 0, 1000);
});

Deno.test("kube: one node's pods, and single namespaces with rights there only", async () => {
  await using rig = await Rig.open((api) => {
    shop(api);
    api.put(PODS, kubePod("far", "edge-2", "10.2.0.1"));
    api.put(SERVICES, kubeService("hidden", "10.96.0.50", "secret"));
  }, { pods: { node: "edge-1" }, namespaces: ["shop", "empty"] });
  const s = () => rig.store.snapshot;
  await rig.until("synced", () => rig.source.status().state === "synced", 2000);
  assert.deepEqual([...s().objects("pod")].map((p) => p.name), ["web-1"]);
  assert.deepEqual([...s().services()].map((x) => x.name).sort(), ["api", "web"]);
  rig.api.put(SERVICES, kubeService("hidden", "10.96.0.51", "secret"));
  rig.api.compact();
  rig.api.endWatches();
  await rig.until("listed again", () => rig.api.count(`LIST ${SERVICES}`) >= 4, 5000);
  await rig.pass(500);
  assert.equal(s().count("service"), 2, "the list of one namespace does not remove what another has");
});

Deno.test("kube: state from disk is served while the API is away and corrected when it is there", async () => {
  const first = await Rig.open(shop);
  await first.converge(1000);
  const old = first.store.snapshot;
  await first[Symbol.asyncDispose]();
  const api = new FakeApiServer();
  await api.start();
  const clock = new FakeClock();
  const store = new MetaStore({ clock });
  const staging = store.layer("base").stage();
  for (const kind of ["service", "slice", "node"] as const) {
    for (const [key, object] of old.entries(kind)) staging.add([{ kind, key, object } as never]);
  }
  staging.commit({ synced: true });
  api.put(SERVICES, kubeService("other", "10.96.0.1"));
  const log = createLogger(memorySink());
  const fetchApi = new FetchApi(() => Promise.resolve({ server: api.url, caCerts: [] }), { clock, address: api.url });
  const source = new KubeSource({ api: fetchApi, layer: store.layer("base"), clock, log, pods: "all", routes: false });
  await source.start();
  for (let i = 0; i < 400 && source.status().state !== "synced"; i++) {
    await new Promise((resolve) => setTimeout(resolve, 2));
    clock.advance(10);
  }
  assert.deepEqual([...store.snapshot.services()].map((s) => s.name), ["other"]);
  assert.equal(store.snapshot.count("slice"), 0);
  await source.stop();
  await api.stop();
});

Deno.test("kube: an object too large for a list is left out with a problem, the rest comes", async () => {
  await using rig = await Rig.open((api) => {
    shop(api);
    api.put(SERVICES, { ...kubeService("big", "10.96.9.9"), x: "x".repeat(9 << 20) });
  });
  await rig.until("synced", () => rig.source.status().state === "synced", 5000);
  assert.equal(rig.store.snapshot.count("service"), 2);
  assert.match(rig.source.status().problems.map((p) => p.reason).join(), /too large/);
});

Deno.test("kube: redirects are not followed: a token goes where it was meant to go", async () => {
  let leaked = 0;
  const thief = new FakeApiServer();
  await thief.start();
  thief.intercept = () => {
    leaked++;
    return false;
  };
  const rig = await Rig.open((api) => {
    api.intercept = (path, _q, response) => {
      response.writeHead(307, { location: thief.url + path });
      response.end();
      return true;
    };
  }, { token: "secret" });
  await rig.until("failing", () => rig.source.status().lastError?.includes("307") === true, 5000);
  assert.equal(leaked, 0);
  await rig[Symbol.asyncDispose]();
  await thief.stop();
});

Deno.test("kube: the fake knows the resources the tests rely on", () => {
  for (const path of [SERVICES, SLICES, ENDPOINTS, NODES, PODS]) assert.ok(CORE_RESOURCES.includes(path));
});

Deno.test("kube: an answer that is no JSON is a reason in status and one line; what is known stays, nothing is asked in a storm", async () => {
  await using rig = await Rig.open(shop);
  await rig.converge(1000);
  const login = "<html>please log in</html>";
  rig.api.intercept = (path, _query, response) => {
    if (path !== SERVICES) return false;
    response.writeHead(200, { "content-type": "text/html" });
    response.end(login);
    return true;
  };
  rig.api.compact();
  rig.api.endWatches();
  const before = rig.api.count(`LIST ${SERVICES}`) + rig.api.count(`WATCH ${SERVICES}`);
  await rig.pass(60_000);
  const asked = rig.api.count(`LIST ${SERVICES}`) + rig.api.count(`WATCH ${SERVICES}`) - before;
  assert.ok(asked < 80, `${asked} requests in a minute`);
  assert.equal(rig.store.snapshot.count("service"), 2);
  assert.equal(rig.source.status().state, "degraded");
  assert.match(rig.source.status().lastError!, /of services was answered with no JSON although JSON was asked for/);
  assert.equal(rig.warnings().length, 2, "one for lists, one for watches");
  rig.api.intercept = undefined;
  await rig.until("synced", () => rig.source.status().state === "synced", 10_000);
});
