/**
 * Readiness: named conditions that must hold before the process says it is ready, and why those that do not, do not.
 * A *task* happens once; a *check* may fail again later, which `/readyz`, `status` and metrics then say.
 */
import type { Clock } from "./clock.ts";

/** How often the checks are asked while the first readiness is waited for: they say nothing by themselves. */
const LOOK_MS = 200;

/** Why a check does not hold; undefined when it does. */
export type Check = () => string | undefined;

/** One thing that is not as it must be. */
export interface Missing {
  readonly name: string;
  readonly why?: string;
}

export class Readiness {
  readonly #clock: Clock;
  readonly #pending = new Set<string>();
  readonly #checks = new Map<string, Check>();
  readonly #waiters: (() => void)[] = [];
  #cancel: (() => void) | undefined;

  constructor(clock: Clock) {
    this.#clock = clock;
  }

  /** Adds a thing to wait for; call the result when it has happened. Calling it twice is harmless. */
  task(name: string): () => void {
    this.#pending.add(name);
    return () => {
      if (this.#pending.delete(name)) this.look();
    };
  }

  /** Adds a condition, asked whenever somebody wants to know. What is switched off gives undefined: it blocks nothing. */
  check(name: string, holds: Check): void {
    this.#checks.set(name, holds);
  }

  get ready(): boolean {
    return this.#missing().next().done === true;
  }

  /** What is missing, with the reason where one is known. */
  get missing(): Missing[] {
    return [...this.#missing()];
  }

  /** Asks the checks now: something may have changed that {@link whenReady} waits for. */
  look(): void {
    if (this.#waiters.length === 0) return;
    this.#cancel?.();
    this.#cancel = undefined;
    if (this.ready) { for (const wake of this.#waiters.splice(0)) wake(); }
    else this.#cancel = this.#clock.timer(LOOK_MS, () => this.look());
  }

  /** Resolves when nothing is missing, for the first time since it was asked. */
  whenReady(): Promise<void> {
    return new Promise((resolve) => {
      this.#waiters.push(resolve);
      this.look();
    });
  }

  /** Stops waiting: {@link whenReady} does not resolve any more. */
  close(): void {
    this.#cancel?.();
    this.#waiters.length = 0;
  }

  *#missing(): Generator<Missing> {
    for (const name of this.#pending) yield { name };
    for (const [name, holds] of this.#checks) {
      const why = holds();
      if (why !== undefined) yield { name, why };
    }
  }
}

/** `kernel rules: …`, for people. */
export function missingText({ name, why }: Missing): string {
  return why === undefined ? name : `${name}: ${why}`;
}
