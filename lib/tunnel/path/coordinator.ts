/**
 * The server's part in direct paths: what it knows of each agent's addresses, who may be told of whom, and the rounds of
 * hole punching (round.ts). Pure: told what happens and when, it answers with messages. An agent can only ever be
 * aimed at addresses where the server itself saw the other one.
 */
import type { MonoMs } from "../../clock.ts";
import type { ReasonCode } from "../../errors.ts";
import type { IpPort } from "../../net.ts";
import { MAX_OBSERVED, type PathMessage } from "../control/path_message.ts";
import { Rounds, type RoundsStats } from "./rounds.ts";
import { TokenBucket } from "./token_bucket.ts";

/** Meetings an agent may ask for: all its peers at a start, then a few per second. */
const MEET_BURST = 64;
const MEET_PER_SECOND = 4;
/** News of an agent's addresses are gathered for so long before others hear: they come in bursts. */
const NEWS_MS = 150;
/** An agent whose addresses change all the time is listened to this rarely. */
const NEWS_BURST = 10;
const NEWS_PER_SECOND = 0.1;
/** Peers of an agent that hear when its addresses change; the longest ago met is forgotten first. */
const MAX_MET = 256;
/** A nonce for looking at an agent from outside. */
const PROBE_TTL_MS = 30_000;

export interface CoordinatorHost {
  emit(node: string, message: PathMessage): void;
  /** Fresh random bytes as hex. */
  nonce(): string;
  /** Wall clock in milliseconds: what agents know the offset of. */
  wall(): number;
  /** Why `from` may not meet `to`, if so. */
  refusal(from: string, to: string): ReasonCode | undefined;
}

export interface CoordinatorOptions {
  /** The observation port and the server's public addresses; port 0: there is none, and no punching. */
  readonly observe: { readonly port: number; readonly servers: readonly string[] };
}

export interface CoordinatorStats extends RoundsStats {
  readonly agents: number;
}

/** What is known of one connected agent. */
interface Known {
  addresses: readonly IpPort[];
  /** Where it was seen, newest last; the control connection's address first. */
  readonly observed: string[];
  /** Who was told of it. */
  readonly met: Set<string>;
  readonly meetings: TokenBucket;
  readonly news: TokenBucket;
  probe: { readonly nonce: string; readonly until: MonoMs } | undefined;
  newsAt: MonoMs | undefined;
}

export class Coordinator {
  readonly #host: CoordinatorHost;
  readonly #options: CoordinatorOptions;
  readonly #rounds: Rounds;
  readonly #agents = new Map<string, Known>();
  /** Nonce → whose probe it is. */
  readonly #probes = new Map<string, string>();

  constructor(host: CoordinatorHost, options: CoordinatorOptions) {
    this.#host = host;
    this.#options = options;
    this.#rounds = new Rounds(host, options.observe);
  }

