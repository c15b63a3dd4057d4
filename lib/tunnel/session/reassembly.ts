/** Pieces of datagrams, as DGRAM frames bring them, back into datagrams. */
import { MAX_DATAGRAM } from "../constants.ts";
import { DGRAM_HEADER, get16 } from "../frame.ts";

const NOTHING = new Uint8Array(0);

/**
 * Puts pieces of datagrams together. The sender writes the pieces of one datagram one after the other with no other
 * datagram between, so one buffer serves a carrier; a piece that does not continue the last one is dropped.
 * An outage may cut a datagram in two: it is whole if no piece was lost.
 */
export class Reassembly {
  #buffer: Uint8Array<ArrayBuffer> | undefined;
  #flow = -1;
  #number = -1;
  #total = 0;
  #got = 0;
  readonly #lost: { count: number };
  /** The datagram that {@link read} completed; valid until the next call. */
  whole: Uint8Array = NOTHING;

  constructor(lost = { count: 0 }) {
    this.#lost = lost;
  }

  /** Datagrams of which a piece was missing, here and {@link beside}. */
  get dropped(): number {
    return this.#lost.count;
  }

  /** Another one, for another carrier. */
  beside(): Reassembly {
    return new Reassembly(this.#lost);
  }

  /** Reads a DGRAM payload `batch[at, at + length)`. "bad": it breaks the protocol; "whole": see {@link whole}. */
  read(flow: number, batch: Uint8Array, at: number, length: number): "bad" | "part" | "whole" {
    if (length < DGRAM_HEADER) return "bad";
    const number = get16(batch, at);
    const total = get16(batch, at + 2);
    const offset = get16(batch, at + 4);
    const size = length - DGRAM_HEADER;
    if (total > MAX_DATAGRAM || offset + size > total || (size === 0 && total > 0)) return "bad";
    const piece = batch.subarray(at + DGRAM_HEADER, at + length);
    if (offset === 0) {
      this.reset();
      if (size === total) {
        this.whole = piece;
        return "whole";
      }
      this.#flow = flow;
      this.#number = number;
      this.#total = total;
      this.#got = 0;
    } else if (flow !== this.#flow || number !== this.#number || total !== this.#total || offset !== this.#got) {
      this.reset();
      return "part";
    }
    this.#buffer ??= new Uint8Array(MAX_DATAGRAM);
    this.#buffer.set(piece, offset);
    this.#got += size;
    if (this.#got < total) return "part";
    this.#flow = -1;
    this.whole = this.#buffer.subarray(0, total);
    return "whole";
  }

  /** Forgets a datagram that is not complete: its other pieces will not come. */
  reset(): void {
    if (this.#flow >= 0) this.#lost.count++;
    this.#flow = -1;
  }

  /** Gives the memory back. */
  trim(): void {
    this.reset();
    this.#buffer = undefined;
  }
}
