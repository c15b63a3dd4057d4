/**
 * A group of upstream resolvers as a machine without sockets: it is told what arrives and what time it is, and says
 * what to send. Per query: the first healthy server; after its usual answer time the next one as well, while late
 * answers still count; TCP when an answer was truncated. A server that stays silent is passed over until a probe
 * brings it back.
 *
 * Forged answers (RFC 5452) have to guess a fresh source port (the shell binds a new socket for each exchange), the
 * 16-bit id, and the letter case of the question (draft-vixie-dnsext-dns0x20).
 */
import type { IpPort } from "../../net.ts";
import { FLAG, RCODE, TYPE } from "../wire/constants.ts";
import { UpstreamServer, type UpstreamSpec, type UpstreamState } from "./server_state.ts";
import { mixCase, questionMatch, type UpstreamQuestion, writeQuestion } from "./messages.ts";

/** An unanswered query ends; glibc's own limit is 5 s, and SERVFAIL should come before it. */
const DEADLINE_MS = 4000;
/** The same while no server is known to be alive: nobody should wait long for what will not come. */
const DOWN_DEADLINE_MS = 1500;
/** TCP has a handshake in front, and is only tried with servers that just answered. */
const TCP_WAIT_MS = 1500;
/** Times each server is asked for one query at most, waiting twice as long each round. */
const MAX_ROUNDS = 5;
const MAX_WAIT_MS = 1600;
/** How exactly waiting times are kept. */
const TICK_MS = 20;
/** The same when only probes are to come. */
const PROBE_TICK_MS = 250;
const PROBE_WAIT_MS = 2000;
/** Nobody asks anything: leave the line alone. */
const PROBE_ONLY_WITHIN_MS = 60_000;

/** `bytes` of an answer are valid during the call only. */
export type UpstreamResult =
  | { readonly kind: "answer"; readonly bytes: Uint8Array; readonly server: string }
  | { readonly kind: "failed"; readonly why: string };

/** What the machine wants done. `exchange` numbers are never reused. */
export interface UpstreamEffects {
  /** Sends from a socket of its own. False: it cannot be sent at all (no route). */
  sendUdp(exchange: number, to: IpPort, bytes: Uint8Array): boolean;
  /** Connects, sends with the length prefix and reports {@link UpstreamPool.onTcp} or `onTcpFailed`, later. */
  sendTcp(exchange: number, to: IpPort, bytes: Uint8Array): void;
  close(exchange: number): void;
  done(ticket: number, result: UpstreamResult): void;
  /** No server is known to be alive any more; queries under way go on for a while. */
  allSilent(): void;
  random(into: Uint8Array): void;
}

interface Job {
  readonly ticket: number;
  readonly question: UpstreamQuestion;
  readonly order: readonly UpstreamServer[];
  readonly attempts: number;
  readonly startedAt: number;
  attempt: number;
  readonly exchanges: Set<Exchange>;
  /** An answer that is no answer (SERVFAIL, REFUSED …): given on when nobody knows better. */
  bad: { readonly bytes: Uint8Array; readonly server: string } | undefined;
  over: boolean;
}

interface Exchange {
  readonly number: number;
  /** Undefined: a probe. */
  readonly job: Job | undefined;
  readonly server: UpstreamServer;
  /** The message as sent. */
  readonly sent: Uint8Array;
  readonly edns: boolean;
  readonly tcp: boolean;
  readonly sentAt: number;
  readonly waitUntil: number;
  waited: boolean;
}

export class UpstreamPool {
  readonly #effects: UpstreamEffects;
  readonly #servers: readonly UpstreamServer[];
  readonly #jobs = new Set<Job>();
  readonly #exchanges = new Map<number, Exchange>();
  #nextExchange = 1;
  #lastAsk = -Infinity;
  /** Datagrams that were no answer to what was asked. */
  #ignored = 0;
  #recoveredAt = -Infinity;

  constructor(upstreams: readonly UpstreamSpec[], effects: UpstreamEffects) {
    this.#effects = effects;
    this.#servers = upstreams.map((spec) => new UpstreamServer(spec));
  }

  /** Whether no server is known to be alive: what is in the cache, however old, is then better than waiting. */
  get allDown(): boolean {
    return this.#servers.every((s) => s.down);
  }

