/**
 * Rounds of hole punching as the server runs them: both agents take a fresh port and show it to the observation port,
 * the server tells each where it saw the other and when to begin. Pure.
 *
 *     preparing ──both ready and seen──→ punching ──either says stop, or time──→ gone
 *         └──nothing to aim at, time──────────────────────────────────↗
 */
import type { MonoMs } from "../../clock.ts";
import type { ReasonCode } from "../../errors.ts";
import type { IpPort } from "../../net.ts";
import { MAX_SIGHTINGS, MAX_TARGETS, type PathMessage, type PunchMessage } from "../control/path_message.ts";
import { type Mapped, mappedIn, seenIn, type Sighting } from "./mapping.ts";

/** Both must have shown their port by then: five round trips to a server on another continent. */
const PREPARE_MS = 4_000;
/** After "go": a round is 5 s for the agents, who say so when it is over. */
const PUNCH_MS = 7_000;
/** Sightings that are missing this long after the first one are not waited for. */
const SIGHTING_SPREAD_MS = 400;
/**
 * Between the farther agent's hearing of the start, half a round trip from now, and the start: a busy agent is late by
 * some milliseconds, and a long way is one that varies and is not the same in both directions.
 */
const START_MARGIN_MS = 20;
const START_MARGIN_OF_RTT = 1 / 4;
/** Round trips believed of an agent; one that claims more would only make the other wait. */
const MAX_RTT_MS = 2_000;
/** Rounds of one node at once. */
const MAX_PER_NODE = 8;
/** Of these, begun before it is known that nothing better works. */
const MAX_EARLY_PER_NODE = 4;
/** Rounds of one pair within {@link PAIR_WINDOW_MS}: three tries of either side. */
const MAX_PER_PAIR = 6;
const PAIR_WINDOW_MS = 60_000;
/** Pairs whose recent rounds are remembered. */
const MAX_PAIRS = 4096;

export interface RoundsHost {
  emit(node: string, message: PathMessage): void;
  nonce(): string;
  wall(): number;
}

export interface RoundsStats {
  /** Rounds under way; begun since the start; of those, given a start; ended because there is a direct path. */
  readonly rounds: number;
  readonly begun: number;
  readonly started: number;
  readonly connected: number;
}

interface Side {
  readonly node: string;
  readonly nonce: string;
  readonly sightings: Sighting[];
  rttMs: number | undefined;
  /** Sightings that it said are on their way. */
  expected: number;
  /** From then on no more of them are waited for. */
  seenBy: MonoMs;
}

interface Round {
  readonly id: number;
  readonly pair: string;
  readonly sides: readonly [Side, Side];
  phase: "preparing" | "punching";
  deadline: MonoMs;
}

/** Why a round cannot be. */
export interface RoundProblem {
  readonly code: ReasonCode;
  readonly message: string;
}

export class Rounds {
  readonly #host: RoundsHost;
  readonly #observe: { readonly port: number; readonly servers: readonly string[] };
  readonly #rounds = new Map<number, Round>();
  readonly #byNonce = new Map<string, { readonly round: Round; readonly side: Side }>();
  /** Pair → when its rounds of late began. */
  readonly #recent = new Map<string, MonoMs[]>();
  #nextId = 1;
  #begun = 0;
  #started = 0;
  #connected = 0;

  constructor(host: RoundsHost, observe: { readonly port: number; readonly servers: readonly string[] }) {
    this.#host = host;
    this.#observe = observe;
  }

