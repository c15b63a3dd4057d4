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
 * Balancing by source is a tree in both: its shares are arcs of a hash ring.
 */
import type { IpPort } from "../../net.ts";
import type { PlannedPort } from "../plan_model.ts";
import type { Action, Atom, Chain, Element, Match, Pick, Rule } from "./ruleset.ts";

/** Rules per chain: a tree's height against the rules that a connection meets on its way. */
const FAN_OUT = 8;
/** Fixed, so that a client meets the same target after a restart. */
const SOURCE_SEED = 0x65646765;
/** Hashes of sources have this many values: the unit of a target's share. */
const SOURCE_VALUES = 65_536;

/** Bounds the product of rules and elements of one map; 5 000 Services get 128 maps. */
const PORTS_PER_SHARD = 64;

/** Somewhere connections go, with its share of them in whole slots. */
export interface Target {
  readonly to: IpPort;
  readonly share: number;
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
  const chains: Chain[] = [];
  if (port.balance === "source-hash") addBySource(chains, name, port, boundaries(targets));
  else if (shards === 0) addByTurn(chains, name, port, targets);
  else return byMap(name, port, targets, shards);
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

function byMap(name: string, port: PlannedPort, targets: readonly Target[], shards: number): Spread {
  const by = port.balance === "random" ? "random" : "turn";
  // Two numbers that stand for the Service port: stable, so that another process finds what it would write itself.
  const id = [numberFrom(name, 0x811c9dc5), numberFrom(name, 0x9747b28c)] as const;
  const set = slotMapName(port.family, id[0] % shards);
  const elements: Element[] = [];
  for (const { to, share } of targets) {
    const value: Atom[] = [to.ip, to.port];
    for (let i = 0; i < share; i++) elements.push({ key: [...id, elements.length], value });
  }
  const action: Action = { dnat: [...id, { by, mod: elements.length }], map: set };
  return { chains: [{ name, rules: [ruleFor(port, [], action)] }], slots: { set, elements } };
}

/** FNV-1a with a final mix (of MurmurHash3), 32 bits. */
function numberFrom(text: string, seed: number): number {
  let h = seed;
  for (let i = 0; i < text.length; i++) h = Math.imul(h ^ text.charCodeAt(i), 0x01000193);
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

/** A target and the first hash value that is not its own any more. */
interface Arc {
  readonly to: IpPort;
  readonly below: number;
}

function boundaries(targets: readonly Target[]): Arc[] {
  const all = total(targets);
  let sum = 0;
  return targets.map(({ to, share }) => {
    sum += share;
    return { to, below: Math.round(sum * SOURCE_VALUES / all) };
  });
}

function addBySource(chains: Chain[], name: string, port: PlannedPort, arcs: readonly Arc[]): void {
  const pick: Pick = { by: "source", mod: SOURCE_VALUES, seed: SOURCE_SEED };
  const rules: Rule[] = [];
  chains.push({ name, rules });
  const groups = inGroups(arcs);
  groups.forEach((group, i) => {
    const last = i === groups.length - 1;
    const match: Match[] = last ? [] : [{ pick, below: group.at(-1)!.below }];
    rules.push(ruleFor(port, match, group.length === 1 ? { to: group[0]!.to } : { goto: `${name}/${i}` }));
    if (group.length > 1) addBySource(chains, `${name}/${i}`, port, group);
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
  return targets.reduce((sum, target) => sum + target.share, 0);
}
