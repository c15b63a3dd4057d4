/** Follows one resource of a Kubernetes API: does what a {@link Reflector} says. No decision is made here. */
import type { Clock } from "../clock.ts";
import type { Logger } from "../log.ts";
import type { ExchangeOptions, ObjectSink } from "./exchange.ts";
import { Exchange } from "./exchange.ts";
import { resourceName } from "./kube_resources.ts";
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
}

export interface FollowerOptions extends ExchangeOptions {
  readonly sink: FollowerSink;
  readonly clock: Clock;
  readonly log: Logger;
  /** Numbers in [0, 1). */
  readonly random: () => number;
}

/** What follows one resource. */
export interface Following {
  start(): void;
  /** The API answers others again after it had not. */
  nudge(): void;
  stop(): Promise<void>;
}

export class Follower implements Following {
  readonly #options: FollowerOptions;
  readonly #reflector: Reflector;
  readonly #exchange: Exchange;
  #request: { readonly attempt: number; readonly abort: AbortController; done: Promise<void> } | undefined;
  #timer: (() => void) | undefined;
  /** Version of the list page taken in last. */
  #listed = "";

  constructor(options: FollowerOptions) {
    this.#options = options;
    this.#reflector = new Reflector(options.random);
    this.#exchange = new Exchange(options);
  }

  start(): void {
    this.#feed({ type: "start" });
  }

  nudge(): void {
    this.#feed({ type: "nudge" });
  }

  async stop(): Promise<void> {
    const last = this.#request?.done;
    this.#feed({ type: "stop" });
    await last;
  }

  #feed(input: Input): void {
    for (const action of this.#reflector.step(input, this.#options.clock.now())) this.#act(action);
    this.#arm();
  }

  #arm(): void {
    this.#timer?.();
    this.#timer = undefined;
    const at = this.#reflector.deadline;
    if (at === undefined) return;
    const wait = Math.max(0, at - this.#options.clock.now());
    this.#timer = this.#options.clock.timer(wait, () => this.#feed({ type: "time" }));
  }

  #act(action: Action): void {
    const { sink, api, log, resource } = this.#options;
    switch (action.do) {
      case "list":
        if (action.token === undefined) sink.begin();
        return this.#run(action.attempt, (signal) => this.#list(action, signal));
      case "watch":
        return this.#run(action.attempt, (signal) => this.#watch(action, signal));
      case "commit":
        sink.commit(this.#listed);
        return;
      case "cancel":
        if (this.#request?.attempt === action.attempt) this.#request.abort.abort();
        return;
      case "reauthenticate":
        return void api.reauthenticate();
      case "report":
        log.debug("resource", { name: resourceName(resource), health: action.health.name });
        return sink.health(action.health);
    }
  }

  /** Runs a request; however it fails, the reflector hears of it once. */
  #run(attempt: number, work: (signal: AbortSignal) => Promise<void>): void {
    const abort = new AbortController();
    const request = { attempt, abort, done: Promise.resolve() };
    this.#request = request;
    request.done = work(abort.signal).catch((error) => {
      if (abort.signal.aborted) return;
      this.#options.log.debug("request broke", { name: resourceName(this.#options.resource), error: String(error) });
      this.#feed({ type: "broke", attempt });
    });
  }

  async #list(action: Action & { do: "list" }, signal: AbortSignal): Promise<void> {
    const { attempt } = action;
    const end = await this.#exchange.list(action.token, signal, () => this.#feed({ type: "progress", attempt }));
    if (end.type === "page") this.#listed = end.version;
    this.#feed({ ...end, attempt });
  }

  async #watch(action: Action & { do: "watch" }, signal: AbortSignal): Promise<void> {
    const { attempt, version, timeoutSeconds } = action;
    const end = await this.#exchange.watch({ resourceVersion: version, timeoutSeconds }, signal, {
      opened: () => this.#feed({ type: "opened", attempt }),
      event: (seen) => this.#feed({ type: "event", attempt, version: seen }),
    });
    this.#feed({ ...end, attempt });
  }
}
