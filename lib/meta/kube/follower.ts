/** Follows one resource of an API: does what a machine says, like {@link Reflector}. No decision is made here. */
import type { Clock } from "../../clock.ts";
import { assertNever, describe } from "../../errors.ts";
import type { Logger } from "../../log.ts";
import type { ExchangeOptions, ObjectSink } from "./exchange.ts";
import { Exchange } from "./exchange.ts";
import { resourceName } from "./kube_resources.ts";
import type { MetaAction } from "./meta_reflector.ts";
import type { Action, Health, Input } from "./reflector.ts";
import { Reflector } from "./reflector.ts";

/** Takes what a follower learns. */
export interface FollowerSink extends ObjectSink {
  /** A list begins; what an unfinished one gathered is void. */
  begin(): void;
  /**
   * The list is complete as of a version: what it did not mention is gone. False: it is older than what is known, so
   * another one is needed.
   */
  commit(version: string): boolean;
  /** The list is complete but tells part of the truth: what it holds is taken, nothing is removed. */
  keep(): void;
  health(health: Health): void;
  /** A request got no answer, or its answer broke: why, for people. */
  broke(error: unknown): void;
}

/** What happens, for every machine. A page says more than each of them asks. */
export type FollowInput =
  | Exclude<Input, { readonly type: "page" }>
  | {
    readonly type: "page";
    readonly attempt: number;
    readonly version: string;
    readonly more: string | undefined;
    readonly local: boolean;
  };

/** Decides what to ask and when: {@link Reflector}, or the MetaServer's. Requests run side by side where it says so. */
export interface FollowMachine {
  /** When input `time` is due. */
  readonly deadline: number | undefined;
  step(input: FollowInput, now: number): readonly (Action | MetaAction)[];
}

export interface FollowerOptions extends ExchangeOptions {
  readonly sink: FollowerSink;
  readonly clock: Clock;
  readonly log: Logger;
  /** Numbers in [0, 1). */
  readonly random: () => number;
  /** Default: a Kubernetes API's. */
  readonly machine?: (random: () => number) => FollowMachine;
}

export class Follower {
  readonly #options: FollowerOptions;
  readonly #machine: FollowMachine;
  readonly #exchange: Exchange;
  readonly #requests = new Map<number, { readonly abort: AbortController; done: Promise<void> }>();
  #timer: (() => void) | undefined;
  /** Version of the list page taken in last. */
  #listed = "";

  constructor(options: FollowerOptions) {
    this.#options = options;
    this.#machine = options.machine?.(options.random) ?? new Reflector(options.random);
    this.#exchange = new Exchange(options);
  }

  start(): void {
    this.#feed({ type: "start" });
  }

  /** The API answers others again after it had not. */
  nudge(): void {
    this.#feed({ type: "nudge" });
  }

  async stop(): Promise<void> {
    const all = [...this.#requests.values()].map((r) => r.done);
    this.#feed({ type: "stop" });
    await Promise.all(all);
  }

  #feed(input: FollowInput): void {
    for (const action of this.#machine.step(input, this.#options.clock.now())) this.#act(action);
    this.#timer?.();
    this.#timer = undefined;
    const at = this.#machine.deadline;
    if (at === undefined) return;
    const wait = Math.max(0, at - this.#options.clock.now());
    this.#timer = this.#options.clock.timer(wait, () => this.#feed({ type: "time" }));
  }

  #act(action: Action | MetaAction): void {
    const { sink, api, log, resource } = this.#options;
    switch (action.do) {
      case "list":
        if (action.token === undefined) sink.begin();
        return this.#run(action.attempt, (signal) => this.#list(action, signal));
      case "watch":
        return this.#run(action.attempt, (signal) => this.#watch(action, signal));
      case "commit":
        // A list of an earlier version than the one before: another cluster, or one restored. All is learned anew.
        if (!sink.commit(this.#listed)) this.#options.clock.timer(0, () => this.nudge());
        return;
      case "keep":
        return sink.keep();
      case "cancel":
        return this.#requests.get(action.attempt)?.abort.abort();
      case "reauthenticate":
        return void api.reauthenticate();
      case "report":
        log.debug("resource", { name: resourceName(resource), health: action.health.name });
        return sink.health(action.health);
      default:
        assertNever(action);
    }
  }

  /** Runs a request; however it fails, the machine hears of it once. */
  #run(attempt: number, work: (signal: AbortSignal) => Promise<void>): void {
    const abort = new AbortController();
    const request = { abort, done: Promise.resolve() };
    this.#requests.set(attempt, request);
    request.done = work(abort.signal).catch((error) => {
      if (abort.signal.aborted) return;
      const { log, resource, sink } = this.#options;
      log.debug("request broke", { name: resourceName(resource), error: describe(error) });
      sink.broke(error);
      this.#feed({ type: "broke", attempt });
    }).finally(() => this.#requests.delete(attempt));
  }

  async #list(action: { readonly attempt: number; readonly token: string | undefined }, signal: AbortSignal) {
    const { attempt } = action;
    const end = await this.#exchange.list(action.token, signal, () => this.#feed({ type: "progress", attempt }));
    if (end.type === "page") this.#listed = end.version;
    if (end.type === "broke" && end.why) this.#options.sink.broke(end.why);
    this.#feed({ ...end, attempt });
  }

  async #watch(action: (Action | MetaAction) & { readonly do: "watch" }, signal: AbortSignal): Promise<void> {
    const { attempt, timeoutSeconds } = action;
    const from = "version" in action ? { resourceVersion: action.version } : {};
    const end = await this.#exchange.watch({ ...from, timeoutSeconds }, signal, {
      opened: () => this.#feed({ type: "opened", attempt }),
      event: (version) => this.#feed({ type: "event", attempt, version }),
    });
    if (end.type === "garbled" && end.why) this.#options.sink.broke(end.why);
    this.#feed({ ...end, attempt });
  }
}
