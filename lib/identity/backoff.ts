/**
 * Slows down whoever tries tokens. Tokens cannot be guessed anyway; this keeps an attacker or a broken script from
 * costing the server its CPU and its log. Pure: time is handed in, memory is bounded.
 */
import type { MonoMs } from "../clock.ts";
import { familyOf, ipBytes, parseIp } from "../addr.ts";

/** Failures within {@link WINDOW_MS} before a source has to wait. */
export const FREE_FAILURES = 10;
const WINDOW_MS = 60_000;
/** The first wait; doubles with each further round of failures. */
const FIRST_WAIT_MS = 60_000;
const MAX_WAIT_MS = 16 * 60_000;
/** Sources remembered: about 1 MB. Beyond, the one that failed longest ago is forgotten. */
export const MAX_SOURCES = 10_000;

interface Source {
  /** Failures since {@link since}. */
  failures: number;
  since: MonoMs;
  blockedUntil: MonoMs;
  waitMs: number;
}

export class Backoff {
  /** In order of the last failure, oldest first. */
  readonly #sources = new Map<string, Source>();

  /** Milliseconds this source still has to wait; 0 when it may try. */
  waitMs(source: string, now: MonoMs): number {
    return Math.max(0, (this.#sources.get(sourceKey(source))?.blockedUntil ?? 0) - now);
  }

  /** Notes a failure. */
  fail(source: string, now: MonoMs): void {
    const key = sourceKey(source);
    const s = this.#sources.get(key) ?? { failures: 0, since: now, blockedUntil: -Infinity, waitMs: FIRST_WAIT_MS };
    this.#sources.delete(key);
    if (now - s.since >= WINDOW_MS) {
      s.failures = 0;
      s.since = now;
    }
    // A source that was quiet for as long as the longest wait starts over.
    if (s.blockedUntil !== -Infinity && now - s.blockedUntil > MAX_WAIT_MS) s.waitMs = FIRST_WAIT_MS;
    if (++s.failures >= FREE_FAILURES) {
      s.blockedUntil = now + s.waitMs;
      s.waitMs = Math.min(MAX_WAIT_MS, s.waitMs * 2);
      s.failures = 0;
      s.since = s.blockedUntil;
    }
    this.#sources.set(key, s);
    if (this.#sources.size > MAX_SOURCES) this.#sources.delete(this.#sources.keys().next().value!);
  }

  /** Forgets a source that proved to be legitimate. */
  succeed(source: string): void {
    this.#sources.delete(sourceKey(source));
  }

  get size(): number {
    return this.#sources.size;
  }
}

/** IPv4 addresses count alone; IPv6 ones by /64, because one host may use a whole /64. */
function sourceKey(source: string): string {
  const ip = parseIp(source);
  if (ip === undefined || familyOf(ip) === 4) return ip ?? "";
  return ipBytes(ip).subarray(0, 8).join(".") + "/64";
}
