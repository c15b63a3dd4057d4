/** Whether the other end of a control connection is still there: pings while all is well, and hastily while there is doubt. */
import type { CancelTimer, Clock } from "../../clock.ts";

/** Between pings while all is well: below the 60 s that common proxies and load balancers allow. */
const PING_MS = 15_000;
/** An answer that takes longer counts as missed, and the next ping follows at this pace. */
const PONG_MS = 5_000;
/**
 * The same while there is doubt, because the network has changed or a peer fell silent: so many round trips, between
 * these bounds. A router that forgot its mappings must not keep a stream waiting; a pause of TCP after a loss is shorter.
 */
const DOUBT_RTTS = 5;
const DOUBT_MIN_MS = 250;
const DOUBT_MAX_MS = 500;
/** No answer can be missed before it could be there: a satellite's round trip is longer than the bound above. */
const LEAST_RTTS = 1.5;
/** Missed answers, with nothing else heard, after which the connection is dead: 30 s after the last sign of life at most. */
const MISSED = 3;
/** The same while there is doubt: something else has fallen silent already. */
const MISSED_IN_DOUBT = 2;

export interface HeartbeatOptions {
  readonly clock: Clock;
  /** Milliseconds of a round trip; undefined before the first answer. */
  readonly rttMs: () => number | undefined;
  /** Sends a ping; its answer is reported like anything else that comes, by {@link Heartbeat.heard}. */
  readonly ping: () => void;
  /** So many pings in a row had no answer. It is called once, and nothing is called afterwards. */
  readonly onDead: (missed: number) => void;
}

export class Heartbeat {
  readonly #options: HeartbeatOptions;
  #state: "new" | "calm" | "doubt" | "stopped" = "new";
  #heard = false;
  #missed = 0;
  #cancel: CancelTimer = () => {};

  constructor(options: HeartbeatOptions) {
    this.#options = options;
  }

  /** The connection stands: something was heard just now. */
  start(): void {
    if (this.#state !== "new") return;
    this.#state = "calm";
    this.#heard = true;
    this.#cancel = this.#options.clock.timer(PING_MS, () => this.#beat());
  }

  /** Something came from the other end. */
  heard(): void {
    this.#heard = true;
  }

  /** Finds out soon whether the other end is still there; without effect before {@link start} and while in doubt. */
  doubt(): void {
    if (this.#state !== "calm") return;
    this.#cancel();
    this.#state = "doubt";
    this.#missed = 0;
    this.#send();
  }

  stop(): void {
    this.#state = "stopped";
    this.#cancel();
  }

  /** A ping is due, or the answer to the last one is. */
  #beat(): void {
    if (this.#heard) this.#missed = 0;
    else if (++this.#missed >= (this.#state === "doubt" ? MISSED_IN_DOUBT : MISSED)) {
      this.stop();
      return this.#options.onDead(this.#missed);
    }
    this.#send();
  }

  #send(): void {
    this.#heard = false;
    this.#options.ping();
    const { clock } = this.#options;
    this.#cancel = clock.timer(this.#state === "doubt" ? this.#doubtMs : PONG_MS, () => {
      if (!this.#heard) return this.#beat();
      this.#state = "calm";
      this.#cancel = clock.timer(PING_MS - PONG_MS, () => this.#beat());
    });
  }

  get #doubtMs(): number {
    const rtt = this.#options.rttMs() ?? DOUBT_MAX_MS;
    return Math.max(LEAST_RTTS * rtt, Math.min(DOUBT_MAX_MS, Math.max(DOUBT_MIN_MS, DOUBT_RTTS * rtt)));
  }
}
