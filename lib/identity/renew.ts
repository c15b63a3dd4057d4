/** When certificates are renewed: a pure schedule, and the loop that agents and servers run over it. */
import type { CancelTimer, Clock, WallMs } from "../clock.ts";
import { CLOCK_TOLERANCE_MS } from "./time.ts";

/** Certificates are renewed after this part of their life, give or take {@link JITTER} of it (design §2). */
const RENEW_AT = 2 / 3;
/** Keeps a fleet that was enrolled in one minute from renewing in one minute for ever. */
const JITTER = 0.05;
/** First retry after a failed renewal; doubles. */
const RETRY_MS = 30_000;
/** A day's certificate leaves 8 hours after the first try: at least 30 more tries. */
const MAX_RETRY_MS = 15 * 60_000;

/** Between a success and the next try, whatever the dates say: a clock that is far ahead must not make a storm. */
const MIN_INTERVAL_MS = 60_000;
/** Sleeps are cut into pieces of this length, so that a clock that was set, or a machine that slept, is noticed soon. */
const MAX_SLEEP_MS = 10 * 60_000;

export interface RenewalSituation {
  readonly notBefore: WallMs;
  readonly notAfter: WallMs;
  readonly now: WallMs;
  /** Failed tries since the last success. */
  readonly failures: number;
  /** In [0, 1), drawn once per certificate and per failure. */
  readonly random: number;
}

/** Milliseconds from now until the next try; 0 = at once. */
export function renewalDelay(s: RenewalSituation): number {
  if (s.failures > 0) {
    const full = Math.min(MAX_RETRY_MS, RETRY_MS * 2 ** Math.min(20, s.failures - 1));
    return full * (0.5 + s.random / 2);
  }
  // A certificate from the future comes from a server whose clock was ahead: others will refuse it once theirs is right.
  if (s.now < s.notBefore - CLOCK_TOLERANCE_MS) return 0;
  const life = s.notAfter - s.notBefore;
  const due = s.notBefore + life * (RENEW_AT + JITTER * (2 * s.random - 1));
  return Math.max(0, due - s.now);
}

export interface Renewable {
  readonly clock: Clock;
  /** The certificate in use. */
  certificate(): { readonly notBefore: WallMs; readonly notAfter: WallMs };
  now(): WallMs;
  /** Gets and installs a new certificate; rejects when that is not possible now. */
  renew(): Promise<void>;
  onFailure(error: unknown, failures: number): void;
}

/** A renewal that goes on; calling it ends it. */
export interface Freshness extends CancelTimer {
  /** Renews at some moment within so many milliseconds, whatever the dates say: the authority changes. */
  soon(withinMs: number): void;
}

/** Renews a certificate in time, again and again, until what it returns is called. */
export function keepFresh(what: Renewable): Freshness {
  let stopped = false;
  let failures = 0;
  let random = Math.random();
  let triedAt = -Infinity;
  let renewing = false;
  let asked: number | undefined;
  let cancel: CancelTimer = () => {};
  const arm = () => {
    if (asked !== undefined) {
      cancel = what.clock.timer(Math.random() * asked, renew);
      asked = undefined;
      return;
    }
    const full = renewalDelay({ ...what.certificate(), now: what.now(), failures, random });
    const sinceTry = what.clock.now() - triedAt;
    const delay = failures > 0 ? Math.max(0, full - sinceTry) : Math.max(full, MIN_INTERVAL_MS - sinceTry);
    cancel = what.clock.timer(Math.min(delay, MAX_SLEEP_MS), delay <= MAX_SLEEP_MS ? renew : arm);
  };
  const renew = async () => {
    triedAt = what.clock.now();
    renewing = true;
    try {
      await what.renew();
      failures = 0;
    } catch (e) {
      failures++;
      what.onFailure(e, failures);
    }
    renewing = false;
    random = Math.random();
    if (!stopped) arm();
  };
  arm();
  const stop = () => {
    stopped = true;
    cancel();
  };
  const soon = (withinMs: number) => {
    asked = withinMs;
    // One that is under way may have been asked before the change.
    if (renewing || stopped) return;
    cancel();
    arm();
  };
  return Object.assign(stop, { soon });
}
