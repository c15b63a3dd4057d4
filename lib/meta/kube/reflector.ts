/**
 * How one resource of a Kubernetes API is followed: list, then watch from the list's version; a plain end goes on from
 * the last version seen, only a version the server no longer has (410) or doubt about the stream leads to a new list.
 * A pure machine: what happened and now in, what to do out. Kubernetes API concepts, "Efficient detection of changes".
 */
import { assertNever } from "../../errors.ts";
import type { BackoffLimits } from "./backoff.ts";
import { Backoff } from "./backoff.ts";

export type Input =
  | { readonly type: "start" }
  | { readonly type: "stop" }
  /** Time has passed {@link Reflector.deadline}. */
  | { readonly type: "time" }
  /** The API answers others again after it had not: what is quiet may be dead, what waits need not. */
  | { readonly type: "nudge" }
  /** Bytes of a list arrived, or a page was taken in. */
  | { readonly type: "progress"; readonly attempt: number }
  /** A page was taken in; `more` continues it. */
  | { readonly type: "page"; readonly attempt: number; readonly version: string; readonly more: string | undefined }
  /** The server answered with an error status, or sent one as a watch event. */
  | {
    readonly type: "refused";
    readonly attempt: number;
    readonly status: number;
    readonly retryAfterMs?: number;
  }
  /** No answer, a broken connection, a body cut short. */
  | { readonly type: "broke"; readonly attempt: number }
  /** The answer to a list is not one of this API: nothing is known about the resource (KubeEdge's MetaServer). */
  | { readonly type: "unknown"; readonly attempt: number }
  /** The watch was accepted. */
  | { readonly type: "opened"; readonly attempt: number }
  /** An event or bookmark arrived. */
  | { readonly type: "event"; readonly attempt: number; readonly version: string }
  /** The server ended the watch in an orderly way. */
  | { readonly type: "ended"; readonly attempt: number }
  /** A line of the watch that cannot be read: an event is missing. */
  | { readonly type: "garbled"; readonly attempt: number };

export type Action =
  /** Ask for a page. A page without `token` begins a list: forget what an unfinished one gathered. */
  | { readonly do: "list"; readonly attempt: number; readonly token: string | undefined }
  /** The list is complete: what it did not mention is gone. */
  | { readonly do: "commit" }
  | { readonly do: "watch"; readonly attempt: number; readonly version: string; readonly timeoutSeconds: number }
  /** Drop the request under way. */
  | { readonly do: "cancel"; readonly attempt: number }
  /** Read credentials anew. */
  | { readonly do: "reauthenticate" }
  /** How following goes has changed; for status, logs and fallbacks. */
  | { readonly do: "report"; readonly health: Health };

export type Health =
  /** List and watch work. */
  | { readonly name: "following" }
  /** Not reached or failing; what was learned stays. */
  | { readonly name: "failing"; readonly status: number | undefined }
  /** We lack the right to read it (403). */
  | { readonly name: "forbidden" }
  /** The server has no such resource (404): a CRD that is not installed, or not yet. */
  | { readonly name: "unknown" };

type State =
  | { readonly name: "stopped" }
  | { readonly name: "listing"; readonly attempt: number; readonly paged: boolean; readonly heard: number }
  | { readonly name: "opening"; readonly attempt: number; readonly version: string; readonly since: number }
  | {
    readonly name: "watching";
    readonly attempt: number;
    readonly version: string;
    readonly since: number;
    readonly heard: number;
  }
  /** Until a time, then goes on: with a watch from a version, or with a list. */
  | { readonly name: "waiting"; readonly until: number; readonly version: string | undefined };

/** No byte of an answer for so long: broken. Longer than a lost SYN needs for its third try. */
export const ANSWER_MS = 8_000;
/** No event and no bookmark for so long: the stream may be dead. Servers send a bookmark about every minute, so a quiet resource opens a new watch once in a while, which costs nothing; a silent server is noticed within the minute. */
export const SILENCE_MS = 50_000;
/** A watch that was heard of more recently than this outlived whatever others went through. */
const QUIET_MS = 2_000;
/** What the server is asked to limit a watch to; random in this range so that watches do not end together. */
const WATCH_SECONDS = { min: 240, max: 300 };
/** Short steps: an API that is back shall be followed again within five seconds. */
const BACKOFF: BackoffLimits = { firstMs: 250, maxMs: 3_000 };
/** A watch that ends sooner counts as a failure: else a server that ends each at once would be asked without pause. */
const SHORT_WATCH_MS = 1_000;
/** Rights and CRDs come by a person's hand. */
const RARE_MS = 30_000;
/** Tries before that: about ten seconds. */
const SOON_TRIES = 6;
/** Longest Retry-After that is honoured. */
const MAX_RETRY_AFTER_MS = 60_000;
/** Watches that break one after the other before a list is tried: the version may be what the server chokes on. */
const WATCH_FAILURES = 5;

