/**
 * Which nodes a server says are connected to it, and which were until a moment ago: those are most likely just connecting
 * again, and whoever wants one of them is asked for a little patience instead of being refused.
 */
import type { MonoMs } from "../../clock.ts";
import type { ControlMessage } from "./message.ts";

/** How long a node that left, or that was there before we lost the server, may take to be there again. */
export const RETURN_MS = 2_000;
/** Nodes that left and are remembered: as many as a server has. */
const MAX_LEFT = 4_096;

export class Presence {
  readonly #online = new Set<string>();
  /** Nodes that were there once, and since when they are not; the oldest first. */
  readonly #left = new Map<string, MonoMs>();

  /** Nodes that are there. */
  get online(): ReadonlySet<string> {
    return this.#online;
  }

  /** Takes what the server says; returns who came and who left. `self` is not spoken of. */
  take(
    m: ControlMessage & { readonly type: "peers" },
    self: string,
    now: MonoMs,
  ): { readonly online: readonly string[]; readonly offline: readonly string[] } {
    const online = m.online.filter((node) => node !== self && !this.#online.has(node));
    const named = new Set(m.online);
    const offline = m.full
      ? [...this.#online].filter((node) => !named.has(node))
      : m.offline.filter((node) => this.#online.has(node));
    for (const node of online) {
      this.#online.add(node);
      this.#left.delete(node);
    }
    for (const node of offline) this.#leave(node, now);
    return { online, offline };
  }

  /** The connection to the server is gone, and with it all knowledge of who is there. */
  clear(now: MonoMs): readonly string[] {
    const gone = [...this.#online];
    for (const node of gone) this.#leave(node, now);
    return gone;
  }

  /**
   * Milliseconds in which a node may still be expected back; 0 for one that was never there. `connectedAt`: since when we
   * are connected ourselves, because a server that was away meets its agents again one after the other.
   */
  returnsWithin(node: string, now: MonoMs, connectedAt: MonoMs): number {
    // The server may know what it has not told us yet.
    if (this.#online.has(node)) return RETURN_MS;
    const left = this.#left.get(node);
    return left === undefined ? 0 : Math.max(0, Math.max(left, connectedAt) + RETURN_MS - now);
  }

  #leave(node: string, now: MonoMs): void {
    this.#online.delete(node);
    this.#left.delete(node);
    this.#left.set(node, now);
    if (this.#left.size > MAX_LEFT) this.#left.delete(this.#left.keys().next().value!);
  }
}
