import assert from "node:assert/strict";
import { Collector, MemoryLoop } from "../../tests/fixtures/memory_loop.ts";
import { MemoryTunnel } from "../../tests/fixtures/memory_tunnel.ts";
import { type EndpointLiteral, type Literals, metaOf, service, slice } from "../../tests/fixtures/meta_literal.ts";
import { parseCidr } from "../addr.ts";
import { FakeClock } from "../clock.ts";
import type { ReasonCode } from "../errors.ts";
import { createLogger, memorySink } from "../log.ts";
import type { IpPort, ServiceTarget } from "../net.ts";
import { idleHandler, memoryPair } from "../net_memory.ts";
import { MAX_EARLY_BYTES } from "./early.ts";
import { DEFAULT_FORWARD_CONFIG, type NodeFacts } from "./facts.ts";
import { Forwarder, type ForwarderOptions } from "./forwarder.ts";
import { FakeKernel } from "./rules/fake.ts";
import type { TrackedFlow } from "./rules/kernel.ts";
import { AGENT_TABLE, TABLE } from "./rules/ruleset.ts";
import { Tracer } from "./rules/trace.ts";
import { RuleWriter } from "./rules/writer.ts";

const MESH = "169.254.96.16";
const LISTENER: IpPort = { ip: MESH, port: 19001 };
const VIP: IpPort = { ip: "10.96.0.1", port: 80 };
const facts: NodeFacts = {
  node: "n1",
  addresses: ["192.0.2.1", MESH],
  podCidrs: [parseCidr("10.1.0.0/24")!],
  routable: [],
  mesh4: MESH,
  mesh6: undefined,
  hairpinLinks: [],
};
const here = (n: number): EndpointLiteral => ({ ip: `10.1.0.${n}`, node: "n1" });
const away = (n: number): EndpointLiteral => ({ ip: `10.3.0.${n}`, node: `n${n}` });

function web(endpoints: readonly EndpointLiteral[], extra: Parameters<typeof service>[1] = {}): Literals {
  return { services: [service("a/web", { clusterIPs: [VIP.ip], ...extra })], slices: [slice("a/web", endpoints)] };
}

class Bench {
  readonly loop = new MemoryLoop();
  readonly clock = new FakeClock();
  readonly kernel = new FakeKernel();
  readonly tunnel = new MemoryTunnel(this.loop.scheduler);
  readonly sink = memorySink("debug");
  readonly forwarder: Forwarder;
  /** UDP flows that connection tracking holds; stale ones are removed. */
  flows: TrackedFlow[] = [];

  constructor(options: Partial<ForwarderOptions> = {}) {
    this.kernel.conntrack = { forgetUdp: (scope, stale) => this.#forget(scope, stale) };
    this.forwarder = new Forwarder({
      loop: this.loop,
      clock: this.clock,
      log: createLogger(this.sink),
      tunnel: this.tunnel,
      rules: new RuleWriter(this.kernel),
      facts,
      config: DEFAULT_FORWARD_CONFIG,
      options: { connectTimeoutMs: 1000, udpIdleMs: 30_000, maxConnections: 100, accessLog: true, ...options },
    });
  }

  #forget(scope: { readonly ip?: string; readonly port?: number }, stale: (flow: TrackedFlow) => boolean): number {
    const before = this.flows.length;
    const inScope = (f: TrackedFlow) =>
      (scope.ip === undefined || scope.ip === f.to.ip) && (scope.port === undefined || scope.port === f.to.port);
    this.flows = this.flows.filter((f) => !inScope(f) || !stale(f));
    return before - this.flows.length;
  }

  async serve(literals: Literals): Promise<void> {
    await this.forwarder.update(metaOf(literals));
  }

  connect(original?: IpPort, client?: IpPort): Collector {
    return new Collector(this.loop.connect(LISTENER, original ?? VIP, client));
  }

  trace(to: IpPort) {
    return new Tracer(this.kernel).trace({ protocol: "tcp", from: { ip: "10.1.0.9", port: 1 }, to, via: "pod0" });
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.forwarder.close({ keepKernelRules: false });
    assert.equal(this.loop.size, 0, "sockets are left");
    assert.equal(this.clock.pending, 0, "timers are left");
  }
}

