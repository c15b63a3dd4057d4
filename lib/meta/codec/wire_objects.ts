/**
 * Slim objects as compact JSON values, for the wire and the disk: fixed positions instead of names, and trailing
 * absences left out. A reader ignores positions it does not know, so a later version may append; what it reads it
 * checks like any foreign input, because an address or name that is none would end up in kernel rules and DNS answers.
 */
import { cidrText, parseCidr, parseIp } from "../../addr.ts";
import { isLabel, isSubdomain } from "../convert/checker.ts";
import { MAX_ROUTE_BYTES } from "../convert/convert_cluster.ts";
import { MAX_SLICE_PORTS } from "../convert/convert_endpoints.ts";
import { MAX_SERVICE_ADDRESSES, MAX_SERVICE_PORTS } from "../convert/convert_service.ts";
import type { Interner } from "../convert/intern.ts";
import type {
  EndpointPort,
  EndpointSlice,
  Kind,
  Kinds,
  Namespace,
  Node,
  Pod,
  Protocol,
  RouteObject,
  Service,
  ServicePort,
} from "../model.ts";
import { decodeEndpoint, encodeEndpoint } from "./wire_endpoint.ts";
import type { Json } from "./wire_value.ts";
import { BadValue, WireReader } from "./wire_value.ts";
import { MAX_SLICE_ENDPOINTS } from "../convert/convert_endpoints.ts";

const TYPES: readonly Service["type"][] = ["ClusterIP", "NodePort", "LoadBalancer", "ExternalName"];
const PROTOCOLS: readonly Protocol[] = ["TCP", "UDP"];
const MAX_LABELS = 256;
const MAX_LABEL_TEXT = 1024;
const MAX_NODE_ADDRESSES = 32;
/** Bits of a Service's flags. */
const HEADLESS = 1;
const INTERNAL_LOCAL = 2;
const EXTERNAL_LOCAL = 4;
const PUBLISH_NOT_READY = 8;

/** The compact form of an object. */
export function encodeObject<K extends Kind>(kind: K, object: Kinds[K]): Json {
  return ENCODE[kind](object);
}

/**
 * An object from its compact form, or a sentence why it is none. `strings` shares repeated names.
 */
export function decodeObject<K extends Kind>(kind: K, value: unknown, strings: Interner): Kinds[K] | string {
  try {
    return DECODE[kind](new WireReader(value, strings));
  } catch (error) {
    if (error instanceof BadValue) return error.message;
    throw error;
  }
}

const ENCODE: { readonly [K in Kind]: (object: Kinds[K]) => Json } = {
  service: encodeService,
  slice: (o) => [
    ...[o.namespace, o.name, o.service, o.ports.map(encodePort), o.endpoints.map(encodeEndpoint)],
    ...(o.sourceCluster === undefined ? [] : [o.sourceCluster]),
  ],
  node: (o) => [o.name, o.zone ?? 0, o.internalIPs, o.podCIDRs, o.labels],
  pod: (o) => [o.namespace, o.name, o.node ?? 0, o.ips, o.hostNetwork ? 1 : 0],
  namespace: (o) => [o.name, o.labels],
  route: (o) => [o.apiVersion, o.kind, o.namespace, o.name, o.spec as Json, o.labels, o.created ?? 0],
};

const DECODE: { readonly [K in Kind]: (r: WireReader) => Kinds[K] } = {
  service: decodeService,
  slice: decodeSlice,
  node: decodeNode,
  pod: decodePod,
  namespace: (r): Namespace => ({ name: r.name(0, isLabel), labels: r.labels(1, MAX_LABELS, MAX_LABEL_TEXT) }),
  route: decodeRoute,
};

function encodeService(o: Service): Json {
  const flags = (o.headless ? HEADLESS : 0) | (o.internalTrafficPolicy === "Local" ? INTERNAL_LOCAL : 0) |
    (o.externalTrafficPolicy === "Local" ? EXTERNAL_LOCAL : 0) | (o.publishNotReadyAddresses ? PUBLISH_NOT_READY : 0);
  const ports = o.ports.map((p): Json => {
    const base: Json[] = [p.name, PROTOCOLS.indexOf(p.protocol), p.port];
    if (p.nodePort !== undefined || p.appProtocol !== undefined) base.push(p.nodePort ?? 0);
    if (p.appProtocol !== undefined) base.push(p.appProtocol);
    return base;
  });
  return trimmed([
    o.namespace,
    o.name,
    TYPES.indexOf(o.type),
    flags,
    o.clusterIPs,
    ports,
    o.externalName ?? 0,
    o.externalIPs.length > 0 ? o.externalIPs : 0,
    o.loadBalancerIPs.length > 0 ? o.loadBalancerIPs : 0,
    o.affinitySeconds ?? 0,
    o.trafficDistribution ?? 0,
    isEmpty(o.labels) ? 0 : o.labels,
    isEmpty(o.annotations) ? 0 : o.annotations,
    o.created ?? 0,
  ]);
}

