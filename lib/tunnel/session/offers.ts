/** Hands what the peer opens to the session's owner. */
import type { ServiceTarget } from "../../net.ts";
import type { PeerIdentity } from "../carrier.ts";
import type { Flow } from "./flow.ts";
import type { SessionEvents } from "./session_types.ts";
import type { Stream } from "./stream.ts";
import type { Teller, Turn } from "./turn.ts";

export class Offers {
  readonly #events: SessionEvents;
  readonly #from: PeerIdentity;
  readonly #turn: Turn;

  constructor(events: SessionEvents, from: PeerIdentity, turn: Turn) {
    this.#events = events;
    this.#from = from;
    this.#turn = turn;
  }

  stream(target: ServiceTarget, stream: Stream, sendLimit: number): void {
    this.#offer(stream, () =>
      this.#events.onStream({
        target,
        from: this.#from,
        accept: (handler) => {
          stream.accept(handler, sendLimit);
          return stream;
        },
        refuse: (code) => stream.reset(code),
      }));
  }

  flow(target: ServiceTarget, flow: Flow): void {
    this.#offer(flow, () =>
      this.#events.onFlow({
        target,
        from: this.#from,
        accept: (handler) => {
          flow.accept(handler);
          return flow;
        },
        refuse: (code) => flow.close(code),
      }));
  }

  /** An owner who throws loses what he was offered, not the session. */
  #offer(teller: Teller, call: () => void): void {
    try {
      call();
    } catch (error) {
      this.#turn.fault(error);
      teller.broke();
    }
  }
}
