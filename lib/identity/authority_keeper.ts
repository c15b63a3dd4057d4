/**
 * Replaces the authority of a running server, step by step: an operator's word or the time takes a step, and before each
 * it is known which nodes would be left behind.
 */
import type { CancelTimer, Clock, WallMs } from "../clock.ts";
import { describe, MeshError } from "../errors.ts";
import type { Logger } from "../log.ts";
import type { Authority, AuthorityView } from "./authority.ts";
import { DEFAULT_OVERLAP_MS, dueStep } from "./authority_state.ts";
import { pinOf } from "./pin.ts";

/** How often the time of the next step is looked at. */
const TURN_MS = 1_000;
/** Names of nodes in an answer; the number says how many there are. */
const MAX_NAMED = 20;

export interface AuthorityKeeperOptions {
  readonly authority: Authority;
  readonly clock: Clock;
  readonly log: Logger;
  now(): WallMs;
  /** Enrolled nodes that are not revoked. */
  nodes(): readonly string[];
  /** The authority changed: already on disk and in force for what is issued. */
  onChange(): Promise<void>;
}

/** What an agent said last. */
export interface ToldAuthorities {
  readonly trusted: readonly string[];
  readonly issuer: string;
}

/** For `edgemesh server ca status`. */
export interface AuthorityStatus extends AuthorityView {
  /** Nodes for which the next step changes nothing any more, of all. */
  readonly ready: number;
  readonly nodes: number;
  /** Some of those that it would leave behind. */
  readonly waiting: readonly string[];
}

export class AuthorityKeeper {
  readonly #options: AuthorityKeeperOptions;
  readonly #told = new Map<string, ToldAuthorities>();

  constructor(options: AuthorityKeeperOptions) {
    this.#options = options;
  }

  /** What servers tell agents: all pins trusted, and the one that certificates of nodes come from. */
  get told(): ToldAuthorities {
    const { authority } = this.#options;
    return { trusted: authority.anchors.map(pinOf), issuer: authority.issuingPin };
  }

  /** What an agent that is connected trusts. */
  heard(node: string, told: ToldAuthorities): void {
    this.#told.set(node, told);
  }

  status(): AuthorityStatus {
    const { authority, nodes } = this.#options;
    const all = nodes();
    const waiting = all.filter((node) => !this.#ready(node)).sort();
    return {
      ...authority.view,
      nodes: all.length,
      ready: all.length - waiting.length,
      waiting: authority.view.rotation ? waiting.slice(0, MAX_NAMED) : [],
    };
  }

  /** Makes and announces a new authority; both are trusted for `overlapMs`. Throws CONFIG_INVALID. */
  async rotate(overlapMs: number = DEFAULT_OVERLAP_MS): Promise<void> {
    const { authority, now } = this.#options;
    await authority.rotate(now(), overlapMs);
    await this.#changed("a new authority is announced");
  }

  /** Takes the next step before its time. Throws CONFIG_INVALID, without `force` also where nodes would be left behind. */
  async step(step: "switch" | "finish" | "rollback", force: boolean): Promise<void> {
    const { authority, now } = this.#options;
    const { ready, nodes, waiting } = this.status();
    if (step !== "rollback" && authority.view.rotation && ready < nodes && !force) {
      const more = nodes - ready > waiting.length ? " …" : "";
      throw new MeshError(
        "CONFIG_INVALID",
        `${nodes - ready} of ${nodes} nodes would be left behind: ${waiting.join(", ")}${more}`,
        {
          hint: step === "switch"
            ? "wait until they were connected; with --force they cannot talk to others until they were"
            : "wait until they were connected; with --force they have to join again",
        },
      );
    }
    await authority.step(step === "rollback" ? { step, now: now() } : { step });
    await this.#changed(`the rotation of the authority: ${step}`);
  }

  /** Takes steps when their time has come, until what it returns is called. */
  start(): CancelTimer {
    const { authority, clock, log, now } = this.#options;
    let stopped = false;
    let cancel: CancelTimer = () => {};
    const turn = async () => {
      try {
        const { ready, nodes } = this.status();
        const step = authority.view.rotation && dueStep(authority.state, now(), nodes > 0 && ready === nodes);
        if (step) await this.step(step, true);
      } catch (error) {
        log.error("the rotation of the authority does not go on", { error: describe(error) });
      }
      if (!stopped) cancel = clock.timer(TURN_MS, () => void turn());
    };
    cancel = clock.timer(TURN_MS, () => void turn());
    return () => {
      stopped = true;
      cancel();
    };
  }

  #ready(node: string): boolean {
    const told = this.#told.get(node);
    const { rotation, pin } = this.#options.authority.view;
    if (!rotation) return true;
    if (!told) return false;
    switch (rotation.phase) {
      case "announced":
        return told.trusted.includes(rotation.next);
      case "switched":
        return told.trusted.includes(rotation.next) && told.issuer === rotation.next;
      case "returning":
        return told.issuer === pin;
    }
  }

  async #changed(what: string): Promise<void> {
    const { authority, log, onChange } = this.#options;
    log.info(what, { generation: authority.generation, phase: authority.view.rotation?.phase ?? "done" });
    await onChange();
  }
}
