/** Takes a batch apart into frames, and keeps the count that makes resuming possible. */
import { MAX_BATCH } from "../carrier.ts";
import { FRAME_HEADER, MAX_PAYLOAD } from "../constants.ts";
import { get24, get32, get64, IGNORABLE, isKnownType, OFFSET_SIZE, TYPE, UNCOUNTED } from "../frame.ts";
import type { Link } from "./link.ts";

/** A sentence about what broke the protocol; undefined = all is well. */
export type Violation = string | undefined;

/** Where frames go. Payloads are `batch[at, at + length)`. */
export interface FrameSink {
  /** Frames of streams and flows that are counted and come exactly once. */
  counted(type: number, id: number, batch: Uint8Array, at: number, length: number): Violation;
  /** HELLO, ACK, DGRAM and the like. */
  uncounted(link: Link, type: number, id: number, batch: Uint8Array, at: number, length: number): Violation;
}

export class Receiver {
  readonly #sink: FrameSink;
  #received = 0;
  #repeated = 0;

  constructor(sink: FrameSink) {
    this.#sink = sink;
  }

  /** Counted bytes received. */
  get received(): number {
    return this.#received;
  }

  /** Counted bytes that came a second time after a change of carrier and were skipped. */
  get repeated(): number {
    return this.#repeated;
  }

  /** The peer counts from 0 again. */
  restart(): void {
    this.#received = 0;
  }

  /** RESUME: where on this link the peer's counted frames begin. */
  resumed(link: Link, batch: Uint8Array, at: number, length: number): Violation {
    const offset = length === OFFSET_SIZE ? get64(batch, at) : -1;
    if (offset < 0) return "RESUME of a forbidden form";
    if (offset > this.#received) return "RESUME that leaves a gap";
    link.position = offset;
    return undefined;
  }

  /** Reads a batch of whole frames. Stops when a frame detached the link. */
  read(link: Link, batch: Uint8Array): Violation {
    const end = batch.length;
    if (end === 0 || end > MAX_BATCH) return "batch of a forbidden size";
    let p = 0;
    while (p < end && !link.gone) {
      if (end - p < FRAME_HEADER) return "frame header cut off";
      const type = batch[p]!;
      const length = get24(batch, p + 1);
      const id = get32(batch, p + 4);
      if (length > MAX_PAYLOAD) return "frame too long";
      const at = p + FRAME_HEADER;
      p = at + length;
      if (p > end) return "frame cut off";
      if (!link.greeted && type !== TYPE.HELLO) return "frame before HELLO";
      if ((type & UNCOUNTED) === 0) {
        // The peer sends it again on the carrier that took over.
        if (link.retired) continue;
        if (link.position < 0) return "counted frame before RESUME";
        link.position += FRAME_HEADER + length;
        if (link.position <= this.#received) {
          this.#repeated += FRAME_HEADER + length;
          continue;
        }
        this.#received += FRAME_HEADER + length;
        if (link.position !== this.#received) return "resumed inside a frame";
      }
      const violation = isKnownType(type)
        ? (type & UNCOUNTED) === 0
          ? this.#sink.counted(type, id, batch, at, length)
          : this.#sink.uncounted(link, type, id, batch, at, length)
        : (type & IGNORABLE) === 0
        ? "unknown frame type"
        : undefined;
      if (violation !== undefined) return violation;
    }
    return undefined;
  }
}
