/**
 * The static part of the rules: tables, sets, hooks, and why each rule hangs where it does.
 *
 * - Everything happens in `nat` chains, which see the first packet of a connection only: established connections cost
 *   what conntrack costs, nothing more.
 * - Priorities before `dstnat` (-100): kube-proxy's rules are asked after ours in whichever order we started, and the
 *   agent's table is asked before the persistent one. Inside `nat` the first rewriting wins.
 * - Refusal happens in the same chains, not in `filter`: a later `nat` chain of somebody else must not bring a
 *   connection that we refuse to an endpoint it cannot reach, and a node with forwarding off refuses as fast.
 * - Addresses without a Service are refused after everybody has had his say, and never if they are this host's
 *   (kube-proxy's IPVS mode gives it the addresses of its Services).
 * - A ping of a Service address is refused too: an answer would say nothing about the Service.
 */
import type { Family } from "../../addr.ts";
import type { NodeFacts } from "../facts.ts";
import { affinityChains, affinitySets } from "./affinity.ts";
import {
  AGENT_TABLE,
  type AtomType,
  type Chain,
  type Field,
  type Rule,
  type SetSpec,
  TABLE,
  type Table,
} from "./ruleset.ts";
import { slotMapName } from "./spread.ts";

const PRIORITY_AGENT = -115;
const PRIORITY_PERSISTENT = -110;
/** After `dstnat`: another service proxy may own addresses of the same networks. */
const PRIORITY_UNKNOWN = -90;
/** After everything that could still want to see the real source, before `srcnat` (100). */
const PRIORITY_SOURCE = 90;
const KEY: readonly Field[] = ["daddr", "proto", "dport"];
const NODE_KEY: readonly Field[] = ["proto", "dport"];

/** Both tables for a node; the same objects again when nothing that they are made from has changed. */
export function staticTables(facts: NodeFacts, shards: number, previous?: Made): Made {
  const from = JSON.stringify([facts.mesh4, facts.mesh6, shards]);
  return previous?.from === from ? previous : {
    from,
    tables: [persistentTable(facts, shards), agentTable(facts, shards)],
  };
}

/** Tables with what they were made from. */
export interface Made {
  readonly from: string;
  readonly tables: readonly Table[];
}

function persistentTable(facts: NodeFacts, shards: number): Table {
  return {
    name: TABLE,
    owned: false,
    sets: [
      ...forwardingSets(shards),
      ...families((family) => [
        { name: `vips${family}`, key: [ip(family)] },
        { name: `refused${family}`, key: [ip(family)], interval: true },
        { name: `hairpin${family}`, key: [ip(family), ip(family)] },
        { name: `remote${family}`, key: [ip(family)], interval: true },
        ...affinitySets(family),
      ]),
      { name: "hairpin-links", key: ["ifname", "ifname"] },
    ],
    chains: [
      refuse(),
      {
        name: "dispatch",
        rules: families((family) => [
          ...dispatchRules(family),
          { family, match: [{ fields: ["daddr"], in: `vips${family}` }], action: { goto: "refuse" } },
          ...nodePortRules(family, facts),
        ]),
      },
      ...hooks(PRIORITY_PERSISTENT, "", "dispatch"),
      {
        name: "unknown",
        rules: families((family) => [{
          family,
          match: [{ fields: ["daddr"], in: `refused${family}` }, { state: "to-elsewhere" }],
          action: { goto: "refuse" },
        }]),
      },
      ...hooks(PRIORITY_UNKNOWN, "unknown-", "unknown"),
      ...affinityChains(),
      {
        name: "postrouting",
        hook: { type: "nat", at: "postrouting", priority: PRIORITY_SOURCE },
        rules: masqueradeRules(facts),
      },
    ],
  };
}

function agentTable(facts: NodeFacts, shards: number): Table {
  return {
    name: AGENT_TABLE,
    owned: true,
    sets: forwardingSets(shards),
    chains: [
      {
        name: "dispatch",
        rules: families((family) => [...dispatchRules(family), ...nodePortRules(family, facts)]),
      },
      ...hooks(PRIORITY_AGENT, "", "dispatch"),
    ],
  };
}

