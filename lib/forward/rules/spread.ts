/**
 * How one Service port's connections are spread over several targets, exactly even per Service however other Services'
 * connections interleave: the counter belongs to a rule of the Service's own chain. Two forms mean the same:
 *
 * - *Slot maps* (netlink): one rule, `number of this turn → target`. A changed endpoint is one changed element. The maps
 *   are shared by about {@link PORTS_PER_SHARD} ports each, because the kernel checks a rule against every element of the
 *   map it uses and an element against every rule that uses its map: 5 000 Services over one map take it 5.6 s. A map
 *   per Service would be found by walking the list of all maps, for each change.
 * - *Trees* (nft, whose grammar has no such keys): rules "take so many of those that come here", at most {@link FAN_OUT}
 *   per chain, so that a Service with 1 000 endpoints costs a new connection four short chains.
 *
 * Balancing by source takes the number from a hash of the client's address, and a table that moves few clients when an
 * endpoint comes or goes.
 */
import type { IpPort } from "../../net.ts";
import type { PlannedPort } from "../plan_model.ts";
import type { Action, Chain, Element, Match, Pick, Rule } from "./ruleset.ts";

/** Rules per chain: a tree's height against the rules that a connection meets on its way. */
const FAN_OUT = 8;
/** Fixed, so that a client meets the same target after a restart. */
const SOURCE_SEED = 0x65646765;

/** Bounds the product of rules and elements of one map; 5 000 Services get 128 maps. */
const PORTS_PER_SHARD = 64;

/** Somewhere connections go. Its share is as many slots as it has keys. */
export interface Target {
  readonly to: IpPort;
  /** The slots it stands for, by their identity: one endpoint, or all that the agent carries. */
  readonly keys: readonly string[];
}

export interface Spread {
  /** The first has the name asked for; the others are reached from it. */
  readonly chains: readonly Chain[];
  /** Elements of a slot map. */
  readonly slots?: { readonly set: string; readonly elements: readonly Element[] };
}

/**
 * Spreads one Service port over at least two targets. `name` is unique in its table; `shards` is the number of slot
 * maps there, 0 for trees.
 */
export function spread(name: string, port: PlannedPort, targets: readonly Target[], shards: number): Spread {
  // Session affinity that the back end cannot learn: a hash keeps clients too, as long as endpoints stay.
  const kept = port.affinitySeconds !== undefined && port.family === 6 && shards === 0;
  const bySource = kept || port.balance === "source-hash" ? sourceTable(targets) : undefined;
  const mod = bySource?.length ?? total(targets);
  const pick: Pick = bySource
    ? { by: "source", mod, seed: SOURCE_SEED }
    : { by: port.balance === "random" ? "random" : "turn", mod };
  if (shards > 0) return byMap(name, { port, pick }, bySource ?? bySlot(targets), shards);
  const chains: Chain[] = [];
  if (bySource) addByArc(chains, name, { port, pick }, arcsOf(bySource));
  else addByTurn(chains, name, port, targets);
  return { chains };
}

/** How many slot maps a table gets for so many ports with several targets. Never fewer than before: growing is costly. */
export function shardsFor(ports: number, before: number): number {
  let shards = Math.max(1, before);
  // A table is made anew when the number changes, so it doubles, and only once maps are twice as full as wanted.
  while (ports > shards * PORTS_PER_SHARD * (before > 0 ? 2 : 1)) shards *= 2;
  return shards;
}

export function slotMapName(family: 4 | 6, shard: number): string {
  return `slots${family}-${shard}`;
}

/** Each target as often as it has slots. */
function bySlot(targets: readonly Target[]): Target[] {
  return targets.flatMap((target) => target.keys.map(() => target));
}

function byMap(name: string, of: ByArc, table: readonly Target[], shards: number): Spread {
  const { port, pick } = of;
  // Two numbers that stand for the Service port: stable, so that another process finds what it would write itself.
  const id = [numberFrom(name, 0x811c9dc5), numberFrom(name, 0x9747b28c)] as const;
  const set = slotMapName(port.family, id[0] % shards);
  const elements = table.map(({ to }, i): Element => ({ key: [...id, i], value: [to.ip, to.port] }));
  const action: Action = { dnat: [...id, pick], map: set };
  return { chains: [{ name, rules: [ruleFor(port, [], action)] }], slots: { set, elements } };
}

