/**
 * What every back end of the rule writer must do, said once: as packets see it and as a listing shows it. The fake
 * and the real kernel run the same suite; that is what makes tests over the fake worth something.
 */
import { strict as assert } from "node:assert";
import { cidrText, parseCidr } from "../../lib/addr.ts";
import { DEFAULT_FORWARD_CONFIG, type ForwardConfig, type NodeFacts } from "../../lib/forward/facts.ts";
import { planForwarding } from "../../lib/forward/plan.ts";
import { type AgentListeners, type CompileOptions, compileRules } from "../../lib/forward/rules/compile.ts";
import { AGENT_TABLE, type Grammar, type Ruleset, TABLE } from "../../lib/forward/rules/ruleset.ts";
import type { ApplyResult } from "../../lib/forward/rules/writer.ts";
import type { IpPort } from "../../lib/net.ts";
import { type EndpointLiteral, type Literals, metaOf, service, slice } from "../fixtures/meta_literal.ts";

export interface Ask {
  readonly from: "host" | "pod" | "outside";
  readonly protocol: "tcp" | "udp";
  readonly to: IpPort;
}

/** A listing as plain objects. */
export type Listing = Record<string, { sets: Record<string, Record<string, string>>; chains: Record<string, unknown> }>;

/** A back end with a machine around it that has {@link SERVERS} and {@link MACHINE}. */
export interface RulesBench {
  readonly ownsTables: boolean;
  readonly grammar: Grammar;
  apply(ruleset: Ruleset): Promise<ApplyResult>;
  repair(): Promise<ApplyResult>;
  list(): Promise<Listing>;
  remove(which: "all" | "agent"): Promise<void>;
  /** Forgets remembered clients of these targets, given as `ip . port`. */
  forget(targets: readonly string[]): Promise<number>;
  /** Lets time pass. */
  pass(ms: number): Promise<void>;
  /** `ip:port client` of who answered, `reject`, or `silent`. */
  ask(ask: Ask): Promise<string>;
  /** Somebody else runs `nft` with this; undefined where there is no nft to run. */
  foreign?(script: string): Promise<void>;
  /** The process that holds the writer is killed; a new one takes over. */
  crash(): Promise<void>;
  close(): Promise<void>;
}

export const MACHINE = {
  mesh4: "169.254.96.16",
  mesh6: "fd96:ed9e::16",
  host4: "192.0.2.1",
  pod4: "10.1.0.100",
  pod6: "fd00:1::100",
  outside4: "198.51.100.2",
  podCidr4: "10.1.0.0/24",
  serviceCidr4: "10.96.0.0/16",
  serviceCidr6: "fd00:10:96::/112",
} as const;

const AGENT_PORT = 19001;
/** Who answers on the machine: endpoints of this node, and the agent's listeners. */
export const SERVERS: readonly IpPort[] = [
  ...["10.1.0.5", "10.1.0.6", "10.1.0.7", "fd00:1::5", "fd00:1::6"].map((ip) => ({ ip, port: 8080 })),
  ...Array.from({ length: 18 }, (_, i) => ({ ip: `10.1.0.${5 + i % 3}`, port: 8000 + i })),
  { ip: MACHINE.mesh4, port: AGENT_PORT },
  { ip: MACHINE.mesh6, port: AGENT_PORT },
];

const facts: NodeFacts = {
  node: "n1",
  addresses: [MACHINE.mesh4, MACHINE.mesh6, MACHINE.host4],
  podCidrs: [parseCidr(MACHINE.podCidr4)!],
  routable: [],
  mesh4: MACHINE.mesh4,
  mesh6: MACHINE.mesh6,
  hairpinLinks: [],
};

const VIP = "10.96.0.10";
const VIP6 = "fd00:10:96::10";
const here = (n: number): EndpointLiteral => ({ ip: `10.1.0.${n}`, node: "n1" });
const away = (n: number): EndpointLiteral => ({ ip: `10.3.0.${n}`, node: "n3" });

type Rules = (literals: Literals, config?: Partial<ForwardConfig>, previous?: Ruleset) => Ruleset;

function rulesFor(grammar: Grammar): Rules {
  return (literals, config, previous) => rulesOf(literals, config ?? {}, { previous, grammar });
}