Deno.test("forwarder: a connection to an endpoint of another node goes through the tunnel, both ways, to its end", async () => {
  await using bench = new Bench();
  await bench.serve(web([away(3)]));
  assert.deepEqual(bench.trace(VIP), { fate: "forwarded", to: LISTENER, table: AGENT_TABLE, masquerade: false });
  let far: Collector | undefined;
  bench.tunnel.onStream = (stream) => far = new Collector(stream);
  const client = bench.connect();
  client.say("hello");
  bench.loop.run();
  assert.deepEqual(bench.tunnel.dials, [{
    namespace: "a",
    service: "web",
    protocol: "TCP",
    port: 80,
    node: "n3",
    endpoint: { ip: "10.3.0.3", port: 8080 },
  }]);
  assert.equal(far!.text, "hello");
  far!.say("world");
  far!.stream.closeWrite();
  bench.loop.run();
  assert.equal(client.text, "world");
  assert.ok(client.ended);
  client.stream.closeWrite();
  bench.loop.run();
  assert.equal(bench.forwarder.status().connections, 0);
  const [traffic] = bench.forwarder.status().traffic;
  assert.deepEqual([traffic!.way, traffic!.opened, traffic!.active, traffic!.bytesOut, traffic!.bytesIn], [
    "tunnel",
    1,
    0,
    5,
    5,
  ]);
  const line = bench.sink.lines.find((l) => l.includes("access"))!;
  assert.match(
    line,
    /from=10\.1\.0\.9:5000 to=10\.96\.0\.1:80 service=a\/web endpoint=10\.3\.0\.3:8080 node=n3 way=tunnel ms=\d+ out=5 in=5 attempts=1 result=OK/,
  );
});

Deno.test("forwarder: the access log goes on and off while connections run; who was not noted has no line", async () => {
  await using bench = new Bench({ accessLog: false });
  await bench.serve(web([away(3)]));
  bench.tunnel.onStream = (stream) => void new Collector(stream);
  const lines = () => bench.sink.lines.filter((l) => l.includes("access from=")).length;
  const open = () => {
    const client = bench.connect();
    bench.loop.run();
    return client;
  };
  const end = (client: Collector) => {
    client.stream.reset("RESET");
    bench.loop.run();
  };
  const before = open();
  bench.forwarder.setAccessLog(true);
  const noted = open();
  end(before);
  assert.equal(lines(), 0);
  end(noted);
  assert.equal(lines(), 1);
  const silenced = open();
  bench.forwarder.setAccessLog(false);
  end(silenced);
  assert.equal(lines(), 1);
  assert.equal(bench.forwarder.status().connections, 0);
});

Deno.test("forwarder: kernel-way Services never meet the agent, and stay when it goes", async () => {
  const bench = new Bench();
  await bench.serve(web([here(5)]));
  const direct = { fate: "forwarded", to: { ip: "10.1.0.5", port: 8080 }, table: TABLE, masquerade: false };
  assert.deepEqual(bench.trace(VIP), direct);
  await bench.forwarder.close({ keepKernelRules: true });
  assert.deepEqual(bench.trace(VIP), direct);
  assert.deepEqual([...bench.kernel.tables.keys()], [TABLE]);
});

Deno.test("forwarder: an endpoint without a node is dialled from here", async () => {
  await using bench = new Bench();
  await bench.serve(web([{ ip: "203.0.113.7" }]));
  bench.loop.servers.set("203.0.113.7:8080", (server) => new Collector(server).say("external"));
  const client = bench.connect();
  bench.loop.run();
  assert.equal(client.text, "external");
  assert.equal(bench.tunnel.dials.length, 0);
});

const refusals: readonly (readonly [string, IpPort, IpPort | undefined, ReasonCode])[] = [
  ["was not rewritten by our rules", LISTENER, undefined, "NOT_ALLOWED"],
  ["went to an address that is no Service", { ip: "10.96.0.99", port: 80 }, undefined, "NO_SERVICE"],
  ["comes from neither this host nor its pods", VIP, { ip: "198.51.100.1", port: 9 }, "NOT_ALLOWED"],
];
for (const [what, original, client, code] of refusals) {
  Deno.test(`forwarder: a connection that ${what} is reset`, async () => {
    await using bench = new Bench();
    await bench.serve(web([away(3)]));
    const end = bench.connect(original, client);
    bench.loop.run();
    assert.equal(end.closed, code);
    assert.deepEqual(bench.forwarder.status().refused, { [code]: 1 });
    const spoken = bench.sink.lines.some((line) => line.includes("mesh.podCIDRs"));
    assert.equal(spoken, client !== undefined, "a pod network that was not declared must be seen");
  });
}

