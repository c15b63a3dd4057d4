/** How a poller with nothing to do learns that there is something again: by Deno's own reactor, else by a thread. */
import { type Fd, waitingLibc } from "./ffi.ts";
import { Memory } from "./memory.ts";
import { ReactorWait } from "./reactor_wait.ts";
import { EPOLLIN } from "./structs.ts";

/** Waits for an epoll instance while the thread does something else, or nothing. */
export interface IdleWait {
  /** Whether a wait that is over at once costs little more than a turn of Deno's loop. */
  readonly prompt: boolean;
  /** Deno's own epoll instance, where it is known. */
  readonly reactor: Fd | undefined;
  /**
   * Calls `onWake` once, as soon as the epoll instance has something; now and then also for nothing, so ask it. Keeps
   * the process alive. Not from inside `onWake`.
   */
  arm(): void;
  /** Nothing is waited for: the process may end. Not while armed. */
  rest(): void;
  /** Ends the wait without `onWake`; resolves when the epoll instance is no longer used. `poke` makes it readable. */
  close(poke: () => void): Promise<void>;
}

/** The quickest wait that works here. */
export function openIdleWait(epoll: Fd, onWake: () => void): IdleWait {
  return ReactorWait.open(epoll, onWake) ?? new ThreadWait(epoll, onWake);
}

/**
 * A helper thread waits. Works everywhere; starting it and coming back takes 100 to 250 µs of CPU, most of it two
 * threads waking each other.
 */
export class ThreadWait implements IdleWait {
  readonly prompt = false;
  readonly reactor = undefined;
  readonly #request = Memory.allocate(8);
  readonly #onWake: () => void;
  #waiting: Promise<void> | undefined;
  #closed = false;

  constructor(epoll: Fd, onWake: () => void) {
    this.#onWake = onWake;
    this.#request.u32[0] = epoll;
    this.#request.u32[1] = EPOLLIN;
  }

  arm(): void {
    this.#waiting = waitingLibc().poll(this.#request.pointer, 1, -1).then(() => {
      this.#waiting = undefined;
      if (!this.#closed) this.#onWake();
    });
  }

  rest(): void {}

  async close(poke: () => void): Promise<void> {
    this.#closed = true;
    if (this.#waiting) poke();
    await this.#waiting;
    this.#request.free();
  }
}
