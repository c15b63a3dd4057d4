/**
 * Follows one resource of an API: does what a {@link Reflector} says, over {@link KubeApi}, and hands objects to a
 * sink. No decision is made here.
 */
import type { Clock } from "../clock.ts";
import type { Logger } from "../log.ts";
import type { KubeApi } from "./kube_api.ts";
import { chunksOf } from "./kube_api.ts";
import type { Resource } from "./kube_resources.ts";
import { apiVersionOf, pathOf, resourceName } from "./kube_resources.ts";
import { LineSplitter } from "./line_splitter.ts";
import { ListSplitter } from "./list_splitter.ts";
import type { Pacer } from "./pace.ts";
import type { Action, Health, Input } from "./reflector.ts";
import { Reflector } from "./reflector.ts";

/** Objects per page: the server's memory and ours stay small, and 5 000 Services are ten requests. */
const PAGE = 500;

export interface ObjectSink {
  /** A list begins; what an unfinished one gathered is void. */
  begin(): void;
  /** An item of a list, by its identity alone. True: it is known in this very version and need not be read. */
  unchanged(name: string, namespace: string, version: string): boolean;
  /** An object of a list or of the watch. */
  put(raw: Record<string, unknown>): void;
  /** An object was deleted. */
  remove(raw: Record<string, unknown>): void;
  /** The list is complete: what it did not mention is gone. */
  commit(): void;
  /** A piece of work is done: publish what was put and removed. */
  flush(): void;
  health(health: Health): void;
  /** An object was left out because of its size. */
  oversized(): void;
}

export interface FollowerOptions {
  readonly api: KubeApi;
  readonly resource: Resource;
  readonly sink: ObjectSink;
  readonly clock: Clock;
  readonly log: Logger;
  readonly random: () => number;
  /** Shared by all followers of a source. */
  readonly pacer: Pacer;
  readonly namespace?: string;
  /** Restricts pods to one node: `spec.nodeName=edge-1`. */
  readonly fieldSelector?: string;
}

export class Follower {
  readonly #options: FollowerOptions;
  readonly #reflector: Reflector;
  readonly #decoder = new TextDecoder();
  /** Version of the API group that answered last; lists look for it anew. */
  #version: string;
  #request: { readonly attempt: number; readonly abort: AbortController; done: Promise<void> } | undefined;
  #timer: (() => void) | undefined;

  constructor(options: FollowerOptions) {
    this.#options = options;
    this.#version = options.resource.versions[0]!;
    this.#reflector = new Reflector(options.random);
  }

  start(): void {
    this.#feed({ type: "start" });
  }

  /** The API answers others again. */
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
        return this.#run(action.attempt, (signal) => this.#list(action.attempt, action.token, signal));
      case "watch":
        return this.#run(action.attempt, (signal) => this.#watch(action, signal));
      case "commit":
        return sink.commit();
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

