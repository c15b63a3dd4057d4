/**
 * Chains that spread connections over targets. A chain holds at most {@link FAN_OUT} rules "take so many of those that
 * come here", each with a counter of its own, so that shares are exact per Service however other Services' connections
 * interleave; more targets make a tree, and a Service with 1 000 endpoints costs a new connection four levels of it.
 *
 * Why rules and not a map from slot to endpoint: the kernel checks each rule against every element of a map it uses,
 * and each element against every rule that uses the map, which takes 10 s for 5 000 Services over one map; a map per
 * Service is found by walking the list of all maps.
 */
import type { IpPort } from "../../net.ts";
import type { PlannedPort } from "../plan_model.ts";
import type { Action, Chain, Match, Pick, Rule } from "./ruleset.ts";

/** Rules per chain: a tree's height against the rules that a connection meets on its way. */
const FAN_OUT = 8;
/** Fixed, so that a client meets the same target after a restart. */
const SOURCE_SEED = 0x65646765;
/** Hashes of sources have this many values: the unit of a target's share. */
const SOURCE_VALUES = 65_536;

/** Somewhere connections go, with its share of them in whole slots. */
export interface Target {
  readonly to: IpPort;
  readonly share: number;
}

/** The chains for one Service port; the first has `name`, the others are reached from it. At least one target. */
export function spreadChains(name: string, port: PlannedPort, targets: readonly Target[]): Chain[] {
  const chains: Chain[] = [];
  if (port.balance === "source-hash") addBySource(chains, name, port, boundaries(targets));
  else addByTurn(chains, name, port, targets);
  return chains;
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
  return { family: port.family, protocol: port.protocol === "TCP" ? "tcp" : "udp", match, action };
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