Deno.test("forwarder: an endpoint that does not answer is followed by the next, each at most once", async () => {
  await using bench = new Bench();
  await bench.serve(web([away(3), away(4), away(5)]));
  bench.tunnel.fate.set("n3", "DIAL_REFUSED");
  bench.tunnel.fate.set("n4", "PEER_OFFLINE");
  bench.tunnel.onStream = (far) => new Collector(far).say("third");
  for (let i = 0; i < 3; i++) {
    const client = bench.connect();
    bench.loop.run();
    assert.equal(client.text, "third");
    client.stream.reset("RESET");
    bench.loop.run();
  }
  const [traffic] = bench.forwarder.status().traffic;
  assert.equal(traffic!.opened, 3);
  assert.ok(traffic!.dialFailures >= 2);
});

Deno.test("forwarder: when no endpoint answers the client is reset with the last reason", async () => {
  await using bench = new Bench();
  await bench.serve(web([away(3), away(4)]));
  for (const node of ["n3", "n4"]) bench.tunnel.fate.set(node, "DIAL_REFUSED");
  const client = bench.connect();
  bench.loop.run();
  assert.equal(client.closed, "DIAL_REFUSED");
  assert.equal(bench.tunnel.dials.length, 2);
  assert.equal(bench.forwarder.status().connections, 0);
});

Deno.test("forwarder: an endpoint that has moved is looked for again when news of it have come", async () => {
  await using bench = new Bench();
  await bench.serve(web([away(3)]));
  bench.tunnel.fate.set("n3", "ENDPOINT_REMOVED");
  let far: Collector | undefined;
  bench.tunnel.onStream = (stream) => far = new Collector(stream);
  const client = bench.connect();
  client.say("hello");
  bench.loop.run();
  assert.equal(client.closed, "no");
  await bench.serve(web([away(4)]));
  bench.clock.advance(250);
  bench.loop.run();
  assert.deepEqual([bench.tunnel.dials.map((d) => d.node), far!.text], [["n3", "n4"], "hello"]);
  client.stream.reset("RESET");
  bench.loop.run();
  // No news: it is given up in the end. The client leaves: nobody goes on.
  await bench.serve(web([away(3)]));
  const [waits, leaves] = [bench.connect(), bench.connect()];
  bench.loop.run();
  leaves!.stream.reset("RESET");
  for (let i = 0; i < 8; i++) {
    bench.loop.run();
    bench.clock.advance(250);
  }
  bench.loop.run();
  assert.equal(waits!.closed, "ENDPOINT_REMOVED");
  assert.equal(bench.forwarder.status().connections, 0);
  const gone = bench.connect();
  bench.loop.run();
  await bench.serve({ services: [service("a/other", { clusterIPs: ["10.96.0.2"] })] });
  bench.clock.advance(250);
  bench.loop.run();
  assert.equal(gone.closed, "NO_SERVICE");
});

Deno.test("forwarder: status lists Services by name, whatever the order they came in", async () => {
  await using bench = new Bench();
  const names = ["b/web", "a/web", "a/db", "c/api"];
  await bench.serve({ services: names.map((name, i) => service(name, { clusterIPs: [`10.96.0.${i + 1}`] })) });
  assert.deepEqual(bench.forwarder.status().services.map((s) => s.service), [...names].sort());
});

Deno.test("forwarder: a silent endpoint costs one deadline, all of them two", async () => {
  await using bench = new Bench();
  await bench.serve(web([away(3), away(4), away(5), away(6)]));
  for (const node of ["n3", "n4", "n5", "n6"]) bench.tunnel.fate.set(node, "silence");
  const client = bench.connect();
  bench.loop.run();
  bench.clock.advance(1000);
  assert.equal(bench.tunnel.dials.length, 2);
  assert.equal(client.closed, "no");
  bench.clock.advance(1000);
  bench.loop.run();
  assert.equal(client.closed, "DIAL_TIMEOUT");
  assert.equal(bench.tunnel.dials.length, 2);
});

Deno.test("forwarder: a client that leaves while its endpoint is dialled ends the dial", async () => {
  await using bench = new Bench();
  await bench.serve(web([away(3)]));
  bench.tunnel.fate.set("n3", "silence");
  const client = bench.connect();
  bench.loop.run();
  assert.equal(bench.forwarder.status().connections, 1);
  client.stream.reset("RESET");
  bench.loop.run();
  assert.equal(bench.forwarder.status().connections, 0);
});

