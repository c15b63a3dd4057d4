/**
 * The server's side of relay legs: two agents that talk a lot through a channel get a connection each, and the kernel
 * moves the bytes between the two. Admission is by ticket: made here for one of two nodes that are both connected, told
 * over its control connection, good for one connection within seconds. What runs on a leg is the agents' own mutual TLS.
 */
import { randomBytes } from "node:crypto";
import type { CancelTimer, Clock } from "../../clock.ts";
import type { ReasonCode } from "../../errors.ts";
import type { Logger } from "../../log.ts";
import { idleHandler, type MeshStream, WOULD_BLOCK } from "../../net.ts";
import { LEG_HEAD, type LegMessage, TICKET_BYTES, ticketOf } from "../control/leg_message.ts";
import { TokenBucket } from "../path/token_bucket.ts";

/** How long a ticket is good: a connection takes one round trip. */
export const TICKET_MS = 10_000;
/** Pairs of legs of one agent: as many as it may have channels. */
const MAX_PER_NODE = 256;
/** Pairs of legs in all: two descriptors each. */
const MAX_PAIRS = 4096;
/** Asking: a server that comes back is asked for all legs at once. */
const ASK_BURST = 64;
const ASKS_PER_SECOND = 4;

/** A running transfer; the relay only counts and ends it. */
export interface JoinedLegs {
  /** Bytes moved in both directions so far. */
  readonly bytes: number;
  reset(): void;
}

export interface LegRelayOptions {
  readonly clock: Clock;
  readonly log: Logger;
  /** Tells a connected agent that speaks of legs; others are never told. */
  send(node: string, message: LegMessage): void;
  /** Whether an agent is connected. */
  online(node: string): boolean;
  /** Why `from` may not reach `to`, or that one of them cannot have legs. */
  refusal(from: string, to: string): ReasonCode | undefined;
  /** Moves all bytes between two streams until one ends. `onEnd` comes from the loop. */
  join(a: MeshStream, b: MeshStream, onEnd: (bytes: number) => void): JoinedLegs;
}

export interface LegRelayStats {
  /** Pairs that are joined, and pairs that wait for a leg. */
  readonly joined: number;
  readonly waiting: number;
  readonly bytes: number;
  /** Connections without a good ticket. */
  readonly refused: number;
}

/** Two legs that belong together. */
interface Pair {
  readonly nodes: readonly [asker: string, asked: string];
  readonly tickets: readonly [string, string];
  readonly streams: [MeshStream | undefined, MeshStream | undefined];
  cancel: CancelTimer;
  joined: JoinedLegs | undefined;
}

export class LegRelay {
  readonly #options: LegRelayOptions;
  readonly #pairs = new Set<Pair>();
  readonly #tickets = new Map<string, { readonly pair: Pair; readonly side: 0 | 1 }>();
  readonly #perNode = new Map<string, number>();
  readonly #asks = new Map<string, TokenBucket>();
  /** Bytes over legs that have ended, of nodes that are connected. */
  readonly #ended = new Map<string, number>();
  #bytes = 0;
  #refused = 0;

  constructor(options: LegRelayOptions) {
    this.#options = options;
  }

