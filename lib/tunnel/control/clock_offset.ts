/** What pings say about the way to the server and about its clock. */
import type { MonoMs, WallMs } from "../../clock.ts";

/** Samples the best is taken from; older ones no longer say anything about a clock that drifts. */
const KEEP = 8;

export interface OffsetSample {
  /** Monotonic time of the ping and of its answer. */
  readonly sentAt: MonoMs;
  readonly now: MonoMs;
  /** Our wall clock at the answer. */
  readonly wall: WallMs;
  /** The server's wall clock when it answered. */
  readonly server: WallMs;
}

export class ClockOffset {
  readonly #samples: { readonly rtt: number; readonly offset: number }[] = [];
  #smoothed: number | undefined;

  /** Smoothed round trip (RFC 6298: 1/8 of each new sample). */
  get rttMs(): number | undefined {
    return this.#smoothed;
  }

  /** Shortest round trip of late: the way itself, without its queues. */
  get leastRttMs(): number | undefined {
    return this.#best?.rtt;
  }

  /** Server's wall clock minus ours: of the sample with the shortest round trip, whose error is at most half of it. */
  get offsetMs(): number | undefined {
    return this.#best?.offset;
  }

  /** Takes one answer; false when it cannot be one to a ping of ours (from the future or hours old). */
  sample(s: OffsetSample): boolean {
    const rtt = s.now - s.sentAt;
    if (!(rtt >= 0) || rtt > 3_600_000) return false;
    this.#smoothed = this.#smoothed === undefined ? rtt : this.#smoothed + (rtt - this.#smoothed) / 8;
    this.#samples.push({ rtt, offset: s.server + rtt / 2 - s.wall });
    if (this.#samples.length > KEEP) this.#samples.shift();
    return true;
  }

  get #best() {
    let best: { readonly rtt: number; readonly offset: number } | undefined;
    for (const sample of this.#samples) if (!best || sample.rtt < best.rtt) best = sample;
    return best;
  }
}
