/**
 * A Kubernetes API server as far as its list/watch protocol goes, with faults on demand. Plain HTTP or TLS (with client
 * certificates where asked for). Faithful where clients depend on it: one counter of versions for all resources, paged
 * lists that are consistent to the version of their first page, watches from any version still remembered, bookmarks,
 * 410 both as status and as event, Status objects as errors.
 */
import type { IncomingMessage, ServerResponse } from "node:http";
import type { ListenOptions } from "./fake_listener.ts";
import { FakeListener } from "./fake_listener.ts";

export interface Obj {
  readonly metadata: {
    readonly name: string;
    readonly namespace?: string;
    readonly uid?: string;
    readonly [key: string]: unknown;
  };
  readonly spec?: { readonly [key: string]: unknown };
  readonly [key: string]: unknown;
}

interface Stored {
  readonly version: number;
  readonly type: "ADDED" | "MODIFIED" | "DELETED";
  readonly path: string;
  readonly object: Obj;
}

interface Watch {
  readonly path: string;
  readonly response: ServerResponse;
  readonly bookmarks: boolean;
  readonly admits: (object: Obj) => boolean;
  silent: boolean;
}

export interface FakeOptions extends ListenOptions {
  /** Resource paths that exist; others are 404. Default: core, discovery, and nothing else. */
  readonly resources?: readonly string[];
}

export const CORE_RESOURCES = [
  "/api/v1/services",
  "/api/v1/endpoints",
  "/api/v1/nodes",
  "/api/v1/pods",
  "/api/v1/namespaces",
  "/apis/discovery.k8s.io/v1/endpointslices",
];

export class FakeApiServer {
  /** Requests by `LIST path` and `WATCH path`; pages after the first are `PAGE path`. */
  readonly counts = new Map<string, number>();
  readonly resources: Set<string>;
  /** Tokens that are accepted; empty: no token needed. */
  readonly tokens = new Set<string>();
  readonly forbidden = new Set<string>();
  /** Called first for each request; a true result means it answered. */
  intercept: ((path: string, query: URLSearchParams, response: ServerResponse) => boolean) | undefined;
  /** Whether new watches and lists are accepted but never answered, and open ones fall silent. */
  hang = false;
  readonly #objects = new Map<string, Map<string, Obj>>();
  #history: Stored[] = [];
  #version = 1000;
  #compacted = 0;
  readonly #watches = new Set<Watch>();
  readonly #watchOpened = new Set<() => void>();
  readonly #lists = new Map<string, Obj[]>();
  readonly #listener: FakeListener;

  constructor(options: FakeOptions = {}) {
    this.resources = new Set(options.resources ?? CORE_RESOURCES);
    this.#listener = new FakeListener((request, response) => this.#handle(request, response), options);
  }

  start(): Promise<void> {
    return this.#listener.start();
  }

  /** Stops listening and breaks every connection. What it stored stays. */
  async stop(): Promise<void> {
    this.#watches.clear();
    await this.#listener.stop();
  }

  get url(): string {
    return this.#listener.url;
  }

  get version(): number {
    return this.#version;
  }

  get openWatches(): number {
    return this.#watches.size;
  }

