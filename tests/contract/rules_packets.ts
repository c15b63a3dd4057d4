/** Where packets go: endpoints, shares, affinity, refusals, node ports. */
import { strict as assert } from "node:assert";
import { parseCidr } from "../../lib/addr.ts";
import { type EndpointLiteral, service, slice } from "../fixtures/meta_literal.ts";
import {
  AGENT_PORT,
  away,
  both,
  type Case,
  here,
  MACHINE,
  server,
  tcp,
  times,
  udp,
  VIP,
  VIP6,
  web,
} from "./rules_bench.ts";

/** In this order. */
export const PACKETS: [string, Case][] = [];
const test = (title: string, body: Case) => void PACKETS.push([title, body]);

test("one endpoint of this node, TCP and UDP, both families, from the host and from a pod", async (bench, rules) => {
  await bench.apply(rules(web([here(5), { ip: "fd00:1::5", node: "n1" }])));
  for (const from of ["host", "pod"] as const) {
    for (const ask of [tcp, udp]) {
      assert.equal(server(await bench.ask(ask(VIP, from))), "10.1.0.5:8080");
      assert.equal(server(await bench.ask(ask(VIP6, from))), "fd00:1::5:8080");
    }
  }
  // The source is kept: the endpoint sees the pod itself.
  assert.equal(await bench.ask(tcp(VIP, "pod")), `10.1.0.5:8080 ${MACHINE.pod4}`);
});

test("three endpoints get exactly even shares, per Service", async (bench, rules) => {
  const other = "10.96.0.11";
  await bench.apply(rules({
    services: [
      service("shop/web", { clusterIPs: [VIP] }),
      service("shop/other", { clusterIPs: [other] }),
    ],
    slices: [slice("shop/web", [here(5), here(6), here(7)]), slice("shop/other", [here(5), here(6)])],
  }));
  const seen: Record<string, number> = {};
  for (let i = 0; i < 6; i++) {
    // Interleaved: each Service has a counter of its own.
    for (const ip of [VIP, other]) {
      const key = `${ip} ${server(await bench.ask(tcp(ip)))}`;
      seen[key] = (seen[key] ?? 0) + 1;
    }
  }
  assert.deepEqual(seen, {
    [`${VIP} 10.1.0.5:8080`]: 2,
    [`${VIP} 10.1.0.6:8080`]: 2,
    [`${VIP} 10.1.0.7:8080`]: 2,
    [`${other} 10.1.0.5:8080`]: 3,
    [`${other} 10.1.0.6:8080`]: 3,
  });
});

test("many endpoints: a tree of chains, shares still exact", async (bench, rules) => {
  // Nineteen slots: more than one chain holds, and groups of unequal size. One of them is the agent's.
  const many = Array.from({ length: 18 }, (_, i) => ({ ip: `10.1.0.${5 + i % 3}`, node: `n1`, port: 8000 + i }));
  const ruleset = rules({
    services: [service("shop/web", { clusterIPs: [VIP] })],
    slices: [
      ...many.map((e) => slice("shop/web", [{ ip: e.ip, node: "n1" }], [{ port: e.port }])),
      slice("shop/web", [away(1)]),
    ],
  });
  await bench.apply(ruleset);
  const seen = await times(38, bench, tcp(VIP));
  assert.equal(Object.keys(seen).length, 19);
  assert.ok(Object.values(seen).every((n) => n === 2), JSON.stringify(seen));
  await bench.apply(rules(web([here(5), here(6)]), {}, ruleset));
  assert.deepEqual(await times(2, bench, tcp(VIP)), { "10.1.0.5:8080": 1, "10.1.0.6:8080": 1 });
});

test("source hash: a client stays where it is", async (bench, rules) => {
  await bench.apply(
    rules(web([here(5), here(6), here(7), { ip: "fd00:1::5", node: "n1" }, { ip: "fd00:1::6", node: "n1" }]), {
      balance: "source-hash",
    }),
  );
  for (const ask of [tcp(VIP, "pod"), tcp(VIP6, "pod")]) {
    assert.deepEqual(Object.values(await times(5, bench, ask)), [5]);
  }
});

