/**
 * The relay, made ready for a peer whose path has fallen silent: again and again while it is silent, because what took
 * the path may have taken the way to the servers on either side, too. A path through a silent server is left like this
 * for another server.
 */
import type { CancelTimer, Clock } from "../../clock.ts";
import type { Carrier } from "../carrier.ts";
import type { PathAgent, PathAttempt, PathSink } from "../legs/path_agent.ts";

/** Between two tries. */
const RETRY_MS = 100;

export interface SpareOptions {
  readonly clock: Clock;
  readonly relay: PathAgent;
  readonly peer: string;
  /** The path is silent still, and nothing else has taken over. */
  wanted(): boolean;
  onCarrier(carrier: Carrier): void;
  readonly onNote: PathSink["onNote"];
  /** It was delivered or is not wanted any more; told once. */
  onOver(): void;
}

export class Spare {
  readonly #options: SpareOptions;
  #attempt: PathAttempt | undefined;
  #cancelRetry: CancelTimer | undefined;

  constructor(options: SpareOptions) {
    this.#options = options;
  }

  start(): void {
    this.#try();
  }

  /** Nobody waits any more; nothing is told afterwards. */
  cancel(): void {
    this.#cancelRetry?.();
    this.#attempt?.cancel();
  }

  #try(): void {
    const { relay, peer, clock, wanted, onCarrier, onNote, onOver } = this.#options;
    if (!wanted()) return onOver();
    this.#attempt = relay.connect(peer, {
      onCarrier: (carrier) => {
        onOver();
        if (wanted()) onCarrier(carrier);
        else carrier.close("SHUTDOWN");
      },
      onFailed: () => this.#cancelRetry = clock.timer(RETRY_MS, () => this.#try()),
      onNote,
    });
  }
}
