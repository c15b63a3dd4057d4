/**
 * The search for a better path to one peer while there is a session with it: what is dialled, when punching begins, when
 * it is tried again, and in one sentence why it has not worked. Sockets, servers and time are handed in.
 *
 *     resting ──first use, news, network change, back-off over──→ trying ──everything ended──→ resting
 *
 * A try asks the servers (and the LAN) where the peer is, dials what the rules allow, and punches when nothing better
 * comes at once. A path of a higher rank replaces a lower one; what is no better than the path in use is given up.
 */
import { hostPort } from "../../addr.ts";
import type { CancelTimer, Clock, MonoMs } from "../../clock.ts";
import { describe, MeshError } from "../../errors.ts";
import type { IpPort } from "../../net.ts";
import type { Carrier, PathKind } from "../carrier.ts";
import { type Dialable, dialable, type DialRules, RANK } from "./candidates.ts";
import type { Cancel } from "./legs.ts";
import { PursuitReport } from "./report.ts";

/** Waits between tries that found nothing better, each a random 80 to 120 % of it. */
const RETRY_MS = [30_000, 300_000, 3_600_000] as const;
/** How long a try waits for somebody to say where the peer is. */
const ASK_MS = 1_000;
/** The same when there is only the LAN to ask: it answers in milliseconds, and what comes later is news. */
const ASK_LAN_MS = 400;
/**
 * Head start of listeners before punching begins: a host of the LAN answers within it. One further away is reached while the
 * round is being prepared, which takes two round trips, and a round that is not needed any more costs nobody anything.
 */
const PUNCH_AFTER_MS = 50;
/** Head start of the initiator's dials, so that rarely both make a connection. */
const ACCEPTOR_DELAY_MS = 200;
/** Rounds of punching in one try. */
const PUNCH_ROUNDS = 3;
/** A path that lasted this long was good: its loss is answered by a try at once. */
const STABLE_MS = 60_000;
/** A carrier that is not in use so long after it was made never will be; so often it is made again at once. */
const WASTED_MS = 3_000;
const MAX_WASTED = 2;
/**
 * A server that came back so shortly before or after a path broke was lost to the same interruption: the path was not to
 * blame, and is searched for at once.
 */
const SAME_CAUSE_MS = 10_000;
/** News are a reason for a try this rarely at most. */
const NEWS_EVERY_MS = 2_000;

/** Where a peer may be, from one source. */
export interface Whereabouts {
  readonly addresses: readonly IpPort[];
  /** Addresses a server saw it come from. */
  readonly observed: readonly string[];
}

/** How a round of punching went. */
export type PunchResult =
  | { readonly kind: "carrier"; readonly carrier: Carrier }
  /** `again`: another round may help. */
  | { readonly kind: "failed"; readonly why: string; readonly again: boolean };

export interface PursuitHost {
  readonly clock: Clock;
  random(): number;
  /** Our own name sorts after the peer's. */
  readonly acceptor: boolean;
  /** Asks servers for the peer's addresses, or for a round of punching; false: no server can be asked. */
  meet(punch: boolean): boolean;
  /** Asks the LAN; false: not possible. */
  discover(): boolean;
  rules(observed: readonly string[]): DialRules;
  dial(target: Dialable, done: (result: Carrier | MeshError) => void): Cancel;
  /** A verified carrier that is better than what there was. */
  deliver(carrier: Carrier): void;
  note(path: PathKind, text: string): void;
  /** A try begins or has ended. */
  onRest(): void;
}

interface Try {
  readonly dials: Map<string, { readonly path: "lan" | "direct"; readonly cancel: Cancel }>;
  readonly tried: Set<string>;
  /** Nobody has said yet where the peer is. */
  asking: boolean;
  punch: "not yet" | "asked" | "over";
  rounds: number;
  readonly timers: Set<CancelTimer>;
}

export class Pursuit {
  readonly report = new PursuitReport();
  readonly #host: PursuitHost;
  readonly #sources = new Map<"server" | "lan", Whereabouts>();
  #try: Try | undefined;
  #path: PathKind | undefined;
  #pathSince: MonoMs = 0;
  #best = -1;
  #failures = 0;
  #deliveredAt: MonoMs = -Infinity;
  #wasted = 0;
  /** The last path better than the relay broke soon after it was made. */
  #shaky = false;
  /** When a server came back, and when a path better than the relay was lost. */
  #serverAt: MonoMs = -Infinity;
  #brokenAt: MonoMs = -Infinity;
  #newsAt: MonoMs = -Infinity;
  #cancelRetry: CancelTimer | undefined;
  #over = false;

