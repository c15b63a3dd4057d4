/**
 * Objects of one resource, as a server tells them → changes of a layer. Knows which keys the resource owns, so that a
 * complete list removes exactly what is gone, and holds what is wrong with single objects.
 */
import type { ConvertContext, Converted } from "./convert.ts";
import { convert } from "./convert.ts";
import { Checker } from "./checker.ts";
import { identify } from "./convert_meta.ts";
import type { ObjectSink } from "./follower.ts";
import type { Resource } from "./kube_resources.ts";
import { belongs, ENDPOINTS, isOfResource, keyOfIdentity, resourceName } from "./kube_resources.ts";
import type { Changes, ObjectChange } from "./objects.ts";
import { remove } from "./objects.ts";
import type { ProblemBook } from "./problems.ts";
import type { Health } from "./reflector.ts";
import type { Snapshot } from "./snapshot.ts";

/** Where changes go. */
export interface SinkTarget {
  /** Takes changes; they are published at once or with {@link publish}. */
  apply(changes: Changes): void;
  publish(): void;
  /** The slice with this key as of now, changes not yet published included. */
  hasSlice(key: string): boolean;
  /** What is published. */
  readonly snapshot: Snapshot;
}

export interface SinkOptions {
  readonly resource: Resource;
  readonly namespace?: string;
  readonly context: ConvertContext;
  readonly book: ProblemBook;
  readonly into: SinkTarget;
  /** The resource was listed completely, or its health changed. */
  readonly settled: (health: Health) => void;
}

export class ResourceSink implements ObjectSink {
  readonly #options: SinkOptions;
  /** Keys of the list under way. */
  #seen: Set<string> | undefined;
  #pending: ObjectChange[] = [];
  /** Version of each object as last read, by key; for Endpoints by the stem of their slices' keys. */
  readonly #versions = new Map<string, string>();

  constructor(options: SinkOptions) {
    this.#options = options;
  }

  begin(): void {
    this.#seen = new Set();
  }

  unchanged(name: string, namespace: string, version: string): boolean {
    const { resource, into } = this.#options;
    // Routes have their version of the API in their content, and a list may come in another one.
    if (resource.kind === "route") return false;
    const key = resource.clusterScoped ? name : `${namespace}/${name}`;
    if (this.#versions.get(key) !== version) return false;
    if (resource !== ENDPOINTS) this.#seen?.add(key);
    else for (let i = 0; into.hasSlice(`${key}~${i}`); i++) this.#seen?.add(`${key}~${i}`);
    return true;
  }

  put(raw: Record<string, unknown>): void {
    const converted = convert(raw, this.#options.context);
    const { id, puts, problems } = converted;
    if (id && isOfResource(this.#options.resource, id)) {
      const key = keyOfIdentity(this.#options.resource, id);
      const version = (raw.metadata as { resourceVersion?: unknown }).resourceVersion;
      if (typeof version === "string") this.#versions.set(key, version);
      this.#options.book.set(this.#bookKey(key), problems);
      this.#replace(key, puts);
    } else if (!id) {
      this.#options.book.set(this.#bookKey(`? ${nameOf(raw)}`), this.#named(converted, raw));
    }
  }

  remove(raw: Record<string, unknown>): void {
    const id = identify(raw, new Checker(""), this.#options.resource.clusterScoped);
    if (!id || !isOfResource(this.#options.resource, id)) return;
    const key = keyOfIdentity(this.#options.resource, id);
    this.#options.book.set(this.#bookKey(key), []);
    this.#versions.delete(key);
    this.#replace(key, []);
  }

  commit(): void {
    const { resource, namespace, into } = this.#options;
    this.flush();
    into.publish();
    const gone: ObjectChange[] = [];
    for (const [key] of into.snapshot.entries(resource.kind)) {
      if (!belongs(resource, key, namespace) || this.#seen?.has(key)) continue;
      gone.push(remove(resource.kind, key));
      // Should it come back in the same version, it must be read again.
      this.#versions.delete(resource === ENDPOINTS ? key.slice(0, key.lastIndexOf("~")) : key);
    }
    this.#seen = undefined;
    into.apply(gone);
    into.publish();
    this.#options.settled({ name: "following" });
  }

  flush(): void {
    if (this.#pending.length === 0) return;
    const changes = this.#pending;
    this.#pending = [];
    this.#options.into.apply(changes);
  }

  health(health: Health): void {
    this.#options.settled(health);
  }

  oversized(): void {
    const object = resourceName(this.#options.resource);
    const problem = { object, field: "", value: "", reason: "an object is too large and was left out" } as const;
    this.#options.book.set(this.#bookKey("? oversized"), [{ ...problem, code: "OBJECT_INVALID" }]);
  }

  /** Removes everything the resource gave: another takes its place. */
  clear(): void {
    this.begin();
    this.#versions.clear();
    this.#pending = [];
    const { resource, namespace, into } = this.#options;
    into.publish();
    const gone: ObjectChange[] = [];
    for (const [key] of into.snapshot.entries(resource.kind)) {
      if (belongs(resource, key, namespace)) gone.push(remove(resource.kind, key));
    }
    into.apply(gone);
    into.publish();
  }

  /** Puts what an object gives now and removes what it gave before and does not any more. */
  #replace(stem: string, puts: readonly ObjectChange[]): void {
    const { resource, into } = this.#options;
    // How many slices an Endpoints object gave before is read off the target, so that must be up to date.
    if (resource === ENDPOINTS) this.flush();
    for (const change of puts) {
      this.#seen?.add(change.key);
      this.#pending.push(change);
    }
    if (resource !== ENDPOINTS) {
      if (puts.length === 0) this.#pending.push(remove(resource.kind, stem));
      return;
    }
    // They are numbered without gaps.
    for (let i = puts.length; into.hasSlice(`${stem}~${i}`); i++) {
      this.#pending.push(remove("slice", `${stem}~${i}`));
    }
  }

  #bookKey(key: string): string {
    return `${resourceName(this.#options.resource)} ${key}`;
  }

  #named(converted: Converted, raw: Record<string, unknown>) {
    const object = `${this.#options.resource.objectKind} ${nameOf(raw)}`;
    return converted.problems.map((p) => ({ ...p, object }));
  }
}

function nameOf(raw: Record<string, unknown>): string {
  const meta = raw.metadata as { namespace?: unknown; name?: unknown } | null | undefined;
  return `${String(meta?.namespace ?? "")}/${String(meta?.name ?? "")}`.slice(0, 128);
}
