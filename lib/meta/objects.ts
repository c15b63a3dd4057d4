/** Keys, changes and equality of slim objects: the vocabulary between sources, snapshot, disk and wire. */
import type { Kind, Kinds, RouteObject } from "./model.ts";

/** One object put (`object` set) or removed (`object` undefined). */
export type ObjectChange = {
  [K in Kind]: { readonly kind: K; readonly key: string; readonly object: Kinds[K] | undefined };
}[Kind];

/** Changes in order; a later one on the same key wins. */
export type Changes = readonly ObjectChange[];

const KEY_OF: { readonly [K in Kind]: (object: Kinds[K]) => string } = {
  service: (o) => `${o.namespace}/${o.name}`,
  slice: (o) => `${o.namespace}/${o.name}`,
  node: (o) => o.name,
  pod: (o) => `${o.namespace}/${o.name}`,
  namespace: (o) => o.name,
  route: routeKey,
};

/** The key of an object within its kind. */
export function keyOf<K extends Kind>(kind: K, object: Kinds[K]): string {
  return KEY_OF[kind](object);
}

/** The change that puts an object. */
export function put<K extends Kind>(kind: K, object: Kinds[K]): ObjectChange {
  return { kind, key: KEY_OF[kind](object), object } as ObjectChange;
}

/** The change that removes a key. */
export function remove(kind: Kind, key: string): ObjectChange {
  return { kind, key, object: undefined } as ObjectChange;
}

/**
 * Key of a route object: group, kind, namespace, name. The group is part of it because Istio and the Gateway API both
 * have a `Gateway`; the version is not, because one object may be read as v1 today and as v1beta1 tomorrow.
 */
export function routeKey(object: Pick<RouteObject, "apiVersion" | "kind" | "namespace" | "name">): string {
  return `${groupOf(object.apiVersion)}/${object.kind}/${object.namespace}/${object.name}`;
}

/** API group of an apiVersion: `networking.istio.io/v1beta1` → `networking.istio.io`, `v1` → empty. */
export function groupOf(apiVersion: string): string {
  const slash = apiVersion.indexOf("/");
  return slash < 0 ? "" : apiVersion.slice(0, slash);
}

/** The namespace an object of this kind and key belongs to; undefined for nodes and cluster-scoped routes. */
export function namespaceOf(kind: Kind, key: string): string | undefined {
  switch (kind) {
    case "node":
      return undefined;
    case "namespace":
      return key;
    case "route":
      return key.split("/")[2] || undefined;
    default:
      return key.slice(0, key.indexOf("/"));
  }
}

/** Deep equality of plain JSON values; order of keys does not matter, order of arrays does. */
export function sameValue(a: unknown, b: unknown): boolean {
  if (a === b) return true;
  if (typeof a !== "object" || typeof b !== "object" || a === null || b === null) return false;
  if (Array.isArray(a) || Array.isArray(b)) {
    if (!Array.isArray(a) || !Array.isArray(b) || a.length !== b.length) return false;
    for (let i = 0; i < a.length; i++) if (!sameValue(a[i], b[i])) return false;
    return true;
  }
  const left = a as Record<string, unknown>;
  const right = b as Record<string, unknown>;
  let count = 0;
  for (const key in left) {
    count++;
    if (!Object.hasOwn(right, key) || !sameValue(left[key], right[key])) return false;
  }
  for (const _ in right) count--;
  return count === 0;
}
