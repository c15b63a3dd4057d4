/**
 * Keys of other nodes, remembered from their first connection on. A server that issues certificates could issue one in
 * another node's name; it cannot make this list forget (design §5, end to end).
 */
import { isNodeName } from "../addr.ts";
import { nullLogger } from "../log.ts";
import type { Logger } from "../log.ts";
import { Serial } from "./serial.ts";
import { array, literal, object, string } from "./shape.ts";
import type { StateFiles } from "./state_files.ts";
import { readState, writeState } from "./state_json.ts";
import type { KnownKeys } from "./trust.ts";

export const PEERS_FILE = "peers.json";
/** Only nodes with a certificate of our authority get here, so the cap is the size of a mesh, not of an attack. */
export const MAX_PEERS = 20_000;

const FILE = object({
  format: literal(1),
  peers: array(object({ node: string(1, 63), keyHash: string(64, 64, /^[0-9a-f]{64}$/) }), MAX_PEERS),
});

export class PeerKeys implements KnownKeys {
  readonly #files: StateFiles;
  readonly #log: Logger;
  readonly #keys: Map<string, string>;
  readonly #serial = new Serial();
  #dirty = false;

  private constructor(files: StateFiles, log: Logger, keys: Map<string, string>) {
    this.#files = files;
    this.#log = log;
    this.#keys = keys;
  }

  /** Reads the list. Throws STATE_INVALID. */
  static async open(files: StateFiles, log: Logger = nullLogger): Promise<PeerKeys> {
    const saved = await readState(files, PEERS_FILE, {
      check: FILE,
      hint: "restore it from a backup, or remove it: every node's key is then learned anew at its next connection",
    });
    return new PeerKeys(files, log, new Map((saved?.peers ?? []).map((p) => [p.node, p.keyHash])));
  }

  get(node: string): string | undefined {
    return this.#keys.get(node);
  }

  learn(node: string, keyHash: string): void {
    const known = this.#keys.get(node);
    if (known === keyHash || !isNodeName(node)) return;
    if (known === undefined && this.#keys.size >= MAX_PEERS) {
      this.#log.warn("the key of a node was not remembered, the list is full", { node, max: MAX_PEERS });
      return;
    }
    this.#keys.set(node, keyHash);
    if (known !== undefined) this.#log.warn("a node has a new key after its old one was revoked", { node, keyHash });
    this.#save();
  }

  /** Forgets a node's key: an operator vouches for the change. Returns false when it was not known. */
  async forget(node: string): Promise<boolean> {
    const known = this.#keys.delete(node);
    if (known) this.#save();
    await this.flush();
    return known;
  }

  list(): readonly { readonly node: string; readonly keyHash: string }[] {
    return [...this.#keys].map(([node, keyHash]) => ({ node, keyHash }));
  }

  /** Resolves when everything learned is on disk, or the write failed and was logged. */
  flush(): Promise<void> {
    return this.#serial.run(() => Promise.resolve());
  }

  /** Many nodes may connect at once; one write covers all that were learned before it starts. */
  #save(): void {
    if (this.#dirty) return;
    this.#dirty = true;
    this.#serial.run(async () => {
      this.#dirty = false;
      try {
        await writeState(this.#files, PEERS_FILE, { format: 1, peers: this.list() });
      } catch (e) {
        // The keys hold in memory; the next one learned tries again.
        this.#log.warn("keys of other nodes could not be saved", { error: String(e) });
      }
    });
  }
}
