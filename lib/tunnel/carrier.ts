/**
 * A carrier moves batches of session frames between two agents that have already proven who they are to each other.
 * What is below it (a LAN connection, a punched one, a channel through the server) and how it encrypts is not the
 * session's business; what is inside the batches is not the carrier's. Implementations live in carriers/.
 */
import type { ReasonCode } from "../errors.ts";

/** How two agents are connected at the moment. */
export type PathKind = "lan" | "direct" | "relay";

/** Who is at the other end, as proven by mutual TLS. */
export interface PeerIdentity {
  /** Node name from the certificate's URI. */
  readonly node: string;
  /** SHA-256 of the certificate's public key (SPKI), hex: what is pinned on first use. */
  readonly keyHash: string;
}

export interface CarrierHandler {
  /** One batch, in order. `batch` is valid during the call only. */
  onBatch(batch: Uint8Array): void;
  /** {@link Carrier.send} may be called again. */
  onDrain(): void;
  /** The carrier is gone; nothing else comes. `undefined`: closed on purpose by either side. */
  onClose(reason: ReasonCode | undefined): void;
}

/** Most bytes a batch may hold. One batch is one WebSocket message; four TLS records at most. */
export const MAX_BATCH = 65536;

export interface Carrier {
  readonly peer: PeerIdentity;
  readonly path: PathKind;
  /** Set by the session before anything is delivered; batches that came earlier wait (at most {@link MAX_BATCH} × 4). */
  handler: CarrierHandler;
  /**
   * Sends one batch of at most {@link MAX_BATCH} bytes. The bytes are copied or sealed before the call returns.
   * False: stop until `onDrain`; the batch given was taken all the same.
   */
  send(batch: Uint8Array): boolean;
  /** Ends the carrier; `onClose` is not called on this side. */
  close(reason: ReasonCode): void;
}