Deno.test("forwarder: what the client says before its endpoint answers travels with the request", async () => {
  await using bench = new Bench();
  await bench.serve(web([away(3)]));
  bench.tunnel.fate.set("n3", "silence");
  const client = bench.connect();
  client.say("GET / ");
  bench.loop.run();
  client.say("HTTP/1.0");
  bench.loop.run();
  assert.deepEqual(bench.tunnel.early, ["GET / HTTP/1.0"]);
  client.say("x".repeat(2 * MAX_EARLY_BYTES));
  bench.loop.run();
  assert.equal(bench.tunnel.early[0]!.length, MAX_EARLY_BYTES, "the rest waits in the kernel");
});

Deno.test("forwarder: what the way did not take goes first once it is open, and is counted once", async () => {
  await using bench = new Bench();
  await bench.serve(web([away(3)]));
  let far: Collector | undefined;
  bench.tunnel.onStream = (stream) => far = new Collector(stream);
  // A way that opens late and takes little before.
  const scheduler = bench.loop.scheduler;
  const dial = bench.tunnel.dial.bind(bench.tunnel);
  bench.tunnel.dial = (target, first, handler) => {
    const near = dial(target, first, idleHandler);
    const write = near.write.bind(near);
    let budget = 4;
    near.write = (from, offset, length) => {
      const n = write(from, offset, Math.min(length, budget));
      budget -= n;
      return n;
    };
    open = () => {
      budget = Infinity;
      near.handler = handler;
      scheduler.later(() => handler.onOpen());
    };
    return near;
  };
  let open = () => {};
  const client = bench.connect();
  client.say("first words, ");
  bench.loop.run();
  assert.equal(far!.text, "firs");
  client.say("then more");
  bench.loop.run();
  open();
  bench.loop.run();
  assert.equal(far!.text, "first words, then more");
  client.stream.reset("RESET");
  bench.loop.run();
  assert.match(bench.sink.lines.find((l) => l.includes("access"))!, /out=22/);
});

Deno.test("forwarder: the next endpoint gets it all again, unless the one before may have acted on it", async () => {
  for (
    const [reason, expected] of [
      ["DIAL_REFUSED", 2],
      ["PEER_OFFLINE", 2],
      ["PEER_GONE", 1],
      ["TIMEOUT", 1],
      ["RESET", 1],
    ] as const
  ) {
    await using bench = new Bench();
    await bench.serve(web([away(3), away(4)]));
    for (const node of ["n3", "n4"]) bench.tunnel.fate.set(node, "silence");
    const client = bench.connect();
    client.say("POST");
    bench.loop.run();
    bench.tunnel.waiting[0]!.fail(reason);
    bench.loop.run();
    assert.deepEqual(bench.tunnel.early, Array(expected).fill("POST"), reason);
    assert.equal(client.closed, expected === 1 ? reason : "no", reason);
  }
});

Deno.test("forwarder: a request that nobody answered in time is not given to a second endpoint", async () => {
  await using bench = new Bench();
  await bench.serve(web([away(3), away(4)]));
  for (const node of ["n3", "n4"]) bench.tunnel.fate.set(node, "silence");
  const client = bench.connect();
  client.say("POST");
  bench.loop.run();
  bench.clock.advance(1000);
  bench.loop.run();
  assert.equal(client.closed, "DIAL_TIMEOUT");
  assert.equal(bench.tunnel.dials.length, 1);
  assert.equal(bench.forwarder.status().connections, 0);
});

Deno.test("forwarder: connections beyond the cap wait for a place, in their order", async () => {
  await using bench = new Bench({ maxConnections: 2 });
  await bench.serve(web([away(3)]));
  const clients = [1, 2, 3, 4].map(() => bench.connect());
  bench.loop.run();
  assert.equal(bench.tunnel.dials.length, 2);
  assert.equal(bench.sink.lines.filter((l) => l.includes("new ones wait")).length, 1);
  for (const [ends, dials] of [[0, 3], [1, 4]] as const) {
    clients[ends]!.stream.reset("RESET");
    bench.loop.run();
    assert.equal(bench.tunnel.dials.length, dials);
  }
  assert.deepEqual(clients.slice(2).map((c) => c.closed), ["no", "no"]);
  assert.deepEqual(bench.forwarder.status().refused, {});
});