function rulesOf(literals: Literals, config: Partial<ForwardConfig>, options: CompileOptions): Ruleset {
  const plan = planForwarding(metaOf(literals), facts, { ...DEFAULT_FORWARD_CONFIG, ...config });
  const udp = new Map<string, IpPort>();
  for (const s of plan.services.values()) {
    for (const p of s.ports) {
      if (p.protocol === "UDP") udp.set(p.id, { ip: p.family === 4 ? MACHINE.mesh4 : MACHINE.mesh6, port: AGENT_PORT });
    }
  }
  const listeners: AgentListeners = {
    tcp4: { ip: MACHINE.mesh4, port: AGENT_PORT },
    tcp6: { ip: MACHINE.mesh6, port: AGENT_PORT },
    udp,
  };
  return compileRules(plan, listeners, options);
}

const both = [{ port: 80 }, { port: 80, protocol: "UDP" as const }];
const bothTargets = [{ port: 8080 }, { port: 8080, protocol: "UDP" as const }];

/** A Service on TCP and UDP port 80 with these endpoints. */
function web(endpoints: readonly EndpointLiteral[], extra: Parameters<typeof service>[1] = {}): Literals {
  return {
    services: [service("shop/web", { clusterIPs: [VIP, VIP6], ports: both, ...extra })],
    slices: endpoints.length === 0 ? [] : [slice("shop/web", endpoints, bothTargets)],
  };
}

const tcp = (to: string, from: Ask["from"] = "host", port = 80): Ask => ({
  from,
  protocol: "tcp",
  to: { ip: to, port },
});
const udp = (to: string, from: Ask["from"] = "host", port = 80): Ask => ({
  from,
  protocol: "udp",
  to: { ip: to, port },
});
const server = (answer: string) => answer.split(" ")[0]!;

