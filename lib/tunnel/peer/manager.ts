/**
 * All other agents: hands streams and flows to the session with the right one, takes carriers from whoever makes them,
 * and ends what must not go on. The tunnel's half of {@link Dialer} and {@link DatagramDialer}.
 */
import type { CancelTimer, Clock } from "../../clock.ts";
import { MeshError, type ReasonCode } from "../../errors.ts";
import type { Logger } from "../../log.ts";
import type { DatagramDialer, DatagramFlow, Dialer, FlowHandler, MeshStream, ServiceTarget } from "../../net.ts";
import type { StreamHandler } from "../../net.ts";
import type { Carrier, PathKind, PeerIdentity } from "../carrier.ts";
import { deadFlow, deadStream } from "./dead.ts";
import type { PathAgent } from "../legs/path_agent.ts";
import { ESTABLISH_MS, Peer } from "./peer.ts";
import type { PeerOptions, PeerSession, PeerStatus, SessionParts } from "./peer_types.ts";
import { Session } from "../session/session.ts";
import type { SessionEvents } from "../session/session_types.ts";

/** A session that nothing used for so long is closed: its memory is worth more than one round trip. */
export const IDLE_MS = 5 * 60_000;
/** How often idle sessions are looked for. */
const SWEEP_MS = 30_000;
/** Sessions at once; a peer that comes beyond is told LIMIT. */
const MAX_SESSIONS = 1024;
/** Peers without a session that are still remembered for `status`. */
const MAX_IDLE_PEERS = 256;

export interface TunnelManagerOptions {
  /** Our own node name. */
  readonly node: string;
  readonly clock: Clock;
  readonly log: Logger;
  readonly paths: PathAgent;
  /** Numbers from 0 to 1, for the jitter of retries. */
  random(): number;
  /** Makes the session with a peer; replaced in tests. */
  readonly makeSession?: (parts: SessionParts) => PeerSession;
  /** A peer opened a stream or flow: whoever takes it authorises and dials. */
  readonly onStream: SessionEvents["onStream"];
  readonly onFlow: SessionEvents["onFlow"];
  readonly establishMs?: number;
  readonly idleMs?: number;
  /** See SessionOptions. */
  readonly later?: (task: () => void) => void;
}

export interface TunnelStatus {
  readonly peers: readonly PeerStatus[];
  readonly sessions: number;
}

export class TunnelManager implements Dialer, DatagramDialer {
  readonly #options: TunnelManagerOptions;
  /** In order of their last use, so that the one that is forgotten first is the one nobody asked for longest. */
  readonly #peers = new Map<string, Peer>();
  #cancelSweep: CancelTimer | undefined;
  #closed = false;

  constructor(options: TunnelManagerOptions) {
    this.#options = options;
    this.#sweepLater();
  }

  /**
   * Starts a stream to an endpoint on another node, making the way there first where needed. `onClose` of a dial that
   * cannot be: SERVER_UNREACHABLE, PEER_OFFLINE, UNKNOWN_NODE, CERT_UNTRUSTED, CERT_EXPIRED, REVOKED, TIMEOUT, LIMIT, or
   * whatever the other agent answers.
   */
  dial(target: ServiceTarget, first: Uint8Array | undefined, handler: StreamHandler): MeshStream {
    const peer = this.#peerOf(target);
    return peer instanceof MeshError ? deadStream(peer.code, handler) : peer.openStream(target, first, handler);
  }

  openFlow(target: ServiceTarget, handler: FlowHandler): DatagramFlow {
    const peer = this.#peerOf(target);
    return peer instanceof MeshError ? deadFlow(peer.code, handler) : peer.openFlow(target, handler);
  }

