/** `nft -j list table` → state. Pure. Knows the shapes that {@link renderOperations} makes; others become "foreign". */
import { MeshError } from "../../errors.ts";
import { type Hook, type SetSpec } from "./ruleset.ts";
import type { TableState } from "./kernel.ts";

type Json = Record<string, unknown>;

/** Parses the JSON of one table. `learned` names the sets whose elements are not ours to compare. */
export function parseTable(json: string, sets: readonly SetSpec[]): TableState {
  const items = (JSON.parse(json) as { nftables?: Json[] }).nftables;
  if (!Array.isArray(items)) throw new MeshError("KERNEL", "nft listed a table in a form without 'nftables'");
  const learned = new Set(sets.filter((s) => s.learned !== undefined).map((s) => s.name));
  const state = { sets: new Map<string, Map<string, string>>(), chains: new Map<string, ChainState>() };
  for (const item of items) {
    if (item.set || item.map) {
      const set = (item.set ?? item.map) as Json;
      const elements = new Map<string, string>();
      if (!learned.has(set.name as string)) {
        for (const element of (set.elem as unknown[] | undefined) ?? []) addElement(elements, element, "map" in item);
      }
      state.sets.set(set.name as string, elements);
    } else if (item.chain) {
      const chain = item.chain as Json;
      const hook = hookOf(chain);
      state.chains.set(chain.name as string, { ...(hook ? { hook } : {}), tags: [] });
    } else if (item.rule) {
      const rule = item.rule as Json;
      state.chains.get(rule.chain as string)?.tags.push((rule.comment as string | undefined) ?? "");
    }
  }
  return state;
}

interface ChainState {
  readonly hook?: Hook;
  readonly tags: string[];
}

function hookOf(chain: Json): Hook | undefined {
  if (typeof chain.hook !== "string") return undefined;
  return { type: chain.type as "nat", at: chain.hook as Hook["at"], priority: chain.prio as number };
}

function addElement(into: Map<string, string>, element: unknown, isMap: boolean): void {
  if (isMap) {
    const [key, value] = element as [unknown, unknown];
    into.set(atomText(key), valueText(value));
  } else into.set(atomText(element), "");
}

function valueText(value: unknown): string {
  if (typeof value === "object" && value !== null) {
    if ("goto" in value) return `goto ${(value as { goto: { target: string } }).goto.target}`;
    if ("jump" in value) return `jump ${(value as { jump: { target: string } }).jump.target}`;
    if ("drop" in value) return "drop";
    if ("accept" in value) return "accept";
  }
  return atomText(value);
}

function atomText(value: unknown): string {
  if (typeof value === "string") return value;
  if (typeof value === "number") return String(value);
  if (typeof value === "object" && value !== null) {
    if ("concat" in value) return (value as { concat: unknown[] }).concat.map(atomText).join(" . ");
    if ("elem" in value) return atomText((value as { elem: { val: unknown } }).elem.val);
    if ("prefix" in value) {
      const { addr, len } = (value as { prefix: { addr: string; len: number } }).prefix;
      return `${addr}/${len}`;
    }
  }
  return JSON.stringify(value);
}
