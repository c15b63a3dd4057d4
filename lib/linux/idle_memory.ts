/**
 * Gives memory back to the system when a busy time is over. Neither V8 nor glibc does it unasked: V8 collects when
 * something is allocated, which in an idle process is never, and glibc keeps freed pages below the top of its heaps.
 * After 200 MB in 20 000 relayed streams that was 50 MB of an edge host's memory, for ever.
 */
import process from "node:process";
import type { Clock } from "../clock.ts";
import { ffiProblem, libc } from "./ffi.ts";

/** How often a look is taken: two reads that cost microseconds. */
const CHECK_MS = 5_000;
/** Processor time between two looks above which the process is at work, in milliseconds: a twentieth of one processor. */
const BUSY_MS = CHECK_MS / 20;
/** Calm looks in a row before memory is given back: connections that were just ending are gone, and traffic that only paused goes on. */
const CALM_LOOKS = 2;
/** Growth without a busy time that is worth a collection, which stops the process for 30 to 60 ms. */
const WORTH_BYTES = 3_000_000;
/** A collection that freed this much is followed by another: what it finalized holds memory until the next one. */
const MORE_BYTES = 500_000;
/** Collections in a row at most: one that frees memory each time meets a program that makes garbage as fast. */
const ROUNDS_MAX = 3;

/** What one look at the process sees. */
export interface Look {
  /** Processor time used since the start, in milliseconds. */
  readonly cpuMs: number;
  /** Resident memory in bytes. */
  readonly resident: number;
}

/** Decides when: pure, one look after the other. */
export class IdleMemory {
  #cpuMs: number | undefined;
  /** Resident memory when nothing more could be given back. */
  #floor = 0;
  /** It was busy since memory was given back. Starting is work, too. */
  #wasBusy = true;
  #calmLooks = 0;
  /** Collections that may still follow the one before. */
  #rounds = 0;

  /** True when the process is calm and was busy, or holds more than after the last time. */
  due(look: Look): boolean {
    const calm = this.#cpuMs !== undefined && look.cpuMs - this.#cpuMs < BUSY_MS;
    this.#cpuMs = look.cpuMs;
    if (look.resident < this.#floor) this.#floor = look.resident;
    if (!calm) {
      this.#wasBusy = true;
      this.#calmLooks = 0;
      return false;
    }
    if (++this.#calmLooks < CALM_LOOKS) return false;
    if (this.#wasBusy || look.resident - this.#floor >= WORTH_BYTES) this.#rounds = ROUNDS_MAX;
    this.#wasBusy = false;
    return this.#rounds > 0;
  }

  /** Memory was given back: so it was before and after. */
  done(before: Look, after: Look): void {
    this.#cpuMs = after.cpuMs;
    this.#floor = after.resident;
    this.#rounds = before.resident - after.resident >= MORE_BYTES ? this.#rounds - 1 : 0;
  }
}

/** Who keeps memory for the next busy time, and can let go of it. */
export interface Keeper {
  trim(): void;
}

/** Watches this process and gives its memory back when it is calm, that of the `keepers` there are then first; the result ends that. */
export function keepMemoryLow(clock: Clock, keepers: () => readonly (Keeper | undefined)[] = () => []): () => void {
  const idle = new IdleMemory();
  let cancel = () => {};
  const again = () => {
    cancel = clock.timer(CHECK_MS, () => {
      const before = look();
      if (idle.due(before)) {
        for (const keeper of keepers()) keeper?.trim();
        giveBack();
        idle.done(before, look());
      }
      again();
    });
  };
  again();
  return () => cancel();
}

/** V8's `gc` with `--expose-gc`. */
type Collect = (how: { readonly type: "major"; readonly execution: "sync"; readonly flavor: "last-resort" }) => void;

/**
 * Collects garbage where the runtime lets us (`--expose-gc`), then returns free pages of the C heap to the system. "Last
 * resort" is V8's name for a collection that also moves what is left together and unmaps the rest: after 1 000 streams an
 * ordinary one leaves 4 MB of half-empty pages.
 */
export function giveBack(): void {
  (globalThis as { gc?: Collect }).gc?.({ type: "major", execution: "sync", flavor: "last-resort" });
  if (ffiProblem() === undefined) libc().malloc_trim(0);
}

function look(): Look {
  // Microseconds of all threads.
  const { user, system } = process.cpuUsage();
  return { cpuMs: (user + system) / 1000, resident: Deno.memoryUsage().rss };
}