/** Chains that only send packets on, at the two places where a connection can begin: here, or outside this host. */
function hooks(priority: number, prefix: string, chain: string): Chain[] {
  return (["prerouting", "output"] as const).map((at) => ({
    name: `${prefix}${at}`,
    hook: { type: "nat", at, priority },
    rules: [{ match: [], action: { jump: chain } }],
  }));
}

function forwardingSets(shards: number): SetSpec[] {
  return families((family) => {
    const key: AtomType[] = [ip(family), "proto", "port"];
    const target: AtomType[] = [ip(family), "port"];
    return [
      { name: `pods${family}`, key: [ip(family)], interval: true },
      { name: `single${family}`, key, value: target },
      { name: `services${family}`, key, value: "verdict" },
      { name: `nodeport-single${family}`, key: ["proto", "port"], value: target },
      { name: `nodeport-services${family}`, key: ["proto", "port"], value: "verdict" },
      ...Array.from({ length: shards }, (_, shard): SetSpec => ({
        name: slotMapName(family, shard),
        key: ["u32", "u32", "u32"],
        value: target,
      })),
    ];
  });
}

function dispatchRules(family: Family): Rule[] {
  return [
    { family, match: [], action: { dnat: KEY, map: `single${family}` } },
    { family, match: [], action: { vmap: KEY, map: `services${family}` } },
  ];
}

/**
 * Node ports answer on every address of this host but loopback (that would need `route_localnet`) and the mesh
 * address, where our own listeners are.
 */
function nodePortRules(family: Family, facts: NodeFacts): Rule[] {
  const mesh = family === 4 ? facts.mesh4 : facts.mesh6;
  const match: Rule["match"] = [
    { state: "to-host" },
    ...(mesh === undefined ? [] : [{ field: "daddr", isNot: mesh } as const]),
    { field: "daddr", isNot: family === 4 ? "127.0.0.0/8" : "::1" },
  ];
  return [
    { family, match, action: { dnat: NODE_KEY, map: `nodeport-single${family}` } },
    { family, match, action: { vmap: NODE_KEY, map: `nodeport-services${family}` } },
  ];
}

function refuse(): Chain {
  return {
    name: "refuse",
    rules: [
      { match: [{ field: "proto", is: "tcp" }], action: { reject: "reset" } },
      { match: [], action: { reject: "unreachable" } },
    ],
  };
}

/** Sources are kept except where the answer would not come back through us, or could not come back at all. */
function masqueradeRules(facts: NodeFacts): Rule[] {
  const masquerade = "masquerade" as const;
  const rewritten = { state: "dnat" } as const;
  return [
    // A pod that reaches itself through a Service would see its own address as the source.
    ...families((family): Rule[] => [
      { family, match: [rewritten, { fields: ["saddr", "daddr"], in: `hairpin${family}` }], action: masquerade },
    ]),
    // Two pods behind one bridge: the answer would go straight back, with the wrong source.
    { match: [rewritten, { fields: ["iifname", "oifname"], in: "hairpin-links" }], action: masquerade },
    // Somebody outside came through a node port or an external address of ours to a pod of another node, which would
    // answer without us. Our own pods and processes are known there.
    ...families((family): Rule[] => [{
      family,
      match: [
        rewritten,
        { fields: ["daddr"], in: `remote${family}` },
        { fields: ["saddr"], notIn: `pods${family}` },
        { state: "from-elsewhere" },
      ],
      action: masquerade,
    }]),
    // A process of this host whose route to the Service led over the mesh link: no other node knows that address.
    ...families((family): Rule[] => {
      const mesh = family === 4 ? facts.mesh4 : facts.mesh6;
      if (mesh === undefined) return [];
      return [{
        family,
        match: [rewritten, { field: "saddr", is: mesh }, { field: "oifname", isNot: "lo" }],
        action: masquerade,
      }];
    }),
  ];
}

function ip(family: Family): AtomType {
  return family === 4 ? "ipv4" : "ipv6";
}

function families<T>(make: (family: Family) => readonly T[]): T[] {
  return [...make(4), ...make(6)];
}
