/**
 * Foreign names: from the cache while fresh, else from the upstreams of their zone; one question upstream however
 * many ask it; the expired answer when nobody answers in time (RFC 8767).
 */
import type { CancelTimer, Clock } from "../../clock.ts";
import type { Logger } from "../../log.ts";
import type { Loop } from "../../net.ts";
import type { AnswerCache } from "../cache/cache.ts";
import { type Entry, isNegative } from "../cache/entry.ts";
import type { Labels } from "../wire/labels.ts";
import { FAILURE_TTL, failureEntry, type Received, scrub, type ScrubRules } from "./scrub.ts";
import { UpstreamIo } from "./sockets.ts";
import type { UpstreamResult } from "./pool.ts";
import type { UpstreamSpec } from "./server_state.ts";
import type { MessageWriter } from "../wire/writer.ts";

/** How an answer came about. */
export type ForwardHow = "fresh" | "upstream" | "stale" | "failed";

export type OnForwarded = (entry: Entry, how: ForwardHow) => void;

export interface ForwardQuestion {
  readonly hash: number;
  readonly variant: number;
  /** Name, type, class: lower case, on the wire. Copied where it is kept. */
  readonly wire: Uint8Array;
  /** The name in lower case. */
  readonly name: Labels;
  readonly type: number;
}

export interface ForwardRoute {
  /** Lower case; the root is []. */
  readonly zone: Labels;
  readonly upstreams: readonly UpstreamSpec[];
}

export interface ForwarderDeps {
  readonly loop: Loop;
  readonly clock: Clock;
  readonly log: Logger;
  readonly cache: AnswerCache;
  readonly writer: MessageWriter;
  readonly random: (into: Uint8Array) => void;
  readonly times: ScrubRules;
  /** Called before somebody is asked: the upstreams may have changed. */
  readonly refresh?: () => void;
}

/** Questions under way at the same time, each with a socket or two. */
const MAX_IN_FLIGHT = 1024;
/** Clients waiting for one question. */
const MAX_WAITERS = 512;
/** RFC 8767 §5 suggests 1.8 s; ours stays below the 1.5 s a failover may take. */
const STALE_AFTER_MS = 1200;
/** RFC 8767 §5: after a failure the stale answer is given at once for this long. */
const RECHECK_MS = 30_000;

/** One client that waits. */
interface Waiter {
  readonly stale: Entry | undefined;
  readonly done: OnForwarded;
  /** Set while it may still be given its stale answer. */
  cancel: CancelTimer | undefined;
  over: boolean;
}

interface Flight {
  readonly key: string;
  readonly question: ForwardQuestion;
  readonly route: Route;
  readonly waiters: Waiter[];
  readonly startedAt: number;
}

interface Route {
  readonly zone: Labels;
  readonly io: UpstreamIo;
  readonly tickets: Map<number, Flight>;
}

export class Forwarder {
  readonly #deps: ForwarderDeps;
  #routes: readonly Route[] = [];
  readonly #flights = new Map<string, Flight>();
  #nextTicket = 1;
  readonly stats = { asked: 0, answered: 0, failed: 0, stale: 0, joined: 0, refused: 0, malformed: 0 };

  constructor(deps: ForwarderDeps) {
    this.#deps = deps;
  }

