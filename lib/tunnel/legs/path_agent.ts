/** Where the manager gets carriers from: the relay (relay_path.ts), or all ways in a race (path/paths.ts). */
import type { MeshError } from "../../errors.ts";
import type { Carrier, PathKind } from "../carrier.ts";
import type { PeerStateKind } from "../peer/peer_types.ts";

export interface PathSink {
  /** A way is open: may come several times, better ways later. The manager owns the carrier from now on. */
  onCarrier(carrier: Carrier): void;
  /** Nothing works now, and why. Comes at most once, and last. */
  onFailed(error: MeshError): void;
  /** Something worth remembering in the peer's ring of path events. */
  onNote(path: PathKind, note: string): void;
}

export interface PathAttempt {
  /** Nobody waits any more. Nothing is told afterwards; a carrier that is being made is closed. */
  cancel(): void;
  /** A server or the peer came back: parts of the search that had failed may work now. */
  again?(): void;
}

export interface PathAgent {
  /** Starts making carriers to a node. The sink is never called from inside this call. */
  connect(peer: string, sink: PathSink): PathAttempt;
  /**
   * The session with a peer has entered a state, on this path if it is up: what looks for better paths goes by it. Must
   * not call back from inside.
   */
  onState?(peer: string, state: PeerStateKind, path: PathKind | undefined): void;
  /** The path in use may be dead: another one may get ready, and is used if `still` says so by then. */
  onSilent?(peer: string, path: PathKind, still: () => boolean): void;
}