  /** Resolves when that many watches are open. */
  async watched(count: number): Promise<void> {
    while (this.#watches.size < count) await new Promise<void>((resolve) => this.#watchOpened.add(resolve));
  }

  count(what: string): number {
    return this.counts.get(what) ?? 0;
  }

  /** Creates or changes an object at `/api/v1/services` and the like. */
  put(path: string, object: Obj): void {
    const key = keyOf(object);
    const all = this.#of(path);
    const type = all.has(key) ? "MODIFIED" : "ADDED";
    const version = ++this.#version;
    const uid = all.get(key)?.metadata.uid ?? crypto.randomUUID();
    // Items begin as a real server's do: metadata first, its fields in the order of their definition.
    const { name, namespace, ...rest } = object.metadata;
    const place = namespace === undefined ? { name } : { name, namespace };
    const stored = { ...object, metadata: { ...place, uid, resourceVersion: String(version), ...rest } };
    all.set(key, stored);
    this.#record({ version, type, path, object: stored });
  }

  delete(path: string, key: string): void {
    const object = this.#of(path).get(key);
    if (!object) throw new Error(`no ${key} at ${path}`);
    this.#of(path).delete(key);
    const version = ++this.#version;
    const last = { ...object, metadata: { ...object.metadata, resourceVersion: String(version) } };
    this.#record({ version, type: "DELETED", path, object: last });
  }

  keys(path: string): string[] {
    return [...this.#of(path).keys()].sort();
  }

  /** Forgets history: watches from before, and tokens of lists, are 410 from now on. */
  compact(): void {
    this.#compacted = this.#version;
    this.#history = [];
    this.#lists.clear();
  }

  /** Ends all watches in an orderly way. */
  endWatches(): void {
    for (const watch of this.#watches) watch.response.end();
    this.#watches.clear();
  }

  /** Resets all connections. */
  reset(): void {
    this.#watches.clear();
    this.#listener.reset();
  }

  /** Sends raw bytes on all watches of a path, and ends them there if `end`. */
  inject(path: string, bytes: string, end = false): void {
    for (const watch of [...this.#watches].filter((w) => w.path === path)) {
      watch.response.write(bytes);
      if (!end) continue;
      watch.response.end();
      this.#watches.delete(watch);
    }
  }

  /** Bookmarks on all watches that asked for them. */
  bookmark(): void {
    for (const watch of this.#watches) {
      if (watch.bookmarks && !watch.silent) this.#send(watch, this.#bookmarkFor(watch));
    }
  }

  /** Open watches write nothing any more, though they stay open: a network that swallows packets. */
  silence(): void {
    for (const watch of this.#watches) watch.silent = true;
  }

  #of(path: string): Map<string, Obj> {
    let all = this.#objects.get(path);
    if (!all) this.#objects.set(path, all = new Map());
    return all;
  }

  #record(stored: Stored): void {
    this.#history.push(stored);
    for (const watch of this.#watches) {
      if (watch.path !== stored.path || watch.silent || this.hang || !watch.admits(stored.object)) continue;
      this.#send(watch, stored);
    }
  }

  #send(watch: Watch, event: { readonly type: string; readonly object: unknown }): void {
    watch.response.write(JSON.stringify({ type: event.type, object: event.object }) + "\n");
  }

  #bookmarkFor(watch: Watch) {
    const kind = watch.path.split("/").at(-1);
    return { type: "BOOKMARK", object: { kind, metadata: { resourceVersion: String(this.#version) } } };
  }

  #handle(request: IncomingMessage, response: ServerResponse): void {
    const url = new URL(request.url!, "http://x");
    const namespaced = /^(.*)\/namespaces\/([^/]+)\/([^/]+)$/.exec(url.pathname);
    const path = namespaced ? `${namespaced[1]}/${namespaced[3]}` : url.pathname;
    const query = url.searchParams;
    const watching = query.get("watch") === "true";
    const what = watching ? "WATCH" : query.has("continue") ? "PAGE" : "LIST";
    this.counts.set(`${what} ${path}`, this.count(`${what} ${path}`) + 1);
    if (this.hang) return;
    if (this.intercept?.(path, query, response)) return;
    const token = /^Bearer (.*)$/.exec(request.headers.authorization ?? "")?.[1];
    if (this.tokens.size > 0 && !this.tokens.has(token ?? "")) return status(response, 401, "Unauthorized");
    if (this.forbidden.has(path)) return status(response, 403, "Forbidden");
    if (!this.resources.has(path)) return status(response, 404, "NotFound");
    if (watching) this.#watch(path, query, namespaced?.[2], response);
    else this.#list(path, query, namespaced?.[2], response);
  }

  #list(path: string, query: URLSearchParams, namespace: string | undefined, response: ServerResponse): void {
    const limit = Number(query.get("limit") ?? 0) || Infinity;
    const [id, offset, version] = (query.get("continue") ?? "").split(" ");
    let all: Obj[];
    let from = 0;
    let at = this.#version;
    if (id) {
      const known = this.#lists.get(id);
      if (!known) return status(response, 410, "Expired", "The provided continue parameter is too old");
      all = known;
      from = Number(offset);
      at = Number(version);
    } else {
      all = [...this.#of(path).values()].filter(selector(query, namespace));
    }
    const items = all.slice(from, from + limit);
    const metadata: Record<string, unknown> = { resourceVersion: String(at) };
    if (from + limit < all.length) {
      const listId = id || crypto.randomUUID();
      this.#lists.set(listId, all);
      metadata.continue = `${listId} ${from + limit} ${at}`;
      metadata.remainingItemCount = all.length - from - limit;
    }
    json(response, 200, { kind: "List", apiVersion: "v1", metadata, items });
  }

  #watch(path: string, query: URLSearchParams, namespace: string | undefined, response: ServerResponse): void {
    const from = Number(query.get("resourceVersion") ?? 0);
    response.writeHead(200, { "content-type": "application/json" });
    response.flushHeaders();
    if (from < this.#compacted) {
      const object = {
        kind: "Status",
        status: "Failure",
        reason: "Expired",
        code: 410,
        message: "too old resource version",
      };
      response.end(JSON.stringify({ type: "ERROR", object }) + "\n");
      return;
    }
    const bookmarks = query.get("allowWatchBookmarks") === "true";
    const watch: Watch = { path, response, bookmarks, admits: selector(query, namespace), silent: false };
    this.#watches.add(watch);
    for (const resolve of this.#watchOpened) resolve();
    this.#watchOpened.clear();
    response.on("close", () => this.#watches.delete(watch));
    for (const stored of this.#history) {
      if (stored.path === path && stored.version > from && watch.admits(stored.object)) this.#send(watch, stored);
    }
  }
}

/** Which objects a request asks for: of one namespace, on one node. */
function selector(query: URLSearchParams, namespace: string | undefined): (object: Obj) => boolean {
  const node = /^spec\.nodeName=(.*)$/.exec(query.get("fieldSelector") ?? "")?.[1];
  return (o) =>
    (namespace === undefined || o.metadata.namespace === namespace) &&
    (node === undefined || o.spec?.nodeName === node);
}

function keyOf(object: Obj): string {
  const { namespace, name } = object.metadata;
  return namespace === undefined ? name : `${namespace}/${name}`;
}

export function json(
  response: ServerResponse,
  code: number,
  body: unknown,
  headers: Record<string, string> = {},
): void {
  response.writeHead(code, { "content-type": "application/json", ...headers });
  response.end(JSON.stringify(body));
}

/** An error as Kubernetes sends it. */
export function status(
  response: ServerResponse,
  code: number,
  reason: string,
  message = reason,
  headers: Record<string, string> = {},
): void {
  json(response, code, { kind: "Status", apiVersion: "v1", status: "Failure", reason, message, code }, headers);
}
