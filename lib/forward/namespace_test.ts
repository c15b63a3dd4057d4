import "../linux/preload.ts";
import assert from "node:assert/strict";
import { setImmediate } from "node:timers";
import { type EndpointLiteral, type Literals, metaOf, service, slice } from "../../tests/fixtures/meta_literal.ts";
import { parseCidr } from "../addr.ts";
import { pause, systemClock } from "../clock.ts";
import { EpollLoop } from "../linux/loop.ts";
import { inNamespace, mayMakeNamespaces, run } from "../linux/testing.ts";
import { nullLogger } from "../log.ts";
import type { DatagramFlow, FlowHandler, IpPort, MeshStream, ServiceTarget, StreamHandler } from "../net.ts";
import { idleHandler, WOULD_BLOCK } from "../net.ts";
import { memoryPair, MemoryScheduler } from "../net_memory.ts";
import { DEFAULT_FORWARD_CONFIG, type NodeFacts } from "./facts.ts";
import { Forwarder } from "./forwarder.ts";
import { NetlinkRules } from "./rules/netlink.ts";
import { RuleWriter } from "./rules/writer.ts";

const ignore = !mayMakeNamespaces("lib/forward/namespace_test.ts");
const MESH = "169.254.96.16";
const VIP: IpPort = { ip: "10.96.0.1", port: 80 };
const facts: NodeFacts = {
  node: "n1",
  addresses: [MESH, "192.0.2.1"],
  podCidrs: [parseCidr("10.1.0.0/24")!],
  routable: [],
  mesh4: MESH,
  mesh6: undefined,
  hairpinLinks: [],
};

/** A tunnel that ends in the same process: what this node opens comes in as another node's. */
class Mirror {
  readonly scheduler = new MemoryScheduler();
  forwarder!: Forwarder;

  dial(target: ServiceTarget, first: Uint8Array | undefined, handler: StreamHandler): MeshStream {
    const [near, far] = memoryPair(this.scheduler);
    near.handler = idleHandler;
    if (first) near.write(first, 0, first.length);
    setImmediate(() =>
      this.forwarder.onTunnelStream({
        target: { ...target, node: "n1" },
        from: { node: "n1", keyHash: "" },
        accept: (farHandler) => {
          near.handler = handler;
          far.handler = farHandler;
          this.scheduler.later(() => handler.onOpen());
          return far;
        },
        refuse: (code) => handler.onClose(code),
      })
    );
    return near;
  }

  openFlow(target: ServiceTarget, handler: FlowHandler): DatagramFlow {
    let far: FlowHandler | undefined;
    this.forwarder.onTunnelFlow({
      target: { ...target, node: "n1" },
      from: { node: "n1", keyHash: "" },
      accept: (farHandler) => {
        far = farHandler;
        return {
          send: (bytes, length) => (handler.onDatagram(bytes, length), true),
          close: (code) => handler.onClose(code),
        };
      },
      refuse: (code) => handler.onClose(code),
    });
    return { send: (bytes, length) => (far?.onDatagram(bytes, length), true), close: (code) => far?.onClose(code) };
  }
}

interface Machine {
  readonly loop: EpollLoop;
  readonly forwarder: Forwarder;
  serve(literals: Literals): Promise<void>;
  /** An echo server, closed with the test. */
  echo(at: IpPort): void;
}

function test(name: string, body: (machine: Machine) => Promise<void>): void {
  Deno.test({
    name: `forward in a namespace: ${name}`,
    ignore,
    fn: () =>
      inNamespace(async () => {
        run("ip", "link", "add", "edgemesh0", "type", "bridge");
        run("ip", "link", "set", "edgemesh0", "up");
        run("ip", "addr", "add", `${MESH}/32`, "dev", "edgemesh0");
        run("ip", "route", "add", "10.96.0.0/16", "dev", "edgemesh0");
        for (const ip of ["10.1.0.5", "10.1.0.6", "203.0.113.5", "192.0.2.1"]) {
          run("ip", "addr", "add", `${ip}/32`, "dev", "lo");
        }
        await using loop = EpollLoop.open({ clock: systemClock, log: nullLogger });
        const mirror = new Mirror();
        const forwarder = new Forwarder({
          loop,
          clock: systemClock,
          log: nullLogger,
          tunnel: mirror,
          rules: new RuleWriter(NetlinkRules.open()),
          facts,
          config: { ...DEFAULT_FORWARD_CONFIG, refuseCidrs: [parseCidr("10.96.0.0/16")!] },
          options: { connectTimeoutMs: 1000, udpIdleMs: 60_000, maxConnections: 100, accessLog: false },
        });
        mirror.forwarder = forwarder;
        const servers: { close(): void }[] = [];
        let running = true;
        const pump = () => {
          mirror.scheduler.run();
          if (running) setImmediate(pump);
        };
        pump();
        try {
          await body({
            loop,
            forwarder,
            serve: (literals) => forwarder.update(metaOf(literals)),
            echo: (at) => void servers.push(echoServer(loop, at)),
          });
        } finally {
          for (const server of servers) server.close();
          await forwarder.close({ keepKernelRules: false });
          running = false;
          await pause(1);
        }
        assert.equal(loop.size, 0, "sockets are left");
        assert.equal(run("nft", "list", "tables").trim(), "", "tables are left");
      }),
  });
}

