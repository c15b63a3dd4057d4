/**
 * Whether the peer still answers on the active carrier: pings often while bytes move, rarely while idle, and often
 * again as soon as one answer is missing. Any batch counts as a sign of life, so a full queue is not taken for death.
 * Pure: told what happens and when, it says what to do.
 */
import { ACTIVE_MS, DEAD_MS, PING_ACTIVE_MS, PING_IDLE_MS, PINGS_MISSED } from "../constants.ts";

/** `doubt`: the last ping is overdue and nothing came since; another way is worth getting ready. */
export type LivenessAction = "ping" | "doubt" | "dead" | "none";

/** Weight of a new sample in the smoothed round trip (RFC 6298). */
const ALPHA = 1 / 8;
/** An answer is overdue after so many smoothed round trips, and never sooner than {@link DOUBT_MIN_MS}. */
const DOUBT_RTTS = 4;
const DOUBT_MIN_MS = 500;
/** The same for the first answer on a carrier, whose round trip nobody knows yet. */
const DOUBT_FIRST_MS = 1_000;
/**
 * Bytes flowed without a break and then nothing came for so long: a ping goes before its time, once, so that a cut under
 * a download or a call is soon known. Requests now and then cost no more pings than before.
 */
const QUIET_MS = 300;
/** Round trips that the answer to this ping may take: what fills the queues of the way would be arriving meanwhile. */
const QUIET_RTTS = 1.5;
const FLOW_GAP_MS = 150;
/** Long enough not to be an answer of a few batches; a stream that has just survived one change may meet the next. */
const FLOW_MS = 400;

export class Liveness {
  #token = 0;
  /** Lowest token that is an answer on this carrier. */
  #firstToken = 1;
  #outstanding = false;
  #missed = 0;
  #lastHeard = 0;
  #lastBytes = -Infinity;
  #nextAt = Infinity;
  #doubtAt = Infinity;
  #quietAt = Infinity;
  #flowingSince = -Infinity;
  #silent = false;
  #smoothed: number | undefined;
  #least: number | undefined;

  /** Smoothed round trip in milliseconds; undefined before the first answer on this carrier. */
  get rttMs(): number | undefined {
    return this.#smoothed;
  }

  /** Least round trip seen on this carrier: the way itself, without its queues. */
  get leastRttMs(): number | undefined {
    return this.#least;
  }

  /** When {@link tick} wants to be called; Infinity while there is no carrier. */
  get nextAt(): number {
    return Math.min(this.#nextAt, this.#doubtAt, this.#quietAt);
  }

  /** There was doubt, and nothing came since. */
  get silent(): boolean {
    return this.#silent;
  }

  /** Number of the last ping. */
  get token(): number {
    return this.#token;
  }

  /** A carrier became active: returns the number of a ping to send at once, to measure it. */
  start(now: number): number {
    this.#firstToken = this.#token + 1;
    this.#missed = 0;
    this.#lastHeard = now;
    this.#smoothed = this.#least = undefined;
    this.#nextAt = this.#doubtAt = this.#quietAt = Infinity;
    this.#silent = false;
    return this.ask(now);
  }

  stop(): void {
    this.#nextAt = this.#doubtAt = this.#quietAt = Infinity;
  }

  /** A batch came. */
  heard(now: number): void {
    this.#missed = 0;
    this.#lastHeard = now;
    this.#doubtAt = Infinity;
    this.#silent = false;
  }

  /** Bytes of streams or flows moved, in either direction. */
  moved(now: number): void {
    if (now - this.#lastBytes > FLOW_GAP_MS) this.#flowingSince = now;
    else if (now - this.#flowingSince >= FLOW_MS && this.#quietAt === Infinity && this.#nextAt !== Infinity) {
      this.#quietAt = now + QUIET_MS;
    }
    this.#lastBytes = now;
    if (this.#nextAt > now + PING_ACTIVE_MS && this.#nextAt !== Infinity) this.#nextAt = now + PING_ACTIVE_MS;
  }

  /** Sends a ping before its time; returns its number. */
  ask(now: number): number {
    this.#outstanding = true;
    this.#nextAt = Math.min(this.#nextAt, now + PING_ACTIVE_MS);
    this.#expect(now);
    return ++this.#token;
  }

  /** An answer to ping `token` that was sent at `sentAt`. False if there was no such ping on this carrier. */
  answered(token: number, sentAt: number, now: number): boolean {
    if (token < this.#firstToken || token > this.#token || sentAt > now) return false;
    if (token === this.#token) this.#outstanding = false;
    const rtt = now - sentAt;
    this.#smoothed = this.#smoothed === undefined ? rtt : this.#smoothed + ALPHA * (rtt - this.#smoothed);
    this.#least = Math.min(this.#least ?? rtt, rtt);
    return true;
  }

  tick(now: number): LivenessAction {
    if (now >= this.#doubtAt) {
      this.#doubtAt = Infinity;
      this.#silent = true;
      return "doubt";
    }
    let quiet = false;
    if (now >= this.#quietAt) {
      const due = this.#lastHeard + QUIET_MS;
      // While bytes come, the moment to look moves on.
      this.#quietAt = due > now ? due : Infinity;
      quiet = due <= now && !this.#outstanding;
      if (quiet) this.#nextAt = now;
    }
    if (now < this.#nextAt) return "none";
    if (this.#outstanding && ++this.#missed >= PINGS_MISSED && now - this.#lastHeard >= DEAD_MS) {
      this.stop();
      return "dead";
    }
    this.#outstanding = true;
    this.#token++;
    this.#nextAt = now + PING_ACTIVE_MS;
    this.#expect(now, quiet ? QUIET_RTTS : DOUBT_RTTS);
    return "ping";
  }

  /** The answer came: the next ping is due by how busy the session is. */
  settle(now: number): void {
    if (this.#outstanding || this.#nextAt === Infinity) return;
    this.#nextAt = now + (now - this.#lastBytes < ACTIVE_MS ? PING_ACTIVE_MS : PING_IDLE_MS);
  }

  /** An answer is owed; the oldest one that is decides when to doubt. */
  #expect(now: number, rtts = DOUBT_RTTS): void {
    if (this.#doubtAt !== Infinity) return;
    const { rttMs } = this;
    this.#doubtAt = now + (rttMs === undefined ? DOUBT_FIRST_MS : Math.max(DOUBT_MIN_MS, rtts * rttMs));
  }
}
