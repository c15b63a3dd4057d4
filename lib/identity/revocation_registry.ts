/** A server's own revocation list: what operators changed, with a rising epoch, on disk before it is published. */
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
import { literal, object } from "./shape.ts";
import type { StateFiles } from "./state_files.ts";
import { readState, writeState } from "./state_json.ts";

export const REVOCATIONS_FILE = "revocations.json";

const FILE = object({ format: literal(1), list: REVOCATION_LIST });

export class RevocationRegistry {
  readonly #files: StateFiles;
  readonly #serial = new Serial();
  #list: RevocationList;

  private constructor(files: StateFiles, list: RevocationList) {
    this.#files = files;
    this.#list = list;
  }

  /** Reads the list. Throws STATE_INVALID. */
  static async open(files: StateFiles): Promise<RevocationRegistry> {
    const saved = await readState(files, REVOCATIONS_FILE, {
      check: FILE,
      hint: "restore it from a backup; removing it trusts again whoever was revoked",
    });
    return new RevocationRegistry(files, saved?.list ?? { epoch: 0, entries: [] });
  }

  get list(): RevocationList {
    return this.#list;
  }

  /** Adds an entry. Returns the list to publish. Throws LIMIT. */
  add(entry: RevocationEntry): Promise<RevocationList> {
    return this.#change(entry.at, (entries) => {
      const others = entries.filter((e) => e.by !== entry.by || e.value !== entry.value);
      if (others.length >= MAX_REVOCATIONS) {
        throw new MeshError("LIMIT", `${MAX_REVOCATIONS} revocations exist already`, {
          hint:
            "lift the oldest ones: a key that was revoked more than a year ago has no certificate that anyone accepts",
        });
      }
      return [...others, entry];
    });
  }

  /** Removes an entry. Returns the list to publish; unchanged when there was none. */
  lift(by: RevokedBy, value: string, now: WallMs): Promise<RevocationList> {
    if (!this.#list.entries.some((e) => e.by === by && e.value === value)) return Promise.resolve(this.#list);
    return this.#change(now, (entries) => entries.filter((e) => e.by !== by || e.value !== value));
  }

  #change(
    now: WallMs,
    change: (entries: readonly RevocationEntry[]) => readonly RevocationEntry[],
  ): Promise<RevocationList> {
    return this.#serial.run(async () => {
      // The time as epoch: a server restored from an old backup still publishes newer lists than it did before.
      const epoch = Math.max(this.#list.epoch + 1, Math.floor(now));
      const list = { epoch, entries: change(this.#list.entries) };
      await writeState(this.#files, REVOCATIONS_FILE, { format: 1, list });
      this.#list = list;
      return list;
    });
  }
}
