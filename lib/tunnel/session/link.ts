/** A carrier as the session sees it: what was said on it so far, and whether it takes more. */
import type { Carrier } from "../carrier.ts";
import type { Reassembly } from "./reassembly.ts";

export class Link {
  readonly carrier: Carrier;
  /** Counts the carriers of the session in the order they came. */
  readonly order: number;
  /** Number given by the initiator; on the acceptor's side 0 until its HELLO came. */
  generation: number;
  /** The peer's HELLO was read. */
  greeted = false;
  /** Counted bytes of the peer up to here have passed on this link; -1 before its RESUME. */
  position = -1;
  busy = false;
  /** The session has moved on to another carrier: only what cannot be sent again is still read (PROTOCOL.md §6). */
  retired = false;
  /** Pieces of datagrams that came on it, once it is retired. */
  pieces: Reassembly | undefined;
  /** Detached from the session: whatever it still delivers is ignored. */
  gone = false;
  /** When it is closed: if no HELLO came until then, or in any case once it is retired. */
  deadline: number;

  constructor(
    carrier: Carrier,
    numbers: { readonly order: number; readonly generation: number; readonly deadline: number },
  ) {
    this.carrier = carrier;
    this.order = numbers.order;
    this.generation = numbers.generation;
    this.deadline = numbers.deadline;
  }

  give(batch: Uint8Array): void {
    this.busy = !this.carrier.send(batch);
  }
}
