/**
 * What turns a leg (a byte pipe between two agents) into a {@link Carrier}. Engines differ in whose TLS they use and
 * in what they take as a leg; on the wire they are the same, and each passes tests/contract/carrier_contract.ts.
 */
import { MeshError } from "../../errors.ts";
import type { Carrier, PathKind, PeerIdentity } from "../carrier.ts";

/** ALPN name of the carrier protocol; its number is the protocol's major version. */
export const CARRIER_ALPN = "edgemesh/1";

/** Time from having a leg to having a verified peer. Two round trips of a satellite link fit in several times over. */
export const HANDSHAKE_MS = 5000;

/** Our own side of mutual TLS, PEM. Read at each handshake, because renewal replaces it while the agent runs. */
export interface TlsCredentials {
  /** Our certificate, and intermediates if there are any. */
  readonly cert: string;
  readonly key: string;
  /** Certificates of the authority; sent nowhere, it only keeps the TLS library from loading the public ones. */
  readonly ca: string;
}

export interface EngineOptions {
  credentials(): TlsCredentials;
  /**
   * The one authority on who may connect: the peer's certificates in DER, its own first, and the node that is meant
   * (undefined: any) → identity. Throws MeshError CERT_UNTRUSTED, CERT_EXPIRED, REVOKED or NODE_KEY_MISMATCH. Runs
   * before the first byte of the peer is used. That the peer holds the certificate's key is what the handshake proves.
   */
  verify(chain: readonly Uint8Array[], expected: string | undefined): PeerIdentity;
}

/**
 * Who is at the other end of a finished handshake. Throws what {@link EngineOptions.verify} throws, and CERT_UNTRUSTED
 * for a peer that showed nothing or is not the one that was asked for.
 */
export function provenPeer(
  { verify }: Pick<EngineOptions, "verify">,
  chain: readonly Uint8Array[],
  expected: string | undefined,
): PeerIdentity {
  if (chain.length === 0) throw new MeshError("CERT_UNTRUSTED", "The peer showed no certificate");
  const peer = verify(chain, expected);
  if (expected !== undefined && peer.node !== expected) {
    throw new MeshError("CERT_UNTRUSTED", `Asked for node ${expected}, but ${peer.node} answered`);
  }
  return peer;
}

export interface CarrierEngine<Leg> {
  /** What `status` calls it. */
  readonly name: "portable" | "fast";
  /** Does now what the first handshake would have to wait for. */
  warm?(): void;
  /**
   * Handshake as the side that asked for the connection. The engine owns `leg` from now on. Rejects with MeshError:
   * the verifier's code, CERT_UNTRUSTED when it is a peer other than `peer`, TIMEOUT, PROTOCOL, PEER_GONE, or the
   * reason the leg itself gave.
   */
  connect(leg: Leg, options: { readonly peer: string; readonly path: PathKind }): Promise<Carrier>;
  /** Handshake as the side that was asked; any peer the verifier lets in is welcome. */
  accept(leg: Leg, options: { readonly path: PathKind }): Promise<Carrier>;
}
