/** What a carrier hears, kept for a handler that is not there yet; see {@link Carrier.handler}. */
import { MeshError, type ReasonCode } from "../../errors.ts";
import { type CarrierHandler, MAX_BATCH } from "../carrier.ts";

/** Bytes kept at most. */
const MAX_EARLY = 4 * MAX_BATCH;

/** Where events go before the session takes the carrier. */
const nobody: CarrierHandler = { onBatch() {}, onDrain() {}, onClose() {} };

/** Between a carrier's wire and its session: every engine's carrier has one. */
export class Inbox {
  #handler: CarrierHandler = nobody;
  #early: Uint8Array[] | undefined = [];
  #earlyBytes = 0;
  #stopped = false;
  /** Set when the carrier ended before anybody listened. */
  #ended: { readonly reason: ReasonCode | undefined } | undefined;

  get handler(): CarrierHandler {
    return this.#handler;
  }

  set handler(handler: CarrierHandler) {
    this.#handler = handler;
    // From the queue, not from inside the setter: the session is still in the middle of taking the carrier.
    if (this.#early !== undefined || this.#ended !== undefined) queueMicrotask(() => this.#replay());
  }

  /** Hands a batch on, or keeps a copy. Throws LIMIT when a peer sends more than a session may leave waiting. */
  batch(message: Uint8Array): void {
    if (this.#early === undefined) return this.#handler.onBatch(message);
    this.#earlyBytes += message.length;
    if (this.#earlyBytes > MAX_EARLY) throw new MeshError("LIMIT", "Batches came faster than the session was ready");
    this.#early.push(message.slice());
  }

  /** The carrier ended without our doing: told after what came before it. */
  end(reason: ReasonCode | undefined): void {
    if (this.#early !== undefined) this.#ended = { reason };
    else this.#handler.onClose(reason);
  }

  /** We ended the carrier: nothing of it is heard any more. */
  stop(): void {
    this.#stopped = true;
  }

  #replay(): void {
    const early = this.#early;
    this.#early = undefined;
    for (const batch of early ?? []) {
      if (this.#stopped) return;
      this.#handler.onBatch(batch);
    }
    const ended = this.#ended;
    this.#ended = undefined;
    if (ended) this.#handler.onClose(ended.reason);
  }
}
