/**
 * Objects of one resource, as a server tells them → changes of a layer. Knows which keys the resource owns, so that a
 * complete list removes exactly what is gone, and holds what is wrong with single objects.
 */
import type { ConvertContext, Converted } from "../convert/convert.ts";
import { convert } from "../convert/convert.ts";
import { Checker } from "../convert/checker.ts";
import { identify } from "../convert/convert_meta.ts";
import type { FollowerSink } from "./follower.ts";
import type { Resource } from "./kube_resources.ts";
import { belongs, ENDPOINTS, isOfResource, keyOfIdentity, resourceName } from "./kube_resources.ts";
import type { Kind } from "../model.ts";
import type { Changes, ObjectChange } from "../objects.ts";
import { remove } from "../objects.ts";
import type { ProblemBook } from "../problems.ts";
import type { Health } from "./reflector.ts";

/** Where changes go. */
export interface SinkTarget {
  /** Takes changes; they are published at once or with {@link publish}. */
  apply(changes: Changes): void;
  publish(): void;
  /** The slice with this key as of now, changes not yet published included. */
  hasSlice(key: string): boolean;
  /** Keys of a kind that were told and not told gone, as published; what is not believed included. */
  keys(kind: Kind): Iterable<string>;
}

export interface SinkOptions {
  readonly resource: Resource;
  readonly namespace?: string;
  readonly context: ConvertContext;
  readonly book: ProblemBook;
  readonly into: SinkTarget;
  /** The resource was listed completely, or its health changed. */
  readonly settled: (health: Health) => void;
  /** A request got no answer. */
  readonly broke: (error: unknown) => void;
  /**
   * Events come without order: old ones are replayed, deleted objects among them. Versions of objects and of lists
   * then decide what is news (they are numbers of one counter, etcd's revision).
   */
  readonly byVersion?: boolean;
}

/** Keys looked at in one step of a sweep: microseconds each. */
const SWEEP_STEP = 100;

export class ResourceSink implements FollowerSink {
  readonly #options: SinkOptions;
  /** Keys of the list under way. */
  #seen: Set<string> | undefined;
  /** Keys that the list under way did not mention, as found by {@link sweep}. */
  #missing: string[] = [];
  #pending: ObjectChange[] = [];
  /** Version of each object as last read, by key; for Endpoints by the stem of their slices' keys. */
  readonly #versions = new Map<string, string>();
  /** Keys that the watch told of since the list under way began, for when both run side by side. */
  readonly #touched = new Set<string>();
  /** Version of the last complete list; what it did not hold and is no younger is gone for good. */
  #listVersion = 0;

  constructor(options: SinkOptions) {
    this.#options = options;
  }

  begin(): void {
    this.#seen = new Set();
    this.#missing = [];
    this.#touched.clear();
  }

  keep(): void {
    this.flush();
    this.#options.into.publish();
    this.#seen = undefined;
  }

  unchanged(name: string, namespace: string, version: string): boolean {
    const { resource } = this.#options;
    // Routes have their version of the API in their content, and a list may come in another one.
    if (resource.kind === "route") return false;
    const key = resource.clusterScoped ? name : `${namespace}/${name}`;
    if (this.#versions.get(key) !== version) return false;
    this.#see(key);
    return true;
  }

  put(raw: Record<string, unknown>, from: "list" | "watch"): void {
    const converted = convert(raw, this.#options.context);
    const { id, puts, problems } = converted;
    if (id && isOfResource(this.#options.resource, id)) {
      const key = keyOfIdentity(this.#options.resource, id);
      const version = (raw.metadata as { resourceVersion?: unknown }).resourceVersion;
      if (this.#isOld(key, version)) {
        if (from === "list" && this.#versions.has(key)) this.#see(key);
        return;
      }
      if (from === "watch" && this.#seen) this.#touched.add(key);
      if (typeof version === "string") this.#versions.set(key, version);
      this.#options.book.set(this.#bookKey(key), problems);
      this.#replace(key, puts);
      if (from === "list") this.#see(key, puts);
    } else if (!id) {
      this.#options.book.set(this.#bookKey(`? ${nameOf(raw)}`), this.#named(converted, raw));
    }
  }

  remove(raw: Record<string, unknown>): void {
    const id = identify(raw, new Checker(""), this.#options.resource.clusterScoped);
    if (!id || !isOfResource(this.#options.resource, id)) return;
    const key = keyOfIdentity(this.#options.resource, id);
    if (this.#isOld(key, (raw.metadata as { resourceVersion?: unknown }).resourceVersion)) return;
    this.#options.book.set(this.#bookKey(key), []);
    this.#versions.delete(key);
    this.#replace(key, []);
  }

  commit(version: string): boolean {
    const { resource, into, byVersion } = this.#options;
    this.flush();
    into.publish();
    const at = Number(version);
    if (byVersion && at < this.#listVersion) {
      this.#versions.clear();
      this.#listVersion = 0;
      this.#seen = undefined;
      return false;
    }
    const gone: ObjectChange[] = [];
    for (const key of this.#missing) {
      const stem = resource === ENDPOINTS ? key.slice(0, key.lastIndexOf("~")) : key;
      // Younger than the list, as the watch told meanwhile.
      if (this.#touched.has(stem) && Number(this.#versions.get(stem) ?? 0) > at) continue;
      gone.push(remove(resource.kind, key));
      // Should it come back in the same version, it must be read again.
      this.#versions.delete(stem);
    }
    this.#missing = [];
    this.#seen = undefined;
    this.#listVersion = at;
    into.apply(gone);
    into.publish();
    this.#options.settled({ name: "following" });
    return true;
  }

  *sweep(): IterableIterator<void> {
    const { resource, namespace, into } = this.#options;
    this.flush();
    into.publish();
    let looks = 0;
    for (const key of into.keys(resource.kind)) {
      if (belongs(resource, key, namespace) && !this.#seen?.has(key)) this.#missing.push(key);
      if (++looks % SWEEP_STEP === 0) yield;
    }
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

  broke(error: unknown): void {
    this.#options.broke(error);
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
    for (const key of into.keys(resource.kind)) {
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
    this.#pending.push(...puts);
    if (resource !== ENDPOINTS) {
      if (puts.length === 0) this.#pending.push(remove(resource.kind, stem));
      return;
    }
    // They are numbered without gaps.
    for (let i = puts.length; into.hasSlice(`${stem}~${i}`); i++) {
      this.#pending.push(remove("slice", `${stem}~${i}`));
    }
  }

  /** An object is in the list under way, with all it gives: `puts`, or what it gave before. */
  #see(key: string, puts?: readonly ObjectChange[]): void {
    const { resource, into } = this.#options;
    if (puts) { for (const change of puts) this.#seen?.add(change.key); }
    else if (resource !== ENDPOINTS) this.#seen?.add(key);
    else for (let i = 0; into.hasSlice(`${key}~${i}`); i++) this.#seen?.add(`${key}~${i}`);
  }

  /** Whether this version of an object tells nothing new: older than the one known, or of an object that is gone. */
  #isOld(key: string, version: unknown): boolean {
    if (!this.#options.byVersion || typeof version !== "string") return false;
    const known = this.#versions.get(key);
    return known === undefined ? Number(version) <= this.#listVersion : Number(version) < Number(known);
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