  /** Milliseconds until {@link tick} should be called; undefined = nothing to do. */
  get tickMs(): number | undefined {
    if (this.#exchanges.size > 0 || this.#jobs.size > 0) return TICK_MS;
    return this.#servers.some((s) => s.probesBy(this.#lastAsk + PROBE_ONLY_WITHIN_MS)) ? PROBE_TICK_MS : undefined;
  }

  /** When a server that was silent last answered again. */
  get recoveredAt(): number {
    return this.#recoveredAt;
  }

  get inFlight(): number {
    return this.#jobs.size;
  }

  get ignored(): number {
    return this.#ignored;
  }

  states(): readonly UpstreamState[] {
    return this.#servers.map((s) => s.state());
  }

  /** Starts a query under the caller's `ticket`; `done` may be called before this returns. */
  ask(ticket: number, question: UpstreamQuestion, now: number): void {
    this.#lastAsk = now;
    const order = [...this.#servers].sort((a, b) => a.badness - b.badness);
    const job: Job = {
      ticket,
      question,
      order,
      attempts: order.length * MAX_ROUNDS,
      startedAt: now,
      attempt: 0,
      exchanges: new Set(),
      bad: undefined,
      over: false,
    };
    this.#jobs.add(job);
    this.#launch(job, now);
  }

  /** A datagram came to an exchange's socket. */
  onUdp(exchange: number, bytes: Uint8Array, from: IpPort, now: number): void {
    const x = this.#exchanges.get(exchange);
    if (x === undefined || x.tcp) return;
    if (from.ip !== x.server.at.ip || from.port !== x.server.at.port) return void this.#ignored++;
    const match = questionMatch(x.sent, bytes);
    switch (match) {
      case "other":
        this.#ignored++;
        return;
      case "case":
        // Either forged or from a server that does not keep the case: TCP cannot be forged blindly.
        this.#ignored++;
        this.#end(x);
        return this.#retry(x, { tcp: true, edns: x.edns }, now);
      case "same":
      case "headless":
        return this.#answered(x, bytes, now);
    }
  }

  /** The datagram of an exchange could not leave this machine. */
  onUnreachable(exchange: number, now: number): void {
    const x = this.#exchanges.get(exchange);
    if (x === undefined || x.tcp) return;
    this.#end(x);
    if (!x.waited) this.#silence(x.server, now);
    if (x.job && !x.waited) this.#goOn(x.job, now);
  }

  onTcp(exchange: number, bytes: Uint8Array, now: number): void {
    const x = this.#exchanges.get(exchange);
    if (x === undefined || !x.tcp) return;
    const match = questionMatch(x.sent, bytes);
    if (match === "other") {
      this.#ignored++;
      return this.onTcpFailed(exchange, now);
    }
    if (match === "case") x.server.keepsCase = false;
    this.#answered(x, bytes, now);
  }

  onTcpFailed(exchange: number, now: number): void {
    const x = this.#exchanges.get(exchange);
    if (x === undefined || !x.tcp) return;
    this.#end(x);
    const { job, server } = x;
    // One that answers datagrams and refuses connections is alive.
    if (server.tcpOnly || job === undefined) this.#silence(server, now);
    if (job === undefined) return;
    if (job.bad === undefined) this.#goOn(job, now);
    else this.#askOthers(job, now);
  }

  /** Moves time: the next server, deadlines, probes. See {@link tickMs}. */
  tick(now: number): void {
    for (const x of this.#exchanges.values()) {
      if (x.waited || now < x.waitUntil) continue;
      x.waited = true;
      this.#silence(x.server, now);
      if (x.job === undefined || x.tcp) this.#end(x);
      if (x.job) this.#launch(x.job, now);
    }
    const limit = this.allDown ? DOWN_DEADLINE_MS : DEADLINE_MS;
    for (const job of this.#jobs) if (now >= job.startedAt + limit) this.#fail(job, `no answer within ${limit} ms`);
    if (now - this.#lastAsk <= PROBE_ONLY_WITHIN_MS) { for (const s of this.#servers) this.#probe(s, now); }
  }

  /** The network changed: what was unreachable may be reachable. */
  networkChanged(now: number): void {
    for (const server of this.#servers) server.probeSoon(now);
  }

  /** Ends everything; every open query fails. */
  close(): void {
    for (const job of [...this.#jobs]) this.#fail(job, "the resolver stops");
    for (const x of [...this.#exchanges.values()]) this.#end(x);
  }

  #launch(job: Job, now: number): void {
    while (!job.over && job.attempt < job.attempts) {
      const server = job.order[job.attempt % job.order.length];
      if (server === undefined) break;
      job.attempt++;
      if (this.#send(job, server, { tcp: server.tcpOnly, edns: server.usesEdns(now) }, now)) return;
      this.#silence(server, now);
    }
    if (!job.over && job.exchanges.size === 0) this.#exhausted(job);
  }

  #exhausted(job: Job): void {
    this.#fail(job, job.order.length === 0 ? "no upstream is configured" : "no upstream can be reached");
  }

  #send(
    job: Job | undefined,
    server: UpstreamServer,
    how: { readonly tcp: boolean; readonly edns: boolean },
    now: number,
  ): boolean {
    const sent = writeQuestion(job?.question ?? PROBE_QUESTION, how.edns, (into) => this.#effects.random(into));
    if (server.keepsCase) mixCase(sent, (into) => this.#effects.random(into));
    const number = this.#nextExchange++;
    const round = job === undefined ? 0 : Math.floor((job.attempt - 1) / job.order.length);
    const usual = Math.min(MAX_WAIT_MS, server.waitMs() * 2 ** round);
    const wait = job === undefined ? PROBE_WAIT_MS : how.tcp ? TCP_WAIT_MS : usual;
    const x: Exchange = {
      number,
      job,
      server,
      sent,
      edns: how.edns,
      tcp: how.tcp,
      sentAt: now,
      waitUntil: now + wait,
      waited: false,
    };
    this.#exchanges.set(number, x);
    job?.exchanges.add(x);
    server.asked++;
    if (how.tcp) this.#effects.sendTcp(number, server.at, sent);
    else if (!this.#effects.sendUdp(number, server.at, sent)) {
      this.#end(x);
      return false;
    }
    return true;
  }

  /** An answer that is certainly to our question. */
  #answered(x: Exchange, bytes: Uint8Array, now: number): void {
    const { server, job } = x;
    this.#end(x);
    const recovered = server.badness > 0;
    server.onAnswer(now - x.sentAt);
    if (recovered) this.#recovered(server, now);
    if (job === undefined || job.over) return;
    const rcode = bytes[3]! & 0xf;
    if (x.edns && (rcode === RCODE.FORMERR || rcode === RCODE.NOTIMP)) {
      // Servers from before EDNS (RFC 6891 §7): ask again without.
      server.noEdns(now);
      return this.#retry(x, { tcp: x.tcp, edns: false }, now);
    }
    if ((bytes[2]! & (FLAG.TC >>> 8)) !== 0 && !x.tcp) {
      // Part of an answer, and known to be a part, is better than none where TCP is blocked.
      job.bad = { bytes: bytes.slice(), server: server.text };
      return this.#retry(x, { tcp: true, edns: x.edns }, now);
    }
    if (rcode === RCODE.NOERROR || rcode === RCODE.NXDOMAIN) {
      return this.#finish(job, { kind: "answer", bytes, server: server.text });
    }
    job.bad = { bytes: bytes.slice(), server: server.text };
    this.#askOthers(job, now);
  }

  /** Another server may know better; nobody is asked twice for that. */
  #askOthers(job: Job, now: number): void {
    if (job.attempt < job.order.length) this.#launch(job, now);
    else if (job.exchanges.size === 0) this.#fail(job, "");
  }

  /** Queries that only wait for silent servers are asked of the one that is back. */
  #recovered(server: UpstreamServer, now: number): void {
    this.#recoveredAt = now;
    for (const job of [...this.#jobs]) {
      if ([...job.exchanges].every((x) => x.waited)) {
        this.#send(job, server, { tcp: server.tcpOnly, edns: server.usesEdns(now) }, now);
      }
    }
  }

  #retry(x: Exchange, how: { readonly tcp: boolean; readonly edns: boolean }, now: number): void {
    if (x.job === undefined || x.job.over) return;
    if (!this.#send(x.job, x.server, how, now)) this.#goOn(x.job, now);
  }

  #goOn(job: Job, now: number): void {
    if (job.attempt < job.attempts) this.#launch(job, now);
    else if (!job.over && job.exchanges.size === 0) this.#exhausted(job);
  }

  #fail(job: Job, why: string): void {
    this.#finish(job, job.bad ? { kind: "answer", ...job.bad } : { kind: "failed", why });
  }

  #finish(job: Job, result: UpstreamResult): void {
    if (job.over) return;
    job.over = true;
    this.#jobs.delete(job);
    for (const x of [...job.exchanges]) this.#end(x);
    this.#effects.done(job.ticket, result);
  }

  #end(x: Exchange): void {
    if (!this.#exchanges.delete(x.number)) return;
    x.job?.exchanges.delete(x);
    if (x.job === undefined) x.server.probing = false;
    this.#effects.close(x.number);
  }

  #silence(server: UpstreamServer, now: number): void {
    const before = this.allDown;
    server.onSilence(now);
    if (!before && this.allDown) this.#effects.allSilent();
  }

  #probe(server: UpstreamServer, now: number): void {
    if (!server.takeProbe(now)) return;
    server.probing = true;
    const sent = this.#send(undefined, server, { tcp: server.tcpOnly, edns: server.usesEdns(now) }, now);
    if (!sent) this.#silence(server, now);
  }
}

/** `. NS`: every resolver has it at hand. */
const PROBE_QUESTION: UpstreamQuestion = {
  wire: Uint8Array.of(0, 0, TYPE.NS, 0, 1),
  dnssecOk: false,
  checkingDisabled: false,
};
