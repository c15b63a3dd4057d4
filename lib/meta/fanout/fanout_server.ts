/**
 * The server's side of metadata fan-out: feeds every connected agent from one state. The first change after a quiet
 * time goes out at once, later ones at most every {@link COALESCE_MS} per agent, whatever their number.
 */
import type { Clock } from "../../clock.ts";
import { FanoutFeed } from "./fanout_feed.ts";
import type { SessionInfo } from "./fanout_session.ts";
import { FanoutSession } from "./fanout_session.ts";
import type { Scope } from "./scope.ts";
import { FULL_SCOPE, ScopeFilter } from "./scope.ts";
import type { ChangeSet, Snapshot } from "../store/snapshot.ts";
import type { MetaStore } from "../store/store.ts";
import { COALESCE_MS } from "./wire.ts";

const NO_CHANGES: ChangeSet = { changed: new Map(), services: new Set(), becameSynced: false };
/**
 * Updates begun per second, for all agents together. What an update costs is mostly its message (encryption, framing, a
 * system call, the acknowledgement), not what is in it: a thousand agents at ten updates a second took 79 % of a core
 * for a p99 of 555 ms, at four they are told sooner by a server that has time.
 */
const MAX_UPDATES_PER_SECOND = 4000;
/** Encoded complete states are let go of when nobody connected for this long. */
const IMAGE_IDLE_MS = 30_000;

export interface FanoutServerOptions {
  readonly clock: Clock;
  /** Identity of this server, stable over restarts: who counts. */
  readonly source: string;
  /** Changes with every start, because numbers begin anew; default random. */
  readonly epoch?: string;
}

export interface AgentConnection {
  /** A message of the agent. Throws MeshError PROTOCOL or VERSION: close the connection then. */
  receive(bytes: Uint8Array): void;
  /** The transport can take messages again. */
  writable(): void;
  /** The connection is gone. */
  close(): void;
  info(): SessionInfo;
}

export interface AgentPeer {
  /** Name of the agent's node, as its certificate says. */
  readonly node: string;
  readonly scope?: Scope;
  /** Takes one message; false: no more until {@link AgentConnection.writable} is called. */
  send(message: Uint8Array): boolean;
}

export class FanoutServer {
  readonly source: string;
  readonly epoch: string;
  readonly #clock: Clock;
  readonly #feed = new FanoutFeed();
  readonly #connections = new Set<Connection>();
  #timer: { readonly at: number; readonly cancel: () => void } | undefined;
  #imageTimer: (() => void) | undefined;

  constructor(options: FanoutServerOptions) {
    this.#clock = options.clock;
    this.source = options.source;
    this.epoch = options.epoch ?? crypto.randomUUID().replaceAll("-", "").slice(0, 16);
  }

  /** Serves a store from now on. Returns the end of it. */
  follow(store: MetaStore): () => void {
    this.#feed.advance(store.snapshot, NO_CHANGES);
    return store.subscribe((snapshot, changes) => this.publish(snapshot, changes));
  }

  /** The state to serve changed. */
  publish(snapshot: Snapshot, changes: ChangeSet): void {
    this.#feed.advance(snapshot, changes);
    this.#pumpAll();
  }

  /** An agent connected; it speaks first. */
  connect(peer: AgentPeer): AgentConnection {
    const filter = new ScopeFilter(peer.scope ?? FULL_SCOPE);
    const session = new FanoutSession(this.#feed, this, { node: peer.node, filter });
    const connection = new Connection(session, peer);
    this.#connections.add(connection);
    this.#imageTimer?.();
    this.#imageTimer = this.#clock.timer(IMAGE_IDLE_MS, () => this.#feed.dropImages());
    return {
      receive: (bytes) => {
        session.receive(bytes);
        this.#pump(connection);
        this.#armFor(connection);
      },
      writable: () => {
        connection.blocked = false;
        this.#pump(connection);
        this.#armFor(connection);
      },
      close: () => void this.#connections.delete(connection),
      info: () => session.info(),
    };
  }

  /** Connected agents and how far each is. */
  sessions(): SessionInfo[] {
    return [...this.#connections].map((c) => c.session.info());
  }

  /** {@link COALESCE_MS}, stretched where there are many agents. */
  get coalesceMs(): number {
    return Math.max(COALESCE_MS, this.#connections.size * 1000 / MAX_UPDATES_PER_SECOND);
  }

  /** Number of the current state. */
  get number(): number {
    return this.#feed.number;
  }

  /** Stops timers; connections are the caller's to close. */
  stop(): void {
    this.#timer?.cancel();
    this.#timer = undefined;
    this.#imageTimer?.();
    this.#imageTimer = undefined;
    this.#connections.clear();
  }

  #pumpAll(): void {
    let at = Infinity;
    for (const connection of this.#connections) {
      this.#pump(connection);
      if (!connection.blocked) at = Math.min(at, connection.session.wakeAt() ?? Infinity);
    }
    this.#armAt(at);
  }

  #pump(connection: Connection): void {
    const now = this.#clock.now();
    while (!connection.blocked) {
      const message = connection.session.next(now);
      if (!message) return;
      if (!connection.peer.send(message)) connection.blocked = true;
    }
  }

  #armFor(connection: Connection): void {
    if (!connection.blocked) this.#armAt(connection.session.wakeAt() ?? Infinity);
  }

  /** One timer for all: it only ever moves earlier, and when it fires everyone is looked at once. */
  #armAt(at: number): void {
    if (at === Infinity || (this.#timer && this.#timer.at <= at)) return;
    this.#timer?.cancel();
    const cancel = this.#clock.timer(Math.max(0, at - this.#clock.now()), () => {
      this.#timer = undefined;
      this.#pumpAll();
    });
    this.#timer = { at, cancel };
  }
}

class Connection {
  readonly session: FanoutSession;
  readonly peer: AgentPeer;
  blocked = false;

  constructor(session: FanoutSession, peer: AgentPeer) {
    this.session = session;
    this.peer = peer;
  }
}
