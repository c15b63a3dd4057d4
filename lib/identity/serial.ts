/** Runs asynchronous steps one after the other: a read-decide-write sequence must not interleave with another. */
export class Serial {
  #last: Promise<unknown> = Promise.resolve();

  /** Runs `step` when all earlier ones are done, whether they failed or not; returns what it returns. */
  run<T>(step: () => Promise<T>): Promise<T> {
    const result = this.#last.then(step);
    this.#last = result.catch(() => {});
    return result;
  }
}
