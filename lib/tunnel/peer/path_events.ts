/** The last things that happened between two agents: what `status` shows when somebody asks "why relay?". */
import type { Clock, WallMs } from "../../clock.ts";
import type { ReasonCode } from "../../errors.ts";
import type { PathKind } from "../carrier.ts";

/** Events kept per peer: a day of a healthy peer, minutes of a flapping one. */
export const MAX_PATH_EVENTS = 64;

export type PathEventKind = "dial" | "up" | "down" | "failed" | "note" | "closed";

export interface PathEvent {
  readonly at: WallMs;
  readonly kind: PathEventKind;
  readonly path: PathKind | undefined;
  readonly reason: ReasonCode | undefined;
  readonly text: string;
}

export class PathEvents {
  readonly #clock: Clock;
  readonly #ring: PathEvent[] = [];
  #next = 0;

  /** Carriers that became ready, by path, since the peer is known. */
  readonly carriers: Record<PathKind, number> = { lan: 0, direct: 0, relay: 0 };

  constructor(clock: Clock) {
    this.#clock = clock;
  }

  add(kind: PathEventKind, parts: { path?: PathKind; reason?: ReasonCode; text?: string } = {}): void {
    const event = {
      at: this.#clock.wall(),
      kind,
      path: parts.path,
      reason: parts.reason,
      text: parts.text ?? "",
    };
    this.#ring[this.#next] = event;
    this.#next = (this.#next + 1) % MAX_PATH_EVENTS;
  }

  /** A carrier is ready. */
  ready(path: PathKind): void {
    this.carriers[path]++;
    this.add("note", { path, text: "carrier ready" });
  }

  /** Oldest first. */
  list(): PathEvent[] {
    return [...this.#ring.slice(this.#next), ...this.#ring.slice(0, this.#next)];
  }
}
