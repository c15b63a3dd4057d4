/**
 * KubeEdge's MetaServer as it was recorded (KubeEdge 1.23 before a kube-apiserver 1.36): lists come from the cloud or,
 * while it is away, from what watches have left in the edge's own store; watches ignore versions, replay that store,
 * deleted objects included, and miss what was made or deleted during an outage; what is not there is an empty list
 * without metadata; discovery answers protobuf under the name of JSON.
 */
import type { IncomingMessage, ServerResponse } from "node:http";
import type { Obj } from "./fake_apiserver.ts";
import { json, status } from "./fake_apiserver.ts";
import type { ListenOptions } from "./fake_listener.ts";
import { FakeListener } from "./fake_listener.ts";

interface Watch {
  readonly path: string;
  readonly response: ServerResponse;
}

export class FakeMetaServer {
  readonly counts = new Map<string, number>();
  /** What the cloud has CRDs and groups for. */
  readonly resources: Set<string>;
  token: string | undefined;
  /** `LIST path` and `WATCH path` that are answered in protobuf under the name of JSON. */
  readonly protobuf = new Set<string>();
  /** Objects the very first watch of each resource leaves out of its replay. */
  missInFirstReplay = 0;
  /** Whether lists from the edge's own store carry a version (either way they carry a selfLink). */
  localVersion = true;
  readonly #cloud = new Map<string, Map<string, Obj>>();
  readonly #edge = new Map<string, Map<string, Obj>>();
  readonly #watches = new Set<Watch>();
  #version = 5000;
  #online = true;
  readonly #listener: FakeListener;

  constructor(resources: readonly string[], options: ListenOptions = {}) {
    this.resources = new Set(resources);
    this.#listener = new FakeListener((request, response) => this.#handle(request, response), options);
  }

  start(): Promise<void> {
    return this.#listener.start();
  }

  async stop(): Promise<void> {
    this.#watches.clear();
    await this.#listener.stop();
  }

  get url(): string {
    return this.#listener.url;
  }

  get openWatches(): number {
    return this.#watches.size;
  }

  count(what: string): number {
    return this.counts.get(what) ?? 0;
  }

  /** What the cloud has. */
  keys(path: string): string[] {
    return [...this.#of(this.#cloud, path).keys()].sort();
  }

  put(path: string, object: Obj): void {
    const { name, namespace, ...rest } = object.metadata;
    const key = namespace === undefined ? name : `${namespace}/${name}`;
    const all = this.#of(this.#cloud, path);
    const type = all.has(key) ? "MODIFIED" : "ADDED";
    const place = namespace === undefined ? { name } : { name, namespace };
    const stored = {
      ...object,
      metadata: { ...place, uid: crypto.randomUUID(), resourceVersion: String(++this.#version), ...rest },
    };
    all.set(key, stored);
    if (this.#online) this.#live(path, type, key, stored);
  }

  delete(path: string, key: string): void {
    const object = this.#of(this.#cloud, path).get(key)!;
    this.#of(this.#cloud, path).delete(key);
    const last = { ...object, metadata: { ...object.metadata, resourceVersion: String(++this.#version) } };
    if (this.#online) this.#live(path, "DELETED", key, last);
  }

  /** The cloud is gone: lists are the edge's own, watches stay open and silent. */
  goOffline(): void {
    this.#online = false;
  }

  /** The cloud is back: changed objects are told, new and deleted ones are not, and stay wrong in the edge's store. */
  goOnline(): void {
    this.#online = true;
    for (const [path, stored] of this.#edge) {
      for (const key of stored.keys()) {
        const now = this.#of(this.#cloud, path).get(key);
        if (!now || now.metadata.resourceVersion === stored.get(key)!.metadata.resourceVersion) continue;
        this.#live(path, "MODIFIED", key, now);
      }
    }
  }

  endWatches(): void {
    for (const watch of this.#watches) watch.response.end();
    this.#watches.clear();
  }

  /** Another cluster behind the same address: versions begin anew. */
  replaceCluster(): void {
    this.#cloud.clear();
    this.#version = 100;
  }

  #of(stores: Map<string, Map<string, Obj>>, path: string): Map<string, Obj> {
    let all = stores.get(path);
    if (!all) stores.set(path, all = new Map());
    return all;
  }

  /** The edge stores what its watches see, and nothing else. */
  #live(path: string, type: string, key: string, object: Obj): void {
    const watches = [...this.#watches].filter((w) => w.path === path);
    if (watches.length === 0) return;
    if (type === "DELETED") this.#of(this.#edge, path).delete(key);
    else this.#of(this.#edge, path).set(key, object);
    for (const watch of watches) watch.response.write(JSON.stringify({ type, object }) + "\n");
  }

  #handle(request: IncomingMessage, response: ServerResponse): void {
    const url = new URL(request.url!, "http://x");
    const query = url.searchParams;
    const watching = query.get("watch") === "true";
    const what = watching ? "WATCH" : query.get("limit") === "1" ? "PROBE" : "LIST";
    const path = url.pathname;
    this.counts.set(`${what} ${path}`, this.count(`${what} ${path}`) + 1);
    if (this.token !== undefined && request.headers.authorization !== `Bearer ${this.token}`) {
      return status(response, 401, "Unauthorized");
    }
    if (["/api", "/apis", "/api/v1"].includes(path) || this.protobuf.has(`${what} ${path}`)) {
      response.writeHead(200, { "content-type": "application/json" });
      // A frame of a watch begins with its length.
      response.end(Uint8Array.from([...(watching ? [0, 0, 0, 9] : []), 0x6b, 0x38, 0x73, 0, 10, 12, 10, 2, 118]));
      return;
    }
    if (watching) return this.#watch(path, response);
    if (!this.#online) return this.#listLocally(path, response);
    if (!this.resources.has(path)) return json(response, 200, { kind: "List", metadata: {}, items: [] });
    const limit = Number(query.get("limit") ?? 0) || Infinity;
    const from = Number(query.get("continue") ?? 0);
    const all = [...this.#of(this.#cloud, path).values()];
    const metadata: Record<string, unknown> = { resourceVersion: String(this.#version) };
    if (from + limit < all.length) metadata.continue = String(from + limit);
    json(response, 200, { kind: "List", apiVersion: "v1", metadata, items: all.slice(from, from + limit) });
  }

  #listLocally(path: string, response: ServerResponse): void {
    const stored = this.#edge.get(path);
    if (!stored) return json(response, 200, { kind: "List", metadata: {}, items: [] });
    const metadata = {
      selfLink: `/core/v1/${path.split("/").at(-1)}/null/null`,
      ...(this.localVersion ? { resourceVersion: String(this.#version) } : {}),
    };
    json(response, 200, { kind: "List", apiVersion: "v1", metadata, items: [...stored.values()] });
  }

  #watch(path: string, response: ServerResponse): void {
    response.writeHead(200, { "content-type": "application/json" });
    response.flushHeaders();
    const first = !this.#edge.has(path);
    const stored = this.#of(this.#edge, path);
    if (first && this.#online) {
      for (const [key, object] of [...this.#of(this.#cloud, path)].slice(this.missInFirstReplay)) {
        stored.set(key, object);
      }
    }
    for (const object of stored.values()) response.write(JSON.stringify({ type: "ADDED", object }) + "\n");
    const watch = { path, response };
    this.#watches.add(watch);
    response.on("close", () => this.#watches.delete(watch));
  }
}
