import assert from "node:assert/strict";
import fc from "fast-check";
import { FakeClock } from "../../clock.ts";
import { nullLogger } from "../../log.ts";
import type { AgentConnection } from "./fanout_server.ts";
import { FanoutServer } from "./fanout_server.ts";
import { Guard } from "../guard.ts";
import { parseCidr } from "../../addr.ts";
import { KINDS } from "../model.ts";
import type { ObjectChange } from "../objects.ts";
import { put, remove } from "../objects.ts";
import type { Scope } from "./scope.ts";
import type { Snapshot } from "../store/snapshot.ts";
import type { MetaLink } from "./source_server.ts";
import { ServerSource } from "./source_server.ts";
import { MetaStore } from "../store/store.ts";
import { anEndpoint, aNode, aPod, aService, aSlice, bigCluster } from "../testing.ts";
import { encodeAck, encodeHello, encodeUnit, encodeWelcome, WINDOW_MESSAGES } from "./wire.ts";

const OPEN_POLICY = {
  serviceCidrs: [parseCidr("10.96.0.0/11")!],
  externalCidrs: [],
  own: new Set<string>(),
  vital: new Set<string>(),
  zones: ["cluster.local"],
};

/** A server with its store. */
class Side {
  readonly clock: FakeClock;
  readonly store: MetaStore;
  readonly fanout: FanoutServer;

  constructor(clock: FakeClock, source = "srv", epoch = "e1") {
    this.clock = clock;
    this.store = new MetaStore({ clock });
    this.fanout = new FanoutServer({ clock, source, epoch });
    this.fanout.follow(this.store);
  }

  apply(...changes: ObjectChange[]): void {
    this.store.layer("base").apply(changes, { synced: true });
  }
}

/** An agent and the pipe to a server, whose messages are delivered only when a test says so. */
class Agent {
  readonly store: MetaStore;
  readonly source: ServerSource;
  readonly toAgent: Uint8Array[] = [];
  readonly toServer: Uint8Array[] = [];
  failures: unknown[] = [];
  /** Messages ever sent to it, and those that began a complete state. */
  received = 0;
  images = 0;
  #connection: AgentConnection | undefined;
  #link: MetaLink | undefined;

  constructor(readonly clock: FakeClock, readonly node = "edge-1") {
    this.store = new MetaStore({ clock });
    const guard = new Guard(OPEN_POLICY);
    this.source = new ServerSource({ layer: this.store.layer("base"), guard, clock, log: nullLogger });
  }

