/** Which part of the cluster's metadata one agent is given. */
import type { EndpointSlice, Kind, Kinds, Pod, Service } from "../model.ts";
import { namespaceOf } from "../objects.ts";
import type { Snapshot } from "../store/snapshot.ts";

export interface Scope {
  /** Only objects of these namespaces; undefined: all. Nodes and cluster-scoped objects are always given. */
  readonly namespaces?: readonly string[];
  /** Only Services with all of these labels, and their slices. The labels must be kept at the border (extraLabels). */
  readonly serviceLabels?: Readonly<Record<string, string>>;
  /** Pods: those of the agent's own node (default), all, or none. */
  readonly pods?: "own" | "all" | "none";
}

/** Everything, with the pods of the agent's own node. */
export const FULL_SCOPE: Scope = {};

/** A scope for some nodes, as configured. */
export interface ScopeRule extends Unset<Scope> {
  /** Names of nodes; `*` stands for any part of a name. */
  readonly nodes: readonly string[];
}

type Unset<T> = { readonly [K in keyof T]?: T[K] | undefined };

/** The scope of a node: of the first rule that names it; everything when none does. */
export function scopeFor(node: string, rules: readonly ScopeRule[]): Scope {
  const rule = rules.find((r) => r.nodes.some((pattern) => matchesName(node, pattern)));
  if (!rule) return FULL_SCOPE;
  const { namespaces, serviceLabels, pods } = rule;
  return {
    ...(namespaces === undefined ? {} : { namespaces }),
    ...(serviceLabels === undefined ? {} : { serviceLabels }),
    ...(pods === undefined ? {} : { pods }),
  };
}

/** Labels that rules ask for: those must be kept where objects enter. */
export function scopeLabels(rules: readonly ScopeRule[]): string[] {
  return [...new Set(rules.flatMap((rule) => Object.keys(rule.serviceLabels ?? {})))];
}

function matchesName(name: string, pattern: string): boolean {
  const parts = pattern.split("*");
  if (parts.length === 1) return name === pattern;
  const [first, last] = [parts[0]!, parts.at(-1)!];
  if (!name.startsWith(first) || !name.endsWith(last)) return false;
  let at = first.length;
  const end = name.length - last.length;
  for (const part of parts.slice(1, -1)) {
    const found = name.indexOf(part, at);
    if (found < 0) return false;
    at = found + part.length;
  }
  return at <= end;
}

/** Text that is equal for scopes that give equal objects, own-node pods aside. Part of the epoch an agent is told. */
export function scopeKey(scope: Scope): string {
  const parts: string[] = [];
  if (scope.namespaces) parts.push(`n=${scope.namespaces.toSorted().join(",")}`);
  if (scope.serviceLabels) {
    const labels = Object.entries(scope.serviceLabels).sort(([a], [b]) => a < b ? -1 : 1);
    parts.push(`l=${labels.map(([k, v]) => `${k}=${v}`).join(",")}`);
  }
  if (scope.pods !== undefined && scope.pods !== "own") parts.push(`p=${scope.pods}`);
  return parts.join(";");
}

/** Scope with its parts prepared for asking. Pods of the own node are not its business: see {@link isOwnPod}. */
export class ScopeFilter {
  readonly key: string;
  /** Whether membership depends on more than the key of an object. */
  readonly byLabel: boolean;
  readonly ownPods: boolean;
  readonly #namespaces: ReadonlySet<string> | undefined;
  readonly #labels: readonly (readonly [string, string])[];
  readonly #allPods: boolean;

  constructor(scope: Scope) {
    this.key = scopeKey(scope);
    this.#namespaces = scope.namespaces && new Set(scope.namespaces);
    this.#labels = Object.entries(scope.serviceLabels ?? {});
    this.byLabel = this.#labels.length > 0;
    this.#allPods = scope.pods === "all";
    this.ownPods = scope.pods === undefined || scope.pods === "own";
  }

  /** Whether any object with this key can be in the scope. */
  admitsKey(kind: Kind, key: string): boolean {
    if (kind === "pod" && !this.#allPods) return false;
    return this.admitsNamespace(kind, key);
  }

  admitsNamespace(kind: Kind, key: string): boolean {
    if (!this.#namespaces) return true;
    const namespace = namespaceOf(kind, key);
    return namespace === undefined || this.#namespaces.has(namespace);
  }

  /** The object with this key as the scope sees it in `snapshot`. */
  visible<K extends Kind>(kind: K, key: string, snapshot: Snapshot): Kinds[K] | undefined {
    if (!this.admitsKey(kind, key)) return undefined;
    const object = snapshot.get(kind, key);
    if (object === undefined || !this.byLabel) return object;
    if (kind === "service") return this.#matches(object as Service) ? object : undefined;
    if (kind === "slice") {
      const slice = object as EndpointSlice;
      const owner = snapshot.service(slice.namespace, slice.service);
      return owner && this.#matches(owner) ? object : undefined;
    }
    return object;
  }

  #matches(service: Service): boolean {
    return this.#labels.every(([key, value]) => Object.hasOwn(service.labels, key) && service.labels[key] === value);
  }
}

/** Whether a pod runs on the node: such pods are given to their own agent whatever the size of the cluster. */
export function isOwnPod(pod: Pod | undefined, node: string): boolean {
  return pod !== undefined && pod.node === node;
}