Deno.test("forwarder: who has waited for a place in vain is refused, and those who come later wait anew", async () => {
  await using bench = new Bench({ maxConnections: 1 });
  await bench.serve(web([away(3)]));
  const [inside, waits] = [bench.connect(), bench.connect()];
  bench.clock.advance(999);
  bench.loop.run();
  assert.deepEqual([inside!.closed, waits!.closed], ["no", "no"]);
  bench.clock.advance(1);
  bench.loop.run();
  assert.deepEqual([inside!.closed, waits!.closed], ["no", "LIMIT"]);
  assert.deepEqual(bench.forwarder.status().refused, { LIMIT: 1 });
  bench.clock.advance(50);
  const later = bench.connect();
  bench.loop.run();
  assert.equal(later.closed, "no");
  inside!.stream.reset("RESET");
  bench.loop.run();
  assert.equal(bench.tunnel.dials.length, 2, "the one that waited was not served");
});

Deno.test("forwarder: agent-bound endpoints share exactly evenly", async () => {
  await using bench = new Bench();
  await bench.serve(web([away(3), away(4), away(5)]));
  for (let i = 0; i < 9; i++) {
    const client = bench.connect();
    bench.loop.run();
    client.stream.reset("RESET");
    bench.loop.run();
  }
  const perNode = ["n3", "n4", "n5"].map((n) => bench.tunnel.dials.filter((d) => d.node === n).length);
  assert.deepEqual(perNode, [3, 3, 3]);
});

Deno.test("forwarder: session affinity keeps a client at its endpoint until the timeout, and moves it when that is gone", async () => {
  await using bench = new Bench();
  await bench.serve(web([away(3), away(4), away(5)], { affinitySeconds: 60 }));
  const visit = (ip: string): string => {
    const client = bench.connect(VIP, { ip, port: 7000 });
    bench.loop.run();
    client.stream.reset("RESET");
    bench.loop.run();
    return bench.tunnel.dials.at(-1)!.node!;
  };
  const first = visit("10.1.0.20");
  const other = visit("10.1.0.21");
  assert.notEqual(first, other);
  for (let i = 0; i < 5; i++) {
    // Each visit renews the time.
    bench.clock.advance(59_000);
    assert.equal(visit("10.1.0.20"), first);
  }
  await bench.serve(web([away(3), away(4), away(5)].filter((e) => e.node !== first), { affinitySeconds: 60 }));
  assert.notEqual(visit("10.1.0.20"), first);
});

const target: ServiceTarget = {
  namespace: "a",
  service: "web",
  protocol: "TCP",
  port: 80,
  node: "n1",
  endpoint: { ip: "10.1.0.5", port: 8080 },
};

/** A stream from another node: `far` is that node's end once accepted. */
function incoming(bench: Bench, wanted: ServiceTarget) {
  const state: { refused?: ReasonCode; far?: Collector } = {};
  bench.forwarder.onTunnelStream({
    target: wanted,
    from: { node: "n9", keyHash: "00" },
    accept(handler) {
      const [near, far] = memoryPair(bench.loop.scheduler);
      near.handler = handler;
      state.far = new Collector(far);
      return near;
    },
    refuse: (code) => state.refused = code,
  });
  bench.loop.run();
  return state;
}

/** Service a/web balanced by header X over three endpoints of other nodes, each of which collects what it gets. */
async function byHeader(bench: Bench) {
  const loadBalancer = { consistentHash: { httpHeaderName: "X" } };
  const route = {
    kind: "DestinationRule",
    apiVersion: "networking.istio.io/v1beta1",
    namespace: "a",
    name: "web",
    labels: {},
    spec: { host: "web", trafficPolicy: { loadBalancer } },
  };
  await bench.serve({ ...web([away(3), away(4), away(5)]), routes: [route] });
  const far: { readonly node: string; readonly end: Collector }[] = [];
  bench.tunnel.onStream = (stream, { node }) => far.push({ node: node!, end: new Collector(stream) });
  return far;
}

