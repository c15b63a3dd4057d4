/**
 * How one resource of KubeEdge's MetaServer is followed; it is no Kubernetes API, only looks like one. Its watch
 * ignores versions, replays whatever the edge once stored (deleted objects included) and misses events across outages;
 * its list asks the cloud, or, when that does not answer, tells what the edge happens to have stored. So: list and
 * watch side by side, only a list from the cloud may remove anything, and a new list follows each new watch, each
 * return of the cloud, and from time to time. A pure machine like reflector.ts.
 */
import { assertNever } from "../../errors.ts";
import type { BackoffLimits } from "./backoff.ts";
import { Backoff } from "./backoff.ts";
import type { Health } from "./reflector.ts";

export type MetaInput =
  | { readonly type: "start" }
  | { readonly type: "stop" }
  | { readonly type: "time" }
  /** The cloud is there again, or doubt about what is known: list and watch anew. */
  | { readonly type: "nudge" }
  | { readonly type: "progress"; readonly attempt: number }
  | { readonly type: "page"; readonly attempt: number; readonly local: boolean; readonly more: string | undefined }
  /** A list without a version: nothing is known about the resource, now. */
  | { readonly type: "unknown"; readonly attempt: number }
  /** The watch was accepted. */
  | { readonly type: "opened"; readonly attempt: number }
  /** An event arrived: its version says nothing here. */
  | { readonly type: "event"; readonly attempt: number }
  /** The watch ended in an orderly way. */
  | { readonly type: "ended"; readonly attempt: number }
  /** A line of the watch that cannot be read. */
  | { readonly type: "garbled"; readonly attempt: number }
  /** Of a list or a watch, told apart by the attempt. */
  | { readonly type: "refused"; readonly attempt: number; readonly status: number; readonly retryAfterMs?: number }
  | { readonly type: "broke"; readonly attempt: number };

export type MetaAction =
  | { readonly do: "list"; readonly attempt: number; readonly token: string | undefined }
  /** The list came from the cloud and is complete. */
  | { readonly do: "commit" }
  /** The list came from the edge's own store. */
  | { readonly do: "keep" }
  | { readonly do: "watch"; readonly attempt: number; readonly timeoutSeconds: number }
  | { readonly do: "cancel"; readonly attempt: number }
  | { readonly do: "reauthenticate" }
  | { readonly do: "report"; readonly health: Health };

type Listing =
  | { readonly name: "off" }
  | { readonly name: "until"; readonly at: number }
  | { readonly name: "listing"; readonly attempt: number; readonly heard: number; readonly local: boolean };

type Watching =
  | { readonly name: "off" }
  | { readonly name: "until"; readonly at: number }
  | { readonly name: "opening"; readonly attempt: number; readonly since: number }
  | { readonly name: "open"; readonly attempt: number; readonly since: number; readonly end: number };

/** The first list of an outage was recorded to take ten seconds until the edge answers from its own store. */
export const META_ANSWER_MS = 15_000;
/** From a new watch to the list that makes good for it: its replay is over by then. */
export const SETTLE_MS = 3_000;
/** The cloud's list wins now and then even if nothing seems to have happened. */
const RELIST_MS = { min: 240_000, max: 300_000 };
/** While the edge answers for itself: its own store costs milliseconds. */
const LOCAL_MS = 5_000;
const UNKNOWN_MS = 30_000;
const BACKOFF: BackoffLimits = { firstMs: 500, maxMs: 5_000 };
const WATCH_SECONDS = { min: 240, max: 300 };
/** The server honours timeoutSeconds; a watch that outlives it by this much is dead. */
const OVERTIME_MS = 30_000;
const SHORT_WATCH_MS = 2_000;
const MAX_RETRY_AFTER_MS = 60_000;

export class MetaReflector {
  readonly #random: () => number;
  readonly #listBackoff: Backoff;
  readonly #watchBackoff: Backoff;
  #list: Listing = { name: "off" };
  #watch: Watching = { name: "off" };
  #health: Health | undefined;
  #attempt = 0;
  /** Whether the last complete list came from the edge's own store. */
  #wasLocal = false;

