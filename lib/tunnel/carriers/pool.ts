/**
 * Buffers for batches on their way in or out of a carrier. Shared by all carriers of the process: an idle carrier
 * holds none, and a busy one does not make the collector walk 64 KiB per batch.
 */
import { MAX_BATCH } from "../carrier.ts";
import { MAX_WS_HEADER } from "./ws_frame.ts";

/** What five TLS records add (RFC 8446 §5.2): as many as the largest batch is cut into. */
const RECORDS_OVERHEAD = 5 * (5 + 1 + 16);
/** Room for the largest batch with its header, also as ciphertext: so it leaves in one send. */
export const BATCH_BUFFER = MAX_BATCH + MAX_WS_HEADER + RECORDS_OVERHEAD;
/** Buffers kept for reuse (1 MiB): as many as a few busy carriers have in flight; more are left to the collector. */
const KEEP = 16;

export class BatchPool {
  readonly #free: Uint8Array[] = [];

  take(): Uint8Array {
    return this.#free.pop() ?? new Uint8Array(BATCH_BUFFER);
  }

  /** Takes a buffer back; it must have come from {@link take} and must not be used afterwards. */
  give(buffer: Uint8Array): void {
    if (this.#free.length < KEEP && buffer.length === BATCH_BUFFER) this.#free.push(buffer);
  }

  /** Lets the buffers at rest go. */
  trim(): void {
    this.#free.length = 0;
  }

  /** Buffers at rest, for tests. */
  get idle(): number {
    return this.#free.length;
  }
}

/** The process's pool. One thread, so no two users can hold the same buffer. */
export const batchPool: BatchPool = new BatchPool();
