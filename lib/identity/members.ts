/**
 * The servers of a mesh, as one of them knows them: name, address and key. Only a server on this list, with the key
 * noted here, may exchange state. Later facts win over earlier ones, so that all servers come to the same list.
 */
import { isNodeName } from "../addr.ts";
import type { WallMs } from "../clock.ts";
import { MeshError } from "../errors.ts";
import { Serial } from "./serial.ts";
import { array, boolean, integer, literal, object, string, type Validator } from "./shape.ts";
import type { StateFiles } from "./state_files.ts";
import { readState, writeState } from "./state_json.ts";

export const MEMBERS_FILE = "servers.json";
/** Servers one mesh has had, removed ones included: agents use three at a time (design §5). */
export const MAX_MEMBERS = 16;

export interface Member {
  readonly name: string;
  /** Where agents and the other servers find it, `wss://…`. */
  readonly url: string;
  /** SHA-256 of its SubjectPublicKeyInfo, hex. */
  readonly keyHash: string;
  /** When this was so; a later fact about the same name replaces an earlier one. */
  readonly at: WallMs;
  /** Removed by an operator. */
  readonly gone: boolean;
}

/** Shape on the wire and on disk. */
export const MEMBERS: Validator<readonly Member[]> = array(
  object({
    name: string(1, 63),
    url: string(1, 300),
    keyHash: string(64, 64, /^[0-9a-f]{64}$/),
    at: integer(0),
    gone: boolean,
  }),
  MAX_MEMBERS,
);

const FILE = object({ format: literal(1), servers: MEMBERS });

export class Members {
  readonly #files: StateFiles;
  readonly #serial = new Serial();
  #all: readonly Member[];

  private constructor(files: StateFiles, all: readonly Member[]) {
    this.#files = files;
    this.#all = all;
  }

  /** Reads the list; empty on a server that is alone. Throws STATE_INVALID. */
  static async open(files: StateFiles): Promise<Members> {
    const saved = await readState(files, MEMBERS_FILE, {
      check: FILE,
      hint: "restore it from a backup, or remove it and join this server to another one again",
    });
    return new Members(files, saved?.servers ?? []);
  }

  /** Everything known, removed servers included, by name. A new array after each change. */
  get all(): readonly Member[] {
    return this.#all;
  }

  /** The servers of the mesh now. */
  get present(): readonly Member[] {
    return this.#all.filter((m) => !m.gone);
  }

  get(name: string): Member | undefined {
    return this.#all.find((m) => m.name === name);
  }

  /** Throws NODE_KEY_MISMATCH when a server of that name with another key is present. */
  checkFree(name: string, keyHash: string): void {
    const known = this.get(name);
    if (!known || known.gone || known.keyHash === keyHash) return;
    throw new MeshError("NODE_KEY_MISMATCH", `a server ${name} with another key is part of this mesh already`, {
      hint: `choose another --name; or, if it is gone for good, \`edgemesh server remove ${name}\` on a server first`,
    });
  }

  /** Notes a server. Throws LIMIT. Resolves when it is on disk. */
  put(member: Omit<Member, "at">, now: WallMs): Promise<void> {
    return this.#serial.run(async () => {
      const known = this.get(member.name);
      const same = known && known.url === member.url && known.keyHash === member.keyHash && known.gone === member.gone;
      if (same) return;
      await this.#save(merged(this.#all, [{ ...member, at: Math.max(Math.floor(now), (known?.at ?? 0) + 1) }]));
    });
  }

  /** Takes over what another server knows. Throws PROTOCOL, LIMIT. Resolves when it is on disk. */
  merge(others: readonly Member[]): Promise<void> {
    return this.#serial.run(async () => {
      for (const { name } of others) {
        if (!isNodeName(name)) throw new MeshError("PROTOCOL", `${JSON.stringify(name)} cannot be a server's name`);
      }
      const next = merged(this.#all, others);
      if (JSON.stringify(next) !== JSON.stringify(this.#all)) await this.#save(next);
    });
  }

  async #save(all: readonly Member[]): Promise<void> {
    if (all.length > MAX_MEMBERS) {
      throw new MeshError("LIMIT", `${MAX_MEMBERS} servers are known already, removed ones included`);
    }
    await writeState(this.#files, MEMBERS_FILE, { format: 1, servers: all });
    this.#all = all;
  }
}

/** The later fact about each name; of two at one time the one whose text sorts last, so that all servers agree. */
function merged(mine: readonly Member[], theirs: readonly Member[]): readonly Member[] {
  const byName = new Map<string, Member>();
  for (const m of [...mine, ...theirs]) {
    const known = byName.get(m.name);
    if (!known || m.at > known.at || (m.at === known.at && text(m) > text(known))) byName.set(m.name, m);
  }
  return [...byName.values()].sort((a, b) => a.name < b.name ? -1 : 1);
}

function text({ name, url, keyHash, at, gone }: Member): string {
  return JSON.stringify([name, url, keyHash, at, gone]);
}
