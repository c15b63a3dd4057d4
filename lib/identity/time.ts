/**
 * What time it is, on machines whose clock may stand at 1970, jump, sleep, or be days ahead. Certificates must not
 * stop working for that (design §2): unattested time is max(clock, last persisted time, build time), and the time of
 * authenticated servers corrects all three.
 *
 * Only times that servers stated are ever persisted. A local clock that was ahead once must not be remembered as
 * "certainly past", because every later certificate would then look expired for good.
 */
import type { Clock, MonoMs, WallMs } from "../clock.ts";
import { BUILD_TIME_MS } from "../version.ts";

/** A time and what it is worth. */
export interface TimeEstimate {
  /** Best estimate of now; where sources differ, the latest. */
  readonly ms: WallMs;
  /** What is most certainly past: never above {@link ms}. */
  readonly floor: WallMs;
  /** Authenticated servers state this time in this run and agree about it. */
  readonly attested: boolean;
}

/** Servers, and the clock with itself, may disagree by this much and still count as one time. */
export const CLOCK_TOLERANCE_MS = 5 * 60 * 1000;
/** Servers whose samples are kept; the design allows three at a time. */
export const MAX_TIME_SOURCES = 8;

interface Sample {
  readonly server: WallMs;
  readonly mono: MonoMs;
  readonly wall: WallMs;
}

/** Keeps an estimate of the time over one run. Reads the clock; persists nothing itself. */
export class TrustedTime {
  readonly #clock: Clock;
  readonly #start: MonoMs;
  readonly #persisted: WallMs;
  readonly #samples = new Map<string, Sample>();

  /** `floors`: times known to be past, such as the persisted one and the start of our own certificate. */
  constructor(clock: Clock, floors: readonly WallMs[] = []) {
    this.#clock = clock;
    this.#start = clock.now();
    this.#persisted = Math.max(BUILD_TIME_MS, ...floors);
  }

  now(): TimeEstimate {
    const wall = this.#clock.wall();
    const server = this.#serverTime(wall);
    if (server?.agreed) return { ms: server.ms, floor: server.ms, attested: true };
    // What was past at start stays past by as much as the monotonic clock has moved since.
    const past = this.#persisted + (this.#clock.now() - this.#start);
    if (server) return { ms: Math.max(wall, server.ms), floor: Math.min(wall, server.ms), attested: false };
    // The persisted time may itself come from a server that was wrong; where the clock says less, less is certain.
    return { ms: Math.max(wall, past), floor: Math.max(BUILD_TIME_MS, Math.min(wall, past)), attested: false };
  }

  /**
   * Takes the time that a server stated over a connection on which verifyPeer accepted it, asked at `sentAt` and
   * received now. Half the round trip is added, as SNTP does (RFC 4330 §5).
   */
  learn(name: string, server: WallMs, sentAt: MonoMs): void {
    const mono = this.#clock.now();
    const wall = this.#clock.wall();
    // What another server said before the clock jumped says nothing now; if it is still there it will speak again.
    for (const [other, s] of this.#samples) if (!this.#paced(s, { mono, wall })) this.#samples.delete(other);
    if (!this.#samples.delete(name) && this.#samples.size >= MAX_TIME_SOURCES) {
      this.#samples.delete(this.#samples.keys().next().value!);
    }
    this.#samples.set(name, { server: server + Math.max(0, mono - sentAt) / 2, mono, wall });
  }

  /** How far this machine's clock is ahead of the servers' time, in ms; undefined until a server was heard. */
  skew(): number | undefined {
    const wall = this.#clock.wall();
    const server = this.#serverTime(wall);
    return server && wall - server.ms;
  }

  /** What to persist now and then: the servers' time while they agree, else undefined. */
  persistable(): WallMs | undefined {
    const now = this.now();
    return now.attested ? Math.floor(now.ms) : undefined;
  }

  /** The servers' time, carried forward: their lower median, and whether they and the local clock's pace agree. */
  #serverTime(wall: WallMs): { ms: WallMs; agreed: boolean } | undefined {
    const mono = this.#clock.now();
    const times: number[] = [];
    let paced = true;
    for (const s of this.#samples.values()) {
      times.push(s.server + (mono - s.mono));
      if (!this.#paced(s, { mono, wall })) paced = false;
    }
    if (times.length === 0) return undefined;
    times.sort((a, b) => a - b);
    const spread = times.at(-1)! - times[0]!;
    return { ms: times[(times.length - 1) >> 1]!, agreed: paced && spread <= CLOCK_TOLERANCE_MS };
  }

  /**
   * The monotonic clock stands still while a machine sleeps. If the wall clock moved otherwise than it since a sample,
   * either the machine slept or somebody set the clock; both end the certainty until a server speaks again.
   */
  #paced(s: Sample, now: { readonly mono: MonoMs; readonly wall: WallMs }): boolean {
    return Math.abs((now.wall - s.wall) - (now.mono - s.mono)) <= CLOCK_TOLERANCE_MS;
  }
}
