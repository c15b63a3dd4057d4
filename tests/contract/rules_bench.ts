/** What the suites of rules_contract.ts share: the machine, the cluster, and questions to it. */
import { parseCidr } from "../../lib/addr.ts";
import { DEFAULT_FORWARD_CONFIG, type ForwardConfig, type NodeFacts } from "../../lib/forward/facts.ts";
import { planForwarding } from "../../lib/forward/plan.ts";
import { type AgentListeners, type CompileOptions, compileRules } from "../../lib/forward/rules/compile.ts";
import type { Grammar, Ruleset } from "../../lib/forward/rules/ruleset.ts";
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

export const AGENT_PORT = 19001;
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

export const VIP = "10.96.0.10";
export const VIP6 = "fd00:10:96::10";
/** An endpoint of this node, and one of another that is reached through the agent. */
export const here = (n: number): EndpointLiteral => ({ ip: `10.1.0.${n}`, node: "n1" });
export const away = (n: number): EndpointLiteral => ({ ip: `10.3.0.${n}`, node: "n3" });

/** Makes the ruleset of a cluster, as a writer with this grammar is given it. */
export type Rules = (literals: Literals, config?: Partial<ForwardConfig>, previous?: Ruleset) => Ruleset;

export function rulesFor(grammar: Grammar): Rules {
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

export const both = [{ port: 80 }, { port: 80, protocol: "UDP" as const }];
const bothTargets = [{ port: 8080 }, { port: 8080, protocol: "UDP" as const }];

/** A Service on TCP and UDP port 80 with these endpoints. */
export function web(endpoints: readonly EndpointLiteral[], extra: Parameters<typeof service>[1] = {}): Literals {
  return {
    services: [service("shop/web", { clusterIPs: [VIP, VIP6], ports: both, ...extra })],
    slices: endpoints.length === 0 ? [] : [slice("shop/web", endpoints, bothTargets)],
  };
}

export const tcp = (to: string, from: Ask["from"] = "host", port = 80): Ask => ({
  from,
  protocol: "tcp",
  to: { ip: to, port },
});
export const udp = (to: string, from: Ask["from"] = "host", port = 80): Ask => ({
  from,
  protocol: "udp",
  to: { ip: to, port },
});
/** Who answered, without the client it saw. */
export const server = (answer: string) => answer.split(" ")[0]!;

/** One thing that every back end must do; the tables are empty before it. */
export type Case = (bench: RulesBench, rules: Rules) => Promise<void>;

/** How often each answered of `n` connections. */
export async function times(n: number, bench: RulesBench, ask: Ask): Promise<Record<string, number>> {
  const seen = new Map<string, number>();
  for (let i = 0; i < n; i++) {
    const who = server(await bench.ask(ask));
    seen.set(who, (seen.get(who) ?? 0) + 1);
  }
  return Object.fromEntries([...seen].sort());
}
