/** Who waits for the answer to a ping. */
import type { PingDone } from "./session_types.ts";

/** Beyond this many waiters nobody learns more by waiting too. */
const MAX_WAITING = 64;

export class Pings {
  readonly #tell: (news: () => void) => void;
  #waiting: { readonly token: number; readonly done: PingDone }[] = [];

  constructor(tell: (news: () => void) => void) {
    this.#tell = tell;
  }

  get full(): boolean {
    return this.#waiting.length >= MAX_WAITING;
  }

  add(token: number, done: PingDone): void {
    this.#waiting.push({ token, done });
  }

  /** Ping `token` was answered, and with it all that were sent before. */
  answered(token: number, rttMs: number): void {
    this.#end(this.#waiting.filter((ping) => ping.token <= token), rttMs);
  }

  /** No answer will come. */
  fail(): void {
    this.#end(this.#waiting, undefined);
  }

  #end(pings: readonly { readonly token: number; readonly done: PingDone }[], rttMs: number | undefined): void {
    if (pings.length === 0) return;
    this.#waiting = this.#waiting.filter((ping) => !pings.includes(ping));
    this.#tell(() => pings.forEach((ping) => ping.done(rttMs)));
  }
}
