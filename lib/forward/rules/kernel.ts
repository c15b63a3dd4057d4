/** What a back end of the rule writer implements: operations as one transaction, and reading tables back. */
import type { Family } from "../../addr.ts";
import type { IpPort } from "../../net.ts";
import type { Chain, Element, Grammar, Hook, SetSpec, Table } from "./ruleset.ts";

/** One change; a list of them is applied in order and as one transaction. */
export type Operation =
  /** Makes the table with its sets and base chains anew; what it held is gone. */
  | { readonly op: "table"; readonly table: Table }
  | { readonly op: "delete-table"; readonly name: string }
  /** Makes an empty chain that elements and rules may refer to. */
  | { readonly op: "add-chain"; readonly table: string; readonly chain: Chain }
  /** Replaces the rules of an existing chain; `fresh`: the same transaction made it, so it has none. */
  | { readonly op: "fill-chain"; readonly table: string; readonly chain: Chain; readonly fresh?: boolean }
  /** Deletes chains that nothing else refers to any more; they may refer to each other. */
  | { readonly op: "delete-chains"; readonly table: string; readonly names: readonly string[] }
  | { readonly op: "add"; readonly table: string; readonly set: string; readonly elements: readonly Element[] }
  | { readonly op: "delete"; readonly table: string; readonly set: string; readonly elements: readonly Element[] };

/** What the kernel holds of one of our tables. */
export interface TableState {
  /** Set name → element key text → element value text. Learned sets are listed as empty. */
  readonly sets: ReadonlyMap<string, ReadonlyMap<string, string>>;
  /** Chain name → hook and the tag of each rule, in order; "" for a rule that carries none (a foreign one). */
  readonly chains: ReadonlyMap<string, { readonly hook?: Hook; readonly tags: readonly string[] }>;
}

/** Our tables as they are now; a table that does not exist is absent. */
export type RulesState = ReadonlyMap<string, TableState>;

/** A UDP flow as connection tracking knows it: where the client sends, and where its datagrams go. */
export interface TrackedFlow {
  readonly from: IpPort;
  readonly to: IpPort;
  readonly target: IpPort;
}

/** The part of connection tracking that forwarding needs. */
export interface Conntrack {
  /** Deletes the flows of a family (and address, and port) that `stale` names; how many. Throws MeshError KERNEL. */
  forgetUdp(
    scope: { readonly family: Family; readonly ip?: string; readonly port?: number },
    stale: (flow: TrackedFlow) => boolean,
  ): number;
}

export interface KernelRules {
  readonly kind: "netlink" | "nft" | "memory";
  /** Whether owned tables end by themselves when the agent's process ends. */
  readonly ownsTables: boolean;
  readonly grammar: Grammar;
  /** Applies all operations or none. Throws MeshError KERNEL. */
  commit(operations: readonly Operation[]): Promise<void>;
  /** Reads tables by name; `sets` gives the declared sets of each, as far as known. Throws MeshError KERNEL. */
  list(tables: ReadonlyMap<string, readonly SetSpec[]>): Promise<RulesState>;
  /** Connection tracking, where the back end reaches it. */
  readonly conntrack?: Conntrack;
  /** Deletes elements of a learned map; see {@link RuleWriter.forget}. Throws MeshError KERNEL. */
  forget(table: string, map: SetSpec, stale: (key: string, value: string) => boolean): Promise<number>;
  /**
   * Whether somebody else may have changed one of these tables since the last call. Absent where the back end cannot
   * know: then only a listing tells.
   */
  changedByOthers?(tables: Iterable<string>): boolean;
  /** Lets go of descriptors (and, where `ownsTables`, of owned tables); rules of persistent tables stay. */
  close(): void;
}
