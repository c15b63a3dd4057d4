/** Follows one resource of KubeEdge's MetaServer: does what a {@link MetaReflector} says. */
import { Exchange } from "./exchange.ts";
import type { FollowerOptions, Following } from "./follower.ts";
import { resourceName } from "./kube_resources.ts";
import type { MetaAction, MetaInput } from "./meta_reflector.ts";
import { MetaReflector } from "./meta_reflector.ts";

export class MetaFollower implements Following {
  readonly #options: FollowerOptions;
  readonly #reflector: MetaReflector;
  readonly #exchange: Exchange;
  readonly #requests = new Map<number, { readonly abort: AbortController; done: Promise<void> }>();
  #timer: (() => void) | undefined;
  #listed = "";

  constructor(options: FollowerOptions) {
    this.#options = options;
    this.#reflector = new MetaReflector(options.random);
    this.#exchange = new Exchange(options);
  }

  start(): void {
    this.#feed({ type: "start" });
  }

  nudge(): void {
    this.#feed({ type: "nudge" });
  }

  async stop(): Promise<void> {
    const all = [...this.#requests.values()].map((r) => r.done);
    this.#feed({ type: "stop" });
    await Promise.all(all);
  }

  #feed(input: MetaInput): void {
    for (const action of this.#reflector.step(input, this.#options.clock.now())) this.#act(action);
    this.#timer?.();
    this.#timer = undefined;
    const at = this.#reflector.deadline;
    if (at === undefined) return;
    const wait = Math.max(0, at - this.#options.clock.now());
    this.#timer = this.#options.clock.timer(wait, () => this.#feed({ type: "time" }));
  }

  #act(action: MetaAction): void {
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
    }
  }

  #run(attempt: number, work: (signal: AbortSignal) => Promise<void>): void {
    const abort = new AbortController();
    const request = { abort, done: Promise.resolve() };
    this.#requests.set(attempt, request);
    request.done = work(abort.signal).catch((error) => {
      if (abort.signal.aborted) return;
      this.#options.log.debug("request broke", { name: resourceName(this.#options.resource), error: String(error) });
      this.#feed({ type: "broke", attempt });
    }).finally(() => this.#requests.delete(attempt));
  }

  async #list(action: MetaAction & { do: "list" }, signal: AbortSignal): Promise<void> {
    const { attempt } = action;
    const end = await this.#exchange.list(action.token, signal, () => this.#feed({ type: "progress", attempt }));
    if (end.type === "page") this.#listed = end.version;
    this.#feed({ ...end, attempt });
  }

  async #watch(action: MetaAction & { do: "watch" }, signal: AbortSignal): Promise<void> {
    const { attempt, timeoutSeconds } = action;
    const end = await this.#exchange.watch({ timeoutSeconds }, signal, {
      opened: () => this.#feed({ type: "opened", attempt }),
      event: () => {},
    });
    this.#feed({ ...end, attempt });
  }
}
