/** Readiness: a set of named things that must happen before the process says it is ready. */

export class Readiness {
  readonly #pending = new Set<string>();
  readonly #waiters: (() => void)[] = [];

  /** Adds a thing to wait for; call the result when it has happened. Calling it twice is harmless. */
  task(name: string): () => void {
    this.#pending.add(name);
    return () => {
      this.#pending.delete(name);
      if (this.#pending.size === 0) { for (const wake of this.#waiters.splice(0)) wake(); }
    };
  }

  get ready(): boolean {
    return this.#pending.size === 0;
  }

  /** Names of what is still missing. */
  get waitingFor(): string[] {
    return [...this.#pending];
  }

  /** Resolves when nothing is pending; at once if nothing is. */
  whenReady(): Promise<void> {
    if (this.ready) return Promise.resolve();
    return new Promise((resolve) => this.#waiters.push(resolve));
  }
}
