/** Which nodes are in a LAN of this host: those whose agents were reached there last. */
import type { PathKind } from "../../lib/tunnel/carrier.ts";

/** Nodes remembered; a LAN has fewer, and the tunnel itself keeps no more sessions. */
const MAX_NODES = 1_024;

export class LanNodes {
  readonly #onChange: () => void;
  #names: readonly string[] = [];

  constructor(onChange: () => void) {
    this.#onChange = onChange;
  }

  /** In the order of their names; the same array while nothing changes. */
  get names(): readonly string[] {
    return this.#names;
  }

  /** A node was reached by this path. One that is not connected stays what it was: it may be idle. */
  reached(node: string, path: PathKind): void {
    const known = this.#names.includes(node);
    if ((path === "lan") === known || (!known && this.#names.length >= MAX_NODES)) return;
    this.#names = known ? this.#names.filter((name) => name !== node) : [...this.#names, node].sort();
    this.#onChange();
  }

  /** This host's network changed: who was near may not be any more. */
  clear(): void {
    if (this.#names.length === 0) return;
    this.#names = [];
    this.#onChange();
  }
}