test("session affinity: a client stays, renews its time, and is spread anew afterwards", async (bench, rules) => {
  const sticky = (n: number, endpoints: readonly EndpointLiteral[]) =>
    rules(web(endpoints, { affinitySeconds: n, ports: [...both, { port: 81, nodePort: 30081 }] }));
  const all = [here(5), here(6), here(7), { ip: "fd00:1::5", node: "n1" }, { ip: "fd00:1::6", node: "n1" }];
  await bench.apply(sticky(2, all));
  for (const ask of [tcp(VIP, "pod"), tcp(VIP6, "pod"), udp(VIP, "pod"), tcp(VIP, "host")]) {
    assert.deepEqual(Object.values(await times(5, bench, ask)), [5], JSON.stringify(ask));
  }
  // TCP and UDP are remembered apart, clients too: round robin goes on among those that are new.
  const first = server(await bench.ask(tcp(VIP, "pod")));
  for (let i = 0; i < 3; i++) {
    await bench.pass(1200);
    assert.equal(server(await bench.ask(tcp(VIP, "pod"))), first);
  }
  await bench.pass(2300);
  assert.notEqual(server(await bench.ask(tcp(VIP, "pod"))), first);
});

test("session affinity: an endpoint that is gone is forgotten", async (bench, rules) => {
  const sticky = (endpoints: readonly EndpointLiteral[]) => rules(web(endpoints, { affinitySeconds: 100 }));
  await bench.apply(sticky([here(5), here(6)]));
  const first = server(await bench.ask(tcp(VIP, "pod")));
  const left = first === "10.1.0.5:8080" ? here(6) : here(5);
  await bench.apply(sticky([left]));
  assert.equal(await bench.forget([first.replace(":", " . ")]), 1);
  assert.equal(await bench.forget([first.replace(":", " . ")]), 0);
  assert.deepEqual(await times(3, bench, tcp(VIP, "pod")), { [`${left.ip}:8080`]: 3 });
});

test("session affinity: clients of the agent stay with it, beside kernel-way endpoints", async (bench, rules) => {
  await bench.apply(rules(web([here(5), away(1)], { affinitySeconds: 100 })));
  const [pod, host] = [server(await bench.ask(tcp(VIP, "pod"))), server(await bench.ask(tcp(VIP, "host")))];
  assert.notEqual(pod, host);
  for (let i = 0; i < 3; i++) {
    assert.equal(server(await bench.ask(tcp(VIP, "pod"))), pod);
    assert.equal(server(await bench.ask(tcp(VIP, "host"))), host);
  }
});

test("agent-bound endpoints get their share through the listener, also when all are", async (bench, rules) => {
  await bench.apply(rules(web([here(5), away(1), away(2)])));
  const agent = `${MACHINE.mesh4}:${AGENT_PORT}`;
  assert.deepEqual(await times(6, bench, tcp(VIP)), { "10.1.0.5:8080": 2, [agent]: 4 });
  assert.deepEqual(await times(3, bench, udp(VIP)), { "10.1.0.5:8080": 1, [agent]: 2 });
  await bench.apply(rules(web([away(1), away(2), { ip: "fd00:3::1", node: "n3" }])));
  assert.equal(server(await bench.ask(tcp(VIP, "pod"))), agent);
  assert.equal(server(await bench.ask(udp(VIP, "pod"))), agent);
  assert.equal(server(await bench.ask(tcp(VIP6, "pod"))), `${MACHINE.mesh6}:${AGENT_PORT}`);
});

