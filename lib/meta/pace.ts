/**
 * Long work in short pieces. The agent's one thread also carries traffic, so nothing here may hold it longer than a
 * few milliseconds: work that can grow asks between its pieces whether to let others run. Workers that share a pacer
 * share its stretch, too: each turn of the loop lets one that waited go on, and all that work in it count together.
 */
import type { Clock } from "../clock.ts";

/**
 * Work done at a stretch, in milliseconds. The target for the longest stall is ten, of which the garbage collector takes
 * up to six at a time (the end of a marking) whenever it likes.
 */
const STRETCH_MS = 2;

export class Pacer {
  readonly #clock: Clock;
  readonly #waiting = new Set<() => void>();
  #timer: (() => void) | undefined;
  #since: number;

  constructor(clock: Clock) {
    this.#clock = clock;
    this.#since = clock.now();
  }

  /** Whether it is time to {@link rest}. */
  get tired(): boolean {
    return this.#clock.now() - this.#since >= STRETCH_MS;
  }

  /** Lets the event loop turn. Rejects with the signal's reason when it is aborted meanwhile. */
  async rest(signal?: AbortSignal): Promise<void> {
    signal?.throwIfAborted();
    const { promise, resolve } = Promise.withResolvers<void>();
    const abort = () => {
      this.#waiting.delete(resolve);
      this.#arm();
      resolve();
    };
    this.#waiting.add(resolve);
    signal?.addEventListener("abort", abort, { once: true });
    this.#arm();
    await promise;
    signal?.removeEventListener("abort", abort);
    signal?.throwIfAborted();
  }

  /** A timer exists exactly while somebody waits. */
  #arm(): void {
    if (this.#waiting.size === 0) {
      this.#timer?.();
      this.#timer = undefined;
      return;
    }
    this.#timer ??= this.#clock.timer(0, () => {
      this.#timer = undefined;
      this.#since = this.#clock.now();
      const [next] = this.#waiting;
      this.#waiting.delete(next!);
      next!();
      this.#arm();
    });
  }
}
