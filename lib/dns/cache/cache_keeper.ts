/** Takes foreign answers to disk from time to time, and back at the start. */
import type { CancelTimer, Clock } from "../../clock.ts";
import { describe } from "../../errors.ts";
import type { Logger } from "../../log.ts";
import type { AnswerCache } from "./cache.ts";
import { type CacheStore, restoreCache, saveCache } from "./persist.ts";

/** How often, while new answers come in: flash wears out, and a restart loses little. */
const SAVE_EVERY_MS = 600_000;

export interface CacheKeeperDeps {
  readonly clock: Clock;
  readonly log: Logger;
  readonly cache: AnswerCache;
  /** How many answers were ever learned: nothing is written while it stands still. */
  readonly learned: () => number;
}

export class CacheKeeper {
  readonly #store: CacheStore;
  readonly #deps: CacheKeeperDeps;
  #saved = 0;
  #cancel: CancelTimer | undefined;

  constructor(store: CacheStore, deps: CacheKeeperDeps) {
    this.#store = store;
    this.#deps = deps;
  }

  /** Puts back what was saved, and saves from now on. */
  restore(): void {
    const { cache, clock, log } = this.#deps;
    const saved = this.#store.load();
    if (saved) {
      const count = restoreCache(cache, saved, { now: clock.now(), wall: clock.wall() });
      log.info("Foreign answers from before the restart are kept for times without upstream", { count });
    }
    this.#later();
  }

  /** Saves once more, if there is something to save. Never throws: a cache that cannot be kept is a line in the log. */
  async close(): Promise<void> {
    this.#cancel?.();
    await this.#save();
  }

  #later(): void {
    this.#cancel = this.#deps.clock.timer(SAVE_EVERY_MS, () => {
      this.#later();
      void this.#save();
    });
  }

  async #save(): Promise<void> {
    const { cache, clock, learned, log } = this.#deps;
    const count = learned();
    if (count === this.#saved) return;
    this.#saved = count;
    try {
      await this.#store.save(saveCache(cache, { now: clock.now(), wall: clock.wall() }));
    } catch (error) {
      log.warn("Foreign answers could not be saved", { error: describe(error) });
    }
  }
}