  async #list(attempt: number, token: string | undefined, signal: AbortSignal): Promise<void> {
    // A page continues the version that began; a new list looks for the best version the server knows.
    const versions = token === undefined ? this.#options.resource.versions : [this.#version];
    for (const [i, version] of versions.entries()) {
      this.#version = version;
      const answer = await this.#get(
        { limit: String(PAGE), ...(token === undefined ? {} : { continue: token }) },
        signal,
      );
      const last = i === versions.length - 1;
      if (answer.status === 404 && !last) {
        await answer.body?.cancel();
        continue;
      }
      if (answer.status !== 200) {
        await answer.body?.cancel();
        return this.#refused(attempt, answer.status, answer.retryAfterMs);
      }
      const page = await this.#readList(attempt, answer.body, signal);
      if (page === "unknown" && !last) continue;
      if (page === "unknown") return this.#feed({ type: "unknown", attempt });
      if (page === "cut") return this.#feed({ type: "broke", attempt });
      return this.#feed({ type: "page", attempt, ...page });
    }
  }

  async #readList(
    attempt: number,
    body: ReadableStream<Uint8Array> | null,
    signal: AbortSignal,
  ): Promise<{ version: string; more: string | undefined } | "unknown" | "cut"> {
    const { sink, pacer } = this.#options;
    const splitter = new ListSplitter({
      item: (bytes) => this.#item(bytes),
      oversized: () => sink.oversized(),
    });
    for await (const chunk of chunksOf(body, signal)) {
      for (let at = 0; at < chunk.length; at += STRETCH_BYTES) {
        splitter.push(chunk.subarray(at, at + STRETCH_BYTES));
        sink.flush();
        if (pacer.tired) await pacer.rest(signal);
        signal.throwIfAborted();
      }
      this.#feed({ type: "progress", attempt });
    }
    const envelope = splitter.finish();
    if (!envelope) return "cut";
    const metadata = envelope.metadata as { resourceVersion?: unknown; continue?: unknown } | undefined;
    if (typeof metadata?.resourceVersion !== "string" || metadata.resourceVersion === "") return "unknown";
    const more = typeof metadata.continue === "string" && metadata.continue !== "" ? metadata.continue : undefined;
    return { version: metadata.resourceVersion, more };
  }

  async #watch(action: Action & { do: "watch" }, signal: AbortSignal): Promise<void> {
    const { attempt } = action;
    const answer = await this.#get({
      watch: "true",
      allowWatchBookmarks: "true",
      resourceVersion: action.version,
      timeoutSeconds: String(action.timeoutSeconds),
    }, signal);
    if (answer.status !== 200) {
      await answer.body?.cancel();
      return this.#refused(attempt, answer.status, answer.retryAfterMs);
    }
    this.#feed({ type: "opened", attempt });
    const lines = new LineSplitter();
    const { pacer } = this.#options;
    for await (const chunk of chunksOf(answer.body, signal)) {
      lines.push(
        chunk,
        (bytes) => !signal.aborted && this.#event(attempt, bytes),
        () => this.#feed({ type: "garbled", attempt }),
      );
      this.#options.sink.flush();
      if (signal.aborted) return;
      if (pacer.tired) await pacer.rest(signal);
    }
    // A line without its end means the connection was cut, however orderly the rest looks.
    this.#feed(lines.pending > 0 ? { type: "broke", attempt } : { type: "ended", attempt });
  }

  #event(attempt: number, bytes: Uint8Array): void {
    const event = this.#parse(bytes);
    const object = event?.object as Record<string, unknown> | undefined;
    if (!event || typeof object !== "object" || object === null) return this.#feed({ type: "garbled", attempt });
    switch (event.type) {
      case "ADDED":
      case "MODIFIED":
        this.#options.sink.put(this.#typed(object));
        break;
      case "DELETED":
        this.#options.sink.remove(this.#typed(object));
        break;
      case "BOOKMARK":
        break;
      case "ERROR": {
        const { code, details } = object as { code?: unknown; details?: { retryAfterSeconds?: unknown } };
        const seconds = details?.retryAfterSeconds;
        return this.#refused(
          attempt,
          typeof code === "number" ? code : 500,
          typeof seconds === "number" ? seconds * 1000 : undefined,
        );
      }
      default:
        return this.#feed({ type: "garbled", attempt });
    }
    const version = (object.metadata as { resourceVersion?: unknown } | undefined)?.resourceVersion;
    this.#feed({ type: "event", attempt, version: typeof version === "string" ? version : "" });
  }

  #item(bytes: Uint8Array): void {
    // In a list that is taken anew nearly every item is known: finding that out by its first bytes, without reading
    // the rest, is what keeps such a list from costing what the first one did.
    const head = ITEM_HEAD.exec(this.#decoder.decode(bytes.subarray(0, HEAD_BYTES)));
    if (head && this.#options.sink.unchanged(head[1]!, head[2] ?? "", head[3]!)) return;
    const raw = this.#parse(bytes);
    if (raw) this.#options.sink.put(this.#typed(raw));
  }

  /** Items of lists come without kind and version. */
  #typed(raw: Record<string, unknown>): Record<string, unknown> {
    if (raw.kind !== undefined && raw.apiVersion !== undefined) return raw;
    const { resource } = this.#options;
    return { ...raw, kind: resource.objectKind, apiVersion: apiVersionOf(resource, this.#version) };
  }

  #parse(bytes: Uint8Array): Record<string, unknown> | undefined {
    try {
      const value: unknown = JSON.parse(this.#decoder.decode(bytes));
      return typeof value === "object" && value !== null ? value as Record<string, unknown> : undefined;
    } catch {
      return undefined;
    }
  }

  #get(query: Record<string, string>, signal: AbortSignal) {
    const { api, resource, namespace, fieldSelector } = this.#options;
    const all = new URLSearchParams(fieldSelector === undefined ? query : { ...query, fieldSelector });
    return api.get(`${pathOf(resource, this.#version, namespace)}?${all}`, signal);
  }

  #refused(attempt: number, status: number, retryAfterMs: number | undefined): void {
    this.#feed({ type: "refused", attempt, status, ...(retryAfterMs === undefined ? {} : { retryAfterMs }) });
  }
}

/** Enough for the names and the version of nearly every object. */
const HEAD_BYTES = 768;
/** How the API server begins an item: fields of metadata in the order of their definition. Another order is read whole. */
const ITEM_HEAD =
  /^\{"metadata":\{"name":"([^"\\]+)",(?:"generateName":"[^"\\]*",)?(?:"namespace":"([^"\\]+)",)?"uid":"[^"\\]+","resourceVersion":"(\d+)"/;
/** Bytes of a list worked on before the loop may turn. */
const STRETCH_BYTES = 16 * 1024;