/** Registers the suite for one back end, as steps of one test: the machine around it is costly to make. */
export function rulesContract(name: string, open: () => Promise<RulesBench>): void {
  const cases: (readonly [string, (bench: RulesBench, rules: Rules) => Promise<void>])[] = [];
  const test = (title: string, body: (bench: RulesBench, rules: Rules) => Promise<void>) => cases.push([title, body]);
  const times = async (n: number, bench: RulesBench, ask: Ask) => {
    const seen = new Map<string, number>();
    for (let i = 0; i < n; i++) {
      const who = server(await bench.ask(ask));
      seen.set(who, (seen.get(who) ?? 0) + 1);
    }
    return Object.fromEntries([...seen].sort());
  };

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

  test("a change touches only what changed, and counters of others go on", async (bench, rules) => {
    const literals = (last: number): Literals => ({
      services: [service("shop/web", { clusterIPs: [VIP] }), service("shop/other", { clusterIPs: ["10.96.0.11"] })],
      slices: [slice("shop/web", [here(5), here(last)]), slice("shop/other", [here(5), here(6)])],
    });
    const first = rules(literals(6));
    await bench.apply(first);
    const before = server(await bench.ask(tcp("10.96.0.11")));
    const second = rules(literals(7), {}, first);
    // One endpoint replaced: its slot is deleted and added (or its Service's chain filled anew), and its pod may now be
    // its own client. Nothing else.
    assert.deepEqual(await bench.apply(second), { operations: bench.grammar === "full" ? 3 : 2 });
    assert.deepEqual(await times(4, bench, tcp(VIP)), { "10.1.0.5:8080": 2, "10.1.0.7:8080": 2 });
    assert.notEqual(server(await bench.ask(tcp("10.96.0.11"))), before);
    assert.deepEqual(await bench.apply(rules(literals(7), {}, second)), { operations: 0 });
  });

  test("one, two, one, no endpoints, gone: chains come and go with them", async (bench, rules) => {
    let last: Ruleset | undefined;
    const step = async (literals: Literals) => {
      last = rules(literals, {}, last);
      await bench.apply(last);
    };
    await step(web([here(5)]));
    assert.equal(server(await bench.ask(tcp(VIP))), "10.1.0.5:8080");
    await step(web([here(5), here(6)]));
    assert.deepEqual(await times(2, bench, tcp(VIP)), { "10.1.0.5:8080": 1, "10.1.0.6:8080": 1 });
    await step(web([here(6)]));
    assert.deepEqual(await times(2, bench, tcp(VIP)), { "10.1.0.6:8080": 2 });
    await step(web([]));
    assert.equal(await bench.ask(tcp(VIP)), "reject");
    await step({});
    const listing = await bench.list();
    for (const table of [TABLE, AGENT_TABLE]) {
      assert.deepEqual(Object.keys(listing[table]!.chains).filter((c) => c.startsWith("svc-")), []);
      for (const [set, elements] of Object.entries(listing[table]!.sets)) {
        if (set !== "pods4") assert.deepEqual(elements, {}, set);
      }
    }
  });

  test("a new process takes over what it finds and changes only the difference", async (bench, rules) => {
    const ruleset = rules(web([here(5), here(6)]));
    await bench.apply(ruleset);
    await bench.crash();
    // What an owner's death took must come back (a table and the node's pod network in it), the rest is not touched.
    const { operations } = await bench.apply(rules(web([here(5), here(6)])));
    assert.equal(operations, bench.ownsTables ? 2 : 0);
    assert.deepEqual(await times(2, bench, tcp(VIP)), { "10.1.0.5:8080": 1, "10.1.0.6:8080": 1 });
  });

  test(
    "a crash: kernel-way Services go on, agent-bound ones are refused or die with the listener",
    async (bench, rules) => {
      await bench.apply(rules({
        services: [service("shop/here", { clusterIPs: [VIP] }), service("shop/away", { clusterIPs: ["10.96.0.12"] })],
        slices: [slice("shop/here", [here(5)]), slice("shop/away", [away(2)])],
      }));
      await bench.crash();
      assert.equal(server(await bench.ask(tcp(VIP, "pod"))), "10.1.0.5:8080");
      const listing = await bench.list();
      assert.equal(AGENT_TABLE in listing, !bench.ownsTables);
      if (bench.ownsTables) assert.equal(await bench.ask(tcp("10.96.0.12", "pod")), "reject");
    },
  );

  test("the listing shows what was applied", async (bench, rules) => {
    await bench.apply(rules(web([here(5), here(6), away(1)]), { refuseCidrs: [parseCidr(MACHINE.serviceCidr4)!] }));
    const { sets } = (await bench.list())[TABLE]!;
    assert.deepEqual(sets.vips6, { [VIP6]: "" });
    assert.deepEqual(sets.refused4, { [cidrText(parseCidr(MACHINE.serviceCidr4)!)]: "" });
    assert.deepEqual(sets.services4, {
      [`${VIP} . tcp . 80`]: "goto svc-shop/web/tcp/80/v4/in",
      [`${VIP} . udp . 80`]: "goto svc-shop/web/udp/80/v4/in",
    });
    assert.deepEqual(await bench.repair(), { operations: 0 });
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

  test("a foreign flush, a foreign element and a foreign deletion are repaired", async (bench, rules) => {
    if (!bench.foreign) return;
    await bench.apply(rules(web([here(5), here(6)])));
    const good = await bench.list();
    for (
      const script of [
        `flush chain inet ${TABLE} dispatch`,
        `flush map inet ${TABLE} services4`,
        `flush chain inet ${TABLE} svc-shop/web/tcp/80/v4/in`,
        `add element inet ${TABLE} vips4 { 10.96.7.7 }`,
        `add element inet ${TABLE} refused4 { 10.97.0.0/24 }`,
        `add element inet ${TABLE} refused4 { 10.98.0.1-10.98.0.9 }`,
        `add rule inet ${TABLE} dispatch accept`,
        `delete table inet ${TABLE}`,
      ]
    ) {
      await bench.foreign(script);
      assert.ok((await bench.repair()).operations > 0, script);
      assert.deepEqual(await bench.list(), good, script);
      assert.deepEqual(await bench.repair(), { operations: 0 }, script);
    }
    assert.deepEqual(await times(2, bench, tcp(VIP)), { "10.1.0.5:8080": 1, "10.1.0.6:8080": 1 });
  });

  test("a change that no longer fits a foreign state is applied all the same", async (bench, rules) => {
    if (!bench.foreign) return;
    const first = rules(web([here(5), here(6)]));
    await bench.apply(first);
    await bench.foreign("flush ruleset");
    await bench.apply(rules(web([here(5), here(7)]), {}, first));
    assert.deepEqual(await times(2, bench, tcp(VIP)), { "10.1.0.5:8080": 1, "10.1.0.7:8080": 1 });
  });

  test("removal leaves nothing, twice", async (bench, rules) => {
    await bench.apply(rules(web([here(5)])));
    await bench.remove("all");
    await bench.remove("all");
    assert.deepEqual(await bench.list(), {});
    assert.deepEqual(await bench.ask(tcp(VIP, "pod")), "silent");
  });

  Deno.test(`rules contract, ${name}`, async (t) => {
    const bench = await open();
    try {
      for (const [title, body] of cases) {
        await t.step(title, async () => {
          await bench.remove("all");
          await body(bench, rulesFor(bench.grammar));
        });
      }
    } finally {
      await bench.close();
    }
  });
}