  constructor(host: PursuitHost) {
    this.#host = host;
  }

  get trying(): boolean {
    return this.#try !== undefined;
  }

  /** Rank of the path in use; -1 for none. */
  get rank(): number {
    return this.#path === undefined ? -1 : RANK[this.#path];
  }

  /** Rank of the best path there ever was. */
  get best(): number {
    return this.#best;
  }

  /** Somebody wants to talk to the peer, and there is no path, or a poor one. */
  want(): void {
    this.#begin();
  }

  /** The session's path now; undefined while it has none. */
  use(path: PathKind | undefined): void {
    if (path === this.#path) return;
    const now = this.#host.clock.now();
    const before = this.rank;
    this.#path = path;
    this.#best = Math.max(this.#best, this.rank);
    if (this.rank >= RANK.direct) this.#wasted = 0;
    if (before >= RANK.direct && this.rank < before) {
      this.#brokenAt = now;
      // A path that broke soon after it was made would break again; what lasted is worth a try at once.
      this.#shaky = now - this.#pathSince < STABLE_MS && now - this.#serverAt > SAME_CAUSE_MS;
      if (!this.#shaky) this.#failures = 0;
    }
    this.#pathSince = now;
    if (path === undefined) return;
    this.#dropWorse();
    if (this.rank >= RANK.direct) this.#cancelRetry?.();
    else if (!this.#try) {
      if (this.#shaky) this.#later();
      else if (this.report.nextAt === undefined) this.#begin();
    }
    this.#settle();
  }

  /** Where the peer is, as a server or the LAN says. */
  learned(from: "server" | "lan", where: Whereabouts): void {
    this.#sources.set(from, where);
    if (from === "server") this.report.introduced = true;
    const current = this.#try;
    if (current) {
      current.asking = false;
      return this.#advance(current);
    }
    const now = this.#host.clock.now();
    if (this.#path !== "lan" && now - this.#newsAt >= NEWS_EVERY_MS) {
      this.#newsAt = now;
      // Asking back would make the peer hear news in turn, and so on for ever.
      this.#begin(from === "lan");
    }
  }

  /** The servers cannot introduce us. */
  unmet(why: string): void {
    this.report.meeting = why;
    const current = this.#try;
    if (!current) return;
    if (current.punch !== "not yet") current.punch = "over";
    current.asking = false;
    this.#advance(current);
  }

  /** A round of punching is over. */
  punched(result: PunchResult): void {
    const current = this.#try;
    if (result.kind === "carrier") {
      this.report.punching = undefined;
      this.#deliver(result.carrier);
    } else {
      this.report.punching = result.why;
      this.#host.note("direct", `hole punching: ${result.why}`);
    }
    if (!current || current.punch !== "asked") return;
    const again = result.kind === "failed" && result.again && current.rounds < PUNCH_ROUNDS && this.rank < RANK.direct;
    if (again) this.#punch(current);
    else current.punch = "over";
    this.#settle();
  }

  /** A server is there again: a try that lacked one is worth another. */
  serverUp(): void {
    const now = this.#host.clock.now();
    this.#serverAt = now;
    const interrupted = now - this.#brokenAt < SAME_CAUSE_MS;
    if (this.rank < RANK.direct && (!this.report.introduced || interrupted)) this.retryNow();
  }

  /** Our network or the servers changed: whatever failed before may work now. */
  retryNow(): void {
    this.#failures = 0;
    this.#end();
    if (this.#path !== "lan") this.#begin();
  }

  stop(): void {
    this.#over = true;
    this.#cancelRetry?.();
    this.#end();
  }

  #begin(ask = true): void {
    if (this.#try || this.#over) return;
    this.#cancelRetry?.();
    const current: Try = this.#try = {
      dials: new Map(),
      tried: new Set(),
      asking: ask,
      punch: "not yet",
      rounds: 0,
      timers: new Set(),
    };
    this.report.begin();
    if (ask) {
      const server = this.#host.meet(false);
      const lan = this.#host.discover();
      if (!server) this.report.meeting = "no server is connected";
      if (!server && !lan) current.asking = false;
      else this.#after(current, server ? ASK_MS : ASK_LAN_MS, () => this.#unanswered(current, server, lan));
    }
    this.#advance(current);
  }

  #unanswered(current: Try, server: boolean, lan: boolean): void {
    if (!current.asking) return;
    current.asking = false;
    const asked = server ? "the server does not answer" : "no server is connected";
    this.report.meeting = asked + (lan ? ", and it was not found on this LAN" : "");
  }

  /** Dials what is known and not tried yet, and punches when it is time. */
  #advance(current: Try): void {
    const observed = this.#sources.get("server")?.observed ?? [];
    const addresses = [...this.#sources.values()].flatMap((where) => where.addresses);
    const { dial, refused } = dialable(addresses, this.#host.rules(observed));
    for (const text of refused) this.report.refused.add(text);
    for (const target of dial) {
      const at = hostPort(target.at);
      if (current.tried.has(at) || RANK[target.path] <= this.rank) continue;
      current.tried.add(at);
      if (!this.#host.acceptor) this.#dial(current, target);
      else this.#after(current, ACCEPTOR_DELAY_MS, () => this.#dial(current, target));
    }
    if (this.#sources.has("server") && current.punch === "not yet" && !current.asking) {
      current.punch = "asked";
      const known = dial.length > 0;
      this.#after(current, known ? PUNCH_AFTER_MS : 0, () => this.#punch(current));
    }
    this.#settle();
  }

  #dial(current: Try, target: Dialable): void {
    if (RANK[target.path] <= this.rank) return this.#settle();
    const at = hostPort(target.at);
    const cancel = this.#host.dial(target, (result) => {
      current.dials.delete(at);
      if (result instanceof MeshError) {
        this.report.failed.set(at, result.code);
        this.#host.note(target.path, `${at}: ${describe(result)}`);
      } else this.#deliver(result);
      this.#settle();
    });
    current.dials.set(at, { path: target.path, cancel });
  }

  #punch(current: Try): void {
    if (this.rank >= RANK.direct) current.punch = "over";
    else {
      current.punch = "asked";
      current.rounds++;
      if (!this.#host.meet(true)) {
        this.report.meeting = "no server is connected";
        current.punch = "over";
      }
    }
    this.#settle();
  }

