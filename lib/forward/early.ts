/**
 * What a client says before its endpoint on another node has answered: it travels with the request, which spares a
 * round trip, and is kept until then, so that another endpoint can get it when this one cannot be had.
 */
import type { ReasonCode } from "../errors.ts";
import { type MeshStream, WOULD_BLOCK } from "../net.ts";

/** Bytes that are taken: what a peer accepts unasked on a new stream (lib/tunnel/PROTOCOL.md §4); most requests fit. */
export const MAX_EARLY_BYTES = 16_384;

/**
 * Failures of a dial after which no endpoint has seen a byte: the peer said so before it connected, or the request never
 * left. All others leave it open, and then the bytes go to nobody else: a request must not be carried out twice.
 */
const UNSEEN: ReadonlySet<ReasonCode> = new Set<ReasonCode>([
  "DIAL_REFUSED",
  "DIAL_TIMEOUT",
  "DIAL_UNREACHABLE",
  "NO_SERVICE",
  "NOT_ALLOWED",
  "NOT_SYNCED",
  "ENDPOINT_REMOVED",
  "LIMIT",
  "PEER_OFFLINE",
  "UNKNOWN_NODE",
  "SERVER_UNREACHABLE",
  "CERT_UNTRUSTED",
  "CERT_EXPIRED",
]);

/** Whether early bytes may go to another endpoint after a dial that failed for this reason, as the peer gave it. */
export function unseen(reason: ReasonCode): boolean {
  return UNSEEN.has(reason);
}

export class EarlyBytes {
  #bytes: Uint8Array | undefined;
  #sent = 0;

  /** `bytes`: what was read of the client before any endpoint was dialled. */
  constructor(bytes?: Uint8Array) {
    this.#bytes = bytes;
  }

  /** All that was taken from the client. */
  get bytes(): Uint8Array | undefined {
    return this.#bytes;
  }

  /** How many of them the dialled stream has. */
  get sent(): number {
    return this.#sent;
  }

  /** What the dialled stream did not take yet. */
  get rest(): Uint8Array | undefined {
    return this.#bytes !== undefined && this.#sent < this.#bytes.length ? this.#bytes.subarray(this.#sent) : undefined;
  }

  /** Takes what the client has said and passes it on to a stream that is being dialled. */
  pass(from: MeshStream, to: MeshStream, scratch: Uint8Array): void {
    // What the way did not take must go first.
    while (this.rest === undefined) {
      const room = MAX_EARLY_BYTES - (this.#bytes?.length ?? 0);
      if (room <= 0) return;
      const n = from.read(room < scratch.length ? scratch.subarray(0, room) : scratch);
      // An end is seen again by whoever reads next.
      if (n === WOULD_BLOCK || n === 0) return;
      this.#keep(scratch, n);
      this.#sent += to.write(scratch, 0, n);
    }
  }

  /** An endpoint is dialled with all of it as first bytes. */
  again(): Uint8Array | undefined {
    this.#sent = this.#bytes?.length ?? 0;
    return this.#bytes;
  }

  #keep(from: Uint8Array, length: number): void {
    const before = this.#bytes?.length ?? 0;
    const all = new Uint8Array(before + length);
    if (this.#bytes) all.set(this.#bytes);
    all.set(from.subarray(0, length), before);
    this.#bytes = all;
  }
}
