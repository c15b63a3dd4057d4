/**
 * Who is not trusted any more. Each server publishes one list with a rising epoch; an agent keeps the newest list of
 * every server and trusts nobody who is on any of them. Lists arrive over the authenticated control connection only
 * and survive restarts; they win over every leniency about dates.
 */
import { isNodeName } from "../addr.ts";
import type { WallMs } from "../clock.ts";
import { MeshError } from "../errors.ts";
import { array, integer, literal, object, string, type Validator } from "./shape.ts";

/** What an entry shuts out: a node's name whatever its key, one key whatever its name, or one certificate. */
export type RevokedBy = "node" | "key" | "serial";

export interface RevocationEntry {
  readonly by: RevokedBy;
  /** Node name, key hash (64 hex digits) or serial (hex), by {@link by}. */
  readonly value: string;
  readonly reason: string;
  /** When it was revoked, for people. */
  readonly at: WallMs;
}

/** One server's whole list. A higher epoch replaces a lower one; entries that are gone are trusted again. */
export interface RevocationList {
  readonly epoch: number;
  readonly entries: readonly RevocationEntry[];
}

/** What is asked about a party. */
export interface RevocationSubject {
  readonly node: string;
  readonly keyHash: string;
  readonly serial: string;
}

/** At most this many entries per server: about 1.5 MB, more than any fleet revokes within the life of its keys. */
export const MAX_REVOCATIONS = 10_000;
/** Lists of at most this many servers are kept; the design allows three servers, and servers get renamed. */
export const MAX_REVOCATION_SOURCES = 16;

/** Shape of an entry on the wire and on disk. */
export const REVOCATION_ENTRY: Validator<RevocationEntry> = object({
  by: literal("node", "key", "serial"),
  value: string(1, 64),
  reason: string(0, 200),
  at: integer(0),
});
/** Shape of a list on the wire and on disk. */
export const REVOCATION_LIST: Validator<RevocationList> = object({
  epoch: integer(0),
  entries: array(REVOCATION_ENTRY, MAX_REVOCATIONS),
});
/** A server is known here by its name or its address, whichever the caller uses consistently. */
const SERVER = string(1, 300);
const SOURCES = array(object({ server: SERVER, list: REVOCATION_LIST }), MAX_REVOCATION_SOURCES);

/** The lists of all servers, asked as one. */
export class Revocations {
  readonly #lists = new Map<string, RevocationList>();
  /** `by` + value → entry, over all lists; rebuilt on change because changes are rare and questions are not. */
  #index = new Map<string, RevocationEntry>();

  /**
   * Takes a server's list when its epoch is higher than what is known from that server. Returns whether anything
   * changed; the caller then saves {@link save} and drops live sessions of those now revoked. Throws PROTOCOL for a
   * malformed list and LIMIT when too many servers have lists.
   */
  apply(server: string, input: unknown): boolean {
    SERVER(server, "server");
    const list = REVOCATION_LIST(input, "revocation list");
    for (const e of list.entries) checkValue(e);
    const known = this.#lists.get(server);
    if (known && list.epoch <= known.epoch) return false;
    if (!known && this.#lists.size >= MAX_REVOCATION_SOURCES) {
      throw new MeshError(
        "LIMIT",
        `revocation lists of ${MAX_REVOCATION_SOURCES} servers are known; one more is refused`,
      );
    }
    this.#lists.set(server, list);
    this.#rebuild();
    return true;
  }

  /** The entry that shuts a party out, or undefined. */
  find(subject: RevocationSubject): RevocationEntry | undefined {
    if (this.#index.size === 0) return undefined;
    return this.#index.get("key " + subject.keyHash) ?? this.#index.get("serial " + subject.serial) ??
      this.#index.get("node " + subject.node);
  }

  /**
   * Drops the lists of all other servers: a server that the operator took out of the configuration could never lift
   * what it revoked. Returns whether anything changed.
   */
  retain(servers: readonly string[]): boolean {
    const gone = [...this.#lists.keys()].filter((s) => !servers.includes(s));
    for (const s of gone) this.#lists.delete(s);
    if (gone.length > 0) this.#rebuild();
    return gone.length > 0;
  }

  /** The epoch known from a server, 0 when none: sent on connect so that the server pushes only news. */
  epochOf(server: string): number {
    return this.#lists.get(server)?.epoch ?? 0;
  }

  get size(): number {
    return this.#index.size;
  }

  /** Plain value for the state file. */
  save(): unknown {
    return [...this.#lists].map(([server, list]) => ({ server, list }));
  }

  /** Reads what {@link save} wrote. Throws PROTOCOL when it is something else. */
  static load(saved: unknown): Revocations {
    const all = new Revocations();
    for (const { server, list } of SOURCES(saved, "revocations")) all.apply(server, list);
    return all;
  }

  #rebuild(): void {
    this.#index = new Map();
    for (const list of this.#lists.values()) {
      for (const e of list.entries) this.#index.set(`${e.by} ${e.value}`, e);
    }
  }
}

function checkValue(entry: RevocationEntry): void {
  const good = entry.by === "node"
    ? isNodeName(entry.value)
    : entry.by === "key"
    ? /^[0-9a-f]{64}$/.test(entry.value)
    : /^[0-9a-f]{1,40}$/.test(entry.value);
  if (!good) {
    throw new MeshError("PROTOCOL", `revocation entry by ${entry.by} has the value ${JSON.stringify(entry.value)}`);
  }
}
