/** What a peer is given, what it needs of its session, and what it shows. */
import type { Clock } from "../../clock.ts";
import type { ReasonCode } from "../../errors.ts";
import type { Logger } from "../../log.ts";
import type { DatagramFlow, FlowHandler, MeshStream, ServiceTarget, StreamHandler } from "../../net.ts";
import type { Carrier, PathKind, PeerIdentity } from "../carrier.ts";
import type { PathAgent } from "../legs/path_agent.ts";
import type { PathEvent } from "./path_events.ts";
import type { SessionEvents, SessionRole, SessionStats } from "../session/session_types.ts";

/** What a peer needs of its session; implemented by Session. */
export interface PeerSession {
  attach(carrier: Carrier): void;
  openStream(target: ServiceTarget, first: Uint8Array | undefined, handler: StreamHandler): MeshStream;
  openFlow(target: ServiceTarget, handler: FlowHandler): DatagramFlow;
  ping(): Promise<number>;
  close(reason: ReasonCode): void;
  stats(): SessionStats;
}

export interface SessionParts {
  readonly role: SessionRole;
  readonly peer: PeerIdentity;
  readonly events: SessionEvents;
}

export interface PeerOptions {
  readonly self: string;
  readonly node: string;
  readonly clock: Clock;
  readonly log: Logger;
  readonly paths: PathAgent;
  readonly random: () => number;
  makeSession(parts: SessionParts): PeerSession;
  readonly onStream: SessionEvents["onStream"];
  readonly onFlow: SessionEvents["onFlow"];
  /** Milliseconds a dial waits for a way. */
  readonly establishMs: number;
}

export type PeerStateKind = "idle" | "connecting" | "up" | "down";

/** What `status` shows of one peer. */
export interface PeerStatus {
  readonly node: string;
  readonly state: PeerStateKind;
  readonly path: PathKind | undefined;
  /** Milliseconds in this state. */
  readonly sinceMs: number;
  readonly keyHash: string | undefined;
  /** End to end, over the active carrier. */
  readonly rttMs: number | undefined;
  readonly streams: number;
  readonly flows: number;
  /** Session bytes sent and received since the session began. */
  readonly bytesSent: number;
  readonly bytesReceived: number;
  readonly lastError: string | undefined;
  readonly events: readonly PathEvent[];
  /** Carriers that became ready, by path, since the peer is known: more than one of `direct` is an upgrade or its return. */
  readonly carriers: Readonly<Record<PathKind, number>>;
}
