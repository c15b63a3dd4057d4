/**
 * The receiving half of flows: DGRAM frames of the active carrier, and for a moment of those that were left behind,
 * which end in flows as if there were one carrier.
 */
import type { Flow } from "./flow.ts";
import type { Link } from "./link.ts";
import { Reassembly } from "./reassembly.ts";
import type { Violation } from "./receiver.ts";

/** What it needs of its session. */
export interface DatagramReceiverHost {
  flow(id: number): Flow | undefined;
  isStream(id: number): boolean;
  /** A whole datagram came. */
  moved(): void;
  /** An owner threw. */
  fault(error: unknown): void;
}

export class DatagramReceiver {
  readonly #host: DatagramReceiverHost;
  /** Of the active carrier, and of the one after an outage. */
  #pieces = new Reassembly();

  constructor(host: DatagramReceiverHost) {
    this.#host = host;
  }

  /** Datagrams of which a piece was missing. */
  get dropped(): number {
    return this.#pieces.dropped;
  }

  /** DGRAM on any carrier. */
  read(link: Link, id: number, batch: Uint8Array, at: number, length: number): Violation {
    const pieces = link.retired ? link.pieces ??= this.#pieces.beside() : this.#pieces;
    const result = pieces.read(id, batch, at, length);
    if (result === "bad") return "DGRAM of a forbidden form";
    const flow = this.#host.flow(id);
    if (flow === undefined) return this.#host.isStream(id) ? "DGRAM for a stream" : undefined;
    if (result === "part") return undefined;
    this.#host.moved();
    const { whole } = pieces;
    try {
      flow.receive(whole, whole.length);
    } catch (error) {
      this.#host.fault(error);
      flow.broke();
    }
    return undefined;
  }

  /** `link` was the active one: what is half put together goes on there, while other datagrams begin on the next. */
  retired(link: Link): void {
    link.pieces = this.#pieces;
    this.#pieces = this.#pieces.beside();
  }

  /** Forgets what is not complete: the peer has no memory of it. */
  reset(): void {
    this.#pieces.reset();
  }

  /** Gives the memory back. */
  trim(): void {
    this.#pieces.trim();
  }
}
