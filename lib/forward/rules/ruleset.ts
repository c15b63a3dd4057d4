/**
 * Kernel rules as a value: the few shapes of nf_tables that the product uses, and nothing else. Writers turn them into
 * netlink messages or `nft` text; the fake interprets them. A ruleset is a static part (tables, sets, base chains) and
 * one *fragment* per Service, so that a change of one Service is found by comparing references.
 */
import type { Family } from "../../addr.ts";
import type { IpPort } from "../../net.ts";

/** Table that stays when the agent goes: kernel-way Services, and refusal of everything else. */
export const TABLE = "edgemesh";
/** Table that ends with the agent: entries that point at its listeners. */
export const AGENT_TABLE = "edgemesh-agent";

export type AtomType = "ipv4" | "ipv6" | "proto" | "port" | "u32" | "ifname";
/** An address, protocol or interface as text; a port or number as a number. */
export type Atom = string | number;

export interface SetSpec {
  readonly name: string;
  readonly key: readonly AtomType[];
  /** Undefined: a set. "verdict": a verdict map. Otherwise a map to these types. */
  readonly value?: readonly AtomType[] | "verdict";
  /** Elements are networks (`10.96.0.0/12`). */
  readonly interval?: boolean;
  /** Filled by the packet path, at most so many elements. Never listed, compared or replaced by us. */
  readonly learned?: number;
}

export type ElementVerdict = { readonly goto: string } | "drop";

export interface Element {
  readonly key: readonly Atom[];
  readonly value?: readonly Atom[] | ElementVerdict;
}

/** A value of the packet. `daddr` and `saddr` are of the family the rule is for. */
export type Field =
  | "saddr"
  | "daddr"
  | "proto"
  | "dport"
  | "iifname"
  | "oifname"
  /** Destination before any rewriting, from conntrack. */
  | "ct-daddr"
  | "ct-dport";

/** A number from 0 to `mod` - 1. */
export type Pick =
  /** Counts the packets that come to this rule. */
  | { readonly by: "turn" | "random"; readonly mod: number }
  | { readonly by: "source"; readonly mod: number; readonly seed: number };

/** What a key is put together from; a number is itself. */
export type KeyPart = Field | Pick | number;

export type Match =
  | { readonly field: Field; readonly is: Atom }
  | { readonly field: Field; readonly isNot: Atom }
  | { readonly fields: readonly Field[]; readonly in: string }
  | { readonly fields: readonly Field[]; readonly notIn: string }
  /** The number picked is less than `below`. */
  | { readonly pick: Pick; readonly below: number }
  /** The connection's destination was rewritten. */
  | { readonly state: "dnat" }
  /** The destination is an address of this host. */
  | { readonly state: "to-host" }
  | { readonly state: "to-elsewhere" }
  /** The source is an address of this host, or is none. */
  | { readonly state: "from-host" }
  | { readonly state: "from-elsewhere" };

export type Action =
  /** Rewrites the destination to what the map has for these values; goes on when it has nothing. */
  | { readonly dnat: readonly KeyPart[]; readonly map: string }
  | { readonly to: IpPort }
  | { readonly vmap: readonly Field[]; readonly map: string }
  | { readonly jump: string }
  | { readonly goto: string }
  | { readonly reject: "reset" | "unreachable" }
  /** Remembers key → value in a learned map for so many seconds since the last time. */
  | {
    readonly learn: readonly Field[];
    readonly value: readonly Field[];
    readonly map: string;
    readonly seconds: number;
  }
  | "masquerade"
  | "accept"
  | "drop";

export interface Rule {
  /** Undefined: both families. */
  readonly family?: Family;
  /**
   * What is known of every packet that comes to the rule, because a map led here: nft's grammar wants it said, the
   * kernel need not look again.
   */
  readonly within?: { readonly family: Family; readonly protocol: "tcp" | "udp" };
  readonly match: readonly Match[];
  readonly action: Action;
}

export interface Hook {
  readonly type: "nat";
  readonly at: "prerouting" | "input" | "output" | "postrouting";
  readonly priority: number;
}

export interface Chain {
  readonly name: string;
  readonly hook?: Hook;
  readonly rules: readonly Rule[];
}

export interface Table {
  readonly name: string;
  /** Belongs to the writer's connection to the kernel and ends with it, where the writer can do that. */
  readonly owned: boolean;
  readonly sets: readonly SetSpec[];
  readonly chains: readonly Chain[];
}

/**
 * What rules a back end can write. "full": everything here. "nft": what the grammar of the nft program can say, which
 * has no keys with numbers in them and, as of 1.0.6, aborts on learned IPv6 targets.
 */
export type Grammar = "full" | "nft";

export interface SetElements {
  readonly set: string;
  readonly elements: readonly Element[];
}

/** What one Service (or other unit of change) adds to one table. */
export interface TableFragment {
  readonly table: string;
  readonly chains: readonly Chain[];
  readonly sets: readonly SetElements[];
}

export interface Fragment {
  readonly tables: readonly TableFragment[];
}

export interface Ruleset {
  /** How many maps the slots of Services are spread over; 0: slots are rules. See spread.ts. */
  readonly shards: number;
  readonly tables: readonly Table[];
  /** What the tables were made from: equal texts, equal tables. */
  readonly tablesFrom: string;
  readonly fragments: ReadonlyMap<string, Fragment>;
}

/** Text that identifies an element within its set: the same in every writer and in listings. */
export function elementKey(key: readonly Atom[]): string {
  return key.join(" . ");
}

/** Text of an element's value, as {@link elementKey}; empty for plain sets. */
export function elementValue(value: Element["value"]): string {
  if (value === undefined) return "";
  if (value === "drop") return value;
  return "goto" in value ? `goto ${value.goto}` : value.join(" . ");
}

/**
 * A short text that differs when the rules of a chain differ (FNV-1a, 32 bits). Written beside each rule as its
 * comment, so that a listing shows whether the kernel still holds what we wrote.
 */
export function chainTag(chain: Chain): string {
  const text = JSON.stringify([chain.rules, chain.hook ?? null]);
  let h = 0x811c9dc5;
  for (let i = 0; i < text.length; i++) h = Math.imul(h ^ text.charCodeAt(i), 0x01000193);
  return (h >>> 0).toString(16).padStart(8, "0");
}
