/**
 * Time as a value that is handed in. Cores take `now` as a number; shells take a {@link Clock}.
 * No other module of the product calls `Date.now`, `performance.now`, `setTimeout` or `setInterval`:
 * that is what lets every deadline be tested without waiting for it (checked by tests/arch_test.ts).
 */

/** A point on the monotonic clock, in milliseconds from an arbitrary origin. Never goes backwards, says nothing about the date. */
export type MonoMs = number;
/** Milliseconds since 1970-01-01 UTC as the machine believes it; may be wrong (a board without a battery) and may jump. */
export type WallMs = number;

/** Cancels a timer; calling it again, or after the timer fired, does nothing. */
export type CancelTimer = () => void;

export interface Clock {
  /** Monotonic milliseconds: for durations, deadlines and timeouts. */
  now(): MonoMs;
  /** Wall-clock milliseconds: for certificates, logs and people only. */
  wall(): WallMs;
  /** Calls `fire` once after `ms` milliseconds. Does not keep the process alive. */
  timer(ms: number, fire: () => void): CancelTimer;
}

/** The machine's own clock. */
export const systemClock: Clock = {
  now: () => performance.now(),
  wall: () => Date.now(),
  timer(ms, fire) {
    const id = setTimeout(fire, ms);
    Deno.unrefTimer(id);
    return () => clearTimeout(id);
  },
};

/** Resolves after `ms` milliseconds of `clock`, or rejects with the signal's reason when it is aborted first. */
export function sleep(clock: Clock, ms: number, signal?: AbortSignal): Promise<void> {
  return new Promise((resolve, reject) => {
    if (signal?.aborted) return reject(signal.reason);
    const onAbort = () => {
      cancel();
      reject(signal!.reason);
    };
    const cancel = clock.timer(ms, () => {
      signal?.removeEventListener("abort", onAbort);
      resolve();
    });
    signal?.addEventListener("abort", onAbort, { once: true });
  });
}

/**
 * Waits `ms` milliseconds of the machine's own clock and keeps the process alive meanwhile: for commands and labs that
 * ask again until something has happened. Everything long-running takes a {@link Clock} and {@link sleep}.
 */
export function pause(ms: number): Promise<void> {
  return new Promise((resolve) => setTimeout(resolve, ms));
}

interface FakeTimer {
  at: MonoMs;
  order: number;
  fire: () => void;
}

/** A clock that only moves when a test says so. Timers fire in order of their deadline while it moves. */
export class FakeClock implements Clock {
  #now: MonoMs;
  #wall: WallMs;
  #order = 0;
  readonly #timers = new Set<FakeTimer>();

  constructor(now: MonoMs = 0, wall: WallMs = Date.UTC(2026, 0, 1)) {
    this.#now = now;
    this.#wall = wall;
  }

  now(): MonoMs {
    return this.#now;
  }

  wall(): WallMs {
    return this.#wall;
  }

  timer(ms: number, fire: () => void): CancelTimer {
    const timer = { at: this.#now + Math.max(0, ms), order: this.#order++, fire };
    this.#timers.add(timer);
    return () => this.#timers.delete(timer);
  }

  /** Timers that are armed now: a test that ends with some left has a leak. */
  get pending(): number {
    return this.#timers.size;
  }

  /** Moves both clocks by `ms`, firing what falls due on the way, also timers armed by timers. */
  advance(ms: number): void {
    const end = this.#now + ms;
    for (;;) {
      let next: FakeTimer | undefined;
      for (const t of this.#timers) {
        if (t.at <= end && (!next || t.at < next.at || (t.at === next.at && t.order < next.order))) next = t;
      }
      if (!next) break;
      this.#wall += next.at - this.#now;
      this.#now = next.at;
      this.#timers.delete(next);
      next.fire();
    }
    this.#wall += end - this.#now;
    this.#now = end;
  }

  /** Sets the wall clock only, as `date -s` or NTP would: the monotonic clock goes on. */
  setWall(wall: WallMs): void {
    this.#wall = wall;
  }
}
