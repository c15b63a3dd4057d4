/**
 * Two machines with one name would throw each other off a server for ever (the newest connection wins). Counts how
 * often a node was replaced lately, so that the server can let the one that is connected stay for a while.
 */
import type { Clock, MonoMs } from "../../clock.ts";

/** Replacements within {@link WINDOW_MS} that an agent on a bad link may cause by reconnecting. */
const FREE = 10;
const WINDOW_MS = 60_000;
/** Nodes remembered; only nodes that were replaced lately are. */
const MAX_NODES = 4096;

export interface ReplaceGuard {
  replaced(node: string): void;
  /** Milliseconds until the node may be replaced again; 0 = now. */
  waitMs(node: string): number;
}

export function replaceGuard(clock: Clock): ReplaceGuard {
  const times = new Map<string, MonoMs[]>();
  const recent = (node: string): MonoMs[] => {
    const since = clock.now() - WINDOW_MS;
    const left = (times.get(node) ?? []).filter((at) => at > since);
    if (left.length === 0) times.delete(node);
    else times.set(node, left);
    return left;
  };
  return {
    replaced(node) {
      const list = recent(node);
      list.push(clock.now());
      // Set anew so that the map stays in order of the last replacement and the oldest is dropped.
      times.delete(node);
      times.set(node, list.slice(-FREE));
      if (times.size > MAX_NODES) times.delete(times.keys().next().value!);
    },
    waitMs(node) {
      const list = recent(node);
      return list.length < FREE ? 0 : list[0]! + WINDOW_MS - clock.now();
    },
  };
}