const outside: EndpointLiteral = { ip: "203.0.113.5" };
/** On another node by name; the mirror brings it back here. */
const away = (n: number): EndpointLiteral => ({ ip: `10.1.0.${n}`, node: "n2" });

/** Service a/web, with its endpoints also known as this node's, so that the mirror may let them in. */
function web(endpoints: readonly EndpointLiteral[]): Literals {
  const ports = [{ port: 80 }, { port: 80, protocol: "UDP" as const }];
  const targets = [{ port: 8080 }, { port: 8080, protocol: "UDP" as const }];
  const mirrored = endpoints.filter((e) => e.node === "n2").map((e) => ({ ...e, node: "n1" }));
  return {
    services: [service("a/web", { clusterIPs: [VIP.ip], ports })],
    slices: [
      slice("a/web", endpoints, targets),
      // A port that the Service does not have: known to be ours, never chosen.
      slice("a/web", mirrored.map((e) => ({ ...e, ready: false, serving: false })), targets),
    ],
  };
}

/** Echoes what comes, and ends when the client has. */
function echoServer(loop: EpollLoop, at: IpPort): { close(): void } {
  const into = new Uint8Array(65536);
  return loop.listenTcp(at, ({ stream }) => {
    let held: Uint8Array = new Uint8Array(0);
    const go = () => {
      for (;;) {
        if (held.length > 0) {
          const n = stream.write(held, 0, held.length);
          held = held.subarray(n);
          if (held.length > 0) return;
        }
        const n = stream.read(into);
        if (n === WOULD_BLOCK) return;
        if (n === 0) return stream.closeWrite();
        held = into.slice(0, n);
      }
    };
    stream.handler = { ...idleHandler, onReadable: go, onWritable: go };
  });
}

/** Sends `bytes`, ends its direction, and resolves with what came back until the other end. */
function exchange(loop: EpollLoop, to: IpPort, bytes: Uint8Array): Promise<Uint8Array | string> {
  return new Promise((resolve) => {
    const got: Uint8Array[] = [];
    const into = new Uint8Array(65536);
    let sent = 0;
    const push = () => {
      while (sent < bytes.length) {
        const n = stream.write(bytes, sent, bytes.length - sent);
        if (n === 0) return;
        sent += n;
      }
      stream.closeWrite();
    };
    const stream = loop.dialTcp(to, {
      onOpen: push,
      onWritable: push,
      onReadable: () => {
        for (let n = stream.read(into); n > 0; n = stream.read(into)) got.push(into.slice(0, n));
      },
      onClose: (reason) => resolve(reason ?? concat(got)),
    }, { timeoutMs: 5000 });
  });
}

function concat(parts: readonly Uint8Array[]): Uint8Array {
  const out = new Uint8Array(parts.reduce((sum, p) => sum + p.length, 0));
  let at = 0;
  for (const part of parts) {
    out.set(part, at);
    at += part.length;
  }
  return out;
}

const pattern = Uint8Array.from({ length: 3_000_001 }, (_, i) => (i * 7 + (i >> 9)) & 0xff);

for (const [way, endpoint] of [["proxy", outside], ["tunnel", away(5)]] as const) {
  test(`${way} way: bytes, ends and many connections`, async ({ loop, forwarder, serve, echo }) => {
    await serve(web([endpoint]));
    echo({ ip: endpoint.ip, port: 8080 });
    assert.deepEqual(await exchange(loop, VIP, pattern), pattern);
    const small = pattern.subarray(0, 1000);
    const all = await Promise.all(Array.from({ length: 40 }, () => exchange(loop, VIP, small)));
    for (const got of all) assert.deepEqual(got, small);
    await pause(20);
    const status = forwarder.status();
    assert.equal(status.connections, 0);
    const traffic = status.traffic.find((t) => t.way === way)!;
    assert.deepEqual([traffic.opened, traffic.active, traffic.bytesOut, traffic.bytesIn], [
      41,
      0,
      pattern.length + 40_000,
      pattern.length + 40_000,
    ]);
  });

  test(`${way} way: nobody answers, then the next endpoint does`, async ({ loop, serve, echo }) => {
    const second = way === "proxy" ? { ip: "192.0.2.1" } : away(6);
    await serve(web([endpoint]));
    assert.equal(await exchange(loop, VIP, pattern.subarray(0, 10)), "RESET");
    if (way === "proxy") return;
    await serve(web([endpoint, second]));
    echo({ ip: second.ip, port: 8080 });
    for (let i = 0; i < 4; i++) {
      assert.deepEqual(await exchange(loop, VIP, pattern.subarray(0, 10)), pattern.subarray(0, 10));
    }
  });

  test(`${way} way: UDP answers come from the address that was asked`, async ({ loop, serve }) => {
    await serve(web([endpoint]));
    const server = loop.bindUdp({ ip: endpoint.ip, port: 8080 }, (bytes, length, from) => {
      server.send(bytes, length, from);
    });
    for (const size of [0, 1, 1472, 20_000, 65_507]) {
      const answer = new Promise<[number, IpPort]>((resolve) => {
        const client = loop.bindUdp({ ip: "192.0.2.1", port: 0 }, (_bytes, length, from) => {
          client.close();
          resolve([length, { ip: from.ip, port: from.port }]);
        });
        client.send(pattern, size, VIP);
      });
      assert.deepEqual(await answer, [size, VIP]);
    }
    server.close();
  });
}

