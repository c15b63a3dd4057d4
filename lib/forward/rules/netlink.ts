/** The first back end: nf_tables over netlink. No process per change, and tables that end with the agent. */
import { parseCidr } from "../../addr.ts";
import { assertNever, MeshError } from "../../errors.ts";
import { Batch, type SetElement } from "../../linux/nftables/batch.ts";
import { NftablesConnection } from "../../linux/nftables/connection.ts";
import { ConntrackTable } from "../../linux/nftables/conntrack.ts";
import { listChains, listElements, listRuleComments, listSets, listTables } from "../../linux/nftables/listing.ts";
import type { KernelRules, Operation, RulesState, TableState } from "./kernel.ts";
import { decodeAtoms, encodeAtoms } from "./netlink_atoms.ts";
import { intervalElements, networksOf } from "./netlink_intervals.ts";
import { writeRule } from "./netlink_rule.ts";
import { type Chain, chainTag, type Element, elementValue, type SetSpec, type Table } from "./ruleset.ts";

/** The element is not there any more. */
const ENOENT = 2;

export class NetlinkRules implements KernelRules {
  readonly kind = "netlink";
  readonly ownsTables = true;
  readonly grammar = "full";
  readonly conntrack: ConntrackTable;
  readonly #kernel: NftablesConnection;
  /** Declared sets by table: how elements are read and written. */
  readonly #sets = new Map<string, Map<string, SetSpec>>();

  private constructor(kernel: NftablesConnection) {
    this.#kernel = kernel;
    this.conntrack = new ConntrackTable();
  }

  /** Throws MeshError KERNEL when this host refuses FFI, netlink, nf_tables or the privilege: then nft may do. */
  static open(): NetlinkRules {
    return new NetlinkRules(new NftablesConnection());
  }

  // deno-lint-ignore require-await
  async commit(operations: readonly Operation[]): Promise<void> {
    const batch = new Batch(this.#kernel.socket.nextSeq);
    for (const op of operations) this.#write(batch, op);
    this.#kernel.commit(batch);
  }

  // deno-lint-ignore require-await
  async list(tables: ReadonlyMap<string, readonly SetSpec[]>): Promise<RulesState> {
    const there = new Set(listTables(this.#kernel.socket));
    const state = new Map<string, TableState>();
    for (const [name, sets] of tables) {
      if (sets.length > 0) this.#sets.set(name, new Map(sets.map((s) => [s.name, s])));
      if (there.has(name)) state.set(name, this.#table(name));
    }
    return state;
  }

  // deno-lint-ignore require-await
  async forget(table: string, map: SetSpec, stale: (key: string, value: string) => boolean): Promise<number> {
    const { socket } = this.#kernel;
    let count = 0;
    for (const { key, value } of listElements(socket, table, map.name)) {
      const text = value instanceof Uint8Array ? decodeAtoms(value, map.value as SetSpec["key"]) : "";
      if (!stale(decodeAtoms(key, map.key), text)) continue;
      // One by one: an element may end between listing and deletion, and a batch fails as a whole.
      const batch = new Batch(socket.nextSeq);
      batch.deleteElements(table, map.name, [{ key }]);
      if (this.#kernel.tryCommit(batch, ENOENT)) count++;
    }
    return count;
  }

  changedByOthers(tables: Iterable<string>): boolean {
    return this.#kernel.changedByOthers(new Set(tables));
  }

  close(): void {
    this.#kernel.close();
    this.conntrack.close();
  }

  #table(name: string): TableState {
    const { socket } = this.#kernel;
    const comments = listRuleComments(socket, name);
    const chains = new Map<string, { hook?: Chain["hook"] & object; tags: readonly string[] }>();
    for (const { name: chain, hook } of listChains(socket, name)) {
      const tags = comments.get(chain) ?? [];
      chains.set(chain, hook ? { hook: hook as Chain["hook"] & object, tags } : { tags });
    }
    const sets = new Map<string, ReadonlyMap<string, string>>();
    for (const set of listSets(socket, name)) sets.set(set, this.#elements(name, set));
    return { sets, chains };
  }

  #elements(table: string, set: string): ReadonlyMap<string, string> {
    const out = new Map<string, string>();
    const spec = this.#sets.get(table)?.get(set);
    // A set we did not declare: its table is made anew anyway, or it is a stranger's business.
    if (!spec || spec.learned !== undefined) return out;
    const listed = listElements(this.#kernel.socket, table, set);
    if (spec.interval) {
      for (const cidr of networksOf(listed)) out.set(cidr, "");
      return out;
    }
    for (const { key, value } of listed) {
      let text = "";
      if (value instanceof Uint8Array) text = decodeAtoms(value, spec.value as SetSpec["key"]);
      else if (value !== undefined) text = value === "other" ? "other" : elementValue(value);
      out.set(decodeAtoms(key, spec.key), text);
    }
    return out;
  }

  #write(batch: Batch, op: Operation): void {
    switch (op.op) {
      case "table":
        return this.#writeTable(batch, op.table);
      case "delete-table":
        return batch.deleteTable(op.name);
      case "add-chain":
        return batch.addChain(op.table, op.chain.name, op.chain.hook);
      case "fill-chain":
        if (!op.fresh) batch.flushChain(op.table, op.chain.name);
        return writeRules(batch, op.table, op.chain);
      case "delete-chains":
        for (const name of op.names) batch.flushChain(op.table, name);
        for (const name of op.names) batch.deleteChain(op.table, name);
        return;
      case "add":
        return batch.addElements(op.table, op.set, this.#encode(op.table, op.set, op.elements));
      case "delete":
        return batch.deleteElements(op.table, op.set, this.#encode(op.table, op.set, op.elements, "keys"));
      default:
        assertNever(op);
    }
  }

  #writeTable(batch: Batch, table: Table): void {
    this.#sets.set(table.name, new Map(table.sets.map((s) => [s.name, s])));
    batch.replaceTable(table.name, table.owned);
    table.sets.forEach((set, i) => {
      const { name, key, value, interval, learned } = set;
      batch.addSet(table.name, {
        name,
        key,
        ...(value === undefined ? {} : { value }),
        ...(interval ? { interval } : {}),
        ...(learned === undefined ? {} : { dynamic: learned }),
      }, i + 1);
    });
    for (const chain of table.chains) batch.addChain(table.name, chain.name, chain.hook);
    for (const chain of table.chains) writeRules(batch, table.name, chain);
  }

  *#encode(table: string, set: string, elements: readonly Element[], only?: "keys"): Generator<SetElement> {
    const spec = this.#sets.get(table)?.get(set);
    if (!spec) throw new MeshError("INTERNAL", `Set ${set} of ${table} was never declared`);
    for (const { key, value } of elements) {
      if (spec.interval) yield* intervalElements(parseCidr(String(key[0]))!);
      else {
        const bytes = encodeAtoms(key, spec.key);
        if (only || value === undefined) yield { key: bytes };
        else if (value === "drop" || "goto" in value) yield { key: bytes, value };
        else yield { key: bytes, value: encodeAtoms(value, spec.value as SetSpec["key"]) };
      }
    }
  }
}

function writeRules(batch: Batch, table: string, chain: Chain): void {
  const tag = chainTag(chain);
  for (const rule of chain.rules) batch.addRule(table, chain.name, tag, (w) => writeRule(w, rule));
}