/** FNV-1a with a final mix, 32 bits. */
function numberFrom(text: string, seed: number): number {
  let h = seed;
  for (let i = 0; i < text.length; i++) h = Math.imul(h ^ text.charCodeAt(i), 0x01000193);
  return mixed(h);
}

/** The finalizer of MurmurHash3: each bit of the input changes half of the output's. */
function mixed(n: number): number {
  let h = n;
  h = Math.imul(h ^ (h >>> 16), 0x85ebca6b);
  h = Math.imul(h ^ (h >>> 13), 0xc2b2ae35);
  return (h ^ (h >>> 16)) >>> 0;
}

function addByTurn(chains: Chain[], name: string, port: PlannedPort, targets: readonly Target[]): void {
  const by = port.balance === "random" ? "random" : "turn";
  const groups = inGroups(targets);
  let left = total(targets);
  const rules: Rule[] = [];
  chains.push({ name, rules });
  groups.forEach((group, i) => {
    const share = total(group);
    // What comes to this rule is what those before it left, so the last takes everything.
    const match: Match[] = share === left ? [] : [{ pick: { by, mod: left }, below: share }];
    left -= share;
    rules.push(ruleFor(port, match, group.length === 1 ? { to: group[0]!.to } : { goto: `${name}/${i}` }));
    if (group.length > 1) addByTurn(chains, `${name}/${i}`, port, group);
  });
}

/** A target and the first number that is not its own any more. */
interface Arc {
  readonly to: IpPort;
  readonly below: number;
}

/** Neighbouring numbers with one target are one arc. */
function arcsOf(table: readonly Target[]): Arc[] {
  const arcs: Arc[] = [];
  table.forEach((target, i) => {
    if (table[i + 1] !== target) arcs.push({ to: target.to, below: i + 1 });
  });
  return arcs;
}

/**
 * Which target each number of a source's hash belongs to: the one with the highest score for it (rendezvous hashing),
 * so that a target that comes or goes moves only the numbers it gets or had.
 */
function sourceTable(targets: readonly Target[]): Target[] {
  const size = Math.max(128, 2 ** Math.ceil(Math.log2(total(targets) * 16)));
  const scored = targets.flatMap((target) => target.keys.map((key) => ({ target, seed: numberFrom(key, 0x811c9dc5) })));
  return Array.from({ length: size }, (_, number) => {
    let best = scored[0]!;
    let bestScore = -1;
    for (const candidate of scored) {
      const score = mixed(candidate.seed ^ Math.imul(number + 1, 0x9e3779b1));
      if (score > bestScore) {
        best = candidate;
        bestScore = score;
      }
    }
    return best.target;
  });
}

interface ByArc {
  readonly port: PlannedPort;
  readonly pick: Pick;
}

function addByArc(chains: Chain[], name: string, of: ByArc, arcs: readonly Arc[]): void {
  const { port, pick } = of;
  const rules: Rule[] = [];
  chains.push({ name, rules });
  const groups = inGroups(arcs);
  groups.forEach((group, i) => {
    const last = i === groups.length - 1;
    const match: Match[] = last ? [] : [{ pick, below: group.at(-1)!.below }];
    rules.push(ruleFor(port, match, group.length === 1 ? { to: group[0]!.to } : { goto: `${name}/${i}` }));
    if (group.length > 1) addByArc(chains, `${name}/${i}`, of, group);
  });
}

function ruleFor(port: PlannedPort, match: readonly Match[], action: Action): Rule {
  return { within: { family: port.family, protocol: port.protocol === "TCP" ? "tcp" : "udp" }, match, action };
}

/** At most {@link FAN_OUT} groups of neighbours, of sizes that differ by one at most. */
function inGroups<T>(items: readonly T[]): T[][] {
  const count = Math.min(FAN_OUT, items.length);
  return Array.from(
    { length: count },
    (_, i) => items.slice(Math.floor(i * items.length / count), Math.floor((i + 1) * items.length / count)),
  );
}

function total(targets: readonly Target[]): number {
  return targets.reduce((sum, target) => sum + target.keys.length, 0);
}