test("the listener itself, other addresses and closed agents refuse", async ({ loop, forwarder, serve, echo }) => {
  await serve(web([outside]));
  echo({ ip: outside.ip, port: 8080 });
  for (const to of [{ ip: MESH, port: 19001 }, { ...VIP, port: 81 }, { ip: "10.96.0.77", port: 80 }]) {
    const fate = await exchange(loop, to, pattern.subarray(0, 1));
    assert.ok(fate === "RESET" || fate === "DIAL_REFUSED", `${to.ip}:${to.port} ${fate}`);
  }
  await forwarder.close({ keepKernelRules: true });
  assert.equal(await exchange(loop, VIP, pattern.subarray(0, 1)), "DIAL_REFUSED");
  run("nft", "delete", "table", "inet", "edgemesh");
});

test("what somebody else flushes is back within two seconds", async ({ loop, forwarder, serve, echo }) => {
  await serve(web([{ ip: "10.1.0.5", node: "n1" }]));
  echo({ ip: "10.1.0.5", port: 8080 });
  run("nft", "flush", "ruleset");
  const flushed = systemClock.now();
  while (forwarder.status().repairs === 0) {
    assert.ok(systemClock.now() - flushed < 5_000, "not repaired");
    await pause(20);
  }
  assert.deepEqual(await exchange(loop, VIP, pattern.subarray(0, 9)), pattern.subarray(0, 9));
});

/** What kube-proxy in its iptables mode writes for Service a/web, to an endpoint that this node cannot reach. */
const KUBE_PROXY = `table ip nat {
  chain KUBE-SERVICES {
    ip daddr ${VIP.ip} tcp dport 80 counter dnat to 10.244.9.9:8080
  }
  chain PREROUTING {
    type nat hook prerouting priority -100
    jump KUBE-SERVICES
  }
  chain OUTPUT {
    type nat hook output priority -100
    jump KUBE-SERVICES
  }
}
`;

for (const order of ["before", "after"] as const) {
  test(`beside kube-proxy that started ${order} us: our Services go our way, also through its syncs`, async (machine) => {
    const { loop, serve, echo } = machine;
    const kubeProxy = () => run("nft", KUBE_PROXY);
    if (order === "before") kubeProxy();
    await serve(web([{ ip: "10.1.0.5", node: "n1" }]));
    if (order === "after") kubeProxy();
    echo({ ip: "10.1.0.5", port: 8080 });
    for (let sync = 0; sync < 2; sync++) {
      assert.deepEqual(await exchange(loop, VIP, pattern.subarray(0, 9)), pattern.subarray(0, 9));
      run(
        "nft",
        `flush table ip nat
${KUBE_PROXY}`,
      );
    }
    // Not one packet of ours met its rules.
    assert.match(run("nft", "list", "chain", "ip", "nat", "KUBE-SERVICES"), /packets 0 /);
    run("nft", "delete table ip nat");
  });
}

test("a Service that another proxy handles is not touched, while our own are", async ({ loop, serve, echo }) => {
  const literals = web([{ ip: "10.1.0.5", node: "n1" }]);
  const theirs = service("b/theirs", {
    clusterIPs: ["10.96.0.50"],
    labels: { "service.edgemesh.kubeedge.io/service-proxy-name": "" },
  });
  await serve({ services: [...literals.services!, theirs], slices: literals.slices! });
  run(
    "nft",
    `table ip nat {
  chain OUTPUT {
    type nat hook output priority -100
    ip daddr 10.96.0.50 tcp dport 80 dnat to 10.1.0.6:8080
  }
}`,
  );
  echo({ ip: "10.1.0.5", port: 8080 });
  echo({ ip: "10.1.0.6", port: 8080 });
  for (const ip of [VIP.ip, "10.96.0.50"]) {
    assert.deepEqual(await exchange(loop, { ip, port: 80 }, pattern.subarray(0, 9)), pattern.subarray(0, 9));
  }
  run("nft", "delete table ip nat");
});
