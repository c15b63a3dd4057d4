/** The connections the agent carries now: caps, idle policy, and the end of all of them. */
import type { CancelTimer, Clock } from "../clock.ts";
import type { ReasonCode } from "../errors.ts";

/** A connection in any stage. */
export interface Tracked {
  /** Bytes so far, both ways: what shows that a connection is in use. */
  readonly bytes: number;
  readonly halfClosed: boolean;
  /** Its own limit instead of the policy's `idleMs`; datagram flows have no other end. */
  readonly idleMs?: number;
  reset(code: ReasonCode): void;
  /** For who asks what is open; undefined while it has no endpoint yet. */
  seen?(): SeenConnection | undefined;
}

/** One open connection, or UDP flow, for people. */
export interface SeenConnection {
  /** The client's address, or the node it came from through the tunnel. */
  readonly client: string;
  /** `namespace/service:port`. */
  readonly service: string;
  readonly protocol: "TCP" | "UDP";
  readonly endpoint: string;
  /** Node of the endpoint, where it has one. */
  readonly node?: string;
  readonly way: "kernel" | "proxy" | "tunnel" | "inbound";
  readonly ageSeconds: number;
  /** Towards the endpoint, and back. */
  readonly bytesOut: number;
  readonly bytesIn: number;
}

export interface IdlePolicy {
  /** A connection without a byte for so long is reset; 0 = never, as on the kernel way. */
  readonly idleMs: number;
  /** The same once one side has ended: such a connection is usually a leftover. */
  readonly halfClosedMs: number;
}

/** conntrack gives half-closed connections two minutes; this is for programs that answer after long work. */
export const DEFAULT_IDLE: IdlePolicy = { idleMs: 0, halfClosedMs: 600_000 };

/** How often idle connections are looked for: limits are met within this much. */
const SWEEP_MS = 5_000;

/** What the last look at a connection saw; of those that may stand idle for ever nothing is kept. */
interface Seen {
  bytes: number;
  since: number;
}

/** Who is told when the last place is taken and when one is free again. */
export interface Watcher {
  full(): void;
  room(): void;
}

export class Connections {
  watcher: Watcher | undefined;
  readonly #clock: Clock;
  readonly #max: number;
  readonly #idle: IdlePolicy;
  readonly #all = new Set<Tracked>();
  readonly #seen = new Map<Tracked, Seen>();
  #closed = false;
  #cancel: CancelTimer | undefined;

  constructor(clock: Clock, max: number, idle: IdlePolicy = DEFAULT_IDLE) {
    this.#clock = clock;
    this.#max = max;
    this.#idle = idle;
  }

  get size(): number {
    return this.#all.size;
  }

  get full(): boolean {
    return this.#all.size >= this.#max;
  }

  /** From now on it is swept; after {@link close} it is reset at once. */
  add(connection: Tracked): void {
    if (this.#closed) return connection.reset("SHUTDOWN");
    this.#all.add(connection);
    if (this.#all.size === this.#max) this.watcher?.full();
    this.#cancel ??= this.#clock.timer(SWEEP_MS, this.#sweep);
  }

  delete(connection: Tracked): void {
    const wasFull = this.full;
    this.#all.delete(connection);
    this.#seen.delete(connection);
    if (wasFull && !this.full) this.watcher?.room();
  }

  /** The connections there are now. */
  values(): Iterable<Tracked> {
    return this.#all;
  }

  /** Those that are open, the oldest first, at most `max`. */
  seen(max: number): SeenConnection[] {
    const out: SeenConnection[] = [];
    for (const connection of this.#all) {
      if (out.length >= max) break;
      const seen = connection.seen?.();
      if (seen) out.push(seen);
    }
    return out;
  }

  close(code: ReasonCode): void {
    this.#closed = true;
    this.watcher = undefined;
    this.#cancel?.();
    this.#cancel = undefined;
    for (const connection of [...this.#all]) connection.reset(code);
    this.#all.clear();
    this.#seen.clear();
  }

  readonly #sweep = () => {
    const now = this.#clock.now();
    for (const connection of this.#all) {
      const limit = connection.halfClosed ? this.#idle.halfClosedMs : connection.idleMs ?? this.#idle.idleMs;
      const seen = this.#seen.get(connection);
      if (limit === 0) {
        if (seen) this.#seen.delete(connection);
      } else if (!seen) this.#seen.set(connection, { bytes: connection.bytes, since: now });
      else if (connection.bytes !== seen.bytes) {
        seen.bytes = connection.bytes;
        seen.since = now;
      } else if (now - seen.since >= limit) connection.reset("TIMEOUT");
    }
    this.#cancel = this.#all.size > 0 ? this.#clock.timer(SWEEP_MS, this.#sweep) : undefined;
  };
}
