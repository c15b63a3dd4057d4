/** One search of the tunnel for a carrier: the relay and whatever is better, whichever comes; it fails when all of it has. */
import type { MeshError } from "../../errors.ts";
import type { Carrier } from "../carrier.ts";
import { FINAL } from "../peer/final.ts";
import type { PathAgent, PathAttempt, PathSink } from "../legs/path_agent.ts";
import type { Pursuit } from "./pursuit.ts";

export interface RaceFor {
  readonly peer: string;
  readonly sink: PathSink;
}

export class Race implements PathAttempt {
  readonly #relay: PathAgent;
  readonly #pursuit: Pick<Pursuit, "trying" | "rank">;
  readonly #for: RaceFor;
  #attempt: PathAttempt | undefined;
  /** Why the relay does not work, while something else still may. */
  #failed: MeshError | undefined;
  #over = false;

  constructor(relay: PathAgent, pursuit: Pick<Pursuit, "trying" | "rank">, purpose: RaceFor) {
    this.#relay = relay;
    this.#pursuit = pursuit;
    this.#for = purpose;
  }

  /** Somebody waits for carriers. */
  get waiting(): boolean {
    return !this.#over;
  }

  start(): void {
    const { peer, sink } = this.#for;
    this.#attempt = this.#relay.connect(peer, {
      onCarrier: (carrier) => {
        if (this.#over || this.#pursuit.rank > 0) return carrier.close("SHUTDOWN");
        sink.onCarrier(carrier);
      },
      onFailed: (error) => {
        this.#failed = error;
        this.rested();
      },
      onNote: (path, text) => this.#over || sink.onNote(path, text),
    });
  }

  /** A server or the peer came back while this search was under way: the relay may work now. */
  again(): void {
    const error = this.#failed;
    if (this.#over || error === undefined || FINAL.has(error.code)) return;
    this.#failed = undefined;
    this.start();
  }

  /** A better carrier than the relay's. */
  deliver(carrier: Carrier): void {
    if (this.#over) return carrier.close("SHUTDOWN");
    this.#for.sink.onCarrier(carrier);
  }

  /** The search for something better has ended for now. */
  rested(): void {
    const error = this.#failed;
    if (this.#over || error === undefined || (this.#pursuit.trying && !FINAL.has(error.code))) return;
    this.#over = true;
    // With another path in use nothing has failed for whoever waits.
    if (this.#pursuit.rank < 0) this.#for.sink.onFailed(error);
  }

  cancel(): void {
    if (this.#over) return;
    this.#over = true;
    this.#attempt?.cancel();
  }
}