  /** An agent that looks for direct paths is connected, from `observed`. */
  connected(node: string, observed: IpPort, now: MonoMs): void {
    this.gone(node, now);
    this.#agents.set(node, {
      addresses: [],
      observed: [observed.ip],
      met: new Set(),
      meetings: new TokenBucket(MEET_BURST, MEET_PER_SECOND, now),
      news: new TokenBucket(NEWS_BURST, NEWS_PER_SECOND, now),
      probe: undefined,
      newsAt: undefined,
    });
  }

  gone(node: string, now: MonoMs): void {
    const known = this.#agents.get(node);
    if (!known) return;
    if (known.probe) this.#probes.delete(known.probe.nonce);
    this.#agents.delete(node);
    this.#rounds.gone(node, now);
    for (const other of known.met) this.#agents.get(other)?.met.delete(node);
  }

  /** A message of an agent. */
  message(node: string, m: PathMessage, now: MonoMs): void {
    const known = this.#agents.get(node);
    if (!known) return;
    switch (m.type) {
      case "candidates":
        known.addresses = m.addresses;
        this.#probe(node, known, now);
        this.#news(known, now);
        return;
      case "meet":
        return this.#meet(node, known, m, now);
      case "punch":
        return this.#rounds.message(node, m, now);
      case "observe":
      case "addresses":
      case "unmet":
        // Only servers say these; decoding does not know who reads.
        return;
    }
  }

  /** Somebody showed a nonce to the observation port, coming from `from` to our address `at`. False: nobody has it. */
  seen(nonce: string, from: IpPort, at: IpPort, now: MonoMs): boolean {
    if (this.#rounds.seen(nonce, from, at, now)) return true;
    const node = this.#probes.get(nonce);
    const known = node === undefined ? undefined : this.#agents.get(node);
    if (!known?.probe || known.probe.until < now) return false;
    if (!known.observed.includes(from.ip)) {
      known.observed.push(from.ip);
      // The control connection's own address stays.
      if (known.observed.length > MAX_OBSERVED) known.observed.splice(1, 1);
      this.#news(known, now);
    }
    return true;
  }

  /** When {@link tick} wants to be called; Infinity = not needed. */
  get nextAt(): MonoMs {
    let at = this.#rounds.nextAt;
    for (const known of this.#agents.values()) at = Math.min(at, known.newsAt ?? Infinity);
    return at;
  }

  /** Does what has become due. */
  tick(now: MonoMs): void {
    this.#rounds.tick(now);
    for (const [node, known] of this.#agents) {
      if (known.newsAt === undefined || known.newsAt > now) continue;
      known.newsAt = undefined;
      for (const other of known.met) this.#tell(other, node, known);
    }
  }

  stats(): CoordinatorStats {
    return { agents: this.#agents.size, ...this.#rounds.stats() };
  }

  #meet(node: string, known: Known, m: PathMessage & { type: "meet" }, now: MonoMs): void {
    const { peer } = m;
    const refuse = (code: ReasonCode, message: string) => this.#host.emit(node, { type: "unmet", peer, code, message });
    if (peer === node) return refuse("NOT_ALLOWED", "a node has no path to itself");
    if (!known.meetings.take(now)) {
      return refuse("LIMIT", "too many paths were asked for; the server asks for patience");
    }
    const refusal = this.#host.refusal(node, peer);
    if (refusal !== undefined) return refuse(refusal, REFUSALS[refusal] ?? "the server refuses it");
    const other = this.#agents.get(peer);
    if (!other) {
      return refuse("UNSUPPORTED", "it does not look for direct paths (tunnel.mode off, or an older version)");
    }
    this.#remember(known, peer);
    this.#remember(other, node);
    this.#tell(node, peer, other);
    if (m.punch) {
      // The other side heard of it when they met.
      const problem = this.#rounds.start(node, peer, now);
      if (problem) refuse(problem.code, problem.message);
      return;
    }
    this.#tell(peer, node, known);
    // It would be asked for in a round trip; what stands against it will be told then.
    if (m.ifApart && apart(known, other)) this.#rounds.start(node, peer, now, true);
  }

  #tell(node: string, peer: string, known: Known): void {
    const { addresses, observed } = known;
    this.#host.emit(node, { type: "addresses", peer, addresses, observed: [...observed] });
  }

  #remember(known: Known, peer: string): void {
    known.met.delete(peer);
    known.met.add(peer);
    if (known.met.size > MAX_MET) known.met.delete(known.met.values().next().value!);
  }

  #probe(node: string, known: Known, now: MonoMs): void {
    const { port, servers } = this.#options.observe;
    if (port === 0) return;
    if (known.probe) this.#probes.delete(known.probe.nonce);
    known.probe = { nonce: this.#host.nonce(), until: now + PROBE_TTL_MS };
    this.#probes.set(known.probe.nonce, node);
    this.#host.emit(node, { type: "observe", nonce: known.probe.nonce, port, servers });
  }

  #news(known: Known, now: MonoMs): void {
    if (known.met.size === 0 || known.newsAt !== undefined) return;
    known.newsAt = now + (known.news.take(now) ? NEWS_MS : 1000 / NEWS_PER_SECOND);
  }
}

/** Whether the two are behind different public addresses, so that no LAN can hold both. */
function apart(a: Known, b: Known): boolean {
  return !a.observed.some((ip) => b.observed.includes(ip));
}

const REFUSALS: Partial<Record<ReasonCode, string>> = {
  PEER_OFFLINE: "it is not connected to the server",
  UNKNOWN_NODE: "the server knows no such node",
};
