/** What waits for a carrier to a peer, each for so long and no longer. */
import type { CancelTimer, Clock, MonoMs } from "../../clock.ts";
import type { ReasonCode } from "../../errors.ts";

/** A stream or ping that was asked for while there was no carrier. */
interface Waiting {
  readonly since: MonoMs;
  /** The session's own end tells its streams, and nobody else. */
  readonly kind: "stream" | "ping";
  fail(reason: ReasonCode): void;
  ready(): void;
}

export class WaitingList {
  readonly #clock: Clock;
  readonly #limitMs: number;
  readonly #lateReason: () => ReasonCode;
  /** Oldest first. */
  #list: Waiting[] = [];
  #cancel: CancelTimer | undefined;

  /** Each entry fails with `lateReason()` after `limitMs`. */
  constructor(clock: Clock, limitMs: number, lateReason: () => ReasonCode) {
    this.#clock = clock;
    this.#limitMs = limitMs;
    this.#lateReason = lateReason;
  }

  add(kind: Waiting["kind"], fail: (reason: ReasonCode) => void, ready: () => void = () => {}): void {
    this.#list.push({ since: this.#clock.now(), kind, fail, ready });
    this.#cancel ??= this.#arm(this.#limitMs);
  }

  /** The carrier is there. */
  ready(): void {
    for (const w of this.#clear()) w.ready();
  }

  /** There will be none for now. */
  fail(reason: ReasonCode): void {
    for (const w of this.#clear()) w.fail(reason);
  }

  /** The session is over and has told its streams; tells the others. */
  sessionEnded(reason: ReasonCode): void {
    for (const w of this.#clear()) if (w.kind === "ping") w.fail(reason);
  }

  #clear(): Waiting[] {
    const list = this.#list;
    this.#list = [];
    this.#cancel?.();
    this.#cancel = undefined;
    return list;
  }

  #arm(ms: number): CancelTimer {
    return this.#clock.timer(ms, () => {
      this.#cancel = undefined;
      const until = this.#clock.now() - this.#limitMs;
      const late = this.#list.filter((w) => w.since <= until);
      this.#list = this.#list.filter((w) => w.since > until);
      const next = this.#list[0];
      if (next) this.#cancel = this.#arm(next.since - until);
      for (const w of late) w.fail(this.#lateReason());
    });
  }
}
