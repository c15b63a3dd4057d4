/** From one ruleset, or from what the kernel holds, to another: the smallest list of operations. Pure. */
import { parseCidr } from "../../addr.ts";
import {
  type Chain,
  chainTag,
  type Element,
  elementKey,
  elementValue,
  type Fragment,
  type Ruleset,
  type Table,
  type TableFragment,
} from "./ruleset.ts";
import type { Operation, RulesState, TableState } from "./kernel.ts";

/** Operations by phase: what is referred to exists before and goes after what refers to it. */
class Plan {
  readonly tables: Operation[] = [];
  readonly chains: Operation[] = [];
  readonly fresh: Operation[] = [];
  readonly fills: Operation[] = [];
  readonly gone = new Map<string, string[]>();
  readonly removed = new Map<string, Map<string, Element[]>>();
  readonly added = new Map<string, Map<string, Element[]>>();

  put(into: Map<string, Map<string, Element[]>>, table: string, set: string, element: Element): void {
    let sets = into.get(table);
    if (!sets) into.set(table, sets = new Map());
    const list = sets.get(set);
    if (list) list.push(element);
    else sets.set(set, [element]);
  }

  goes(table: string, chain: string): void {
    const names = this.gone.get(table);
    if (names) names.push(chain);
    else this.gone.set(table, [chain]);
  }

  operations(): Operation[] {
    // Rules before elements: the kernel checks a new rule against every element that its map has already.
    const out = [...this.tables, ...this.chains, ...this.fresh];
    for (const [op, from] of [["delete", this.removed], ["add", this.added]] as const) {
      for (const [table, sets] of from) {
        for (const [set, elements] of sets) out.push({ op, table, set, elements });
      }
    }
    const gone = [...this.gone].map(([table, names]): Operation => ({ op: "delete-chains", table, names }));
    return [...out, ...this.fills, ...gone];
  }
}

/** What turns `before` (undefined: nothing known, start from scratch) into `after`. */
export function diffRulesets(before: Ruleset | undefined, after: Ruleset): Operation[] {
  const plan = new Plan();
  const fresh = new Set<string>();
  for (const table of after.tables) {
    const old = before?.tables.find((t) => t.name === table.name);
    if (old === table || (old && JSON.stringify(old) === JSON.stringify(table))) continue;
    fresh.add(table.name);
    plan.tables.push({ op: "table", table });
  }
  for (const old of before?.tables ?? []) {
    if (!after.tables.some((t) => t.name === old.name)) plan.tables.push({ op: "delete-table", name: old.name });
  }
  const kept = new Set(after.tables.map((t) => t.name).filter((name) => !fresh.has(name)));
  for (const [id, next] of after.fragments) {
    const old = before?.fragments.get(id);
    if (old !== next || fresh.size > 0) diffFragment(plan, old, next, kept);
  }
  for (const [id, old] of before?.fragments ?? []) {
    if (!after.fragments.has(id)) diffFragment(plan, old, undefined, kept);
  }
  return plan.operations();
}

/** What turns the state read from the kernel into `wanted`. Foreign objects inside our tables are removed. */
export function diffState(state: RulesState, wanted: Ruleset): Operation[] {
  const plan = new Plan();
  for (const table of wanted.tables) {
    const held = state.get(table.name);
    const parts = fragmentsOf(wanted, table.name);
    if (!held || !sameStatic(held, table)) {
      plan.tables.push({ op: "table", table });
      for (const part of parts) addAll(plan, part);
      continue;
    }
    repairChains(plan, table, parts, held);
    repairElements(plan, table, parts, held);
  }
  return plan.operations();
}

function diffFragment(
  plan: Plan,
  before: Fragment | undefined,
  after: Fragment | undefined,
  kept: ReadonlySet<string>,
): void {
  for (const part of after?.tables ?? []) {
    const old = kept.has(part.table) ? before?.tables.find((t) => t.table === part.table) : undefined;
    if (old) diffPart(plan, old, part);
    else addAll(plan, part);
  }
  for (const old of before?.tables ?? []) {
    if (!kept.has(old.table) || after?.tables.some((t) => t.table === old.table)) continue;
    diffPart(plan, old, { table: old.table, chains: [], sets: [] });
  }
}

