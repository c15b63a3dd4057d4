/** What is read from a Kubernetes API: paths, kinds, and how their objects map to keys of the slim model. */
import type { Identity } from "../convert/convert_meta.ts";
import type { Kind } from "../model.ts";
import { groupOf, routeKey } from "../objects.ts";

export interface Resource {
  /** Plural name as in rules of RBAC: `services`. */
  readonly plural: string;
  readonly group: string;
  /** Versions in order of preference; the first the server knows is used. */
  readonly versions: readonly string[];
  /** Kind of its objects; items of lists come without. */
  readonly objectKind: string;
  readonly clusterScoped: boolean;
  /** Kind of the slim model its objects become. */
  readonly kind: Kind;
}

const ISTIO = "networking.istio.io";
const GATEWAY = "gateway.networking.k8s.io";

export const SERVICES: Resource = core("services", "Service", "service");
export const ENDPOINTS: Resource = core("endpoints", "Endpoints", "slice");
export const NODES: Resource = { ...core("nodes", "Node", "node"), clusterScoped: true };
export const PODS: Resource = core("pods", "Pod", "pod");
export const NAMESPACES: Resource = { ...core("namespaces", "Namespace", "namespace"), clusterScoped: true };
export const ENDPOINT_SLICES: Resource = {
  plural: "endpointslices",
  group: "discovery.k8s.io",
  versions: ["v1"],
  objectKind: "EndpointSlice",
  clusterScoped: false,
  kind: "slice",
};

/** Objects of these are kept whole for the L7 part; the CRDs may be missing, older, or come later. */
export const ROUTE_RESOURCES: readonly Resource[] = [
  route(ISTIO, "virtualservices", "VirtualService", ["v1", "v1beta1", "v1alpha3"]),
  route(ISTIO, "destinationrules", "DestinationRule", ["v1", "v1beta1", "v1alpha3"]),
  route(ISTIO, "gateways", "Gateway", ["v1", "v1beta1", "v1alpha3"]),
  route(ISTIO, "serviceentries", "ServiceEntry", ["v1", "v1beta1", "v1alpha3"]),
  { ...route(GATEWAY, "gatewayclasses", "GatewayClass", ["v1", "v1beta1"]), clusterScoped: true },
  route(GATEWAY, "gateways", "Gateway", ["v1", "v1beta1"]),
  route(GATEWAY, "httproutes", "HTTPRoute", ["v1", "v1beta1"]),
  route(GATEWAY, "grpcroutes", "GRPCRoute", ["v1", "v1alpha2"]),
  route(GATEWAY, "tcproutes", "TCPRoute", ["v1", "v1alpha2"]),
  route(GATEWAY, "tlsroutes", "TLSRoute", ["v1", "v1alpha3", "v1alpha2"]),
  route(GATEWAY, "udproutes", "UDPRoute", ["v1", "v1alpha2"]),
  route(GATEWAY, "referencegrants", "ReferenceGrant", ["v1", "v1beta1"]),
  route(GATEWAY, "backendtlspolicies", "BackendTLSPolicy", ["v1", "v1alpha3"]),
  route(GATEWAY, "listenersets", "ListenerSet", ["v1"]),
];

/** The path of a resource in one version; with `namespace`, of the objects in it only. */
export function pathOf(resource: Resource, version: string, namespace?: string): string {
  const root = resource.group === "" ? `/api/${version}` : `/apis/${resource.group}/${version}`;
  return namespace === undefined || resource.clusterScoped
    ? `${root}/${resource.plural}`
    : `${root}/namespaces/${namespace}/${resource.plural}`;
}

/** `v1`, `networking.istio.io/v1beta1`. */
export function apiVersionOf(resource: Resource, version: string): string {
  return resource.group === "" ? version : `${resource.group}/${version}`;
}

/** Name for people and for RBAC: `httproutes.gateway.networking.k8s.io`. */
export function resourceName(resource: Resource): string {
  return resource.group === "" ? resource.plural : `${resource.plural}.${resource.group}`;
}

/** Key in the slim model of an object; for Endpoints, which give several slices, the stem of their keys. */
export function keyOfIdentity(resource: Resource, id: Identity): string {
  if (resource.kind === "route") return routeKey(id);
  return resource.clusterScoped ? id.name : `${id.namespace}/${id.name}`;
}

/** Whether a key of the slim model came from this resource (and namespace): what a list of it may remove. */
export function belongs(resource: Resource, key: string, namespace: string | undefined): boolean {
  if (resource.kind === "route") {
    const [group, kind, keyNamespace] = key.split("/");
    return group === resource.group && kind === resource.objectKind &&
      (namespace === undefined || resource.clusterScoped || keyNamespace === namespace);
  }
  if (namespace !== undefined && !resource.clusterScoped && !key.startsWith(`${namespace}/`)) return false;
  return resource.kind !== "slice" || key.includes("~") === (resource === ENDPOINTS);
}

/** Whether an object read from a server is what was asked for. */
export function isOfResource(resource: Resource, id: Identity): boolean {
  return id.kind === resource.objectKind && groupOf(id.apiVersion) === resource.group;
}

function core(plural: string, objectKind: string, kind: Kind): Resource {
  return { plural, group: "", versions: ["v1"], objectKind, clusterScoped: false, kind };
}

function route(group: string, plural: string, objectKind: string, versions: readonly string[]): Resource {
  return { plural, group, versions, objectKind, clusterScoped: false, kind: "route" };
}