  /** Takes a carrier that a peer made to us. */
  accept(carrier: Carrier): void {
    const { node } = carrier.peer;
    if (this.#closed) return carrier.close("SHUTDOWN");
    if (node === this.#options.node) return carrier.close("NOT_ALLOWED");
    const known = this.#peers.get(node);
    if ((known === undefined || known.state === "idle") && this.#sessions >= MAX_SESSIONS) {
      return carrier.close("LIMIT");
    }
    this.#peer(node).attach(carrier);
  }

  /** Measures the way to a node, making it first where needed. Rejects with MeshError. */
  async ping(node: string): Promise<{ readonly rttMs: number; readonly path: PathKind }> {
    if (this.#closed || node === this.#options.node) {
      throw new MeshError("NOT_ALLOWED", `Cannot ping ${node} from here`);
    }
    return await this.#peer(node).ping();
  }

  /** Something worth remembering in a peer's ring of path events. */
  note(node: string, path: PathKind, text: string): void {
    this.#peers.get(node)?.note(path, text);
  }

  /** Nodes that can be reached again, as a server says: searches that wait for one go on at once. */
  reachable(nodes: readonly string[]): void {
    for (const node of nodes) this.#peers.get(node)?.hint();
  }

  /** The network changed or a server came back: every waiting search goes on at once. */
  retryNow(): void {
    for (const peer of this.#peers.values()) peer.hint();
  }

  /** Ends the sessions with peers that are not trusted any more; call it when revocations changed. */
  revoke(revoked: (peer: PeerIdentity) => boolean): void {
    for (const peer of this.#peers.values()) {
      const { identity } = peer;
      if (identity && peer.state !== "idle" && revoked(identity)) peer.close("REVOKED");
    }
  }

  /** The path of the session with a node; undefined while it has none. */
  pathTo(node: string): PathKind | undefined {
    return this.#peers.get(node)?.status().path;
  }

  status(): TunnelStatus {
    return { peers: [...this.#peers.values()].map((peer) => peer.status()), sessions: this.#sessions };
  }

  /** Ends every session. Nothing can be dialled afterwards. */
  close(reason: ReasonCode = "SHUTDOWN"): void {
    this.#closed = true;
    this.#cancelSweep?.();
    for (const peer of this.#peers.values()) peer.close(reason);
  }

  get #sessions(): number {
    let n = 0;
    for (const peer of this.#peers.values()) if (peer.state !== "idle") n++;
    return n;
  }

  #peerOf(target: ServiceTarget): Peer | MeshError {
    const { node } = target;
    if (this.#closed) return new MeshError("SHUTDOWN", "The tunnel is closed");
    // Endpoints without a node, and our own, are dialled here and never through the tunnel (design §5).
    if (node === undefined || node === this.#options.node) {
      return new MeshError("NOT_ALLOWED", `The tunnel does not lead to ${node ?? "endpoints outside the cluster"}`);
    }
    const known = this.#peers.get(node);
    if (known?.state === "up") return known;
    if ((known === undefined || known.state === "idle") && this.#sessions >= MAX_SESSIONS) {
      return new MeshError("LIMIT", `${MAX_SESSIONS} sessions are open already`);
    }
    return this.#peer(node);
  }

  #peer(node: string): Peer {
    const known = this.#peers.get(node);
    if (known) {
      this.#peers.delete(node);
      this.#peers.set(node, known);
      return known;
    }
    const { node: self, clock, log, paths, random, onStream, onFlow, establishMs, later } = this.#options;
    const options: PeerOptions = {
      self,
      node,
      clock,
      log,
      paths,
      random,
      makeSession: this.#options.makeSession ??
        ((parts) => new Session({ ...parts, clock, node: self, ...(later && { later }) })),
      onStream,
      onFlow,
      establishMs: establishMs ?? ESTABLISH_MS,
    };
    const peer = new Peer(options);
    this.#peers.set(node, peer);
    this.#forgetIdle();
    return peer;
  }

  #forgetIdle(): void {
    let idle = 0;
    for (const peer of this.#peers.values()) if (peer.state === "idle") idle++;
    for (const peer of this.#peers.values()) {
      if (idle <= MAX_IDLE_PEERS) return;
      if (peer.state !== "idle") continue;
      this.#peers.delete(peer.node);
      idle--;
    }
  }

  #sweepLater(): void {
    this.#cancelSweep = this.#options.clock.timer(SWEEP_MS, () => {
      const now = this.#options.clock.now();
      for (const peer of this.#peers.values()) peer.closeIfIdle(now, this.#options.idleMs ?? IDLE_MS);
      this.#sweepLater();
    });
  }
}