function addAll(plan: Plan, part: TableFragment): void {
  for (const chain of part.chains) addChain(plan, part.table, chain);
  for (const { set, elements } of part.sets) {
    for (const element of elements) plan.put(plan.added, part.table, set, element);
  }
}

function addChain(plan: Plan, table: string, chain: Chain): void {
  plan.chains.push({ op: "add-chain", table, chain });
  plan.fresh.push({ op: "fill-chain", table, chain, fresh: true });
}

function diffPart(plan: Plan, before: TableFragment, after: TableFragment): void {
  const { table } = after;
  for (const chain of after.chains) {
    const old = before.chains.find((c) => c.name === chain.name);
    if (!old) addChain(plan, table, chain);
    else if (chainTag(old) !== chainTag(chain)) plan.fills.push({ op: "fill-chain", table, chain });
  }
  for (const old of before.chains) {
    if (!after.chains.some((c) => c.name === old.name)) plan.goes(table, old.name);
  }
  const names = new Set([...before.sets, ...after.sets].map((s) => s.set));
  for (const set of names) {
    const held = new Map<string, Element>();
    for (const s of before.sets) if (s.set === set) { for (const e of s.elements) held.set(elementKey(e.key), e); }
    for (const s of after.sets) {
      if (s.set !== set) continue;
      for (const element of s.elements) {
        const key = elementKey(element.key);
        const old = held.get(key);
        held.delete(key);
        if (old && elementValue(old.value) === elementValue(element.value)) continue;
        if (old) plan.put(plan.removed, table, set, old);
        plan.put(plan.added, table, set, element);
      }
    }
    for (const old of held.values()) plan.put(plan.removed, table, set, old);
  }
}

function fragmentsOf(ruleset: Ruleset, table: string): TableFragment[] {
  const out: TableFragment[] = [];
  for (const fragment of ruleset.fragments.values()) {
    for (const part of fragment.tables) if (part.table === table) out.push(part);
  }
  return out;
}

/**
 * Sets and base chains are made with the table; when one is missing or hooked elsewhere the table is made anew. So it is
 * when somebody has put a range into a set of networks: back ends have no common word for that.
 */
function sameStatic(held: TableState, table: Table): boolean {
  return table.sets.every((set) => {
    const elements = held.sets.get(set.name);
    return elements && (!set.interval || [...elements.keys()].every((key) => parseCidr(key) !== undefined));
  }) &&
    table.chains.every((chain) => {
      const got = held.chains.get(chain.name);
      return got !== undefined && JSON.stringify(got.hook) === JSON.stringify(chain.hook);
    });
}

function repairChains(plan: Plan, table: Table, parts: readonly TableFragment[], held: TableState): void {
  const wanted = new Map<string, Chain>();
  for (const chain of table.chains) wanted.set(chain.name, chain);
  for (const part of parts) for (const chain of part.chains) wanted.set(chain.name, chain);
  for (const chain of wanted.values()) {
    const got = held.chains.get(chain.name);
    if (!got) addChain(plan, table.name, chain);
    else {
      const tag = chainTag(chain);
      if (got.tags.length !== chain.rules.length || got.tags.some((t) => t !== tag)) {
        plan.fills.push({ op: "fill-chain", table: table.name, chain });
      }
    }
  }
  for (const name of held.chains.keys()) {
    if (!wanted.has(name)) plan.goes(table.name, name);
  }
}

function repairElements(plan: Plan, table: Table, parts: readonly TableFragment[], held: TableState): void {
  const wanted = new Map<string, Map<string, Element>>(table.sets.map((s) => [s.name, new Map()]));
  for (const part of parts) {
    for (const { set, elements } of part.sets) {
      for (const element of elements) wanted.get(set)?.set(elementKey(element.key), element);
    }
  }
  for (const spec of table.sets) {
    if (spec.learned !== undefined) continue;
    const want = wanted.get(spec.name)!;
    const got = held.sets.get(spec.name)!;
    for (const [key, element] of want) {
      const value = got.get(key);
      if (value === elementValue(element.value)) continue;
      if (value !== undefined) plan.put(plan.removed, table.name, spec.name, { key: element.key });
      plan.put(plan.added, table.name, spec.name, element);
    }
    for (const key of got.keys()) {
      if (!want.has(key)) plan.put(plan.removed, table.name, spec.name, { key: parseKey(key) });
    }
  }
}

function parseKey(text: string): string[] {
  return text.split(" . ");
}
