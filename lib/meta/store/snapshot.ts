/**
 * The immutable state of what is known, with the indexes DNS and forwarding ask. Applying changes makes a new snapshot
 * that shares everything untouched with the old one and says which objects really changed.
 */
import type {
  EndpointSlice,
  Kind,
  Kinds,
  MetaReader,
  MetaVersion,
  Namespace,
  Node,
  Pod,
  Protocol,
  RouteObject,
  Service,
  ServiceKey,
} from "../model.ts";
import { KINDS, serviceKey } from "../model.ts";
import type { Changes } from "../objects.ts";
import { sameValue } from "../objects.ts";
import type { PMapEditor } from "./pmap.ts";
import { PMap } from "./pmap.ts";
import { Indexes } from "./snapshot_index.ts";

/** What an apply changed. Objects that were put with equal content are not in it. */
export interface ChangeSet {
  /** Keys put, changed or removed, by kind; kinds without changes are absent. */
  readonly changed: ReadonlyMap<Kind, ReadonlySet<string>>;
  /** Services that changed themselves or through one of their slices. */
  readonly services: ReadonlySet<ServiceKey>;
  /** True when `synced` went from false to true with this change. */
  readonly becameSynced: boolean;
}

export type ObjectMaps = { readonly [K in Kind]: PMap<Kinds[K]> };

/** Version of a snapshot that has learned nothing. */
export const NO_VERSION: MetaVersion = { source: "", epoch: "", number: 0 };

/** Options of {@link Snapshot.apply}; what is absent stays as it was. */
export interface ApplyOptions {
  readonly version?: MetaVersion;
  readonly synced?: boolean;
}

interface Parts {
  readonly maps: ObjectMaps;
  readonly indexes: Indexes;
}

// Set by Snapshot's static block: they let the builder reach the parts without making them public.
let partsOf: (snapshot: Snapshot) => Parts;
let makeSnapshot: (parts: Parts, version: MetaVersion, synced: boolean) => Snapshot;

export class Snapshot implements MetaReader {
  static readonly #empty = new Snapshot(emptyMaps(), Indexes.empty(), NO_VERSION, false);

  readonly synced: boolean;
  readonly version: MetaVersion;
  readonly #maps: ObjectMaps;
  readonly #indexes: Indexes;