  /**
   * Begins a round between two agents; one that is under way already serves both. `early`: it may turn out not to be
   * needed, and leaves room for those that are.
   */
  start(a: string, b: string, now: MonoMs, early = false): RoundProblem | undefined {
    if (this.#observe.port === 0) {
      return { code: "UNSUPPORTED", message: "the server has no observation port (observeListen)" };
    }
    const pair = a < b ? `${a} ${b}` : `${b} ${a}`;
    for (const round of this.#rounds.values()) if (round.pair === pair) return undefined;
    const most = early ? MAX_EARLY_PER_NODE : MAX_PER_NODE;
    for (const node of [a, b]) {
      if (this.#of(node).length >= most) {
        return { code: "LIMIT", message: `${node} punches towards ${most} nodes already` };
      }
    }
    const recent = (this.#recent.get(pair) ?? []).filter((at) => now - at < PAIR_WINDOW_MS);
    if (recent.length >= MAX_PER_PAIR) {
      return { code: "LIMIT", message: `${MAX_PER_PAIR} rounds of hole punching a minute are enough` };
    }
    this.#recent.delete(pair);
    this.#recent.set(pair, [...recent, now]);
    if (this.#recent.size > MAX_PAIRS) this.#recent.delete(this.#recent.keys().next().value!);
    this.#begin(pair, [a, b], now);
    return undefined;
  }

  /** A message of an agent; one about a round that is not its own is ignored. */
  message(node: string, m: PunchMessage, now: MonoMs): void {
    const round = this.#rounds.get(m.id);
    const side = round?.sides.find((s) => s.node === node);
    if (!round || !side) return;
    if (m.step === "ready" && round.phase === "preparing") {
      side.rttMs = Math.min(m.rttMs, MAX_RTT_MS);
      side.expected = m.expect ?? 0;
      this.#check(round, now);
    } else if (m.step === "stop") {
      if (m.code === "SHUTDOWN") this.#connected++;
      this.#end(round, { code: m.code, message: m.message }, [round.sides.find((s) => s !== side)!]);
    }
  }

  /** The observation port saw the holder of a nonce. False: it belongs to no round. */
  seen(nonce: string, from: IpPort, at: IpPort, now: MonoMs): boolean {
    const found = this.#byNonce.get(nonce);
    if (!found) return false;
    const { round, side } = found;
    if (side.sightings.length < MAX_SIGHTINGS) side.sightings.push({ from, at });
    if (side.sightings.length === 1) side.seenBy = now + SIGHTING_SPREAD_MS;
    if (round.phase === "preparing") this.#check(round, now);
    return true;
  }

  gone(node: string, _now: MonoMs): void {
    for (const round of this.#of(node)) {
      const others = round.sides.filter((side) => side.node !== node);
      this.#end(round, { code: "PEER_OFFLINE", message: `${node} lost its connection to the server` }, others);
    }
  }

  get nextAt(): MonoMs {
    let at = Infinity;
    for (const round of this.#rounds.values()) {
      at = Math.min(at, round.deadline);
      if (round.phase === "preparing") { for (const side of round.sides) at = Math.min(at, waitsUntil(side)); }
    }
    return at;
  }

  tick(now: MonoMs): void {
    for (const round of [...this.#rounds.values()]) {
      if (round.phase === "preparing") {
        for (const side of round.sides) if (waitsUntil(side) <= now) side.expected = side.sightings.length;
        if (this.#check(round, now)) continue;
      }
      if (round.deadline > now) continue;
      const late = round.sides.filter((side) => !settled(side)).map((side) => side.node);
      const message = round.phase === "punching"
        ? "the round took too long"
        : `${late.join(" and ")} did not get ready in time`;
      this.#end(round, { code: "TIMEOUT", message }, round.sides);
    }
  }

  stats(): RoundsStats {
    return { rounds: this.#rounds.size, begun: this.#begun, started: this.#started, connected: this.#connected };
  }

  #begin(pair: string, nodes: readonly [string, string], now: MonoMs): void {
    const side = (node: string): Side => ({
      node,
      nonce: this.#host.nonce(),
      sightings: [],
      rttMs: undefined,
      expected: 0,
      seenBy: Infinity,
    });
    const round: Round = {
      id: this.#nextId,
      pair,
      sides: [side(nodes[0]), side(nodes[1])],
      phase: "preparing",
      deadline: now + PREPARE_MS,
    };
    this.#nextId = this.#nextId === 0xffff_ffff ? 1 : this.#nextId + 1;
    this.#begun++;
    this.#rounds.set(round.id, round);
    for (const { node, nonce } of round.sides) {
      const peer = node === nodes[0] ? nodes[1] : nodes[0];
      const prepare = { type: "punch", step: "prepare", id: round.id, peer, nonce, counts: true } as const;
      this.#host.emit(node, { ...prepare, ...this.#observe });
    }
    for (const side of round.sides) this.#byNonce.set(side.nonce, { round, side });
  }

  /** Gives the start when nothing is waited for any more; false: something is. */
  #check(round: Round, now: MonoMs): boolean {
    if (!round.sides.every(settled)) return false;
    this.#go(round, now);
    return true;
  }

  #go(round: Round, now: MonoMs): void {
    const [a, b] = round.sides;
    const families = ([4, 6] as const).filter((f) => round.sides.every((s) => seenIn(s.sightings, f).length > 0));
    if (families.length === 0) {
      const message = `${a.node} and ${b.node} were not seen in a common address family`;
      return this.#end(round, { code: "UNSUPPORTED", message }, round.sides);
    }
    const [ofA, ofB] = [a, b].map((side) => families.map((f) => mappedIn(side.sightings, f))) as [Mapped[], Mapped[]];
    const hopeless = families.every((_, i) =>
      blind(ofA[i]!) && blind(ofB[i]!) && !(foretold(ofA[i]!) && foretold(ofB[i]!))
    );
    if (hopeless) {
      const message = `the NATs of ${a.node} and ${b.node} give each destination another port`;
      return this.#end(round, { code: "UNSUPPORTED", message }, round.sides);
    }
    const rtt = Math.max(a.rttMs!, b.rttMs!);
    const at = Math.ceil(this.#host.wall() + rtt / 2 + Math.max(START_MARGIN_MS, rtt * START_MARGIN_OF_RTT));
    round.phase = "punching";
    round.deadline = now + PUNCH_MS;
    this.#started++;
    for (const [side, own, other] of [[a, ofA, ofB], [b, ofB, ofA]] as const) {
      const targets = other.map((mapped) => mapped.next).slice(0, MAX_TARGETS);
      const [mapping, peerMapping] = [best(own), best(other)];
      const stride = other.find((mapped) => mapped.stride !== undefined)?.stride;
      this.#host.emit(side.node, {
        ...{ type: "punch", step: "go", id: round.id, at, targets, mapping, peerMapping } as const,
        ...(stride === undefined ? {} : { stride }),
      });
    }
  }

  #end(round: Round, why: RoundProblem, tell: readonly Side[]): void {
    this.#rounds.delete(round.id);
    for (const side of round.sides) this.#byNonce.delete(side.nonce);
    for (const { node } of tell) this.#host.emit(node, { type: "punch", step: "stop", id: round.id, ...why });
  }

  #of(node: string): Round[] {
    return [...this.#rounds.values()].filter((round) => round.sides.some((side) => side.node === node));
  }
}

/** It is ready, and was seen as often as it will be. */
function settled(side: Side): boolean {
  return side.rttMs !== undefined && side.sightings.length >= side.expected;
}

/** When no more sightings of it are waited for. */
function waitsUntil(side: Side): MonoMs {
  return side.sightings.length < side.expected ? side.seenBy : Infinity;
}

/** Its next port is not the one that was seen. */
function blind({ mapping }: Mapped): boolean {
  return mapping === "varies" || mapping === "steps";
}

function foretold({ mapping }: Mapped): boolean {
  return mapping === "steps";
}

/** The family that helps most decides: one that maps alike is enough to punch. */
function best(mapped: readonly Mapped[]): Mapped["mapping"] {
  const all = mapped.map(({ mapping }) => mapping);
  return (["same", "unknown", "steps"] as const).find((mapping) => all.includes(mapping)) ?? "varies";
}
