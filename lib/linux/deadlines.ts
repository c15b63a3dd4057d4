/**
 * Many deadlines on one timer. Arming and cancelling a timer of the runtime for each connection would cost more than
 * the connection's own system calls.
 */
import type { CancelTimer, Clock, MonoMs } from "../clock.ts";

/** Something that has a deadline. */
export interface Timed {
  onDeadline(): void;
}

/** The timer is not armed again sooner than this, so that thousands of near deadlines share few scans. */
const GRANULARITY_MS = 5;

export class Deadlines {
  readonly #clock: Clock;
  readonly #at = new Map<Timed, MonoMs>();
  readonly #onFault: (error: unknown) => void;
  #cancel: CancelTimer | undefined;
  #armed: MonoMs = Infinity;

  /** `onFault` is told what an item throws: the timer of the others must go on. */
  constructor(clock: Clock, onFault: (error: unknown) => void) {
    this.#clock = clock;
    this.#onFault = onFault;
  }

  /** Sets or replaces the deadline of `item`, `ms` from now. */
  set(item: Timed, ms: number): void {
    const at = this.#clock.now() + ms;
    this.#at.set(item, at);
    if (at < this.#armed) this.#arm(at);
  }

  delete(item: Timed): void {
    // The timer stays armed and finds nothing: the next dial will want one again, and an armed timer costs nothing.
    this.#at.delete(item);
  }

  /** Forgets all deadlines and stops the timer. */
  close(): void {
    this.#at.clear();
    this.#cancel?.();
    this.#cancel = undefined;
    this.#armed = Infinity;
  }

  #arm(at: MonoMs): void {
    this.#cancel?.();
    this.#armed = at;
    this.#cancel = this.#clock.timer(Math.max(0, at - this.#clock.now()), () => this.#fire());
  }

  #fire(): void {
    const now = this.#clock.now();
    this.#cancel = undefined;
    this.#armed = Infinity;
    let next = Infinity;
    for (const [item, at] of this.#at) {
      if (at <= now) {
        this.#at.delete(item);
        try {
          item.onDeadline();
        } catch (error) {
          this.#onFault(error);
        }
      } else if (at < next) next = at;
    }
    const wanted = Math.max(next, now + GRANULARITY_MS);
    if (next !== Infinity && wanted < this.#armed) this.#arm(wanted);
  }
}
