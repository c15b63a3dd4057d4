/** When certificates are renewed. Pure: the agent and the server drive it with their own clocks. */
import type { WallMs } from "../clock.ts";

/** Certificates are renewed after this part of their life, give or take {@link JITTER} of it (design §2). */
const RENEW_AT = 2 / 3;
/** Keeps a fleet that was enrolled in one minute from renewing in one minute for ever. */
const JITTER = 0.05;
/** First retry after a failed renewal; doubles. */
const RETRY_MS = 30_000;
/** A day's certificate leaves 8 hours after the first try: at least 30 more tries. */
const MAX_RETRY_MS = 15 * 60_000;

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
  const life = s.notAfter - s.notBefore;
  const due = s.notBefore + life * (RENEW_AT + JITTER * (2 * s.random - 1));
  return Math.max(0, due - s.now);
}