Deno.test("forwarder: A11: a header decides the endpoint, and every byte of the request arrives", async () => {
  await using bench = new Bench();
  const far = await byHeader(bench);
  const ask = (text: string) => {
    const client = bench.connect();
    // In pieces, as a slow client sends.
    for (let i = 0; i < text.length; i += 7) {
      client.say(text.slice(i, i + 7));
      bench.loop.run();
    }
    const { node, end } = far.at(-1)!;
    assert.equal(end.text, text);
    client.stream.reset("RESET");
    bench.loop.run();
    return node;
  };
  const body = "y".repeat(20_000);
  const nodes = ["one", "two", "three", "four", "five"].map((x) => {
    const first = ask(`POST / HTTP/1.1\r\nX: ${x}\r\nHost: a\r\n\r\n${body}`);
    for (let i = 0; i < 3; i++) assert.equal(ask(`GET /${i} HTTP/1.1\r\nHost: a\r\nx: ${x}\r\n\r\n`), first);
    return first;
  });
  assert.ok(new Set(nodes).size > 1, nodes.join());
  const turns = [0, 1, 2].map(() => ask("GET / HTTP/1.1\r\nHost: a\r\n\r\n"));
  assert.equal(new Set(turns).size, 3, "without the header endpoints take turns");
  const [traffic] = bench.forwarder.status().traffic;
  assert.ok(traffic!.bytesOut > 5 * body.length, `${traffic!.bytesOut}`);
});

Deno.test("forwarder: balanced by request: who waits for the server is connected after a second, who leaves is forgotten", async () => {
  await using bench = new Bench();
  const far = await byHeader(bench);
  const silent = bench.connect();
  bench.loop.run();
  assert.equal(far.length, 0);
  bench.clock.advance(1_000);
  bench.loop.run();
  far[0]!.end.say("220 ready");
  bench.loop.run();
  assert.equal(silent.text, "220 ready");
  silent.stream.reset("RESET");
  const gone = bench.connect();
  gone.say("GET / HT");
  bench.loop.run();
  gone.stream.reset("RESET");
  bench.loop.run();
  const ended = bench.connect();
  ended.say("GET / HT");
  ended.stream.closeWrite();
  bench.loop.run();
  assert.deepEqual([far.length, far[1]!.end.text, far[1]!.end.ended], [2, "GET / HT", true]);
  far[1]!.end.stream.closeWrite();
  bench.loop.run();
  assert.equal(bench.forwarder.status().connections, 0);
});

Deno.test("forwarder: balanced by request: an endpoint that does not answer is followed by the next, with the same bytes", async () => {
  await using bench = new Bench();
  const far = await byHeader(bench);
  for (const node of ["n3", "n4"]) bench.tunnel.fate.set(node, "DIAL_REFUSED");
  const request = "GET / HTTP/1.1\r\nX: anything\r\n\r\n";
  for (let i = 0; i < 6; i++) {
    const client = bench.connect();
    client.say(request);
    bench.loop.run();
    assert.deepEqual([far.at(-1)!.node, far.at(-1)!.end.text], ["n5", request]);
    client.stream.reset("RESET");
    bench.loop.run();
  }
});

Deno.test("forwarder: another node's stream reaches an endpoint here", async () => {
  await using bench = new Bench();
  await bench.serve(web([here(5)]));
  bench.loop.servers.set("10.1.0.5:8080", (server) => new Collector(server).say("from here"));
  const state = incoming(bench, target);
  bench.loop.run();
  assert.equal(state.far!.text, "from here");
  assert.equal(bench.forwarder.status().inbound.active, 1);
});

Deno.test("forwarder: another node's stream is refused, or told that the endpoint refused", async () => {
  await using bench = new Bench();
  await bench.serve(web([here(5)]));
  assert.equal(incoming(bench, { ...target, endpoint: { ip: "10.1.0.6", port: 22 } }).refused, "ENDPOINT_REMOVED");
  assert.deepEqual(bench.loop.dials, []);
  assert.equal(incoming(bench, target).refused, "DIAL_REFUSED");
  assert.deepEqual(bench.forwarder.status().inbound.refused, { ENDPOINT_REMOVED: 1 });
});

const dns = (endpoints: readonly EndpointLiteral[]): Literals => ({
  services: [service("a/dns", { clusterIPs: ["10.96.0.53"], ports: [{ port: 53, protocol: "UDP" }] })],
  slices: [slice("a/dns", endpoints, [{ port: 5353, protocol: "UDP" }])],
});

function udpListener(bench: Bench) {
  return [...bench.loop.sockets.values()].find((s) => s.local.ip === MESH)!;
}

