/**
 * nf_tables in memory: holds what operations say, refuses what the kernel would refuse, and walks packets through the
 * rules. It passes the same contract suite as the real back ends, which is what makes tests over it worth something.
 */
import { MeshError } from "../../errors.ts";
import { type Chain, chainTag, type Element, elementKey, elementValue, type Grammar, type SetSpec } from "./ruleset.ts";
import type { Conntrack, KernelRules, Operation, RulesState, TableState } from "./kernel.ts";

export interface FakeSet {
  readonly spec: SetSpec;
  readonly elements: Map<string, Element>;
  /** When what packets taught ends, on the fake kernel's clock. */
  readonly until: Map<string, number>;
}

export interface FakeTable {
  readonly owned: boolean;
  readonly sets: Map<string, FakeSet>;
  readonly chains: Map<string, Chain>;
}

export class FakeKernel implements KernelRules {
  readonly kind = "memory";
  readonly ownsTables = true;
  readonly grammar: Grammar;
  conntrack?: Conntrack;
  tables = new Map<string, FakeTable>();
  /** Transactions that came through: tests look at their size. */
  readonly commits: (readonly Operation[])[] = [];
  /** Makes the next commits fail, as a kernel that is out of memory would. */
  failing = false;
  /** Milliseconds; what is learned ends by it. */
  now = 0;

  constructor(grammar: Grammar = "full") {
    this.grammar = grammar;
  }

  // deno-lint-ignore require-await
  async commit(operations: readonly Operation[]): Promise<void> {
    if (this.failing) throw new MeshError("KERNEL", "the fake kernel was told to fail");
    const next = copyTables(this.tables);
    for (const op of operations) applyTo(next, op);
    this.tables = next;
    this.commits.push(operations);
  }

  // deno-lint-ignore require-await
  async list(tables: ReadonlyMap<string, readonly SetSpec[]>): Promise<RulesState> {
    const state = new Map<string, TableState>();
    for (const name of tables.keys()) {
      const table = this.tables.get(name);
      if (table) state.set(name, stateOf(table));
    }
    return state;
  }

  // deno-lint-ignore require-await
  async forget(name: string, map: SetSpec, stale: (key: string, value: string) => boolean): Promise<number> {
    const elements = this.tables.get(name)?.sets.get(map.name)?.elements ?? new Map<string, Element>();
    let count = 0;
    for (const [key, element] of elements) {
      if (stale(key, elementValue(element.value)) && elements.delete(key)) count++;
    }
    return count;
  }

  /** The agent's process died: owned tables end with its socket. */
  agentDied(): void {
    for (const [name, table] of this.tables) if (table.owned) this.tables.delete(name);
  }

  close(): void {
    this.agentDied();
  }
}

function copyTables(tables: ReadonlyMap<string, FakeTable>): Map<string, FakeTable> {
  const out = new Map<string, FakeTable>();
  for (const [name, table] of tables) {
    out.set(name, {
      owned: table.owned,
      sets: new Map(
        [...table.sets].map(([n, s]) => [n, { spec: s.spec, elements: new Map(s.elements), until: s.until }]),
      ),
      chains: new Map(table.chains),
    });
  }
  return out;
}

function applyTo(tables: Map<string, FakeTable>, op: Operation): void {
  if (op.op === "table") {
    const sets = new Map(op.table.sets.map((spec): [string, FakeSet] => [
      spec.name,
      { spec, elements: new Map(), until: new Map() },
    ]));
    tables.set(op.table.name, {
      owned: op.table.owned,
      sets,
      chains: new Map(op.table.chains.map((c) => [c.name, c])),
    });
    for (const chain of op.table.chains) checkReferences(tables.get(op.table.name)!, chain);
    return;
  }
  if (op.op === "delete-table") return void tables.delete(op.name);
  const table = tables.get(op.table);
  if (!table) throw refusal(`no table ${op.table}`);
  switch (op.op) {
    case "add-chain":
      if (!table.chains.has(op.chain.name)) table.chains.set(op.chain.name, { ...op.chain, rules: [] });
      return;
    case "fill-chain":
      if (!table.chains.has(op.chain.name)) throw refusal(`no chain ${op.chain.name} in ${op.table}`);
      checkReferences(table, op.chain);
      table.chains.set(op.chain.name, op.chain);
      return;
    case "delete-chains":
      for (const name of op.names) {
        const chain = table.chains.get(name);
        if (!chain) throw refusal(`no chain ${name} in ${op.table}`);
        table.chains.set(name, { ...chain, rules: [] });
      }
      for (const name of op.names) {
        if (isReferenced(table, name)) throw refusal(`chain ${name} is in use`);
        table.chains.delete(name);
      }
      return;
    case "add":
      for (const element of op.elements) addElement(table, op.set, element);
      return;
    case "delete":
      for (const element of op.elements) {
        if (!setOf(table, op.set).elements.delete(elementKey(element.key))) {
          throw refusal(`no element ${elementKey(element.key)} in ${op.set}`);
        }
      }
  }
}

function addElement(table: FakeTable, name: string, element: Element): void {
  const set = setOf(table, name);
  if (element.key.length !== set.spec.key.length) {
    throw refusal(`${name}: key ${elementKey(element.key)} has a wrong form`);
  }
  if ((element.value === undefined) !== (set.spec.value === undefined)) {
    throw refusal(`${name}: value where none belongs`);
  }
  const { value } = element;
  if (value !== undefined && value !== "drop" && "goto" in value && !table.chains.has(value.goto)) {
    throw refusal(`no chain ${value.goto}`);
  }
  const key = elementKey(element.key);
  const held = set.elements.get(key);
  if (held && elementValue(held.value) !== elementValue(value)) {
    throw refusal(`${name}: ${key} exists with another value`);
  }
  set.elements.set(key, element);
}

function checkReferences(table: FakeTable, chain: Chain): void {
  for (const { match, action } of chain.rules) {
    for (const m of match) if ("fields" in m) setOf(table, "in" in m ? m.in : m.notIn);
    if (typeof action === "string") continue;
    if ("map" in action) setOf(table, action.map);
    const target = "jump" in action ? action.jump : "goto" in action ? action.goto : undefined;
    if (target !== undefined && !table.chains.has(target)) throw refusal(`no chain ${target}`);
  }
}

function isReferenced(table: FakeTable, chain: string): boolean {
  for (const set of table.sets.values()) {
    for (const { value } of set.elements.values()) {
      if (value !== undefined && value !== "drop" && "goto" in value && value.goto === chain) return true;
    }
  }
  for (const other of table.chains.values()) {
    for (const { action } of other.rules) {
      if (typeof action === "string") continue;
      if (("jump" in action && action.jump === chain) || ("goto" in action && action.goto === chain)) return true;
    }
  }
  return false;
}

function setOf(table: FakeTable, name: string): FakeSet {
  const set = table.sets.get(name);
  if (!set) throw refusal(`no set ${name}`);
  return set;
}

function stateOf(table: FakeTable): TableState {
  const sets = new Map<string, Map<string, string>>();
  for (const [name, { spec, elements }] of table.sets) {
    const shown = spec.learned === undefined ? [...elements] : [];
    sets.set(name, new Map(shown.map(([key, e]) => [key, elementValue(e.value)])));
  }
  const chains = new Map([...table.chains].map(([name, chain]) => [
    name,
    { ...(chain.hook ? { hook: chain.hook } : {}), tags: chain.rules.map(() => chainTag(chain)) },
  ]));
  return { sets, chains };
}

function refusal(why: string): MeshError {
  return new MeshError("KERNEL", `the fake kernel refused a change: ${why}`);
}
