/**
 * What happens to clients while as many connections are open as may be: they wait in the kernel's queue of the listener,
 * and are served in their order as others end. Who has waited for long is refused, so that no program hangs on a node
 * whose connections are all long ones.
 */
import type { CancelTimer, Clock, MonoMs } from "../clock.ts";
import type { Logger } from "../log.ts";
import type { Listener } from "../net.ts";

/** How long the queue is emptied, after its clients have waited; who comes meanwhile is refused with them. */
const SHED_MS = 50;
/** How often is spoken of it. */
const LOG_MS = 60_000;

export interface AdmissionOptions {
  readonly clock: Clock;
  readonly log: Logger;
  /** How long clients wait at most; milliseconds. */
  readonly waitMs: number;
  readonly max: number;
  listeners(): Iterable<Listener>;
}

export class Admission {
  readonly #options: AdmissionOptions;
  #timer: CancelTimer | undefined;
  #spokenAt: MonoMs = -LOG_MS;

  constructor(options: AdmissionOptions) {
    this.#options = options;
  }

  /** The last place was taken. */
  full(): void {
    if (this.#timer) return;
    this.#hold();
    const { clock, log, max, waitMs } = this.#options;
    if (clock.now() - this.#spokenAt < LOG_MS) return;
    this.#spokenAt = clock.now();
    log.warn("As many connections are open as may be; new ones wait, and are refused after a while", {
      open: max,
      waitMs,
      hint: "raise forward.maxConnections, and LimitNOFILE= with it",
    });
  }

  /** A place is free again. */
  room(): void {
    if (!this.#timer) return;
    this.close();
    for (const listener of this.#options.listeners()) listener.resume();
  }

  close(): void {
    this.#timer?.();
    this.#timer = undefined;
  }

  #hold(): void {
    for (const listener of this.#options.listeners()) listener.pause();
    this.#timer = this.#options.clock.timer(this.#options.waitMs, () => this.#shed());
  }

  /** Those who waited are accepted, and refused by whoever accepts while all is full. */
  #shed(): void {
    for (const listener of this.#options.listeners()) listener.resume();
    this.#timer = this.#options.clock.timer(SHED_MS, () => this.#hold());
  }
}