Deno.test("forwarder: UDP through the tunnel: one flow per client, answers from the listener, idle flows end", async () => {
  await using bench = new Bench();
  await bench.serve(dns([away(3)]));
  const socket = udpListener(bench);
  assert.ok(socket.local.port >= 19001 && socket.local.port < 20000);
  const client = { ip: "10.1.0.9", port: 5353 };
  socket.receive("q1", client);
  socket.receive("q2", client);
  socket.receive("other", { ip: "10.1.0.10", port: 5353 });
  assert.deepEqual(bench.tunnel.flows.map((f) => f.sent), [["q1", "q2"], ["other"]]);
  bench.tunnel.flows[0]!.answer("a1");
  assert.deepEqual(socket.sent, [{ text: "a1", to: "10.1.0.9:5353" }]);
  socket.receive("stranger", { ip: "198.51.100.1", port: 1 });
  assert.equal(bench.tunnel.flows.length, 2);
  bench.clock.advance(20_000);
  socket.receive("q3", client);
  bench.clock.advance(20_000);
  assert.deepEqual(bench.tunnel.flows.map((f) => f.closed), [undefined, "TIMEOUT"]);
  bench.clock.advance(30_000);
  assert.equal(bench.forwarder.status().connections, 0);
});

Deno.test("forwarder: a UDP flow dies with its endpoint and its client moves to another", async () => {
  await using bench = new Bench();
  await bench.serve(dns([away(3)]));
  const client = { ip: "10.1.0.9", port: 5353 };
  udpListener(bench).receive("q1", client);
  await bench.serve(dns([away(4)]));
  assert.equal(bench.tunnel.flows[0]!.closed, "ENDPOINT_REMOVED");
  udpListener(bench).receive("q2", client);
  assert.deepEqual([bench.tunnel.flows[1]!.target.node, bench.tunnel.flows[1]!.sent], ["n4", ["q2"]]);
});

Deno.test("forwarder: the UDP listener comes before its rule and goes after it", async () => {
  await using bench = new Bench();
  await bench.serve(dns([away(3)]));
  const at = udpListener(bench).local;
  const element = bench.kernel.tables.get(AGENT_TABLE)!.sets.get("single4")!.elements.get("10.96.0.53 . udp . 53");
  assert.deepEqual(element!.value, [at.ip, at.port]);
  await bench.serve(dns([here(5)]));
  assert.equal(udpListener(bench), undefined);
  assert.equal(bench.kernel.tables.get(AGENT_TABLE)!.sets.get("single4")!.elements.size, 0);
});

Deno.test("forwarder: tracked UDP flows to a target that is no longer right are ended, others are not", async () => {
  await using bench = new Bench();
  const from = { ip: "10.1.0.9", port: 999 };
  const vip = { ip: "10.96.0.53", port: 53 };
  const other = { from, to: { ip: "203.0.113.1", port: 53 }, target: { ip: "203.0.113.1", port: 53 } };
  const flow = (n: number) => ({ from, to: vip, target: { ip: `10.1.0.${n}`, port: 5353 } });
  // Left by an earlier run: one that is still right, one to an endpoint that is gone, one that nobody rewrote.
  bench.flows = [flow(5), flow(99), { from, to: vip, target: vip }, other];
  await bench.serve(dns([here(5), here(6)]));
  assert.deepEqual(bench.flows, [flow(5), other]);
  bench.flows = [flow(5), flow(6), other];
  await bench.serve(dns([here(6)]));
  assert.deepEqual(bench.flows, [flow(6), other]);
  await bench.serve(dns([away(3)]));
  assert.deepEqual(bench.flows, [other]);
  bench.flows = [{ from, to: vip, target: udpListener(bench).local }, other];
  await bench.serve(dns([away(3), away(4)]));
  assert.equal(bench.flows.length, 2);
  await bench.serve({});
  assert.deepEqual(bench.flows, [other]);
});

