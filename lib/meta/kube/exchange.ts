/**
 * One list page or one watch of one resource: asks, reads, hands objects to a sink, and says how it ended. No
 * decision about what to ask next is made here; see reflector.ts and meta_reflector.ts.
 */
import { MeshError } from "../../errors.ts";
import type { ApiAnswer, KubeApi } from "./kube_api.ts";
import { chunksOf } from "./kube_api.ts";
import type { Resource } from "./kube_resources.ts";
import { apiVersionOf, pathOf, resourceName } from "./kube_resources.ts";
import { LineSplitter } from "./line_splitter.ts";
import { ListSplitter } from "./list_splitter.ts";
import type { Pacer } from "../pace.ts";

/** Objects per page: the server's memory and ours stay small, and 5 000 Services are ten requests. */
const PAGE = 500;
/** Enough for the names and the version of nearly every object. */
const HEAD_BYTES = 768;
/** How the API server begins an item: fields of metadata in the order of their definition. Another order is read whole. */
const ITEM_HEAD =
  /^\{"metadata":\{"name":"([^"\\]+)",(?:"generateName":"[^"\\]*",)?(?:"namespace":"([^"\\]+)",)?"uid":"[^"\\]+","resourceVersion":"(\d+)"/;
/** Bytes of a list worked on before it is asked whether the loop shall turn: one or two items. */
const STRETCH_BYTES = 4 * 1024;

/** An object, or space before it. */
const JSON_BEGINS: ReadonlySet<number> = new Set([..."{ \t\r\n"].map((c) => c.charCodeAt(0)));
/** How Kubernetes begins protobuf; in a watch a frame's length stands before it. */
const PROTOBUF_MAGIC = "k8s\0";
const LATIN1 = new TextDecoder("latin1");

/** Takes the objects that are read. */
export interface ObjectSink {
  /** An item of a list, by its identity alone. True: it is known in this very version and need not be read. */
  unchanged(name: string, namespace: string, version: string): boolean;
  /** An object of a list, or of an event of the watch. */
  put(raw: Record<string, unknown>, from: "list" | "watch"): void;
  remove(raw: Record<string, unknown>): void;
  /** A piece of work is done: publish what was put and removed. */
  flush(): void;
  /** Looks, in steps, for what the list that is now complete did not mention. Nothing is removed by it yet. */
  sweep(): Iterable<void>;
  /** An object was left out because of its size. */
  oversized(): void;
}

export interface Refused {
  readonly type: "refused";
  readonly status: number;
  readonly retryAfterMs?: number;
}

export type ListEnd =
  | {
    readonly type: "page";
    readonly version: string;
    readonly more: string | undefined;
    /** Answered from the edge's own store, which knows only part (KubeEdge's MetaServer). */
    readonly local: boolean;
  }
  /** An answer without a version: nothing is known about the resource. */
  | { readonly type: "unknown" }
  /** `why`: the answer is none that can be read. */
  | { readonly type: "broke"; readonly why?: MeshError }
  | Refused;

export type WatchEnd =
  | { readonly type: "ended" }
  /** Cut in the middle of a line. */
  | { readonly type: "broke" }
  /** A line that cannot be read, or the whole answer, which `why` tells. */
  | { readonly type: "garbled"; readonly why?: MeshError }
  | Refused;

export interface WatchCallbacks {
  opened(): void;
  /** An event or bookmark was taken in. */
  event(version: string): void;
}

export interface ExchangeOptions {
  readonly api: KubeApi;
  readonly resource: Resource;
  readonly sink: ObjectSink;
  /** Shared by all exchanges of a source. */
  readonly pacer: Pacer;
  readonly namespace?: string;
  readonly fieldSelector?: string;
}

export class Exchange {
  readonly #options: ExchangeOptions;
  readonly #decoder = new TextDecoder();
  /** Version of the API group that answered last; a new list looks for the best one anew. */
  #version: string;

  constructor(options: ExchangeOptions) {
    this.#options = options;
    this.#version = options.resource.versions[0]!;
  }

  /** Reads one page. Rejects when no answer came or its body broke. */
  async list(token: string | undefined, signal: AbortSignal, progress: () => void): Promise<ListEnd> {
    const versions = token === undefined ? this.#options.resource.versions : [this.#version];
    const query = { limit: String(PAGE), ...(token === undefined ? {} : { continue: token }) };
    for (const [i, version] of versions.entries()) {
      this.#version = version;
      const answer = await this.#get(query, signal);
      const end = answer.status === 200 ? await this.#readList(answer, signal, progress) : await refused(answer);
      const missing = end.type === "unknown" || (end.type === "refused" && end.status === 404);
      if (!missing || i === versions.length - 1) return end;
    }
    return { type: "unknown" };
  }

  /** Follows changes until the watch ends. Rejects when no answer came or the connection broke. */
  async watch(
    query: { readonly resourceVersion?: string; readonly timeoutSeconds: number },
    signal: AbortSignal,
    on: WatchCallbacks,
  ): Promise<WatchEnd> {
    const answer = await this.#get({
      watch: "true",
      allowWatchBookmarks: "true",
      ...(query.resourceVersion === undefined ? {} : { resourceVersion: query.resourceVersion }),
      timeoutSeconds: String(query.timeoutSeconds),
    }, signal);
    if (answer.status !== 200) return await refused(answer);
    on.opened();
    const lines = new LineSplitter();
    const { sink, pacer } = this.#options;
    let end: WatchEnd | undefined;
    let begun = false;
    for await (const chunk of chunksOf(answer.body, signal)) {
      const why = begun ? undefined : this.#unreadable(chunk, "watch");
      if (why) return { type: "garbled", why };
      begun ||= chunk.length > 0;
      lines.push(chunk, (bytes) => {
        if (!signal.aborted) end ??= this.#event(bytes, on);
      }, () => {
        end ??= { type: "garbled" };
      });
      sink.flush();
      if (end) return end;
      if (pacer.tired) await pacer.rest(signal);
    }
    // A line without its end means the connection was cut, however orderly the rest looks.
    return { type: lines.pending > 0 ? "broke" : "ended" };
  }

  async #readList(answer: ApiAnswer, signal: AbortSignal, progress: () => void): Promise<ListEnd> {
    const { sink, pacer } = this.#options;
    let broken = false;
    const splitter = new ListSplitter({
      item: (bytes) => {
        if (!this.#item(bytes)) broken = true;
      },
      oversized: () => sink.oversized(),
    });
    let begun = false;
    for await (const chunk of chunksOf(answer.body, signal)) {
      const why = begun ? undefined : this.#unreadable(chunk, "list");
      if (why) return { type: "broke", why };
      begun ||= chunk.length > 0;
      for (let at = 0; at < chunk.length; at += STRETCH_BYTES) {
        splitter.push(chunk.subarray(at, at + STRETCH_BYTES));
        if (!pacer.tired) continue;
        sink.flush();
        await pacer.rest(signal);
      }
      sink.flush();
      progress();
    }
    const envelope = splitter.finish();
    if (!envelope || broken) return { type: "broke" };
    const metadata = (envelope.metadata ?? {}) as { resourceVersion?: unknown; continue?: unknown; selfLink?: unknown };
    const { resourceVersion: version, continue: more, selfLink } = metadata;
    if (typeof version !== "string" || version === "") return { type: "unknown" };
    const local = typeof selfLink === "string" && selfLink !== "";
    if (typeof more === "string" && more !== "") return { type: "page", version, more, local };
    // Looks at every object once: as much as a list of its own.
    for (const _ of sink.sweep()) if (pacer.tired) await pacer.rest(signal);
    return { type: "page", version, more: undefined, local };
  }

  /**
   * What is wrong with an answer by its first bytes. KubeEdge's MetaServer hands protobuf on under the name of JSON where
   * the cloud gave it that, so the content type says nothing.
   */
  #unreadable(begin: Uint8Array, what: "list" | "watch"): MeshError | undefined {
    if (begin.length === 0 || JSON_BEGINS.has(begin[0]!)) return undefined;
    const form = LATIN1.decode(begin.subarray(0, 16)).includes(PROTOBUF_MAGIC) ? "in protobuf" : "with no JSON";
    const name = resourceName(this.#options.resource);
    return new MeshError("PROTOCOL", `A ${what} of ${name} was answered ${form} although JSON was asked for`, {
      hint: `look at what answers at ${this.#options.api.address}`,
    });
  }

  #event(bytes: Uint8Array, on: WatchCallbacks): WatchEnd | undefined {
    const event = this.#parse(bytes);
    const object = event?.object as Record<string, unknown> | undefined;
    if (!event || typeof object !== "object" || object === null) return { type: "garbled" };
    switch (event.type) {
      case "ADDED":
      case "MODIFIED":
        this.#options.sink.put(this.#typed(object), "watch");
        break;
      case "DELETED":
        this.#options.sink.remove(this.#typed(object));
        break;
      case "BOOKMARK":
        break;
      case "ERROR": {
        const { code, details } = object as { code?: unknown; details?: { retryAfterSeconds?: unknown } };
        const seconds = details?.retryAfterSeconds;
        return {
          type: "refused",
          status: typeof code === "number" ? code : 500,
          ...(typeof seconds === "number" ? { retryAfterMs: seconds * 1000 } : {}),
        };
      }
      default:
        return { type: "garbled" };
    }
    const version = (object.metadata as { resourceVersion?: unknown } | undefined)?.resourceVersion;
    on.event(typeof version === "string" ? version : "");
    return undefined;
  }

  /** Takes an item of a list; false when it is not JSON. */
  #item(bytes: Uint8Array): boolean {
    // In a list that is taken anew nearly every item is known: finding that out by its first bytes, without reading
    // the rest, is what keeps such a list from costing what the first one did.
    const head = ITEM_HEAD.exec(this.#decoder.decode(bytes.subarray(0, HEAD_BYTES)));
    if (head && this.#options.sink.unchanged(head[1]!, head[2] ?? "", head[3]!)) return true;
    const raw = this.#parse(bytes);
    if (raw) this.#options.sink.put(this.#typed(raw), "list");
    return raw !== undefined;
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

  async #get(query: Record<string, string>, signal: AbortSignal): Promise<ApiAnswer> {
    const { api, resource, namespace, fieldSelector, pacer } = this.#options;
    // A source asks for a score of resources at the same moment, and each request is some work.
    if (pacer.tired) await pacer.rest(signal);
    const all = new URLSearchParams(fieldSelector === undefined ? query : { ...query, fieldSelector });
    return await api.get(`${pathOf(resource, this.#version, namespace)}?${all}`, signal);
  }
}

async function refused(answer: ApiAnswer): Promise<Refused> {
  await answer.body?.cancel();
  const { status, retryAfterMs } = answer;
  return { type: "refused", status, ...(retryAfterMs === undefined ? {} : { retryAfterMs }) };
}