test("without the agent's table kernel-way endpoints serve alone, the rest is refused", async (bench, rules) => {
  await bench.apply(rules({
    services: [service("shop/mixed", { clusterIPs: [VIP] }), service("shop/away", { clusterIPs: ["10.96.0.12"] })],
    slices: [slice("shop/mixed", [here(5), away(1)]), slice("shop/away", [away(2)])],
  }));
  await bench.remove("agent");
  assert.deepEqual(await times(4, bench, tcp(VIP, "pod")), { "10.1.0.5:8080": 4 });
  assert.equal(await bench.ask(tcp("10.96.0.12", "pod")), "reject");
  assert.equal(await bench.ask(tcp("10.96.0.12", "host")), "reject");
});

test("refused at once: no endpoint, a port without a rule, an address without a Service", async (bench, rules) => {
  await bench.apply(rules(
    web([]),
    { refuseCidrs: [parseCidr(MACHINE.serviceCidr4)!, parseCidr(MACHINE.serviceCidr6)!] },
  ));
  for (const from of ["host", "pod"] as const) {
    for (const ip of [VIP, VIP6]) {
      assert.equal(await bench.ask(tcp(ip, from)), "reject");
      assert.equal(await bench.ask(tcp(ip, from, 81)), "reject");
    }
    assert.equal(await bench.ask(tcp("10.96.9.9", from)), "reject");
    assert.equal(await bench.ask(tcp("fd00:10:96::99", from)), "reject");
    assert.equal(await bench.ask(udp(VIP, from)), "reject");
  }
});

test("excluded by traffic policy is dropped", async (bench, rules) => {
  await bench.apply(rules(web([away(1)], { internalTrafficPolicy: "Local" })));
  assert.equal(await bench.ask(tcp(VIP, "pod")), "silent");
  assert.equal(await bench.ask(tcp(VIP, "host")), "silent");
});

test("node ports answer on the host's addresses, from outside the agent and the pods", async (bench, rules) => {
  await bench.apply(rules({
    services: [service("shop/web", { clusterIPs: [VIP], ports: [{ port: 80, nodePort: 30080 }] })],
    slices: [slice("shop/web", [here(5), here(6)])],
  }));
  const ask = tcp(MACHINE.host4, "pod", 30080);
  assert.deepEqual(await times(2, bench, ask), { "10.1.0.5:8080": 1, "10.1.0.6:8080": 1 });
  await bench.apply(rules({
    services: [service("shop/web", { clusterIPs: [VIP], ports: [{ port: 80, nodePort: 30080 }] })],
    slices: [],
  }));
  assert.equal(await bench.ask(ask), "reject");
});

test(
  "externalTrafficPolicy Local is for clients outside: this node's own get all endpoints",
  async (bench, rules) => {
    await bench.apply(rules({
      services: [service("shop/web", {
        clusterIPs: [VIP],
        ports: [{ port: 80, nodePort: 30080 }],
        externalTrafficPolicy: "Local",
      })],
      slices: [slice("shop/web", [away(1)])],
    }));
    assert.equal(server(await bench.ask(tcp(MACHINE.host4, "pod", 30080))), `${MACHINE.mesh4}:${AGENT_PORT}`);
    assert.equal(server(await bench.ask(tcp(MACHINE.host4, "host", 30080))), `${MACHINE.mesh4}:${AGENT_PORT}`);
    assert.equal(await bench.ask(tcp(MACHINE.host4, "outside", 30080)), "silent");
    await bench.apply(rules({
      services: [service("shop/web", {
        clusterIPs: [VIP],
        ports: [{ port: 80, nodePort: 30080 }],
        externalTrafficPolicy: "Local",
      })],
      slices: [slice("shop/web", [away(1), here(5), here(6)])],
    }));
    assert.deepEqual(await times(4, bench, tcp(MACHINE.host4, "outside", 30080)), {
      "10.1.0.5:8080": 2,
      "10.1.0.6:8080": 2,
    });
    assert.equal(Object.keys(await times(3, bench, tcp(MACHINE.host4, "pod", 30080))).length, 3);
    // Clients outside are seen by their own address: no endpoint elsewhere could have needed ours.
    assert.match(await bench.ask(tcp(MACHINE.host4, "outside", 30080)), new RegExp(` ${MACHINE.outside4}$`));
  },
);