Deno.test("forwarder: clients remembered in the kernel are forgotten with their endpoint and with the agent", async () => {
  const bench = new Bench();
  const sticky = (endpoints: readonly EndpointLiteral[]) => web(endpoints, { affinitySeconds: 100 });
  await bench.serve(sticky([here(5), away(3)]));
  const tracer = new Tracer(bench.kernel);
  const visit = (ip: string) => {
    const traced = tracer.trace({ protocol: "tcp", from: { ip, port: 1 }, to: VIP, via: "pod0" });
    return traced.fate === "forwarded" ? traced.to.ip : traced.fate;
  };
  const first = [visit("10.1.0.8"), visit("10.1.0.9")];
  assert.deepEqual([...first].sort(), ["10.1.0.5", MESH]);
  await bench.serve(sticky([here(6), away(3)]));
  // Who was at the removed endpoint moves, who was at the agent stays.
  assert.notEqual(visit(first[0] === MESH ? "10.1.0.9" : "10.1.0.8"), "10.1.0.5");
  assert.equal(visit(first[0] === MESH ? "10.1.0.8" : "10.1.0.9"), MESH);
  await bench.forwarder.close({ keepKernelRules: true });
  assert.deepEqual([visit("10.1.0.8"), visit("10.1.0.9")], ["10.1.0.6", "10.1.0.6"]);
});

Deno.test("forwarder: UDP from another node gets a socket of its own and only the endpoint's answers", async () => {
  await using bench = new Bench();
  await bench.serve(dns([here(5)]));
  const sent: string[] = [];
  let closed: ReasonCode | undefined;
  let ask: ((text: string) => void) | undefined;
  bench.forwarder.onTunnelFlow({
    target: { ...target, service: "dns", protocol: "UDP", port: 53, endpoint: { ip: "10.1.0.5", port: 5353 } },
    from: { node: "n9", keyHash: "00" },
    accept(handler) {
      ask = (text) => handler.onDatagram(new TextEncoder().encode(text), text.length);
      return {
        send: (bytes, length) => sent.push(new TextDecoder().decode(bytes.subarray(0, length))) > 0,
        close: (code) => void (closed = code),
      };
    },
    refuse: () => assert.fail("refused"),
  });
  ask!("q");
  const [socket] = [...bench.loop.sockets.values()];
  assert.deepEqual(socket!.sent, [{ text: "q", to: "10.1.0.5:5353" }]);
  socket!.receive("forged", { ip: "10.1.0.66", port: 5353 });
  socket!.receive("answer", { ip: "10.1.0.5", port: 5353 });
  assert.deepEqual(sent, ["answer"]);
  await bench.serve(dns([]));
  assert.equal(closed, "ENDPOINT_REMOVED");
  assert.equal(bench.loop.sockets.size, 0);
});

Deno.test("forwarder: nothing is touched before the first snapshot", async () => {
  await using bench = new Bench();
  await bench.forwarder.update(metaOf({ synced: false }));
  assert.equal(bench.kernel.commits.length, 0);
  assert.equal(bench.forwarder.status().synced, false);
});

Deno.test("forwarder: updates that come while the kernel is busy are one", async () => {
  await using bench = new Bench();
  await Promise.all([1, 2, 3, 4].map((n) => bench.serve(web([here(n)]))));
  assert.equal(bench.kernel.commits.length, 1);
  assert.equal((bench.trace(VIP) as { to: IpPort }).to.ip, "10.1.0.4");
});

Deno.test("forwarder: a kernel that refuses is asked again, and status says why", async () => {
  await using bench = new Bench();
  bench.kernel.failing = true;
  await bench.serve(web([here(5)]));
  assert.match(bench.forwarder.status().problem!, /told to fail/);
  bench.kernel.failing = false;
  bench.clock.advance(1000);
  await bench.forwarder.setFacts(facts);
  assert.equal(bench.forwarder.status().problem, undefined);
  assert.equal(bench.trace(VIP).fate, "forwarded");
});

Deno.test("forwarder: foreign changes are repaired within two seconds and counted", async () => {
  await using bench = new Bench();
  await bench.serve(web([here(5)]));
  bench.kernel.tables.clear();
  bench.clock.advance(2000);
  // The repair is asynchronous; an update waits for it.
  await bench.forwarder.setConfig(DEFAULT_FORWARD_CONFIG);
  assert.equal(bench.trace(VIP).fate, "forwarded");
  assert.equal(bench.forwarder.status().repairs, 1);
});

Deno.test("forwarder: closing resets what it carries", async () => {
  const bench = new Bench();
  await bench.serve(web([away(3)]));
  const client = bench.connect();
  bench.loop.run();
  await bench.forwarder.close({ keepKernelRules: false });
  bench.loop.run();
  assert.equal(client.closed, "SHUTDOWN");
  assert.equal(bench.kernel.tables.size, 0);
  assert.equal(bench.loop.size, 0);
});