function decodeService(r: WireReader): Service {
  const flags = r.int(3, 0, 0xff);
  const externalName = r.optional(6, (i) => r.name(i, isSubdomain));
  const affinitySeconds = r.optional(9, (i) => r.int(i, 1, 86400));
  const trafficDistribution = r.optional(10, (i) => r.shared(i, 64));
  const created = r.optional(13, (i) => r.int(i, 1, Number.MAX_SAFE_INTEGER));
  return {
    namespace: r.name(0, isLabel),
    name: r.name(1, isLabel),
    type: TYPES[r.int(2, 0, TYPES.length - 1)]!,
    clusterIPs: addresses(r, 4, 2),
    headless: (flags & HEADLESS) !== 0,
    ...(externalName === undefined ? {} : { externalName }),
    ports: r.list(5, MAX_SERVICE_PORTS, decodeServicePort),
    externalIPs: r.optional(7, (i) => addresses(r, i, MAX_SERVICE_ADDRESSES)) ?? [],
    loadBalancerIPs: r.optional(8, (i) => addresses(r, i, MAX_SERVICE_ADDRESSES)) ?? [],
    ...(affinitySeconds === undefined ? {} : { affinitySeconds }),
    internalTrafficPolicy: flags & INTERNAL_LOCAL ? "Local" : "Cluster",
    externalTrafficPolicy: flags & EXTERNAL_LOCAL ? "Local" : "Cluster",
    publishNotReadyAddresses: (flags & PUBLISH_NOT_READY) !== 0,
    ...(trafficDistribution === undefined ? {} : { trafficDistribution }),
    labels: r.labels(11, MAX_LABELS, MAX_LABEL_TEXT),
    annotations: r.labels(12, MAX_LABELS, MAX_LABEL_TEXT),
    ...(created === undefined ? {} : { created }),
  };
}

function decodeServicePort(r: WireReader): ServicePort {
  const nodePort = r.optional(3, (i) => r.int(i, 1, 65535));
  const appProtocol = r.optional(4, (i) => r.shared(i, 256));
  return {
    name: r.shared(0, 63),
    protocol: PROTOCOLS[r.int(1, 0, 1)]!,
    port: r.int(2, 1, 65535),
    ...(nodePort === undefined ? {} : { nodePort }),
    ...(appProtocol === undefined ? {} : { appProtocol }),
  };
}

/** An endpoint port on the wire: name, protocol, number. */
export function encodePort(p: EndpointPort): Json {
  return [p.name, PROTOCOLS.indexOf(p.protocol), p.port];
}

export function decodePort(r: WireReader): EndpointPort {
  return { name: r.shared(0, 63), protocol: PROTOCOLS[r.int(1, 0, 1)]!, port: r.int(2, 1, 65535) };
}

function decodeSlice(r: WireReader): EndpointSlice {
  const sourceCluster = r.optional(5, (i) => r.shared(i, 63));
  return {
    namespace: r.name(0, isLabel),
    name: r.name(1, isSliceName),
    service: r.name(2, isLabel),
    endpoints: r.list(4, MAX_SLICE_ENDPOINTS, decodeEndpoint),
    ports: r.list(3, MAX_SLICE_PORTS, decodePort),
    ...(sourceCluster === undefined ? {} : { sourceCluster }),
  };
}

/** A Kubernetes name, with the `~n` of slices that were made from Endpoints. */
function isSliceName(text: string): boolean {
  return isSubdomain(text.replace(/~\d{1,6}$/, ""));
}

function decodeNode(r: WireReader): Node {
  const zone = r.optional(1, (i) => r.shared(i, 63));
  return {
    name: r.name(0, isSubdomain),
    ...(zone === undefined ? {} : { zone }),
    internalIPs: addresses(r, 2, MAX_NODE_ADDRESSES),
    podCIDRs: r.list(3, MAX_NODE_ADDRESSES, (item) => {
      const cidr = parseCidr(item.wholeText(64));
      return cidr ? cidrText(cidr) : item.fail("is not a network");
    }),
    labels: r.labels(4, MAX_LABELS, MAX_LABEL_TEXT),
  };
}

function decodePod(r: WireReader): Pod {
  const node = r.optional(2, (i) => r.name(i, isSubdomain));
  return {
    namespace: r.name(0, isLabel),
    name: r.name(1, isSubdomain),
    ...(node === undefined ? {} : { node }),
    ips: addresses(r, 3, MAX_NODE_ADDRESSES),
    hostNetwork: r.int(4, 0, 1) === 1,
  };
}

function decodeRoute(r: WireReader): RouteObject {
  const created = r.optional(6, (i) => r.int(i, 1, Number.MAX_SAFE_INTEGER));
  const spec = r.record(4);
  if (JSON.stringify(spec).length > MAX_ROUTE_BYTES) r.fail("has a spec that is too large");
  return {
    apiVersion: r.shared(0, 256),
    kind: r.shared(1, 63),
    namespace: r.text(2, 63) === "" ? "" : r.name(2, isLabel),
    name: r.name(3, isSubdomain),
    spec,
    labels: r.labels(5, MAX_LABELS, MAX_LABEL_TEXT),
    ...(created === undefined ? {} : { created }),
  };
}

function addresses(r: WireReader, at: number, max: number): readonly string[] {
  return r.list(at, max, (item) => {
    const text = item.wholeText(64);
    // Only the canonical form: another spelling of an address would miss in every index.
    return parseIp(text) === text ? text : item.fail("is not an address in canonical form");
  });
}

function trimmed(values: Json[]): Json {
  while (values.length > 0 && values[values.length - 1] === 0) values.pop();
  return values;
}

function isEmpty(record: Readonly<Record<string, string>>): boolean {
  for (const _ in record) return false;
  return true;
}