export class Reflector {
  readonly #random: () => number;
  readonly #backoff: Backoff;
  #state: State = { name: "stopped" };
  #health: Health | undefined;
  #attempt = 0;
  #watchFailures = 0;
  #rejected = false;
  #absences = 0;
  /** Whether a list was ever complete. */
  #listed = false;

  /** `random` returns numbers in [0, 1). */
  constructor(random: () => number) {
    this.#random = random;
    this.#backoff = new Backoff(BACKOFF, random);
  }

  get state(): State["name"] {
    return this.#state.name;
  }

  /** When input `time` is due; undefined: only another input can change anything. */
  get deadline(): number | undefined {
    const s = this.#state;
    switch (s.name) {
      case "stopped":
        return undefined;
      case "listing":
        return s.heard + ANSWER_MS;
      case "opening":
        return s.since + ANSWER_MS;
      case "watching":
        return s.heard + SILENCE_MS;
      case "waiting":
        return s.until;
      default:
        return assertNever(s);
    }
  }

  /** Takes one input. Inputs of an earlier attempt than the one under way are ignored. */
  step(input: Input, now: number): Action[] {
    if ("attempt" in input && input.attempt !== this.#current()) return [];
    switch (input.type) {
      case "start":
        return this.#state.name === "stopped" ? this.#list(now) : [];
      case "stop":
        return this.#stop();
      case "time":
        return this.#time(now);
      case "nudge":
        return this.#nudge(now);
      case "progress":
        if (this.#state.name === "listing") this.#state = { ...this.#state, heard: now };
        return [];
      case "page":
        return this.#state.name === "listing" ? this.#page(input, now) : [];
      case "refused":
        return this.#refused(input.status, input.retryAfterMs, now);
      case "broke":
        return this.#failed(undefined, now);
      case "unknown":
        return this.#state.name === "listing" ? this.#absent({ name: "unknown" }, now) : [];
      case "opened":
        return this.#opened(now);
      case "event":
        return this.#event(input.version, now);
      case "ended":
        return this.#ended(now);
      case "garbled":
        return this.#garbled(now);
      default:
        return assertNever(input);
    }
  }

  #current(): number | undefined {
    return "attempt" in this.#state ? this.#state.attempt : undefined;
  }

  #stop(): Action[] {
    const out = this.#cancel();
    this.#state = { name: "stopped" };
    return out;
  }