  #deliver(carrier: Carrier): void {
    if (this.#over || RANK[carrier.path] <= this.rank) return carrier.close("SHUTDOWN");
    this.#deliveredAt = this.#host.clock.now();
    this.#host.deliver(carrier);
  }

  /** Gives up what would be no better than the path in use. */
  #dropWorse(): void {
    const current = this.#try;
    if (!current) return;
    for (const [at, dial] of current.dials) {
      if (RANK[dial.path] > this.rank) continue;
      dial.cancel();
      current.dials.delete(at);
    }
    if (this.rank >= RANK.direct) current.punch = "over";
  }

  /** Ends the try when nothing of it is left, and plans the next one. */
  #settle(): void {
    const current = this.#try;
    if (!current) return;
    const best = this.#path === "lan";
    const busy = current.asking || current.dials.size > 0 || current.timers.size > 0 || current.punch === "asked";
    if (busy && !best) return;
    this.#end();
    // Whoever waited for the end may have given the peer up.
    if (this.rank < RANK.direct && !this.#over) this.#later();
  }

  #later(): void {
    this.#shaky = false;
    this.#cancelRetry?.();
    const { clock } = this.#host;
    // A carrier that was made and lost its race to a worse one on the other side: the way itself is good.
    if (clock.now() - this.#deliveredAt < WASTED_MS && this.#wasted < MAX_WASTED) {
      this.#wasted++;
      this.#cancelRetry = clock.timer(WASTED_MS / 2, () => this.#begin());
      return;
    }
    const wait = RETRY_MS[Math.min(this.#failures++, RETRY_MS.length - 1)]! * (0.8 + 0.4 * this.#host.random());
    this.report.nextAt = this.#host.clock.now() + wait;
    this.#cancelRetry = this.#host.clock.timer(wait, () => this.#begin());
  }

  #end(): void {
    const current = this.#try;
    if (!current) return;
    this.#try = undefined;
    for (const { cancel } of current.dials.values()) cancel();
    for (const cancel of current.timers) cancel();
    this.#host.onRest();
  }

  #after(current: Try, ms: number, act: () => void): void {
    const cancel = this.#host.clock.timer(ms, () => {
      current.timers.delete(cancel);
      if (this.#try !== current) return;
      act();
      this.#advance(current);
    });
    current.timers.add(cancel);
  }
}
