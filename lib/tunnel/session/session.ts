/**
 * The session with one peer: streams and flows over whatever carrier there is at the moment. A thin shell that gives
 * the core (session_core.ts) its carriers, its clock and its turns. Protocol: PROTOCOL.md.
 */
import type { Clock } from "../../clock.ts";
import { MeshError, type ReasonCode } from "../../errors.ts";
import type { DatagramFlow, FlowHandler, MeshStream, ServiceTarget, StreamHandler } from "../../net.ts";
import { VERSION } from "../../version.ts";
import type { Carrier, PeerIdentity } from "../carrier.ts";
import { DEFAULT_LIMITS, type SessionLimits } from "../constants.ts";
import { SessionCore } from "./session_core.ts";
import type { SessionEvents, SessionRole, SessionState, SessionStats } from "./session_types.ts";

export interface SessionOptions {
  /** Opposite on both sides: see `roleOf`. */
  readonly role: SessionRole;
  readonly peer: PeerIdentity;
  readonly clock: Clock;
  readonly events: SessionEvents;
  /** Our own node's name: becomes the node of incoming targets. */
  readonly node?: string;
  readonly limits?: Partial<SessionLimits>;
  /** Runs a task soon, after the code that is running now; queueMicrotask where there is no better moment. */
  readonly later?: (task: () => void) => void;
  /** Number of this session object; random unless a test wants to know it. */
  readonly instance?: number;
}

export class Session {
  readonly peer: PeerIdentity;
  readonly role: SessionRole;
  readonly #core: SessionCore;
  readonly #clock: Clock;
  #cancel: (() => void) | undefined;
  #armedFor = Infinity;

  constructor(options: SessionOptions) {
    const { clock, later = queueMicrotask } = options;
    this.peer = options.peer;
    this.role = options.role;
    this.#clock = clock;
    const flush = () => {
      this.#core.flush();
      this.#arm();
    };
    this.#core = new SessionCore({
      initiator: options.role === "initiator",
      peer: options.peer,
      node: options.node,
      instance: options.instance ?? randomInstance(),
      build: `edgemesh/${VERSION}`,
      limits: { ...DEFAULT_LIMITS, ...options.limits },
      events: options.events,
      now: () => clock.now(),
      later: () => later(flush),
    });
    this.#arm();
  }

  get state(): SessionState {
    return this.#core.state;
  }

  /** The carrier in use; undefined while there is none. */
  get carrier(): Carrier | undefined {
    return this.#core.active;
  }

  /**
   * Hands over a carrier to the peer. The session uses it as soon as both sides have said HELLO on it, and then closes
   * the one before; `onUp` tells when. Throws MeshError CERT_UNTRUSTED if the carrier leads to somebody else.
   */
  attach(carrier: Carrier): void {
    if (carrier.peer.node !== this.peer.node || carrier.peer.keyHash !== this.peer.keyHash) {
      carrier.close("CERT_UNTRUSTED");
      throw new MeshError(
        "CERT_UNTRUSTED",
        `A carrier to ${carrier.peer.node} was given to the session with ${this.peer.node}`,
      );
    }
    const link = this.#core.attach(carrier);
    if (link === undefined) return;
    carrier.handler = {
      onBatch: (batch) => {
        this.#core.read(link, batch);
        this.#arm();
      },
      onDrain: () => {
        this.#core.drained(link);
        this.#arm();
      },
      onClose: (reason) => {
        this.#core.ended(link, reason);
        this.#arm();
      },
    };
    this.#arm();
  }

  /**
   * Opens a stream to an endpoint at the peer, also while no carrier is up: it then waits, at most `holdMs`. `first`
   * travels with the request (up to 16 KiB without waiting for the answer). Over a limit: `onClose("LIMIT")`.
   */
  openStream(target: ServiceTarget, first: Uint8Array | undefined, handler: StreamHandler): MeshStream {
    return this.#core.openStream(target, first, handler);
  }

  /** Opens a flow of datagrams to an endpoint at the peer. */
  openFlow(target: ServiceTarget, handler: FlowHandler): DatagramFlow {
    return this.#core.openFlow(target, handler);
  }

  /** Milliseconds to the peer and back, through everything that is queued. Rejects with PEER_GONE without a carrier. */
  ping(): Promise<number> {
    return new Promise((resolve, reject) => {
      this.#core.ping((rttMs) => {
        if (rttMs !== undefined) resolve(rttMs);
        else reject(new MeshError("PEER_GONE", `No carrier to ${this.peer.node} answered the ping`));
      });
    });
  }

  /** No new streams and flows in either direction; those that are open go on. */
  drain(reason: ReasonCode = "SHUTDOWN"): void {
    this.#core.drain(reason);
  }

  /** Ends the session and everything in it; the peer is told. `onClosed` follows. */
  close(reason: ReasonCode): void {
    this.#core.close(reason);
    this.#arm();
  }

  stats(): SessionStats {
    return this.#core.stats();
  }

  /** Keeps one timer, for the earliest thing that is due. */
  #arm(): void {
    const at = this.#core.deadline;
    if (at === this.#armedFor || (at > this.#armedFor && at !== Infinity)) return;
    this.#cancel?.();
    this.#cancel = undefined;
    this.#armedFor = at;
    if (at === Infinity) return;
    this.#cancel = this.#clock.timer(Math.max(0, at - this.#clock.now()), () => {
      this.#armedFor = Infinity;
      this.#cancel = undefined;
      this.#core.tick();
      this.#arm();
    });
  }
}

/** 1 to 2^53 − 1. */
function randomInstance(): number {
  const words = crypto.getRandomValues(new Uint32Array(2));
  return (words[0]! & 0x1fffff) * 0x1_0000_0000 + words[1]! || 1;
}
