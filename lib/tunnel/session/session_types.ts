/** What a session and its owner say to each other. */
import type { ReasonCode } from "../../errors.ts";
import type { DatagramFlow, FlowHandler, MeshStream, ServiceTarget, StreamHandler } from "../../net.ts";
import type { Carrier, PathKind, PeerIdentity } from "../carrier.ts";
import type { SessionLimits } from "../constants.ts";

/**
 * Which side opens odd stream ids and decides about carriers. Both sides must come to opposite answers before they
 * talk: {@link roleOf} does, whoever dialled.
 */
export type SessionRole = "initiator" | "acceptor";

/** The role of `local` towards `peer`: the node whose name sorts first (by code unit) is the initiator. */
export function roleOf(local: string, peer: string): SessionRole {
  return local < peer ? "initiator" : "acceptor";
}

/** `new`: no carrier was up yet. `down`: streams wait for a carrier. */
export type SessionState = "new" | "up" | "down" | "closed";

/** A stream the peer opened, before its owner took it. */
export interface IncomingStream {
  readonly target: ServiceTarget;
  readonly from: PeerIdentity;
  /** Takes the stream: `handler.onOpen` follows, then bytes that came early can be read. */
  accept(handler: StreamHandler): MeshStream;
  /** Refuses it: the opener's `onClose(code)` comes without `onOpen`. */
  refuse(code: ReasonCode): void;
}

/** A flow the peer opened, before its owner took it. */
export interface IncomingFlow {
  readonly target: ServiceTarget;
  readonly from: PeerIdentity;
  accept(handler: FlowHandler): DatagramFlow;
  refuse(code: ReasonCode): void;
}

/** What a session tells its owner. */
export interface SessionEvents {
  /** The peer opened a stream. Accept or refuse it now or later; until then it takes one of `maxPending` places. */
  onStream(incoming: IncomingStream): void;
  onFlow(incoming: IncomingFlow): void;
  /** `carrier` is the active one: the first, a better one, or one after an outage. */
  onUp(carrier: Carrier): void;
  /** No carrier is left; streams wait for the next `attach`, at most `holdMs`. */
  onDown(reason: ReasonCode): void;
  /** The end: nothing comes after it. `detail` says what broke, for the log. */
  onClosed(reason: ReasonCode, detail: string | undefined): void;
  /** A carrier closed without our doing, active or not: an upgrade that failed is seen only here. */
  onCarrierLost?(carrier: Carrier, reason: ReasonCode | undefined): void;
  /**
   * The active carrier owes an answer and delivers nothing: it may be dead, which is certain seconds later only. `still`
   * says whether that has not changed.
   */
  onSilent?(still: () => boolean): void;
  /** The peer will take no new streams (it stops, or closes after GOAWAY). */
  onDraining?(reason: ReasonCode): void;
  /** An owner threw in a callback; its stream was reset. Without this the error is thrown at the end of the event. */
  onFault?(error: unknown): void;
}

export interface SessionStats {
  readonly state: SessionState;
  readonly path: PathKind | undefined;
  /** Number of the active carrier, and how many were active so far. */
  readonly generation: number;
  readonly switches: number;
  /** Smoothed round trip on the active carrier, milliseconds. */
  readonly rttMs: number | undefined;
  /** Build text of the peer. */
  readonly peerBuild: string | undefined;
  /** Streams that hold anything, flows, table entries, streams waiting for room. */
  readonly streams: number;
  readonly flows: number;
  readonly entries: number;
  readonly waiting: number;
  /** Counted bytes written, acknowledged, received, and received twice after a change of carrier. */
  readonly written: number;
  readonly acked: number;
  readonly received: number;
  readonly repeated: number;
  /** Batches and bytes given to carriers. */
  readonly batches: number;
  readonly bytes: number;
  /** Memory kept for resending, bytes unread by slow readers, window bytes not given out. */
  readonly retained: number;
  readonly unread: number;
  readonly windowFree: number;
  readonly datagramsSent: number;
  readonly datagramsDropped: number;
}

/** Told to the waiter of a ping: milliseconds, or undefined when there was no carrier to answer it. */
export type PingDone = (rttMs: number | undefined) => void;

/** What the core needs of its shell. */
export interface CoreOptions {
  readonly initiator: boolean;
  readonly peer: PeerIdentity;
  /** Our own node: where targets of incoming OPENs are. */
  readonly node: string | undefined;
  /** Random, 1 ≤ instance < 2^53. */
  readonly instance: number;
  readonly build: string;
  readonly limits: SessionLimits;
  readonly events: SessionEvents;
  /** Milliseconds, monotonic. */
  now(): number;
  /** Call `flush` of the core soon, not from inside this call. */
  later(): void;
}