  /** Replaces all upstreams. Questions under way fail over to the stale answer, or end in SERVFAIL. */
  setRoutes(routes: readonly ForwardRoute[]): void {
    const old = this.#routes;
    this.#routes = routes.map(({ zone, upstreams }) => {
      const tickets = new Map<number, Flight>();
      const io = new UpstreamIo(upstreams, {
        loop: this.#deps.loop,
        clock: this.#deps.clock,
        random: this.#deps.random,
        done: (ticket, result) => this.#done(tickets, ticket, result),
        allSilent: () => {
          for (const flight of tickets.values()) for (const waiter of flight.waiters) this.#giveUp(waiter);
        },
      });
      return { zone, io, tickets };
    });
    for (const route of old) route.io.close();
  }

  get routes(): readonly { readonly zone: Labels; readonly io: UpstreamIo }[] {
    return this.#routes;
  }

  get inFlight(): number {
    return this.#flights.size;
  }

  networkChanged(): void {
    for (const route of this.#routes) route.io.networkChanged();
  }

  /**
   * Answers a question of `zone`. `known` is what the cache has for it, of any age. Calls back exactly once: at once
   * when the answer is at hand, later otherwise.
   */
  ask(question: ForwardQuestion, zone: Labels, known: Entry | undefined, done: OnForwarded): void {
    const now = this.#deps.clock.now();
    if (known && now < known.life.expiresAt) {
      if (nearlyExpired(known, now)) this.#prefetch(question, zone);
      return done(known, "fresh");
    }
    const stale = known && now < known.life.staleUntil ? known : undefined;
    this.#deps.refresh?.();
    const route = this.#routes.find((r) => same(r.zone, zone));
    if (route === undefined) return this.#fail(question, stale, done, "no upstream");
    // An upstream that came back meanwhile may know what failed before.
    const failedAt = stale?.life.failedAt;
    if (stale && failedAt !== undefined && now < failedAt + RECHECK_MS && failedAt > route.io.pool.recoveredAt) {
      return this.#stale(stale, done);
    }
    const key = flightKey(question);
    const flight = this.#flights.get(key);
    // Nobody is known to be there: the old answer now, and the question asked in the background finds out.
    const hopeless = stale !== undefined && route.io.pool.allDown;
    if (flight) {
      if (hopeless) return this.#stale(stale, done);
      if (flight.waiters.length >= MAX_WAITERS) return this.#refuse(question, stale, done);
      this.stats.joined++;
      flight.waiters.push(this.#waiter(stale, done, flight.startedAt));
      return;
    }
    if (this.#flights.size >= MAX_IN_FLIGHT) return this.#refuse(question, stale, done);
    this.#start(key, question, route, hopeless ? [] : [this.#waiter(stale, done, now)]);
    if (hopeless) this.#stale(stale, done);
  }

  close(): void {
    for (const route of this.#routes) route.io.close();
    this.#routes = [];
  }

  /** Asks again before an answer in use expires, so that nobody has to wait for it. */
  #prefetch(question: ForwardQuestion, zone: Labels): void {
    const route = this.#routes.find((r) => same(r.zone, zone));
    const key = flightKey(question);
    if (route === undefined || route.io.pool.allDown || this.#flights.has(key)) return;
    if (this.#flights.size < MAX_IN_FLIGHT / 2) this.#start(key, question, route, []);
  }

  #start(key: string, question: ForwardQuestion, route: Route, waiters: Waiter[]): void {
    const wire = question.wire.slice();
    const flight: Flight = {
      key,
      question: { ...question, wire },
      route,
      waiters,
      startedAt: this.#deps.clock.now(),
    };
    this.#flights.set(key, flight);
    this.stats.asked++;
    const { variant } = question;
    const ticket = this.#nextTicket++;
    route.tickets.set(ticket, flight);
    route.io.ask(ticket, { wire, dnssecOk: (variant & 1) !== 0, checkingDisabled: (variant & 2) !== 0 });
  }

  #done(tickets: Map<number, Flight>, ticket: number, result: UpstreamResult): void {
    const flight = tickets.get(ticket);
    if (flight === undefined) return;
    tickets.delete(ticket);
    this.#land(flight, result);
  }

  #land(flight: Flight, result: UpstreamResult): void {
    this.#flights.delete(flight.key);
    const { question, waiters } = flight;
    const { clock, cache, writer, times, log } = this.#deps;
    const now = clock.now();
    const received: Received = {
      hash: question.hash,
      question,
      variant: question.variant,
      now,
      from: result.kind === "answer" ? result.server : "",
    };
    const old = this.#find(question);
    const entry = result.kind === "answer" ? scrub(result.bytes, received, times, writer) : undefined;
    if (result.kind === "answer" && entry === undefined) this.stats.malformed++;
    const good = entry !== undefined && (entry.rcode === 0 || entry.rcode === 3);
    if (good) {
      this.stats.answered++;
      cache.set(entry);
      for (const waiter of waiters) finish(waiter, entry, "upstream");
      return;
    }
    this.stats.failed++;
    if (log.enabled("debug")) {
      log.debug("Upstreams gave no answer", {
        why: result.kind === "failed" ? result.why : `rcode ${entry?.rcode ?? "?"}`,
      });
    }
    if (old && now < old.life.staleUntil && old.life.expiresAt !== old.life.staleUntil) {
      old.life.failedAt = now;
      this.stats.stale += waiters.filter((w) => !w.over).length;
      for (const waiter of waiters) finish(waiter, old, "stale");
      return;
    }
    const failure = entry ?? failureEntry(received, writer);
    cache.set(failure);
    for (const waiter of waiters) finish(waiter, failure, "failed");
  }

  /** A waiter that takes the stale answer when the fresh one is late. */
  #waiter(stale: Entry | undefined, done: OnForwarded, startedAt: number): Waiter {
    const waiter: Waiter = { stale, done, cancel: undefined, over: false };
    if (stale) {
      const ms = startedAt + STALE_AFTER_MS - this.#deps.clock.now();
      waiter.cancel = this.#deps.clock.timer(ms, () => this.#giveUp(waiter));
    }
    return waiter;
  }

  #giveUp(waiter: Waiter): void {
    if (waiter.stale === undefined || waiter.over) return;
    this.stats.stale++;
    finish(waiter, waiter.stale, "stale");
  }

  #stale(entry: Entry, done: OnForwarded): void {
    this.stats.stale++;
    done(entry, "stale");
  }

  #refuse(question: ForwardQuestion, stale: Entry | undefined, done: OnForwarded): void {
    this.stats.refused++;
    this.#fail(question, stale, done, "too many questions under way");
  }

  #fail(question: ForwardQuestion, stale: Entry | undefined, done: OnForwarded, from: string): void {
    if (stale) return this.#stale(stale, done);
    const now = this.#deps.clock.now();
    done(
      failureEntry({ hash: question.hash, question, variant: question.variant, now, from }, this.#deps.writer),
      "failed",
    );
  }

  #find(question: ForwardQuestion): Entry | undefined {
    return this.#deps.cache.peek(question.hash, question.variant, question.wire);
  }
}

/** Whether an answer is worth asking for again before it expires: it is used, and about to. */
export function nearlyExpired(entry: Entry, now: number): boolean {
  if (isNegative(entry)) return false;
  const life = entry.life.expiresAt - entry.life.storedAt;
  return life >= FAILURE_TTL * 2000 && entry.life.expiresAt - now < life / 10;
}

/** Calls a waiter back, once. */
function finish(waiter: Waiter, entry: Entry, how: ForwardHow): void {
  if (waiter.over) return;
  waiter.over = true;
  waiter.cancel?.();
  waiter.done(entry, how);
}

function flightKey(question: ForwardQuestion): string {
  return `${question.variant}/${String.fromCharCode(...question.wire)}`;
}

function same(a: Labels, b: Labels): boolean {
  return a.length === b.length && a.every((label, i) => label === b[i]);
}
