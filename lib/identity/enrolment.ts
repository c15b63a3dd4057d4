/**
 * Which nodes a server knows, and by which key. A name belongs to the key that enrolled first: no token takes it over,
 * only an operator who removes the enrolment, and that revokes the old key for everyone.
 */
import { isNodeName } from "../addr.ts";
import type { WallMs } from "../clock.ts";
import { MeshError } from "../errors.ts";
import { array, integer, LABELS, literal, object, optional, string, type Validator } from "./shape.ts";
import type { StateFiles } from "./state_files.ts";
import { readState, writeState } from "./state_json.ts";
import { Serial } from "./serial.ts";

export const NODES_FILE = "nodes.json";
/** Nodes one server enrols. */
export const MAX_NODES = 20_000;

export interface Enrolment {
  readonly node: string;
  /** SHA-256 of the node's SubjectPublicKeyInfo, hex. */
  readonly keyHash: string;
  readonly enrolledAt: WallMs;
  /** Token that admitted it; absent when it came with a certificate from another server of the mesh. */
  readonly token?: string | undefined;
  readonly labels: Readonly<Record<string, string>>;
}

/** Shape of enrolments on the wire and on disk. */
export const ENROLMENTS: Validator<readonly Enrolment[]> = array(
  object({
    node: string(1, 63),
    keyHash: string(64, 64, /^[0-9a-f]{64}$/),
    enrolledAt: integer(0),
    token: optional(string(1, 16)),
    labels: LABELS,
  }),
  MAX_NODES,
);

const FILE = object({ format: literal(1), nodes: ENROLMENTS });

export class Enrolments {
  readonly #files: StateFiles;
  readonly #serial = new Serial();
  #nodes: ReadonlyMap<string, Enrolment>;

  private constructor(files: StateFiles, nodes: readonly Enrolment[]) {
    this.#files = files;
    this.#nodes = new Map(nodes.map((n) => [n.node, n]));
  }

  /** Reads the registry. Throws STATE_INVALID. */
  static async open(files: StateFiles): Promise<Enrolments> {
    const saved = await readState(files, NODES_FILE, {
      check: FILE,
      hint:
        "restore it from a backup; without it, nodes whose certificates are still accepted are learned again, and " +
        "names of all others are free for whoever has a token",
    });
    return new Enrolments(files, saved?.nodes ?? []);
  }

  get(node: string): Enrolment | undefined {
    return this.#nodes.get(node);
  }

  list(): readonly Enrolment[] {
    return [...this.#nodes.values()];
  }

  /** The same by name: another object after each change. */
  get byName(): ReadonlyMap<string, Enrolment> {
    return this.#nodes;
  }

  /** Throws NODE_KEY_MISMATCH when the name belongs to another key. */
  checkKey(node: string, keyHash: string): void {
    const known = this.#nodes.get(node);
    if (!known || known.keyHash === keyHash) return;
    throw new MeshError(
      "NODE_KEY_MISMATCH",
      `node ${node} has been enrolled with another key since ${new Date(known.enrolledAt).toISOString()}`,
      {
        hint: `choose another --node-name; or, if this machine replaces the old ${node} or lost its state, have an ` +
          "operator remove the old enrolment on the server, then join with a new token",
      },
    );
  }

  /** Enrols a node; the same node with the same key again changes nothing. Throws NODE_KEY_MISMATCH, LIMIT. */
  enrol(entry: Enrolment): Promise<void> {
    return this.#serial.run(async () => {
      if (!isNodeName(entry.node)) throw new MeshError("INTERNAL", `${JSON.stringify(entry.node)} is not a node name`);
      this.checkKey(entry.node, entry.keyHash);
      if (this.#nodes.has(entry.node)) return;
      if (this.#nodes.size >= MAX_NODES) throw new MeshError("LIMIT", `${MAX_NODES} nodes are enrolled already`);
      await this.#save([...this.#nodes.values(), entry]);
    });
  }

  /** Removes an enrolment and returns it. The caller revokes its key first; see IdentityServer.removeNode. */
  remove(node: string): Promise<Enrolment | undefined> {
    return this.#serial.run(async () => {
      const known = this.#nodes.get(node);
      if (known) await this.#save([...this.#nodes.values()].filter((n) => n.node !== node));
      return known;
    });
  }

  /**
   * Takes over what another server enrolled. A name belongs to whoever had it first; a key that `revoked` names holds
   * none. Returns names for which the two servers had enrolled different keys. Throws PROTOCOL, LIMIT.
   */
  merge(theirs: readonly Enrolment[], revoked: (keyHash: string) => boolean): Promise<readonly string[]> {
    return this.#serial.run(async () => {
      const next = new Map([...this.#nodes].filter(([, mine]) => !revoked(mine.keyHash)));
      const disputed: string[] = [];
      for (const other of theirs) {
        if (!isNodeName(other.node)) {
          throw new MeshError("PROTOCOL", `${JSON.stringify(other.node)} cannot be a node name`);
        }
        if (revoked(other.keyHash)) continue;
        const mine = next.get(other.node);
        if (mine && mine.keyHash !== other.keyHash) disputed.push(other.node);
        if (!mine || before(other, mine)) next.set(other.node, other);
      }
      if (next.size > MAX_NODES) throw new MeshError("LIMIT", `more than ${MAX_NODES} nodes would be enrolled`);
      const changed = next.size !== this.#nodes.size || [...next].some(([name, e]) => this.#nodes.get(name) !== e);
      if (changed) await this.#save([...next.values()]);
      return disputed;
    });
  }

  async #save(nodes: readonly Enrolment[]): Promise<void> {
    await writeState(this.#files, NODES_FILE, { format: 1, nodes });
    this.#nodes = new Map(nodes.map((n) => [n.node, n]));
  }
}

/** Whether `a` has the older claim to the name; of two at one time all servers choose the same. */
function before(a: Enrolment, b: Enrolment): boolean {
  if (a.enrolledAt !== b.enrolledAt) return a.enrolledAt < b.enrolledAt;
  return text(a) < text(b);
}

function text({ keyHash, token, labels }: Enrolment): string {
  return JSON.stringify([keyHash, token ?? "", Object.entries(labels).sort(([x], [y]) => x < y ? -1 : 1)]);
}
