/**
 * A server's revocation list: what operators changed here and on the other servers, with a rising epoch, on disk before
 * it is published. What was lifted is remembered for a while, so that a server that was away does not bring it back.
 */
import type { WallMs } from "../clock.ts";
import { MeshError } from "../errors.ts";
import {
  MAX_REVOCATIONS,
  REVOCATION_LIST,
  type RevocationEntry,
  type RevocationList,
  type RevokedBy,
} from "./revocation.ts";
import { Serial } from "./serial.ts";
import { array, integer, literal, object, optional, string, type Validator } from "./shape.ts";
import type { StateFiles } from "./state_files.ts";
import { readState, writeState } from "./state_json.ts";

export const REVOCATIONS_FILE = "revocations.json";

/** A revocation that was taken back. */
export interface Lifted {
  readonly by: RevokedBy;
  readonly value: string;
  readonly at: WallMs;
}

/** All that servers tell each other about revocations. */
export interface SharedRevocations {
  readonly entries: readonly RevocationEntry[];
  readonly lifted: readonly Lifted[];
}

/** A server that was away for longer brings back what was lifted meanwhile: shut out once too often is the safe side. */
const KEEP_LIFTED_MS = 90 * 24 * 3600 * 1000;

/** Shape of {@link SharedRevocations.lifted} on the wire and on disk. */
export const LIFTED: Validator<readonly Lifted[]> = array(
  object({ by: literal("node", "key", "serial"), value: string(1, 64), at: integer(0) }),
  MAX_REVOCATIONS,
);

const FILE = object({ format: literal(1), list: REVOCATION_LIST, lifted: optional(LIFTED) });

export class RevocationRegistry {
  readonly #files: StateFiles;
  readonly #serial = new Serial();
  #list: RevocationList;
  #lifted: readonly Lifted[];

  private constructor(files: StateFiles, list: RevocationList, lifted: readonly Lifted[]) {
    this.#files = files;
    this.#list = list;
    this.#lifted = lifted;
  }

  /** Reads the list. Throws STATE_INVALID. */
  static async open(files: StateFiles): Promise<RevocationRegistry> {
    const saved = await readState(files, REVOCATIONS_FILE, {
      check: FILE,
      hint: "restore it from a backup; removing it trusts again whoever was revoked",
    });
    return new RevocationRegistry(files, saved?.list ?? { epoch: 0, entries: [] }, saved?.lifted ?? []);
  }

  get list(): RevocationList {
    return this.#list;
  }

  get lifted(): readonly Lifted[] {
    return this.#lifted;
  }

  /** Adds an entry. Returns the list to publish. Throws LIMIT. */
  add(entry: RevocationEntry): Promise<RevocationList> {
    return this.#serial.run(() => {
      const others = this.#list.entries.filter((e) => !same(e, entry));
      const after = this.#lifted.find((l) => same(l, entry))?.at ?? 0;
      const entries = [...others, { ...entry, at: Math.max(entry.at, after + 1) }];
      return this.#save({ entries, lifted: this.#lifted.filter((l) => !same(l, entry)) }, entry.at);
    });
  }

  /** Removes an entry. Returns the list to publish; unchanged when there was none. */
  lift(by: RevokedBy, value: string, now: WallMs): Promise<RevocationList> {
    return this.#serial.run(() => {
      const entry = this.#list.entries.find((e) => same(e, { by, value }));
      if (!entry) return Promise.resolve(this.#list);
      const at = Math.max(Math.floor(now), entry.at + 1);
      const lifted = [...this.#lifted.filter((l) => !same(l, entry)), { by, value, at }];
      return this.#save({ entries: this.#list.entries.filter((e) => e !== entry), lifted }, now);
    });
  }

  /** Takes over what another server knows; the later word about each party wins. Undefined: nothing new. Throws LIMIT. */
  merge(theirs: SharedRevocations, now: WallMs): Promise<RevocationList | undefined> {
    return this.#serial.run(async () => {
      const mine = { entries: this.#list.entries, lifted: this.#lifted };
      const next = merged(mine, theirs);
      if (JSON.stringify(next) === JSON.stringify(merged(mine, NONE))) return undefined;
      return await this.#save(next, now);
    });
  }

  async #save(next: SharedRevocations, now: WallMs): Promise<RevocationList> {
    if (next.entries.length > MAX_REVOCATIONS) {
      throw new MeshError("LIMIT", `${MAX_REVOCATIONS} revocations exist already`, {
        hint:
          "lift the oldest ones: a key that was revoked more than a year ago has no certificate that anyone accepts",
      });
    }
    // The time as epoch: a server restored from an old backup still publishes newer lists than it did before.
    const epoch = Math.max(this.#list.epoch + 1, Math.floor(now));
    const list = { epoch, entries: next.entries };
    const lifted = next.lifted.filter((l) => l.at > now - KEEP_LIFTED_MS).slice(-MAX_REVOCATIONS);
    await writeState(this.#files, REVOCATIONS_FILE, { format: 1, list, lifted });
    this.#list = list;
    this.#lifted = lifted;
    return list;
  }
}

const NONE: SharedRevocations = { entries: [], lifted: [] };

function same(a: { readonly by: RevokedBy; readonly value: string }, b: typeof a): boolean {
  return a.by === b.by && a.value === b.value;
}

/** The later word about each party; revoked wins a tie. In one order on every server. */
function merged(mine: SharedRevocations, theirs: SharedRevocations): SharedRevocations {
  const entries = new Map<string, RevocationEntry>();
  const lifted = new Map<string, Lifted>();
  const key = (e: { readonly by: RevokedBy; readonly value: string }) => `${e.by} ${e.value}`;
  for (const e of [...mine.entries, ...theirs.entries]) {
    const known = entries.get(key(e));
    if (!known || e.at > known.at || (e.at === known.at && e.reason > known.reason)) entries.set(key(e), e);
  }
  for (const l of [...mine.lifted, ...theirs.lifted]) {
    if (l.at > (lifted.get(key(l))?.at ?? -1)) lifted.set(key(l), l);
  }
  for (const [k, l] of lifted) {
    if (l.at > (entries.get(k)?.at ?? -1)) entries.delete(k);
    else lifted.delete(k);
  }
  const inOrder = <T extends { readonly at: WallMs }>(map: ReadonlyMap<string, T>): T[] =>
    [...map].sort(([a, x], [b, y]) => x.at - y.at || (a < b ? -1 : 1)).map(([, value]) => value);
  return { entries: inOrder(entries), lifted: inOrder(lifted) };
}
