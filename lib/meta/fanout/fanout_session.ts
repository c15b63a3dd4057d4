/**
 * One agent as the server sees it: a pure machine. Bytes and now in, the next message out when asked for. Nothing is
 * queued for a slow agent: what it misses is found again from the state it last had, so it costs one reference.
 */
import { assertNever, MeshError } from "../../errors.ts";
import type { FanoutFeed, StateImage } from "./fanout_feed.ts";
import type { MetaVersion } from "../model.ts";
import type { ScopeFilter } from "./scope.ts";
import type { Snapshot } from "../store/snapshot.ts";
import { broken, decodeMessage, encodeWelcome, META_PROTOCOL, WINDOW_MESSAGES } from "./wire.ts";

/** An update without objects, which only tells the new number, is sent this long after the last update. */
const NUMBER_ONLY_MS = 5000;

/** No update begins while this many messages are not acknowledged: one is under way while the next is made. */
const BEGIN_MESSAGES = 2;

type State =
  /** Waits for HELLO. */
  | { readonly name: "new" }
  /** Has HELLO; WELCOME is to be sent. */
  | { readonly name: "greeting"; readonly have: MetaVersion | undefined }
  /** Knows nothing we could build on. */
  | { readonly name: "empty" }
  /** At a known number; `sent` is the state it stands for, if this session sent it. */
  | {
    readonly name: "current";
    readonly number: number;
    readonly sent: Snapshot | undefined;
    /** Number up to which nothing concerned the agent, so nothing was sent. */
    readonly checked: number;
  }
  /** In the middle of a complete state. */
  | { readonly name: "image"; readonly image: StateImage; at: number; tail: Uint8Array[] | undefined }
  /** In the middle of a difference. */
  | {
    readonly name: "delta";
    readonly messages: readonly Uint8Array[];
    at: number;
    readonly to: number;
    readonly sent: Snapshot;
  };

export interface SessionInfo {
  readonly node: string;
  readonly state: State["name"];
  /** Number the agent has confirmed at least in part; undefined before its first update. */
  readonly number: number | undefined;
  readonly unacknowledged: number;
  readonly bytesSent: number;
  readonly updatesSent: number;
}

/** What a session tells of its server, and asks it. */
export interface FanoutIdentity {
  readonly source: string;
  readonly epoch: string;
  /** Shortest time between the beginnings of two updates to one agent, now. */
  readonly coalesceMs: number;
}

export class FanoutSession {
  readonly node: string;
  readonly #feed: FanoutFeed;
  readonly #server: FanoutIdentity;
  readonly #epoch: string;
  readonly #filter: ScopeFilter;
  #state: State = { name: "new" };
  #sentMessages = 0;
  #ackedMessages = 0;
  #earliest = -Infinity;
  #bytes = 0;
  #updates = 0;

  constructor(feed: FanoutFeed, server: FanoutIdentity, agent: { node: string; filter: ScopeFilter }) {
    this.#feed = feed;
    this.#server = server;
    // An agent whose scope was changed must not build on what it had under the old one.
    this.#epoch = agent.filter.key === "" ? server.epoch : `${server.epoch}:${digest(agent.filter.key)}`;
    this.node = agent.node;
    this.#filter = agent.filter;
  }

