/**
 * `sessionAffinity: ClientIP` in the kernel. Where a client's first connection went is remembered *after* the rewriting,
 * when the choice is plain to see, in one map for all Services; later connections are asked there first, and each renews
 * the time. The maps are in the persistent table, so they outlive the agent, whose listener is remembered like any
 * other target: among its own endpoints the agent keeps the client where it was.
 *
 * The kernel only learns; forgetting an endpoint that is gone is done after each change (see {@link staleAffinity}).
 */
import type { Family } from "../../addr.ts";
import type { Frontend, Plan, PlannedPort } from "../plan_model.ts";
import type { AtomType, Chain, Element, Field, Rule, SetSpec } from "./ruleset.ts";

/** Before both tables' dispatch: a client that is remembered is not spread again. */
const PRIORITY_RECALL = -120;
/** Before the source may be rewritten: clients are told apart by it. */
const PRIORITY_LEARN = 85;
/** Clients remembered per family; new ones are not remembered while the map is full. */
const CLIENTS_MAX = 65_536;

const CLIENT_KEY: readonly Field[] = ["saddr", "daddr", "proto", "dport"];
/** The same connection seen after its destination was rewritten. */
const CLIENT_KEY_AFTER: readonly Field[] = ["saddr", "ct-daddr", "proto", "ct-dport"];

export function affinityMap(family: Family): string {
  return `affinity${family}`;
}

export function affinitySets(family: Family): SetSpec[] {
  const ip: AtomType = family === 4 ? "ipv4" : "ipv6";
  return [
    {
      name: affinityMap(family),
      key: [ip, ip, "proto", "port"],
      value: [ip, "port"],
      learned: CLIENTS_MAX,
    },
    { name: `sticky${family}`, key: [ip, "proto", "port"], value: "verdict" },
    { name: `nodeport-sticky${family}`, key: ["proto", "port"], value: "verdict" },
  ];
}

/** Chains that recall before dispatch, and learn once source and destination are known. */
export function affinityChains(): Chain[] {
  const recall: Rule[] = [4, 6].map((family) => ({
    family: family as Family,
    match: [],
    action: { dnat: CLIENT_KEY, map: affinityMap(family as Family) },
  }));
  const learn = ([4, 6] as const).flatMap((family) =>
    (["tcp", "udp"] as const).flatMap((protocol) => learnRules(family, protocol))
  );
  return [
    { name: "recall-prerouting", hook: { type: "nat", at: "prerouting", priority: PRIORITY_RECALL }, rules: recall },
    { name: "recall-output", hook: { type: "nat", at: "output", priority: PRIORITY_RECALL }, rules: recall },
    { name: "learn", rules: learn },
    // What is delivered on this host passes input, everything else postrouting.
    ...(["input", "postrouting"] as const).map((at): Chain => ({
      name: `learn-${at}`,
      hook: { type: "nat", at, priority: PRIORITY_LEARN },
      rules: [{ match: [{ state: "dnat" }], action: { jump: "learn" } }],
    })),
  ];
}

function learnRules(family: Family, protocol: "tcp" | "udp"): Rule[] {
  const match: Rule["match"] = [{ field: "proto", is: protocol }];
  return [
    { family, match, action: { vmap: ["ct-daddr", "proto", "ct-dport"], map: `sticky${family}` } },
    // A cluster address may have a port of the same number as a node port.
    { family, match: [...match, { fields: ["ct-daddr"], in: `vips${family}` }], action: "accept" },
    { family, match, action: { vmap: ["proto", "ct-dport"], map: `nodeport-sticky${family}` } },
  ];
}

/** Whether packets teach where clients went. Without slot maps (nft) IPv6 clients are kept by their hash instead. */
export function isLearned(port: PlannedPort, shards: number): boolean {
  return port.affinitySeconds !== undefined && (port.family === 4 || shards > 0);
}

/** The chain that remembers for so many seconds; Services with the same timeout share it. */
export function stickyChain(port: PlannedPort): Chain {
  const { family, affinitySeconds: seconds = 0 } = port;
  return {
    name: stickyName(port),
    rules: (["tcp", "udp"] as const).map((protocol) => ({
      family,
      match: [{ field: "proto", is: protocol }],
      action: { learn: CLIENT_KEY_AFTER, value: ["daddr", "dport"], map: affinityMap(family), seconds },
    })),
  };
}

/** The element that makes a frontend sticky, and its set. */
export function stickyElement(
  port: PlannedPort,
  frontend: Frontend,
): { readonly set: string; readonly element: Element } {
  const tail = [port.protocol.toLowerCase(), frontend.port];
  const value = { goto: stickyName(port) };
  return frontend.kind === "node-port"
    ? { set: `nodeport-sticky${port.family}`, element: { key: tail, value } }
    : { set: `sticky${port.family}`, element: { key: [frontend.ip, ...tail], value } };
}

/**
 * Which remembered connections lead to targets that are no longer theirs: a predicate over an element's key and value
 * text. `targets` gives what the rules now allow for a port.
 */
export function staleAffinity(
  plan: Plan,
  targets: (port: PlannedPort, frontend: Frontend) => readonly string[],
): (key: string, value: string) => boolean {
  const allowed = new Map<string, ReadonlySet<string>>();
  for (const service of plan.services.values()) {
    for (const port of service.ports) {
      if (port.affinitySeconds === undefined) continue;
      for (const frontend of port.frontends) {
        const at = frontend.kind === "node-port" ? `v${port.family}` : frontend.ip;
        allowed.set(`${at} . ${port.protocol.toLowerCase()} . ${frontend.port}`, new Set(targets(port, frontend)));
      }
    }
  }
  return (key, value) => {
    const [, ip, protocol, port] = key.split(" . ") as [string, string, string, string];
    const tail = `${protocol} . ${port}`;
    const family = ip.includes(":") ? 6 : 4;
    const valid = allowed.get(`${ip} . ${tail}`) ?? allowed.get(`v${family} . ${tail}`);
    return valid === undefined || !valid.has(value);
  };
}

function stickyName(port: PlannedPort): string {
  return `sticky-${port.affinitySeconds}-v${port.family}`;
}
