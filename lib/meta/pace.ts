/**
 * Long work in short pieces. The agent's one thread also carries traffic, so nothing here may hold it longer than a
 * few milliseconds: work that can grow asks between its pieces whether to let others run.
 */
import type { Clock } from "../clock.ts";
import { sleep } from "../clock.ts";

/** Work done at a stretch, in milliseconds; the target for the longest stall is ten. */
const STRETCH_MS = 4;

export class Pacer {
  readonly #clock: Clock;
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
    await sleep(this.#clock, 0, signal);
    this.#since = this.#clock.now();
  }
}
