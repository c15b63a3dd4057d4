/**
 * The secondary indexes of a snapshot, persistent like it. Address indexes hold keys, not objects: a slice of a hundred
 * endpoints in which one changes then touches one entry instead of a hundred.
 */
import type { EndpointSlice, Kind, Kinds, Pod, Service } from "../model.ts";
import { serviceKey } from "../model.ts";
import type { PMapEditor } from "./pmap.ts";
import { PMap } from "./pmap.ts";

/** Almost every address belongs to one object: a bare key then, a list only where there are several. */
type Keys = string | readonly string[];

const NONE: readonly never[] = [];

export class Indexes {
  readonly #slices: PMap<readonly EndpointSlice[]>;
  readonly #claims: PMap<Keys>;
  readonly #endpoints: PMap<Keys>;
  readonly #pods: PMap<Keys>;
  readonly #namespaces: PMap<number>;
  /** Addresses with more than one claimant; nearly always empty. */
  readonly #contested: PMap<true>;

  private constructor(
    slices: PMap<readonly EndpointSlice[]>,
    addresses: { claims: PMap<Keys>; endpoints: PMap<Keys>; pods: PMap<Keys>; contested: PMap<true> },
    namespaces: PMap<number>,
  ) {
    this.#slices = slices;
    this.#claims = addresses.claims;
    this.#endpoints = addresses.endpoints;
    this.#pods = addresses.pods;
    this.#contested = addresses.contested;
    this.#namespaces = namespaces;
  }

  static empty(): Indexes {
    const addresses = {
      claims: PMap.empty<Keys>(),
      endpoints: PMap.empty<Keys>(),
      pods: PMap.empty<Keys>(),
      contested: PMap.empty<true>(),
    };
    return new Indexes(PMap.empty(), addresses, PMap.empty());
  }

  slicesOf(key: string): readonly EndpointSlice[] {
    return this.#slices.get(key) ?? NONE;
  }

  /** Keys of the Services that claim an address in any role. */
  claimantsOf(ip: string): readonly string[] {
    return listed(this.#claims.get(ip));
  }

  contested(): Iterable<string> {
    return this.#contested.keys();
  }

  slicesWith(ip: string): readonly string[] {
    return listed(this.#endpoints.get(ip));
  }

  podsWith(ip: string): readonly string[] {
    return listed(this.#pods.get(ip));
  }

  servicesIn(namespace: string): number {
    return this.#namespaces.get(namespace) ?? 0;
  }

  edit(): IndexEditor {
    const editors = {
      slices: this.#slices.edit(),
      claims: this.#claims.edit(),
      endpoints: this.#endpoints.edit(),
      pods: this.#pods.edit(),
      contested: this.#contested.edit(),
      namespaces: this.#namespaces.edit(),
    };
    return new IndexEditor(editors, (e) =>
      new Indexes(
        e.slices.done(),
        { claims: e.claims.done(), endpoints: e.endpoints.done(), pods: e.pods.done(), contested: e.contested.done() },
        e.namespaces.done(),
      ));
  }
}

interface Editors {
  readonly slices: PMapEditor<readonly EndpointSlice[]>;
  readonly claims: PMapEditor<Keys>;
  readonly endpoints: PMapEditor<Keys>;
  readonly pods: PMapEditor<Keys>;
  readonly contested: PMapEditor<true>;
  readonly namespaces: PMapEditor<number>;
}

/** Keeps the indexes in step with a batch of object changes. */
class IndexEditor {
  readonly #e: Editors;
  readonly #finish: (editors: Editors) => Indexes;

  constructor(editors: Editors, finish: (editors: Editors) => Indexes) {
    this.#e = editors;
    this.#finish = finish;
  }

  /** One object became another; undefined = absent. */
  change(kind: Kind, key: string, before: Kinds[Kind] | undefined, after: Kinds[Kind] | undefined): void {
    switch (kind) {
      case "service":
        return this.#service(key, before as Service | undefined, after as Service | undefined);
      case "slice":
        return this.#slice(key, before as EndpointSlice | undefined, after as EndpointSlice | undefined);
      case "pod":
        return move(
          this.#e.pods,
          key,
          (before as Pod | undefined)?.ips ?? NONE,
          (after as Pod | undefined)?.ips ?? NONE,
        );
      default:
        return;
    }
  }

  done(): Indexes {
    return this.#finish(this.#e);
  }

  #service(key: string, before: Service | undefined, after: Service | undefined): void {
    const old = before ? claimsOf(before) : NONE;
    const now = after ? claimsOf(after) : NONE;
    move(this.#e.claims, key, old, now);
    for (const ip of [...old, ...now]) {
      if (Array.isArray(this.#e.claims.get(ip))) this.#e.contested.set(ip, true);
      else this.#e.contested.delete(ip);
    }
    if ((before === undefined) === (after === undefined)) return;
    const namespace = (after ?? before)!.namespace;
    const count = (this.#e.namespaces.get(namespace) ?? 0) + (after ? 1 : -1);
    if (count > 0) this.#e.namespaces.set(namespace, count);
    else this.#e.namespaces.delete(namespace);
  }

  #slice(key: string, before: EndpointSlice | undefined, after: EndpointSlice | undefined): void {
    const oldOwner = before && serviceKey(before.namespace, before.service);
    const newOwner = after && serviceKey(after.namespace, after.service);
    if (before && oldOwner !== newOwner) {
      const rest = (this.#e.slices.get(oldOwner!) ?? NONE).filter((s) => s !== before);
      if (rest.length > 0) this.#e.slices.set(oldOwner!, rest);
      else this.#e.slices.delete(oldOwner!);
    }
    if (after) {
      const list = this.#e.slices.get(newOwner!) ?? NONE;
      const at = before && oldOwner === newOwner ? list.indexOf(before) : -1;
      this.#e.slices.set(newOwner!, at < 0 ? [...list, after].sort(byName) : list.with(at, after));
    }
    move(this.#e.endpoints, key, addressesOf(before), addressesOf(after));
  }
}

/** Makes `key` be listed under exactly the addresses in `now`, given that it was under those in `old`. */
function move(index: PMapEditor<Keys>, key: string, old: Iterable<string>, now: Iterable<string>): void {
  const keep = new Set(now);
  for (const ip of old) {
    if (keep.delete(ip)) continue;
    const rest = listed(index.get(ip)).filter((k) => k !== key);
    if (rest.length === 0) index.delete(ip);
    else index.set(ip, rest.length === 1 ? rest[0]! : rest);
  }
  for (const ip of keep) {
    const there = index.get(ip);
    // Sorted, so that equal states are equal whatever the order of events was.
    if (there === undefined) index.set(ip, key);
    else if (typeof there === "string") there !== key && index.set(ip, [there, key].sort());
    else if (!there.includes(key)) index.set(ip, [...there, key].sort());
  }
}

function claimsOf(service: Service): readonly string[] {
  if (service.externalIPs.length === 0 && service.loadBalancerIPs.length === 0) return service.clusterIPs;
  return [...new Set([...service.clusterIPs, ...service.externalIPs, ...service.loadBalancerIPs])];
}

function addressesOf(slice: EndpointSlice | undefined): Iterable<string> {
  return slice ? new Set(slice.endpoints.map((e) => e.ip)) : NONE;
}

function listed(keys: Keys | undefined): readonly string[] {
  return keys === undefined ? NONE : typeof keys === "string" ? [keys] : keys;
}

function byName(a: EndpointSlice, b: EndpointSlice): number {
  return a.name < b.name ? -1 : a.name > b.name ? 1 : 0;
}
