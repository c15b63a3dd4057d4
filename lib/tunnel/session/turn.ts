/**
 * When callbacks happen. What is to be told goes into a queue; the queue is emptied at the end of the event that came
 * from outside. So no owner is ever called from inside a call of its own, and one event with bytes for fifty streams
 * ends in one flush.
 */
import { Fifo } from "./fair.ts";

/** Something with news for its owner. */
export interface Teller {
  /** In the queue. */
  notified: boolean;
  /** Calls the owner. */
  deliver(): void;
  /** The owner threw: end it. */
  broke(): void;
}

export interface TurnHost {
  /** Gives waiting writers their turn; their owners are called from here, and may throw. */
  serve(): void;
  /** Nothing is left to tell: send, and get ready to wait. */
  settle(): void;
  /** Call {@link Turn.run} soon, not from inside this call. */
  later(): void;
  /** Where owners' errors go; undefined = thrown at the end of the event. */
  readonly onFault: ((error: unknown) => void) | undefined;
}

export class Turn {
  readonly #host: TurnHost;
  readonly #queue = new Fifo<Teller>();
  readonly #news: (() => void)[] = [];
  #faults: unknown[] = [];
  #inside = false;
  #asked = false;

  constructor(host: TurnHost) {
    this.#host = host;
  }

  /** Puts `teller` into the queue. */
  notify(teller: Teller): void {
    if (!teller.notified) {
      teller.notified = true;
      this.#queue.push(teller);
    }
    this.wake();
  }

  /** Calls `news` at the end of the event, after what {@link notify} queued. */
  tell(news: () => void): void {
    this.#news.push(news);
    this.wake();
  }

  /** Something waits to be told or sent; outside of an event, asks for one. */
  wake(): void {
    if (this.#inside || this.#asked) return;
    this.#asked = true;
    this.#host.later();
  }

  /** Runs an event, then tells and sends what it caused. An event inside an event is part of the outer one. */
  run(event: () => void): void {
    if (this.#inside) return event();
    this.begin();
    try {
      event();
    } finally {
      this.end();
    }
  }

  /** {@link run} in two halves, for the hot path. False: this is inside another event, which will end it. */
  begin(): boolean {
    if (this.#inside) return false;
    this.#inside = true;
    this.#asked = false;
    return true;
  }

  end(): void {
    try {
      do {
        this.#drain();
        this.#host.serve();
      } while (this.#queue.size > 0 || this.#news.length > 0);
      this.#host.settle();
    } finally {
      this.#inside = false;
    }
    if (this.#faults.length > 0) this.#report();
  }

  /** Notes an error an owner threw; it is reported at the end of the event. */
  fault(error: unknown): void {
    this.#faults.push(error);
  }

  #drain(): void {
    for (;;) {
      const teller = this.#queue.shift();
      if (teller !== undefined) {
        teller.notified = false;
        try {
          teller.deliver();
        } catch (error) {
          this.#faults.push(error);
          teller.broke();
        }
        continue;
      }
      const news = this.#news.shift();
      if (news === undefined) return;
      try {
        news();
      } catch (error) {
        this.#faults.push(error);
      }
    }
  }

  #report(): void {
    const faults = this.#faults;
    this.#faults = [];
    const { onFault } = this.#host;
    if (onFault === undefined) throw faults[0];
    for (const fault of faults) onFault(fault);
  }
}