  connect(side: Side, scope?: Scope): void {
    this.disconnect();
    this.#connection = side.fanout.connect({
      node: this.node,
      ...(scope ? { scope } : {}),
      send: (message) => {
        this.toAgent.push(message);
        return true;
      },
    });
    this.#link = {
      from: side.fanout.source,
      send: (message) => void this.toServer.push(message),
      fail: (error) => void this.failures.push(error),
    };
    this.source.attach(this.#link);
  }

  disconnect(): void {
    this.#connection?.close();
    if (this.#link) this.source.detach(this.#link);
    this.#connection = this.#link = undefined;
    this.toAgent.length = this.toServer.length = 0;
  }

  /** Delivers up to `n` messages in each direction. */
  deliver(n = Infinity): void {
    for (let i = 0; i < n; i++) {
      const up = this.toServer.shift();
      if (up) this.#connection!.receive(up);
      const down = this.toAgent.shift();
      if (down) {
        this.received++;
        if (new TextDecoder().decode(down).includes('"k":"f"')) this.images++;
        this.source.receive(this.#link!, down);
      }
      if (!up && !down) return;
    }
  }

  /** A message the server did not send. */
  inject(message: Uint8Array): void {
    this.source.receive(this.#link!, message);
  }

  get snapshot(): Snapshot {
    return this.store.snapshot;
  }
}

function settle(clock: FakeClock, ...agents: Agent[]): void {
  for (let i = 0; i < 3; i++) {
    for (const agent of agents) agent.deliver();
    clock.advance(100);
  }
  for (const agent of agents) agent.deliver();
}

function assertSame(agent: Snapshot, server: Snapshot, message?: string): void {
  for (const kind of KINDS) {
    assert.deepEqual(new Map(agent.entries(kind)), new Map(server.entries(kind)), `${message ?? ""} ${kind}`);
  }
}

Deno.test("fanout: a new agent gets everything, then differences", () => {
  const clock = new FakeClock();
  const side = new Side(clock);
  side.apply(put("service", aService()), put("slice", aSlice()), put("node", aNode()), put("pod", aPod()));
  const agent = new Agent(clock);
  agent.connect(side);
  agent.deliver();
  assertSame(agent.snapshot, side.store.snapshot);
  assert.ok(agent.snapshot.synced);
  assert.equal(agent.source.status().state, "synced");
  const before = agent.received;
  clock.advance(100);
  side.apply(put("slice", aSlice({ endpoints: [anEndpoint("10.1.0.6")] })));
  agent.deliver();
  assert.equal(agent.received, before + 1, "the first change after a quiet time goes out at once, as one message");
  assertSame(agent.snapshot, side.store.snapshot);
  side.fanout.stop();
  assert.equal(clock.pending, 0);
});

Deno.test("fanout: nothing is told before the server has learned something", () => {
  const clock = new FakeClock();
  const side = new Side(clock);
  const agent = new Agent(clock);
  agent.connect(side);
  settle(clock, agent);
  assert.ok(!agent.snapshot.synced);
  side.apply();
  settle(clock, agent);
  assert.ok(agent.snapshot.synced);
});

Deno.test("fanout: changes in quick succession are one update per 100 ms", () => {
  const clock = new FakeClock();
  const side = new Side(clock);
  side.apply(put("service", aService()));
  const agent = new Agent(clock);
  agent.connect(side);
  settle(clock, agent);
  const before = agent.received;
  for (let i = 0; i < 50; i++) {
    side.apply(put("slice", aSlice({ endpoints: [anEndpoint(`10.1.0.${i + 1}`)] })));
    clock.advance(10);
    agent.deliver();
  }
  settle(clock, agent);
  assert.ok(agent.received - before <= 6, `${agent.received - before} messages for 50 changes in 500 ms`);
  assertSame(agent.snapshot, side.store.snapshot);
});

Deno.test("fanout: an agent that does not acknowledge costs a window, then one state; it catches up in one update", () => {
  const clock = new FakeClock();
  const side = new Side(clock);
  for (const batch of bigCluster(400, 10)) side.apply(...batch);
  const slow = new Agent(clock, "slow");
  slow.connect(side);
  slow.deliver(1);
  assert.ok(slow.toAgent.length <= WINDOW_MESSAGES, `${slow.toAgent.length} in flight`);
  for (let i = 0; i < 500; i++) {
    side.apply(put("service", aService({ name: `s-${i % 10}`, clusterIPs: [`10.97.${i >> 8}.${i & 255}`] })));
    clock.advance(100);
  }
  assert.ok(slow.toAgent.length <= WINDOW_MESSAGES, `${slow.toAgent.length} in flight after 500 changes`);
  assert.equal(side.fanout.sessions()[0]!.updatesSent, 1);
  settle(clock, slow);
  assertSame(slow.snapshot, side.store.snapshot);
  assert.equal(
    side.fanout.sessions()[0]!.updatesSent,
    2,
    "the complete state, and all that was missed as one difference",
  );
});

Deno.test("fanout: a transport that is full is left alone until it says otherwise", () => {
  const clock = new FakeClock();
  const side = new Side(clock);
  for (const batch of bigCluster(200, 10)) side.apply(...batch);
  let room = 3;
  let sent = 0;
  const connection = side.fanout.connect({ node: "n", send: () => (sent++, --room > 0) });
  connection.receive(encodeHello(undefined));
  assert.equal(sent, 3);
  side.apply(put("service", aService()));
  clock.advance(1000);
  assert.equal(sent, 3);
  room = 2;
  connection.writable();
  assert.equal(sent, 5);
  side.fanout.stop();
});

Deno.test("fanout: a reconnecting agent resumes with what it missed", () => {
  const clock = new FakeClock();
  const side = new Side(clock);
  for (const batch of bigCluster(50, 3)) side.apply(...batch);
  const agent = new Agent(clock);
  agent.connect(side);
  settle(clock, agent);
  assert.equal(agent.images, 1);
  agent.disconnect();
  assert.equal(agent.source.status().state, "degraded");
  side.apply(put("service", aService()), remove("slice", "ns-3/service-3-x7k2p"), put("pod", aPod()));
  side.apply(put("slice", aSlice()), put("pod", aPod({ node: "elsewhere" })));
  agent.connect(side);
  settle(clock, agent);
  assert.equal(agent.images, 1, "no complete state was needed");
  assert.equal(agent.source.status().state, "synced");
  for (const kind of ["service", "slice"] as const) {
    assert.deepEqual(new Map(agent.snapshot.entries(kind)), new Map(side.store.snapshot.entries(kind)));
  }
  assert.equal(agent.snapshot.count("pod"), 0, "the pod moved to another node");
});

Deno.test("fanout: an agent that missed nothing follows again as soon as it is welcomed", () => {
  const clock = new FakeClock();
  const side = new Side(clock);
  const agent = new Agent(clock);
  side.apply(put("service", aService()));
  agent.connect(side);
  settle(clock, agent);
  agent.disconnect();
  assert.deepEqual([agent.source.status().state, agent.source.status().lastError], [
    "degraded",
    "not connected to a server",
  ]);
  const images = agent.images;
  agent.connect(side);
  settle(clock, agent);
  assert.deepEqual([agent.source.status().state, agent.source.status().lastError], ["synced", undefined]);
  assert.equal(agent.images, images, "nothing had to be told again");
});

Deno.test("fanout: an agent beyond the log's reach gets everything", () => {
  const clock = new FakeClock();
  const side = new Side(clock);
  side.apply(put("service", aService()));
  const agent = new Agent(clock);
  agent.connect(side);
  settle(clock, agent);
  agent.disconnect();
  for (let i = 0; i < 26; i++) {
    const pods = Array.from(
      { length: 2000 },
      (_, j) => put("pod", aPod({ name: `p-${j}`, ips: [`10.${9 + i}.${j >> 8}.${j & 255}`] })),
    );
    side.apply(...pods);
  }
  agent.connect(side);
  settle(clock, agent);
  assert.equal(agent.images, 2);
  assert.equal(agent.snapshot.count("pod"), 2000);
});

Deno.test("fanout: scopes: namespaces, labels, pods", () => {
  const clock = new FakeClock();
  const side = new Side(clock);
  const labelled = (name: string, tier: string) => put("service", aService({ name, labels: { tier } }));
  side.apply(
    labelled("front", "web"),
    labelled("back", "db"),
    put("slice", aSlice({ name: "front-1", service: "front" })),
    put("slice", aSlice({ name: "back-1", service: "back" })),
    put("service", aService({ namespace: "other", name: "x" })),
    put("node", aNode()),
    put("pod", aPod()),
    put("pod", aPod({ name: "far", node: "edge-2" })),
  );
  const names = (agent: Agent, kind: "service" | "slice" | "pod") =>
    [...agent.snapshot.entries(kind)].map(([k]) => k).sort();
  const byNamespace = new Agent(clock);
  byNamespace.connect(side, { namespaces: ["other"], pods: "all" });
  const byLabel = new Agent(clock);
  byLabel.connect(side, { serviceLabels: { tier: "web" } });
  const noPods = new Agent(clock);
  noPods.connect(side, { pods: "none" });
  const all = [byNamespace, byLabel, noPods];
  settle(clock, ...all);
  assert.deepEqual([names(byNamespace, "service"), names(byNamespace, "pod")], [["other/x"], []]);
  assert.equal(byNamespace.snapshot.count("node"), 1, "nodes are for everyone");
  assert.deepEqual([names(byLabel, "service"), names(byLabel, "slice")], [["shop/front"], ["shop/front-1"]]);
  assert.deepEqual(names(byLabel, "pod"), ["shop/web-1"]);
  assert.deepEqual(names(noPods, "pod"), []);

  // The label moves from one Service to the other: so do their slices, which did not change themselves.
  side.apply(labelled("front", "db"), labelled("back", "web"));
  settle(clock, ...all);
  assert.deepEqual([names(byLabel, "service"), names(byLabel, "slice")], [["shop/back"], ["shop/back-1"]]);
  assert.equal(byLabel.images, 1);

  // What is outside of a scope is not sent, and an agent does not hear of every such change.
  const before = byNamespace.received;
  for (let i = 0; i < 20; i++) {
    side.apply(put("slice", aSlice({ endpoints: [anEndpoint(`10.1.0.${i + 1}`)] })));
    settle(clock, byNamespace);
  }
  assert.ok(byNamespace.received - before <= 2, `${byNamespace.received - before} messages`);
  clock.advance(6000);
  settle(clock, byNamespace);
  assert.equal(byNamespace.snapshot.version.number, side.fanout.number, "but it stays resumable");

  // Another scope is another state: no difference is built on it.
  byNamespace.connect(side, { namespaces: ["shop"] });
  settle(clock, byNamespace);
  assert.equal(byNamespace.images, 2);
  assert.deepEqual(names(byNamespace, "service"), ["shop/back", "shop/front"]);
});

Deno.test("fanout: servers swapped and restarted under change load never give a difference to the wrong base", () => {
  type Step =
    | { readonly do: "change"; readonly side: number; readonly n: number; readonly gone: boolean }
    | { readonly do: "connect"; readonly side: number }
    | { readonly do: "restart"; readonly side: number; readonly empty: boolean }
    | { readonly do: "deliver"; readonly n: number }
    | { readonly do: "wait" };
  const side = fc.nat(1);
  const step: fc.Arbitrary<Step> = fc.oneof(
    {
      weight: 5,
      arbitrary: fc.record({ do: fc.constant("change" as const), side, n: fc.nat(20), gone: fc.boolean() }),
    },
    { weight: 2, arbitrary: fc.record({ do: fc.constant("connect" as const), side }) },
    { weight: 1, arbitrary: fc.record({ do: fc.constant("restart" as const), side, empty: fc.boolean() }) },
    { weight: 4, arbitrary: fc.record({ do: fc.constant("deliver" as const), n: fc.nat(4) }) },
    { weight: 2, arbitrary: fc.record({ do: fc.constant("wait" as const) }) },
  );
  fc.assert(
    fc.property(fc.array(step, { maxLength: 60 }), (steps) => {
      const clock = new FakeClock();
      let epoch = 0;
      const sides = ["a", "b"].map((id) => new Side(clock, id, `e${epoch++}`));
      for (const s of sides) s.apply(put("service", aService()));
      const agent = new Agent(clock);
      let at = 0;
      agent.connect(sides[at]!);
      for (const s of steps) {
        switch (s.do) {
          case "change": {
            const endpoints = Array.from({ length: 8 }, (_, i) => anEndpoint(`10.1.${s.side}.${(s.n * 7 + i) % 30}`));
            const name = `web-${s.n % 3}`;
            sides[s.side]!.apply(s.gone ? remove("slice", `shop/${name}`) : put("slice", aSlice({ name, endpoints })));
            break;
          }
          case "connect":
            agent.connect(sides[at = s.side]!);
            break;
          case "restart": {
            // Same identity, a new start of counting; with an empty disk it first learns its objects anew.
            const old = sides[s.side]!;
            old.fanout.stop();
            if (at === s.side) agent.disconnect();
            const fresh = new Side(clock, old.fanout.source, `e${epoch++}`);
            if (!s.empty) {
              for (const kind of KINDS) {
                for (const [key, object] of old.store.snapshot.entries(kind)) {
                  fresh.apply({ kind, key, object } as ObjectChange);
                }
              }
            } else fresh.apply(put("service", aService({ name: "after" })));
            sides[s.side] = fresh;
            if (at === s.side) agent.connect(fresh);
            break;
          }
          case "deliver":
            agent.deliver(s.n);
            break;
          case "wait":
            clock.advance(100);
        }
        // A difference to the wrong base would leave endpoints of both: the third byte says whose an address is.
        const whose = String("ab".indexOf(agent.snapshot.version.source));
        for (const { endpoints } of agent.snapshot.objects("slice")) {
          for (const { ip } of endpoints) assert.equal(ip.split(".")[2], whose);
        }
      }
      settle(clock, agent);
      assert.deepEqual(agent.failures, [], "no server ever offered a difference the agent had to refuse");
      assertSame(agent.snapshot, sides[at]!.store.snapshot);
    }),
    { numRuns: 300 },
  );
});

Deno.test("fanout: a patch for a slice of which the guard dropped an endpoint", () => {
  const clock = new FakeClock();
  const side = new Side(clock);
  const good = Array.from({ length: 6 }, (_, i) => anEndpoint(`10.1.0.${i + 1}`));
  side.apply(put("slice", aSlice({ endpoints: [anEndpoint("10.96.0.1"), ...good] })));
  const agent = new Agent(clock);
  agent.connect(side);
  settle(clock, agent);
  side.apply(put("slice", aSlice({ endpoints: [anEndpoint("10.96.0.1"), ...good.slice(1), anEndpoint("10.1.0.9")] })));
  settle(clock, agent);
  assert.deepEqual(
    agent.snapshot.get("slice", "shop/web-abc12")!.endpoints.map((e) => e.ip),
    ["10.1.0.2", "10.1.0.3", "10.1.0.4", "10.1.0.5", "10.1.0.6", "10.1.0.9"],
  );
  assert.deepEqual(agent.failures, []);
});

/** What an agent must not take from a server: the connection fails and the state at hand stays. */
const BAD_SERVERS: [string, Uint8Array[]][] = [
  ["a difference from another number", encodeUnit('{"k":"d","f":5,"t":6,"i":[]}')],
  ["a difference backwards", encodeUnit('{"k":"d","f":1,"t":1,"i":[]}')],
  ["items outside an update", encodeUnit('{"i":[]}')],
  ["an update inside an update", [
    ...encodeUnit('{"k":"f","t":2,"m":1,"i":[]}'),
    ...encodeUnit('{"k":"f","t":3,"i":[]}'),
  ]],
  ["a second WELCOME", [encodeWelcome("srv", "e1")]],
  ["a patch inside a complete state", encodeUnit('{"k":"f","t":2,"i":[[1,"shop/web-abc12",[[],[]]]]}')],
  ["a HELLO", [encodeHello(undefined)]],
  ["a later part of nothing", [Uint8Array.of(3, 2, 123, 125)]],
  [
    "a unit without end",
    Array.from({ length: 70 }, (_, i) => {
      const part = new Uint8Array(16_000).fill(32);
      part.set([3, i === 0 ? 1 : 0]);
      return part;
    }),
  ],
];

for (const [name, messages] of BAD_SERVERS) {
  Deno.test(`fanout: an agent refuses ${name}, keeps its state and asks for everything next time`, () => {
    const clock = new FakeClock();
    const side = new Side(clock);
    side.apply(put("service", aService()), put("slice", aSlice()));
    const agent = new Agent(clock);
    agent.connect(side);
    settle(clock, agent);
    for (const message of messages) agent.inject(message);
    assert.equal((agent.failures[0] as { code?: string }).code, "PROTOCOL");
    assertSame(agent.snapshot, side.store.snapshot);
    agent.connect(side);
    settle(clock, agent);
    assert.equal(agent.images, 2);
    assertSame(agent.snapshot, side.store.snapshot);
  });
}

Deno.test("fanout: one object that is none is left out and shown, the rest arrives", () => {
  const clock = new FakeClock();
  const agent = new Agent(clock);
  const sent: Uint8Array[] = [];
  const link: MetaLink = { from: "x", send: (m) => void sent.push(m), fail: (e) => assert.fail(String(e)) };
  agent.source.attach(link);
  agent.source.receive(link, encodeWelcome("srv", "e1"));
  const items = '[0,["shop","web",0,0,["10.96.0.10"],[]]],[0,["shop","evil",0,0,["10.96.0.1; x"],[]]],[99,["later"]]';
  for (const m of encodeUnit(`{"k":"f","t":4,"i":[${items}]}`)) agent.source.receive(link, m);
  assert.deepEqual([...agent.snapshot.entries("service")].map(([k]) => k), ["shop/web"]);
  const problems = agent.source.status().problems;
  assert.equal(problems.length, 1);
  assert.match(problems[0]!.reason, /is not an address/);
  assert.deepEqual(sent.at(-1), encodeAck(1));
});

/** What a server must not take from an agent. */
const BAD_AGENTS: [string, (c: AgentConnection) => void][] = [
  ["a second HELLO", (c) => c.receive(encodeHello(undefined))],
  ["an acknowledgement of what was not sent", (c) => c.receive(encodeAck(1000))],
  ["an update", (c) => c.receive(encodeUnit("{}")[0]!)],
];

for (const [name, act] of BAD_AGENTS) {
  Deno.test(`fanout: a server refuses ${name}`, () => {
    const clock = new FakeClock();
    const side = new Side(clock);
    side.apply(put("service", aService()));
    const connection = side.fanout.connect({ node: "n", send: () => true });
    connection.receive(encodeHello(undefined));
    assert.throws(() => act(connection), { code: "PROTOCOL" });
    side.fanout.stop();
  });
}

Deno.test("fanout: a thousand agents at one number are served from one encoding", () => {
  const clock = new FakeClock();
  const side = new Side(clock);
  for (const batch of bigCluster(20, 3)) side.apply(...batch);
  const last = new Map<number, Uint8Array>();
  const sent = Array.from({ length: 1000 }, () => 0);
  const connections = Array.from({ length: 1000 }, (_, i) =>
    side.fanout.connect({
      node: `node-${i}`,
      send: (m) => {
        last.set(i, m);
        sent[i]!++;
        return true;
      },
    }));
  for (const c of connections) {
    c.receive(encodeHello(undefined));
    c.receive(encodeAck(c.info().unacknowledged));
  }
  clock.advance(300);
  side.apply(put("service", aService()));
  assert.equal(new Set(last.values()).size, 1, "all got the very same bytes");
  // So many agents are told four times a second, not ten.
  last.clear();
  side.apply(put("service", aService({ name: "api" })));
  // WELCOME is no part of an update and is not counted.
  connections.forEach((c, i) => c.receive(encodeAck(sent[i]! - 1)));
  clock.advance(240);
  assert.equal(last.size, 0);
  clock.advance(10);
  assert.equal(last.size, 1000);
  side.fanout.stop();
});