  /** An agent asks for legs to another one. A refusal is silent: the channel goes on. */
  ask(from: string, to: string): void {
    const { clock, send, refusal } = this.#options;
    let bucket = this.#asks.get(from);
    if (!bucket) this.#asks.set(from, bucket = new TokenBucket(ASK_BURST, ASKS_PER_SECOND, clock.now()));
    if (!bucket.take(clock.now()) || from === to || refusal(from, to) !== undefined) return;
    if (this.#pairs.size >= MAX_PAIRS || [from, to].some((n) => (this.#perNode.get(n) ?? 0) >= MAX_PER_NODE)) return;
    const ticket = () => randomBytes(TICKET_BYTES).toString("hex");
    const pair: Pair = {
      nodes: [from, to],
      tickets: [ticket(), ticket()],
      streams: [undefined, undefined],
      cancel: clock.timer(TICKET_MS, () => this.#drop(pair)),
      joined: undefined,
    };
    this.#pairs.add(pair);
    for (const side of [0, 1] as const) {
      this.#tickets.set(pair.tickets[side], { pair, side });
      const node = pair.nodes[side];
      this.#perNode.set(node, (this.#perNode.get(node) ?? 0) + 1);
    }
    send(from, { type: "leg", peer: to, ticket: pair.tickets[0], client: true });
    send(to, { type: "leg", peer: from, ticket: pair.tickets[1], client: false });
  }

  /** A connection whose first bytes are those of a leg; it has its ticket within the door's deadline, or none. */
  arrived(stream: MeshStream, done: () => void): void {
    const head = new Uint8Array(LEG_HEAD);
    let have = 0;
    const read = () => {
      while (have < LEG_HEAD) {
        const n = stream.read(head.subarray(have));
        if (n === WOULD_BLOCK) return;
        if (n === 0) return refuse();
        have += n;
      }
      done();
      this.#admit(stream, ticketOf(head));
    };
    const refuse = () => {
      done();
      this.#refused++;
      stream.reset("NOT_ALLOWED");
    };
    stream.handler = { ...idleHandler, onReadable: read, onClose: done };
    read();
  }

  /** A node may not use this server any more, or left it on purpose: its legs end. */
  cut(node: string): void {
    for (const pair of [...this.#pairs]) if (pair.nodes.includes(node)) this.#drop(pair);
    this.gone(node);
  }

  /** A node is not connected any more: what it asks and moves is counted anew; its legs go on without us. */
  gone(node: string): void {
    this.#asks.delete(node);
    this.#ended.delete(node);
  }

  /** Bytes over the legs of a node, in both directions. */
  bytesOf(node: string): number {
    let bytes = this.#ended.get(node) ?? 0;
    for (const pair of this.#pairs) if (pair.nodes.includes(node)) bytes += pair.joined?.bytes ?? 0;
    return bytes;
  }

  stats(): LegRelayStats {
    let [joined, bytes] = [0, this.#bytes];
    for (const pair of this.#pairs) {
      if (!pair.joined) continue;
      joined++;
      bytes += pair.joined.bytes;
    }
    return { joined, waiting: this.#pairs.size - joined, bytes, refused: this.#refused };
  }

  close(): void {
    for (const pair of [...this.#pairs]) this.#drop(pair);
    this.#asks.clear();
    this.#ended.clear();
  }

  #admit(stream: MeshStream, ticket: string | undefined): void {
    const place = ticket === undefined ? undefined : this.#tickets.get(ticket);
    if (ticket === undefined || place === undefined) {
      this.#refused++;
      return stream.reset("NOT_ALLOWED");
    }
    this.#tickets.delete(ticket);
    const { pair, side } = place;
    pair.streams[side] = stream;
    const [a, b] = pair.streams;
    // What it sends meanwhile stays in the kernel: nothing is read before both are there.
    if (a === undefined || b === undefined) {
      stream.handler = { ...idleHandler, onClose: () => this.#drop(pair) };
      return;
    }
    pair.cancel();
    const [from, to] = pair.nodes;
    this.#options.log.debug("relay legs joined", { from, to });
    pair.joined = this.#options.join(a, b, (bytes) => {
      this.#count(pair, bytes);
      pair.joined = undefined;
      pair.streams[0] = pair.streams[1] = undefined;
      this.#drop(pair);
    });
  }

  #drop(pair: Pair): void {
    if (!this.#pairs.delete(pair)) return;
    pair.cancel();
    for (const side of [0, 1] as const) {
      this.#tickets.delete(pair.tickets[side]);
      const node = pair.nodes[side];
      const left = this.#perNode.get(node)! - 1;
      if (left === 0) this.#perNode.delete(node);
      else this.#perNode.set(node, left);
    }
    if (pair.joined) {
      this.#count(pair, pair.joined.bytes);
      pair.joined.reset();
    } else for (const stream of pair.streams) stream?.reset("SHUTDOWN");
  }

  #count(pair: Pair, bytes: number): void {
    this.#bytes += bytes;
    for (const node of pair.nodes) {
      // Only of nodes that are connected: those of all others would grow without end.
      if (this.#options.online(node)) this.#ended.set(node, (this.#ended.get(node) ?? 0) + bytes);
    }
  }
}
