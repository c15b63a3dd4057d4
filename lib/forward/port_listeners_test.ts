import { strict as assert } from "node:assert";
import { nullLogger } from "../log.ts";
import type { Accepted, IpPort, Loop } from "../net.ts";
import { idleHandler } from "../net.ts";
import { DEFAULT_FORWARD_CONFIG, type NodeFacts } from "./facts.ts";
import type { Plan, PlannedPort, Verdict } from "./plan_model.ts";
import { bindNear, LISTEN_PORTS, PortListeners } from "./port_listeners.ts";

const FACTS: NodeFacts = {
  node: "edge-1",
  addresses: ["169.254.96.16", "192.0.2.1"],
  podCidrs: [{ ip: "10.1.0.0", bits: 24 }],
  routable: [],
  mesh4: "169.254.96.16",
  mesh6: undefined,
  hairpinLinks: [],
};

const tunnel: Verdict = {
  verdict: "forward",
  slots: [{ key: "k", endpoint: { ip: "10.2.0.1", port: 80 }, node: "edge-2", way: "tunnel", reason: "other-node" }],
};

function port(name: string, change: Partial<PlannedPort> = {}): PlannedPort {
  return {
    id: `default/${name} TCP/80 v4`,
    namespace: "default",
    service: name,
    portName: "",
    protocol: "TCP",
    port: 80,
    family: 4,
    frontends: [{ kind: "cluster-ip", ip: "10.96.0.1", port: 80 }],
    balance: "round-robin",
    affinitySeconds: undefined,
    internal: tunnel,
    external: tunnel,
    externalFromHere: tunnel,
    ...change,
  };
}

function planOf(...ports: PlannedPort[]): Plan {
  const services = ports.map((p) => [`default/${p.service}`, { key: p.service, ports: [p] }] as const);
  return { facts: FACTS, config: DEFAULT_FORWARD_CONFIG, services: new Map(services) } as unknown as Plan;
}

/** Listeners by port, as the loop was asked for them; `taken` are somebody else's. */
function rig(taken: readonly number[] = []) {
  const open = new Map<number, (accepted: Accepted) => void>();
  const went: { original: IpPort }[] = [];
  const resets: string[] = [];
  const loop = {
    listenTcp(at: IpPort, onAccept: (accepted: Accepted) => void) {
      if (taken.includes(at.port)) throw new Error("EADDRINUSE");
      open.set(at.port, onAccept);
      return { local: at, pause() {}, resume() {}, close: () => void open.delete(at.port) };
    },
  } as unknown as Loop;
  const listeners = new PortListeners({
    loop,
    log: nullLogger,
    facts: () => FACTS,
    accept: ({ original }) => void went.push({ original }),
  });
  const connect = (to: IpPort, from: string) => {
    const stream = {
      handler: idleHandler,
      read: () => 0,
      write: () => 0,
      closeWrite() {},
      reset: (code: string) => void resets.push(code),
    };
    open.get(to.port)!({ stream, remote: { ip: from, port: 40_000 }, local: to, original: to });
  };
  return { listeners, open, went, resets, connect };
}

Deno.test("a port that needs the agent has a listener while it does, others have none", () => {
  const { listeners, open } = rig();
  const kernel: Verdict = { verdict: "forward", slots: [{ ...tunnel.slots[0]!, way: "kernel" }] };
  const far = port("far");
  listeners.prepare(
    planOf(far, port("near", { internal: kernel, external: kernel }), port("udp", { protocol: "UDP" })),
  );
  assert.deepEqual([...listeners.addresses.keys()], [far.id]);
  const { port: at } = listeners.addresses.get(far.id)!;
  assert(at >= LISTEN_PORTS.first && at < LISTEN_PORTS.first + LISTEN_PORTS.count);
  listeners.prepare(planOf(far));
  assert.equal(open.size, 1, "opened twice");
  listeners.retire(planOf());
  assert.equal(open.size, 0);
  assert.equal(listeners.addresses.size, 0);
});

Deno.test("our own clients mean the cluster address, strangers an address for outside", () => {
  const { listeners, went, connect } = rig();
  const outside = port("far", {
    frontends: [{ kind: "cluster-ip", ip: "10.96.0.1", port: 80 }, { kind: "node-port", ip: "", port: 30_080 }],
  });
  listeners.prepare(planOf(outside));
  const at = listeners.addresses.get(outside.id)!;
  connect(at, "10.1.0.7");
  connect(at, "192.0.2.1");
  connect(at, "203.0.113.9");
  assert.deepEqual(went.map(({ original }) => `${original.ip}:${original.port}`), [
    "10.96.0.1:80",
    "10.96.0.1:80",
    "192.0.2.1:30080",
  ]);
});

Deno.test("the newest plan counts: a Service that lost its addresses refuses", () => {
  const { listeners, went, resets, connect } = rig();
  const before = port("far");
  listeners.prepare(planOf(before));
  const at = listeners.addresses.get(before.id)!;
  listeners.prepare(planOf({ ...before, frontends: [] }));
  connect(at, "10.1.0.7");
  assert.deepEqual(went, []);
  assert.deepEqual(resets, ["NO_SERVICE"]);
});

Deno.test("a taken port is passed over, and the same name leads to the same port", () => {
  const ports = [1, 2].map(() => bindNear("default/web TCP/80 v4", (at) => at));
  assert.equal(ports[0], ports[1]);
  const tried: number[] = [];
  const got = bindNear("default/web TCP/80 v4", (at) => {
    tried.push(at);
    if (at !== 0) throw new Error("EADDRINUSE");
    return at;
  });
  assert.equal(got, 0, "the kernel chooses in the end");
  assert.equal(tried[0], ports[0]);
  const { listeners } = rig([ports[0]!]);
  const web = port("web");
  listeners.prepare(planOf(web));
  assert.notEqual(listeners.addresses.get(web.id)!.port, ports[0]);
});
