/** What is known about one upstream resolver: how fast it is, whether it is alive, what it cannot do. */
import { hostPort } from "../../addr.ts";
import type { IpPort } from "../../net.ts";

/** Milliseconds before the next server is asked too, while this one's usual time is unknown. */
const FIRST_WAIT_MS = 400;
/** The same, once it is known: its smoothed time plus four deviations, within these bounds. */
const MIN_WAIT_MS = 100;
const MAX_WAIT_MS = 800;
/** Silent this often in a row: down. Once is enough to prefer another one. */
export const DOWN_AFTER = 2;
/** Pause before a probe of a silent server, doubled each time. */
const PROBE_FIRST_MS = 500;
const PROBE_MAX_MS = 30_000;
/** A server that does not understand EDNS is asked without for this long. */
const NO_EDNS_MS = 3_600_000;

export interface UpstreamSpec {
  readonly at: IpPort;
  /** Never asked over UDP. */
  readonly tcp?: boolean;
}

export interface UpstreamState {
  readonly server: string;
  /** `suspect`: it was silent once and others are preferred; `down`: it was silent repeatedly. */
  readonly state: "up" | "suspect" | "down";
  /** Smoothed milliseconds; undefined before the first answer. */
  readonly rttMs: number | undefined;
  readonly asked: number;
  readonly answered: number;
}

export class UpstreamServer {
  readonly at: IpPort;
  readonly text: string;
  readonly tcpOnly: boolean;
  /** It repeats the question's letter case as asked, as nearly all do. */
  keepsCase = true;
  /** A probe is under way. */
  probing = false;
  asked = 0;
  answered = 0;
  #srtt: number | undefined;
  #rttvar = 0;
  #strikes = 0;
  #probeAt = Infinity;
  #probePause = PROBE_FIRST_MS;
  #noEdnsUntil = -Infinity;

  constructor(spec: UpstreamSpec) {
    this.at = spec.at;
    this.text = hostPort(spec.at);
    this.tcpOnly = spec.tcp ?? false;
  }

  /** 0 = in order; the order in which servers are asked. */
  get badness(): number {
    return Math.min(this.#strikes, DOWN_AFTER);
  }

  get down(): boolean {
    return this.#strikes >= DOWN_AFTER;
  }

  state(): UpstreamState {
    return {
      server: this.text,
      state: this.#strikes === 0 ? "up" : this.down ? "down" : "suspect",
      rttMs: this.#srtt,
      asked: this.asked,
      answered: this.answered,
    };
  }

  /** Milliseconds to wait for an answer before somebody else is asked as well. */
  waitMs(): number {
    if (this.#srtt === undefined) return FIRST_WAIT_MS;
    return Math.min(MAX_WAIT_MS, Math.max(MIN_WAIT_MS, this.#srtt + 4 * this.#rttvar));
  }

  usesEdns(now: number): boolean {
    return now >= this.#noEdnsUntil;
  }

  /** It is from before EDNS (RFC 6891 §7). */
  noEdns(now: number): void {
    this.#noEdnsUntil = now + NO_EDNS_MS;
  }

  /** It answered after `rtt` milliseconds: alive. Smoothing as RFC 6298 §2. */
  onAnswer(rtt: number): void {
    this.answered++;
    this.#strikes = 0;
    this.#probeAt = Infinity;
    this.#probePause = PROBE_FIRST_MS;
    if (this.#srtt === undefined) {
      this.#srtt = rtt;
      this.#rttvar = rtt / 2;
      return;
    }
    this.#rttvar = 0.75 * this.#rttvar + 0.25 * Math.abs(this.#srtt - rtt);
    this.#srtt = 0.875 * this.#srtt + 0.125 * rtt;
  }

  /** It stayed silent, or cannot be reached. */
  onSilence(now: number): void {
    this.#strikes++;
    if (this.#probeAt !== Infinity) return;
    this.#probeAt = now + this.#probePause;
  }

  /** Whether a probe is due; when it is, the next one is put off. */
  takeProbe(now: number): boolean {
    if (this.#strikes === 0 || this.probing || now < this.#probeAt) return false;
    this.#probePause = Math.min(PROBE_MAX_MS, this.#probePause * 2);
    this.#probeAt = now + this.#probePause;
    return true;
  }

  /** Whether a probe falls due by `until`. */
  probesBy(until: number): boolean {
    return this.#strikes > 0 && this.#probeAt <= until;
  }

  /** Something changed: ask it again soon. */
  probeSoon(now: number): void {
    if (this.#strikes === 0) return;
    this.#probePause = PROBE_FIRST_MS;
    this.#probeAt = now;
  }
}