  constructor(random: () => number) {
    this.#random = random;
    this.#listBackoff = new Backoff(BACKOFF, random);
    this.#watchBackoff = new Backoff(BACKOFF, random);
  }

  /** `listing/open` and the like, for tests and status. */
  get state(): string {
    return `${this.#list.name}/${this.#watch.name}`;
  }

  get deadline(): number | undefined {
    const times = [listDeadline(this.#list), watchDeadline(this.#watch)].filter((t) => t !== undefined);
    return times.length === 0 ? undefined : Math.min(...times);
  }

  step(input: MetaInput, now: number): MetaAction[] {
    switch (input.type) {
      case "start":
        return this.#list.name === "off" ? this.#startList(now) : [];
      case "stop": {
        const out = [...this.#cancelList(), ...this.#cancelWatch()];
        this.#list = { name: "off" };
        this.#watch = { name: "off" };
        return out;
      }
      case "time":
        return this.#time(now);
      case "nudge":
        return this.#nudge(now);
    }
    if (this.#list.name === "listing" && this.#list.attempt === input.attempt) return this.#ofList(input, now);
    const watch = this.#watch;
    const watching = watch.name === "opening" || watch.name === "open";
    return watching && watch.attempt === input.attempt ? this.#ofWatch(input, now) : [];
  }

  #time(now: number): MetaAction[] {
    const out: MetaAction[] = [];
    const list = this.#list;
    if (list.name === "until" && now >= list.at) out.push(...this.#startList(now));
    else if (list.name === "listing" && now >= list.heard + META_ANSWER_MS) {
      out.push(...this.#cancelList(), ...this.#listFailed(undefined, 0, now));
    }
    const due = watchDeadline(this.#watch);
    if (due !== undefined && now >= due) out.push(...this.#cancelWatch(), ...this.#openWatch(now));
    return out;
  }

  #nudge(now: number): MetaAction[] {
    if (this.#list.name === "off") return [];
    const out = this.#list.name === "until" ? this.#startList(now) : [];
    // A watch from before may have missed anything; one that waits goes on by its own time.
    if (this.#watch.name === "open") out.push(...this.#cancelWatch(), ...this.#openWatch(now));
    return out;
  }

  #ofList(input: MetaInput & { attempt: number }, now: number): MetaAction[] {
    const list = this.#list as Listing & { name: "listing" };
    switch (input.type) {
      case "progress":
        this.#list = { ...list, heard: now };
        return [];
      case "page": {
        const local = list.local || input.local;
        if (input.more === undefined) return this.#listed(local, now);
        this.#list = { name: "listing", attempt: ++this.#attempt, heard: now, local };
        return [{ do: "list", attempt: this.#attempt, token: input.more }];
      }
      case "unknown":
        this.#listBackoff.reset();
        this.#list = { name: "until", at: now + this.#between(UNKNOWN_MS / 2, UNKNOWN_MS) };
        return this.#report({ name: "unknown" });
      case "refused":
        return this.#listRefused(input.status, input.retryAfterMs ?? 0, now);
      case "broke":
      case "garbled":
      case "ended":
      case "opened":
      case "event":
        return this.#listFailed(undefined, 0, now);
      default:
        return assertNever(input as never);
    }
  }

  #listed(local: boolean, now: number): MetaAction[] {
    this.#listBackoff.reset();
    const back = this.#wasLocal && !local;
    this.#wasLocal = local;
    const at = local ? now + LOCAL_MS : now + this.#between(RELIST_MS.min, RELIST_MS.max);
    this.#list = { name: "until", at };
    // What the edge has stored is better than nothing, but it is part of the truth at best: nothing is removed by it.
    const out: MetaAction[] = local
      ? [{ do: "keep" }, ...this.#report({ name: "failing", status: undefined })]
      : [{ do: "commit" }, ...this.#report({ name: "following" })];
    if (back && this.#watch.name === "open") out.push(...this.#cancelWatch(), ...this.#openWatch(now));
    else if (this.#watch.name === "off") out.push(...this.#openWatch(now));
    return out;
  }

  #listRefused(status: number, retryAfterMs: number, now: number): MetaAction[] {
    if (status === 403) {
      this.#list = { name: "until", at: now + this.#between(UNKNOWN_MS / 2, UNKNOWN_MS) };
      return this.#report({ name: "forbidden" });
    }
    const out: MetaAction[] = status === 401 ? [{ do: "reauthenticate" }] : [];
    return [...out, ...this.#listFailed(status, retryAfterMs, now)];
  }

  #listFailed(status: number | undefined, retryAfterMs: number, now: number): MetaAction[] {
    const wait = Math.max(this.#listBackoff.next(), Math.min(retryAfterMs, MAX_RETRY_AFTER_MS));
    this.#list = { name: "until", at: now + wait };
    return this.#report({ name: "failing", status });
  }

  #ofWatch(input: MetaInput & { attempt: number }, now: number): MetaAction[] {
    const watch = this.#watch as Watching & { name: "opening" | "open" };
    switch (input.type) {
      case "opened":
        if (watch.name !== "opening") return [];
        this.#watch = { name: "open", attempt: watch.attempt, since: now, end: now + WATCH_SECONDS.max * 1000 };
        this.#listBy(now + SETTLE_MS);
        return [];
      case "ended":
        if (watch.name === "open" && now - watch.since >= SHORT_WATCH_MS) {
          this.#watchBackoff.reset();
          return this.#openWatch(now);
        }
        return this.#watchFailed(0, now);
      case "garbled":
        this.#listBy(now);
        return [...this.#cancelWatch(), ...this.#watchFailed(0, now)];
      case "refused": {
        const out: MetaAction[] = input.status === 401 ? [{ do: "reauthenticate" }] : [];
        return [...out, ...this.#watchFailed(input.retryAfterMs ?? 0, now)];
      }
      case "broke":
        return this.#watchFailed(0, now);
      case "event":
      case "progress":
      case "page":
      case "unknown":
        return [];
      default:
        return assertNever(input as never);
    }
  }

  #watchFailed(retryAfterMs: number, now: number): MetaAction[] {
    const wait = Math.max(this.#watchBackoff.next(), Math.min(retryAfterMs, MAX_RETRY_AFTER_MS));
    this.#watch = { name: "until", at: now + wait };
    return [];
  }

  #startList(now: number): MetaAction[] {
    this.#list = { name: "listing", attempt: ++this.#attempt, heard: now, local: false };
    return [{ do: "list", attempt: this.#attempt, token: undefined }];
  }

  #openWatch(now: number): MetaAction[] {
    this.#watch = { name: "opening", attempt: ++this.#attempt, since: now };
    const timeoutSeconds = Math.floor(this.#between(WATCH_SECONDS.min, WATCH_SECONDS.max));
    return [{ do: "watch", attempt: this.#attempt, timeoutSeconds }];
  }

  /** The next list comes by then at the latest. */
  #listBy(at: number): void {
    if (this.#list.name === "until") this.#list = { name: "until", at: Math.min(this.#list.at, at) };
  }

  #cancelList(): MetaAction[] {
    return this.#list.name === "listing" ? [{ do: "cancel", attempt: this.#list.attempt }] : [];
  }

  #cancelWatch(): MetaAction[] {
    const w = this.#watch;
    return w.name === "opening" || w.name === "open" ? [{ do: "cancel", attempt: w.attempt }] : [];
  }

  #report(health: Health): MetaAction[] {
    if (this.#health?.name === health.name) return [];
    this.#health = health;
    return [{ do: "report", health }];
  }

  #between(min: number, max: number): number {
    return min + this.#random() * (max - min);
  }
}

function listDeadline(list: Listing): number | undefined {
  switch (list.name) {
    case "off":
      return undefined;
    case "until":
      return list.at;
    case "listing":
      return list.heard + META_ANSWER_MS;
    default:
      return assertNever(list);
  }
}

function watchDeadline(watch: Watching): number | undefined {
  switch (watch.name) {
    case "off":
      return undefined;
    case "until":
      return watch.at;
    case "opening":
      return watch.since + META_ANSWER_MS;
    case "open":
      return watch.end + OVERTIME_MS;
    default:
      return assertNever(watch);
  }
}