  /** Takes a message of the agent. Throws MeshError PROTOCOL when it breaks the rules: close the connection then. */
  receive(bytes: Uint8Array): void {
    const message = decodeMessage(bytes);
    if (!message) return;
    switch (message.type) {
      case "hello":
        if (this.#state.name !== "new") throw broken("a second HELLO");
        if (message.protocol < META_PROTOCOL) {
          throw new MeshError("VERSION", `Agent speaks metadata protocol ${message.protocol}, not ${META_PROTOCOL}`);
        }
        this.#state = { name: "greeting", have: message.have };
        return;
      case "ack": {
        const ahead = (message.messages - this.#ackedMessages) >>> 0;
        if (ahead > this.#sentMessages - this.#ackedMessages) throw broken("an acknowledgement of what was not sent");
        this.#ackedMessages += ahead;
        return;
      }
      case "welcome":
      case "unit":
        throw broken("a message only servers send");
      default:
        assertNever(message);
    }
  }

  /** The next message to send now; undefined when there is none or the agent must acknowledge first. */
  next(now: number): Uint8Array | undefined {
    const message = this.#next(now);
    if (message) this.#bytes += message.length;
    return message;
  }

  /**
   * When {@link next} may have something without another input: a time, or undefined when only a new state or a
   * message of the agent can change that.
   */
  wakeAt(): number | undefined {
    const state = this.#state;
    if (state.name !== "current" || state.number >= this.#feed.number || !this.#mayBegin()) return undefined;
    return state.checked < this.#feed.number ? this.#earliest : this.#earliest + NUMBER_ONLY_MS;
  }

  info(): SessionInfo {
    const state = this.#state;
    return {
      node: this.node,
      state: state.name,
      number: state.name === "current" ? state.number : undefined,
      unacknowledged: this.#sentMessages - this.#ackedMessages,
      bytesSent: this.#bytes,
      updatesSent: this.#updates,
    };
  }

  #next(now: number): Uint8Array | undefined {
    for (;;) {
      const state = this.#state;
      switch (state.name) {
        case "new":
          return undefined;
        case "greeting":
          // Before the server knows anything it cannot say whether the agent's state is still a base.
          if (!this.#feed.snapshot.synced) return undefined;
          this.#state = this.#resume(state.have);
          return encodeWelcome(this.#server.source, this.#epoch);
        case "empty":
          if (!this.#mayBegin()) return undefined;
          this.#begin(now);
          this.#state = { name: "image", image: this.#feed.image(this.#filter), at: 0, tail: undefined };
          continue;
        case "current":
          if (now < (this.wakeAt() ?? Infinity)) return undefined;
          this.#state = this.#advance(state, now);
          if (this.#state.name === "current") return undefined;
          continue;
        case "image": {
          if (!this.#windowOpen()) return undefined;
          const shared = state.tail ? undefined : state.image.message(state.at);
          if (shared) {
            state.at++;
            return this.#count(shared);
          }
          state.tail ??= state.image.tail(this.node);
          const message = state.tail.shift()!;
          if (state.tail.length === 0) {
            this.#state = current(state.image.number, state.image.snapshot);
          }
          return this.#count(message);
        }
        case "delta": {
          if (!this.#windowOpen()) return undefined;
          const message = state.messages[state.at++]!;
          if (state.at === state.messages.length) this.#state = current(state.to, state.sent);
          return this.#count(message);
        }
        default:
          assertNever(state);
      }
    }
  }

  /** Where an agent that says what it has goes on: only from our own source and epoch, and only if we remember. */
  #resume(have: MetaVersion | undefined): State {
    const ours = have && have.source === this.#server.source && have.epoch === this.#epoch;
    // By label, what the agent has cannot be told from the keys alone: it gets everything anew.
    if (!ours || this.#filter.byLabel || !this.#feed.covers(have.number)) return { name: "empty" };
    return current(have.number, undefined);
  }

  /** From a known number to the feed's. */
  #advance(state: State & { name: "current" }, now: number): State {
    if (!this.#feed.covers(state.number)) return { name: "empty" };
    const to = this.#feed.number;
    const { messages, items } = this.#feed.delta(state.number, state.sent, { filter: this.#filter, node: this.node });
    // Changes outside the agent's scope: it need not hear of each, only often enough to stay resumable.
    if (items === 0 && now < this.#earliest + NUMBER_ONLY_MS) return { ...state, checked: to };
    this.#begin(now);
    return { name: "delta", messages, at: 0, to, sent: this.#feed.snapshot };
  }

  #begin(now: number): void {
    this.#earliest = now + this.#server.coalesceMs;
    this.#updates++;
  }

  #windowOpen(): boolean {
    return this.#sentMessages - this.#ackedMessages < WINDOW_MESSAGES;
  }

  /**
   * Whether another update may begin. A busy agent, or a busy server, then gets fewer and larger updates instead of a
   * queue of small ones, and is up to date sooner.
   */
  #mayBegin(): boolean {
    return this.#sentMessages - this.#ackedMessages < BEGIN_MESSAGES;
  }

  #count(message: Uint8Array): Uint8Array {
    this.#sentMessages++;
    return message;
  }
}

function current(number: number, sent: Snapshot | undefined): State {
  return { name: "current", number, sent, checked: number };
}

function digest(text: string): string {
  let h = 0n;
  for (let i = 0; i < text.length; i++) h = BigInt.asUintN(64, (h ^ BigInt(text.charCodeAt(i))) * 0x100000001b3n + 1n);
  return h.toString(36);
}
