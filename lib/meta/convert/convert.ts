/**
 * Kubernetes objects → slim model. The border of the product: whatever comes in, what goes out is checked and
 * canonical. A broken object or part of one is left out with a {@link Problem} that names the field; nothing throws.
 */
import { Checker } from "./checker.ts";
import { convertNamespace, convertNode, convertPod, convertRoute } from "./convert_cluster.ts";
import { convertEndpoints, convertSlice } from "./convert_endpoints.ts";
import type { Identity } from "./convert_meta.ts";
import { identify } from "./convert_meta.ts";
import { convertService } from "./convert_service.ts";
import { Interner } from "./intern.ts";
import type { KeepKey } from "../labels.ts";
import type { EndpointPort } from "../model.ts";
import type { ObjectChange } from "../objects.ts";
import { groupOf, put } from "../objects.ts";
import type { Problem } from "../problems.ts";
import { sameValue } from "../objects.ts";

/** State shared by conversions of one source: strings and port lists seen before. */
export class ConvertContext {
  readonly strings = new Interner();
  readonly #extraLabels: ReadonlySet<string>;
  readonly #ports = new Map<string, readonly EndpointPort[]>();

  /** `extraLabels`: keys of Service labels kept besides those of labels.ts, for scoping by label. */
  constructor(extraLabels: Iterable<string> = []) {
    this.#extraLabels = new Set(extraLabels);
  }

  keepLabel(keep: KeepKey): KeepKey {
    return this.#extraLabels.size === 0 ? keep : (key) => keep(key) || this.#extraLabels.has(key);
  }

  /** One array for equal port lists: thousands of slices have the same `http 8080/TCP`. */
  sharePorts(ports: readonly EndpointPort[]): readonly EndpointPort[] {
    const first = ports[0];
    if (!first) return NO_PORTS;
    const key = `${ports.length} ${first.name} ${first.port} ${first.protocol}`;
    const known = this.#ports.get(key);
    if (known && sameValue(known, ports)) return known;
    if (this.#ports.size >= MAX_PORT_LISTS) this.#ports.clear();
    this.#ports.set(key, ports);
    return ports;
  }
}

const NO_PORTS: readonly EndpointPort[] = [];
/** Distinct port lists remembered for sharing. */
const MAX_PORT_LISTS = 4096;

export interface Converted {
  /** False when the kind is none the product reads: ignored, not wrong. */
  readonly known: boolean;
  /** Identity as read, also of objects that could not be used. */
  readonly id: Identity | undefined;
  /** Objects to put. An Endpoints object gives several slices; a finished pod or a broken object gives none. */
  readonly puts: readonly ObjectChange[];
  readonly problems: readonly Problem[];
}

/** API groups whose objects are kept whole for the L7 part, with the kinds of each. */
export const ROUTE_KINDS: ReadonlyMap<string, ReadonlySet<string>> = new Map([
  ["networking.istio.io", new Set(["VirtualService", "DestinationRule", "Gateway", "ServiceEntry"])],
  [
    "gateway.networking.k8s.io",
    new Set([
      "GatewayClass",
      "Gateway",
      "HTTPRoute",
      "GRPCRoute",
      "TCPRoute",
      "TLSRoute",
      "UDPRoute",
      "ReferenceGrant",
      "BackendTLSPolicy",
      "ListenerSet",
    ]),
  ],
]);

const CLUSTER_SCOPED = new Set(["Node", "Namespace", "GatewayClass"]);

/** Converts one object. `where` is file and line for objects from files. */
export function convert(raw: unknown, context: ConvertContext, where?: string): Converted {
  const check = new Checker("", where);
  const fields = check.fields(raw, "(object)");
  if (!fields) {
    if (check.problems.length === 0) check.bad("(object)", raw, "must be an object");
    return { known: true, id: undefined, puts: [], problems: check.problems };
  }
  const kind = typeof fields.kind === "string" ? fields.kind : "";
  const apiVersion = typeof fields.apiVersion === "string" ? fields.apiVersion : "";
  if (kind === "" || apiVersion === "") {
    const field = kind === "" ? "kind" : "apiVersion";
    check.bad(field, fields[field], "is required");
    return { known: true, id: undefined, puts: [], problems: check.problems };
  }
  if (!isKnown(apiVersion, kind)) return { known: false, id: undefined, puts: [], problems: [] };
  check.object = kind;
  const id = identify(fields, check, CLUSTER_SCOPED.has(kind));
  return { known: true, id, puts: id ? putsOf(id, fields, check, context) : [], problems: check.problems };
}

function isKnown(apiVersion: string, kind: string): boolean {
  if (apiVersion === "v1") return ["Service", "Endpoints", "Node", "Pod", "Namespace"].includes(kind);
  const group = groupOf(apiVersion);
  if (group === "discovery.k8s.io") return kind === "EndpointSlice";
  return ROUTE_KINDS.get(group)?.has(kind) ?? false;
}

function putsOf(
  id: Identity,
  fields: Readonly<Record<string, unknown>>,
  check: Checker,
  context: ConvertContext,
): readonly ObjectChange[] {
  switch (id.kind) {
    case "Service":
      return one("service", convertService(id, fields, check, context));
    case "EndpointSlice":
      return one("slice", convertSlice(id, fields, check, context));
    case "Endpoints":
      return convertEndpoints(id, fields, check, context).map((slice) => put("slice", slice));
    case "Node":
      return one("node", convertNode(id, fields, check, context));
    case "Pod":
      return one("pod", convertPod(id, fields, check, context));
    case "Namespace":
      return one("namespace", convertNamespace(id, fields, check));
    default:
      return one("route", convertRoute(id, fields, check));
  }
}

function one<K extends ObjectChange["kind"]>(
  kind: K,
  object: Parameters<typeof put<K>>[1] | undefined,
): readonly ObjectChange[] {
  return object === undefined ? [] : [put(kind, object)];
}
