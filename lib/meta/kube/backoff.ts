/** Waiting times between attempts: doubling, capped, with jitter so that many clients do not come back in step. */

export interface BackoffLimits {
  readonly firstMs: number;
  readonly maxMs: number;
}

export class Backoff {
  readonly #limits: BackoffLimits;
  readonly #random: () => number;
  #attempts = 0;

  /** `random` returns numbers in [0, 1). */
  constructor(limits: BackoffLimits, random: () => number) {
    this.#limits = limits;
    this.#random = random;
  }

  /** The next wait: between half and all of the doubled step. */
  next(): number {
    const step = Math.min(this.#limits.maxMs, this.#limits.firstMs * 2 ** Math.min(this.#attempts++, 20));
    return step / 2 + this.#random() * step / 2;
  }

  /** Failures in a row so far. */
  get attempts(): number {
    return this.#attempts;
  }

  reset(): void {
    this.#attempts = 0;
  }
}