  static {
    partsOf = (snapshot) => ({ maps: snapshot.#maps, indexes: snapshot.#indexes });
    makeSnapshot = (parts, version, synced) => new Snapshot(parts.maps, parts.indexes, version, synced);
  }

  private constructor(maps: ObjectMaps, indexes: Indexes, version: MetaVersion, synced: boolean) {
    this.#maps = maps;
    this.#indexes = indexes;
    this.version = version;
    this.synced = synced;
  }

  /** Nothing known, not synced. */
  static empty(): Snapshot {
    return Snapshot.#empty;
  }

  /** A snapshot with these changes, and what they really changed. This snapshot stays as it is. */
  apply(changes: Changes, options: ApplyOptions = {}): { snapshot: Snapshot; changes: ChangeSet } {
    return new SnapshotBuilder(this).add(changes).done(options);
  }

  get<K extends Kind>(kind: K, key: string): Kinds[K] | undefined {
    return (this.#maps[kind] as PMap<Kinds[K]>).get(key);
  }

  /** All objects of a kind, lazily. */
  objects<K extends Kind>(kind: K): IterableIterator<Kinds[K]> {
    return (this.#maps[kind] as PMap<Kinds[K]>).values();
  }

  /** Keys and objects of a kind, lazily. */
  entries<K extends Kind>(kind: K): IterableIterator<[string, Kinds[K]]> {
    return (this.#maps[kind] as PMap<Kinds[K]>).entries();
  }

  count(kind: Kind): number {
    return this.#maps[kind].size;
  }

  /** Objects of all kinds together. */
  get size(): number {
    let sum = 0;
    for (const kind of KINDS) sum += this.#maps[kind].size;
    return sum;
  }

  service(namespace: string, name: string): Service | undefined {
    return this.#maps.service.get(serviceKey(namespace, name));
  }

  services(): Iterable<Service> {
    return this.#maps.service.values();
  }

  serviceByIp(ip: string): Service | undefined {
    return this.#claimants(ip).find((s) => s.clusterIPs.includes(ip));
  }

  ownerOf(ip: string, protocol: Protocol, port: number): Service | undefined {
    return this.#claimants(ip).find((s) => s.ports.some((p) => p.port === port && p.protocol === protocol));
  }

  slicesOf(namespace: string, service: string): readonly EndpointSlice[] {
    return this.#indexes.slicesOf(serviceKey(namespace, service));
  }

  slicesByIp(ip: string): readonly EndpointSlice[] {
    return this.#resolve("slice", this.#indexes.slicesWith(ip));
  }

  node(name: string): Node | undefined {
    return this.#maps.node.get(name);
  }

  nodes(): Iterable<Node> {
    return this.#maps.node.values();
  }

  /** A namespace exists when its object does, or, where a source has no Namespace objects, when a Service is in it. */
  hasNamespace(name: string): boolean {
    return this.#maps.namespace.has(name) || this.#indexes.servicesIn(name) > 0;
  }

  namespace(name: string): Namespace | undefined {
    return this.#maps.namespace.get(name);
  }

  pod(namespace: string, name: string): Pod | undefined {
    return this.#maps.pod.get(serviceKey(namespace, name));
  }

  podsByIp(ip: string): readonly Pod[] {
    return this.#resolve("pod", this.#indexes.podsWith(ip));
  }

  *routes(group: string, kind: string): IterableIterator<RouteObject> {
    const prefix = `${group}/${kind}/`;
    for (const [key, object] of this.#maps.route.entries()) if (key.startsWith(prefix)) yield object;
  }

  /** Services that claim an address, the owner first: cluster IP before other claims, oldest first, then by name. */
  #claimants(ip: string): readonly Service[] {
    const keys = this.#indexes.claimantsOf(ip);
    const services = this.#resolve("service", keys);
    return services.length < 2 ? services : services.toSorted((a, b) => byClaim(ip, a, b));
  }

  /** Addresses that more than one Service claims, each with its claimants in order of precedence. For status. */
  *contested(): IterableIterator<{ readonly ip: string; readonly services: readonly Service[] }> {
    for (const ip of this.#indexes.contested()) yield { ip, services: this.#claimants(ip) };
  }

  #resolve<K extends Kind>(kind: K, keys: readonly string[]): Kinds[K][] {
    const out: Kinds[K][] = [];
    for (const key of keys) {
      const object = this.get(kind, key);
      if (object) out.push(object);
    }
    return out;
  }
}

/**
 * Many changes on the way to one new snapshot. What the builder itself made it changes in place, so a first list of
 * thousands of objects leaves no trail of intermediate states to the garbage collector. Single use.
 */
export class SnapshotBuilder {
  readonly #base: Snapshot;
  readonly #edits = new Map<Kind, PMapEditor<unknown>>();
  readonly #index;
  readonly #changed = new Map<Kind, Set<string>>();
  readonly #services = new Set<ServiceKey>();

  constructor(base: Snapshot) {
    this.#base = base;
    this.#index = partsOf(base).indexes.edit();
  }

  add(changes: Changes): this {
    for (const { kind, key, object } of changes) {
      const edit = this.#edit(kind);
      const before = edit.get(key) as Kinds[Kind] | undefined;
      if (before === object || (object !== undefined && before !== undefined && sameValue(before, object))) continue;
      if (object === undefined) edit.delete(key);
      else edit.set(key, object);
      this.#index.change(kind, key, before, object);
      noteServices(this.#services, kind, before, object);
      let keys = this.#changed.get(kind);
      if (!keys) this.#changed.set(kind, keys = new Set());
      keys.add(key);
    }
    return this;
  }

  /** An object as of now, what was added included. */
  get<K extends Kind>(kind: K, key: string): Kinds[K] | undefined {
    return this.#edit(kind).get(key) as Kinds[K] | undefined;
  }

  done(options: ApplyOptions = {}): { snapshot: Snapshot; changes: ChangeSet } {
    const base = this.#base;
    const synced = options.synced ?? base.synced;
    const version = options.version ?? base.version;
    const changes: ChangeSet = {
      changed: this.#changed,
      services: this.#services,
      becameSynced: synced && !base.synced,
    };
    if (this.#changed.size === 0 && synced === base.synced && version === base.version) {
      return { snapshot: base, changes };
    }
    const maps = { ...partsOf(base).maps } as Record<Kind, PMap<unknown>>;
    for (const [kind, edit] of this.#edits) maps[kind] = edit.done();
    const parts = { maps: maps as ObjectMaps, indexes: this.#index.done() };
    return { snapshot: makeSnapshot(parts, version, synced), changes };
  }

  #edit(kind: Kind): PMapEditor<unknown> {
    let edit = this.#edits.get(kind);
    if (!edit) this.#edits.set(kind, edit = (partsOf(this.#base).maps[kind] as PMap<unknown>).edit());
    return edit;
  }
}

/** Two change sets as one, for consumers that were not told of the first. */
export function mergeChangeSets(a: ChangeSet, b: ChangeSet): ChangeSet {
  const changed = new Map<Kind, ReadonlySet<string>>(a.changed);
  for (const [kind, keys] of b.changed) {
    const before = changed.get(kind);
    changed.set(kind, before ? before.union(keys) : keys);
  }
  return {
    changed,
    services: a.services.union(b.services),
    becameSynced: a.becameSynced || b.becameSynced,
  };
}

/** Whether nothing in it needs a consumer's attention. */
export function isNoChange(changes: ChangeSet): boolean {
  return changes.changed.size === 0 && !changes.becameSynced;
}

function byClaim(ip: string, a: Service, b: Service): number {
  const own = Number(b.clusterIPs.includes(ip)) - Number(a.clusterIPs.includes(ip));
  if (own !== 0) return own;
  // A Service whose age is not known (a file's) comes after those whose age is.
  const age = (a.created ?? Number.MAX_SAFE_INTEGER) - (b.created ?? Number.MAX_SAFE_INTEGER);
  if (age !== 0) return age;
  const [ka, kb] = [serviceKey(a.namespace, a.name), serviceKey(b.namespace, b.name)];
  return ka < kb ? -1 : ka > kb ? 1 : 0;
}

function noteServices(
  into: Set<ServiceKey>,
  kind: Kind,
  before: Kinds[Kind] | undefined,
  after: Kinds[Kind] | undefined,
): void {
  if (kind === "service") {
    const service = (after ?? before) as Service;
    into.add(serviceKey(service.namespace, service.name));
  } else if (kind === "slice") {
    for (const slice of [before, after] as (EndpointSlice | undefined)[]) {
      if (slice) into.add(serviceKey(slice.namespace, slice.service));
    }
  }
}

function emptyMaps(): ObjectMaps {
  return {
    service: PMap.empty(),
    slice: PMap.empty(),
    node: PMap.empty(),
    pod: PMap.empty(),
    namespace: PMap.empty(),
    route: PMap.empty(),
  };
}
