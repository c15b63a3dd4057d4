/**
 * Waiting inside the epoll loop for a moment, instead of going back to Deno's event loop for it.
 *
 * Coming back through Deno's reactor costs a turn of its loop, a read and three callbacks: with cold caches more than
 * all that the tunnel does to a request. So while there is traffic a loop that is alone in its process waits here, with
 * one poll(2) on its own epoll instance and on that of Deno's reactor: whatever happens there (a socket of Deno's, a
 * signal, work done by another thread) ends the wait. What poll(2) cannot see are Deno's timers: they get their turn at
 * least every {@link NAP_MS}.
 */
import type { Clock } from "../clock.ts";
import type { Fd, Libc } from "./ffi.ts";
import { Memory } from "./memory.ts";
import { EPOLLIN } from "./structs.ts";

/** How late a timer of Deno's may be while there is traffic. */
export const NAP_MS = 10;
/** After the last event; then the loop waits in Deno's reactor, which takes no CPU at all. */
export const AWAKE_MS = 100;

/** `events`: of our own. `others`: Deno's loop is due, come back after its turn. `quiet`: wait without us. */
export type Nap = "events" | "others" | "quiet";

export class Napping {
  readonly #c: Libc;
  readonly #clock: Clock;
  readonly #request = Memory.allocate(16);
  #awakeUntil = 0;
  #othersAt = 0;

  constructor(c: Libc, clock: Clock, epoll: Fd, reactor: Fd) {
    this.#c = c;
    this.#clock = clock;
    this.#request.u32[0] = epoll;
    this.#request.u32[1] = EPOLLIN;
    this.#request.u32[2] = reactor;
    this.#request.u32[3] = EPOLLIN;
  }

  /** Deno's loop has had its turn, timers included. */
  othersServed(now: number): void {
    this.#othersAt = now;
  }

  /** `busy`: events have come since the last call. */
  nap(busy: boolean): Nap {
    const now = this.#clock.now();
    if (busy) this.#awakeUntil = now + AWAKE_MS;
    if (now >= this.#awakeUntil) return "quiet";
    const left = Math.ceil(NAP_MS - (now - this.#othersAt));
    if (left <= 0) return "others";
    const n = this.#c.poll(this.#request.pointer, 2, left);
    // Both flags of a result lie in the upper half of its second word.
    return n > 0 && this.#request.u32[1]! >>> 16 !== 0 ? "events" : "others";
  }

  free(): void {
    this.#request.free();
  }
}