  #time(now: number): Action[] {
    const s = this.#state;
    if (s.name === "stopped" || now < this.deadline!) return [];
    switch (s.name) {
      case "waiting":
        return s.version === undefined ? this.#list(now) : this.#watch(s.version, now);
      case "watching":
        // Silence is no failure: go on from where we are, at once.
        return [...this.#cancel(), ...this.#watch(s.version, now)];
      case "listing":
      case "opening":
        return [...this.#cancel(), ...this.#failed(undefined, now)];
      default:
        return assertNever(s);
    }
  }

  #nudge(now: number): Action[] {
    const s = this.#state;
    if (s.name === "watching" && now - s.heard >= QUIET_MS) return [...this.#cancel(), ...this.#watch(s.version, now)];
    if (s.name === "waiting" && this.#health?.name === "failing") this.#state = { ...s, until: now };
    return [];
  }

  #list(now: number): Action[] {
    this.#state = { name: "listing", attempt: ++this.#attempt, paged: false, heard: now };
    return [{ do: "list", attempt: this.#attempt, token: undefined }];
  }

  #page(input: { version: string; more: string | undefined }, now: number): Action[] {
    if (input.more !== undefined) {
      this.#state = { name: "listing", attempt: ++this.#attempt, paged: true, heard: now };
      return [{ do: "list", attempt: this.#attempt, token: input.more }];
    }
    this.#backoff.reset();
    this.#watchFailures = 0;
    this.#absences = 0;
    this.#listed = true;
    return [{ do: "commit" }, ...this.#report({ name: "following" }), ...this.#watch(input.version, now)];
  }

  #watch(version: string, now: number): Action[] {
    this.#state = { name: "opening", attempt: ++this.#attempt, version, since: now };
    const span = WATCH_SECONDS.max - WATCH_SECONDS.min;
    const timeoutSeconds = WATCH_SECONDS.min + Math.floor(this.#random() * span);
    return [{ do: "watch", attempt: this.#attempt, version, timeoutSeconds }];
  }

  #opened(now: number): Action[] {
    const s = this.#state;
    if (s.name !== "opening") return [];
    this.#absences = 0;
    this.#state = { name: "watching", attempt: s.attempt, version: s.version, since: now, heard: now };
    return this.#report({ name: "following" });
  }

  #event(version: string, now: number): Action[] {
    const s = this.#state;
    if (s.name !== "watching") return [];
    this.#backoff.reset();
    this.#watchFailures = 0;
    this.#rejected = false;
    this.#state = { ...s, version: version === "" ? s.version : version, heard: now };
    return [];
  }

  #ended(now: number): Action[] {
    const s = this.#state;
    switch (s.name) {
      case "listing":
        // A list that ends before it is whole.
        return this.#failed(undefined, now);
      case "opening":
      case "watching":
        if (s.name === "opening" || now - s.since < SHORT_WATCH_MS) return this.#failed(undefined, now);
        return this.#watch(s.version, now);
      default:
        return [];
    }
  }

  #garbled(now: number): Action[] {
    const s = this.#state;
    if (s.name === "listing") return [...this.#cancel(), ...this.#failed(undefined, now)];
    if (s.name !== "watching") return [];
    const out = this.#cancel();
    this.#state = { name: "waiting", until: now + this.#backoff.next(), version: undefined };
    return out;
  }

  #refused(status: number, retryAfterMs: number | undefined, now: number): Action[] {
    const s = this.#state;
    if (s.name !== "listing" && s.name !== "opening" && s.name !== "watching") return [];
    const out = s.name === "watching" ? this.#cancel() : [];
    if (status === 410) {
      // The version, or the token of a paged list, is too old. Once at once; a server that keeps saying so is waited for.
      const again = this.#rejected ? this.#backoff.next() : 0;
      this.#rejected = true;
      if (again === 0) return [...out, ...this.#list(now)];
      this.#state = { name: "waiting", until: now + again, version: undefined };
      return out;
    }
    if (status === 401) return [...out, { do: "reauthenticate" }, ...this.#failed(status, now)];
    if (status === 403) return [...out, ...this.#absent({ name: "forbidden" }, now)];
    if (status === 404 || status === 405) return [...out, ...this.#absent({ name: "unknown" }, now)];
    return [...out, ...this.#failed(status, now, retryAfterMs)];
  }

  /** Waits, then goes on where it was: lists are begun anew, watches go on from their version. */
  #failed(status: number | undefined, now: number, retryAfterMs = 0): Action[] {
    const s = this.#state;
    if (s.name !== "listing" && s.name !== "opening" && s.name !== "watching") return [];
    const wait = Math.max(this.#backoff.next(), Math.min(retryAfterMs, MAX_RETRY_AFTER_MS));
    const fresh = s.name === "listing" || ++this.#watchFailures >= WATCH_FAILURES;
    // An error status for a version may never end; a server that is not there says nothing about the version.
    const version = s.name === "listing" || (fresh && status !== undefined) ? undefined : s.version;
    this.#state = { name: "waiting", until: now + wait, version };
    // One watch that breaks is everyday life; two without a word in between are worth a line.
    return s.name === "watching" ? [] : this.#report({ name: "failing", status });
  }

  /**
   * Forbidden or not there. An API server that has just started says so of everything for some seconds, until it has
   * read its own rules and CRDs: what worked before is a failure first, and either is tried again soon at first.
   */
  #absent(health: Health, now: number): Action[] {
    if (++this.#absences > SOON_TRIES) return this.#rarely(health, now);
    // Undefined for the status: it says nothing about the version we watch from.
    if (this.#listed) return this.#failed(undefined, now);
    this.#state = { name: "waiting", until: now + this.#backoff.next(), version: undefined };
    return this.#report(health);
  }

  #rarely(health: Health, now: number): Action[] {
    this.#state = { name: "waiting", until: now + RARE_MS / 2 + this.#random() * RARE_MS / 2, version: undefined };
    return this.#report(health);
  }

  #cancel(): Action[] {
    const attempt = this.#current();
    return attempt === undefined ? [] : [{ do: "cancel", attempt }];
  }

  #report(health: Health): Action[] {
    if (this.#health?.name === health.name) return [];
    this.#health = health;
    return [{ do: "report", health }];
  }
}
