/** EndpointSlice (discovery.k8s.io/v1) and Endpoints (core/v1) → slim slices. */
import { isUnicastEndpoint } from "../../addr.ts";
import type { Checker, Fields } from "./checker.ts";
import { isLabel, isSubdomain } from "./checker.ts";
import type { ConvertContext } from "./convert.ts";
import { protocolOf } from "./convert_service.ts";
import { SLICE_SERVICE, SLICE_SOURCE_CLUSTER, ZONE } from "../labels.ts";
import type { Endpoint, EndpointPort, EndpointSlice } from "../model.ts";

/** Kubernetes' own bound on endpoints per slice; larger Endpoints subsets are cut into several slices. */
export const MAX_SLICE_ENDPOINTS = 1000;
/** Kubernetes' own bound on ports per slice. */
export const MAX_SLICE_PORTS = 100;

/** Zones and similar opaque values: what a label value may be. */
const LABEL_VALUE = /^[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?$/;

/** Where a slice or Endpoints object lives; checked already. */
interface At {
  readonly namespace: string;
  readonly name: string;
}

/**
 * Converts an EndpointSlice. One without a Service label belongs to nobody (undefined, no problem), one with addresses
 * of type FQDN is not usable by any proxy.
 */
export function convertSlice(at: At, raw: Fields, check: Checker, context: ConvertContext): EndpointSlice | undefined {
  const meta = check.fields(raw.metadata, "metadata") ?? {};
  const labels = check.fields(meta.labels, "metadata.labels") ?? {};
  const service = check.name(labels[SLICE_SERVICE], `metadata.labels["${SLICE_SERVICE}"]`);
  if (service === undefined) return undefined;
  if (raw.addressType === "FQDN") {
    return check.bad("addressType", "FQDN", "is not usable: addresses must be IPs", "UNSUPPORTED");
  }
  const endpoints: Endpoint[] = [];
  const list = check.list(raw.endpoints, "endpoints");
  for (const [i, value] of list.entries()) {
    if (endpoints.length >= MAX_SLICE_ENDPOINTS) {
      check.bad("endpoints", list.length, `holds more than ${MAX_SLICE_ENDPOINTS} endpoints; the rest is ignored`);
      break;
    }
    const endpoint = sliceEndpoint(value, `endpoints[${i}]`, check, context);
    if (endpoint) endpoints.push(endpoint);
  }
  const cluster = labels[SLICE_SOURCE_CLUSTER];
  const sourceCluster = labelValue(cluster, `metadata.labels["${SLICE_SOURCE_CLUSTER}"]`, check, context);
  return {
    namespace: context.strings.share(at.namespace),
    name: at.name,
    service: context.strings.share(service),
    endpoints,
    ports: endpointPorts(raw.ports, "ports", check, context),
    ...(sourceCluster === undefined ? {} : { sourceCluster }),
  };
}

/**
 * Converts an Endpoints object into one slice per subset (and per {@link MAX_SLICE_ENDPOINTS}). The names of the
 * slices hold a `~`, which no Kubernetes name can, so they never collide with real slices.
 */
export function convertEndpoints(at: At, raw: Fields, check: Checker, context: ConvertContext): EndpointSlice[] {
  const out: EndpointSlice[] = [];
  for (const [i, value] of check.list(raw.subsets, "subsets").entries()) {
    const field = `subsets[${i}]`;
    const subset = check.fields(value, field);
    if (!subset) continue;
    const ports = endpointPorts(subset.ports, `${field}.ports`, check, context);
    const endpoints: Endpoint[] = [];
    for (const [list, ready] of [["addresses", true], ["notReadyAddresses", false]] as const) {
      for (const [j, address] of check.list(subset[list], `${field}.${list}`).entries()) {
        const endpoint = subsetEndpoint(address, `${field}.${list}[${j}]`, ready, check, context);
        if (endpoint) endpoints.push(endpoint);
      }
    }
    for (let from = 0; from < endpoints.length; from += MAX_SLICE_ENDPOINTS) {
      out.push({
        namespace: context.strings.share(at.namespace),
        name: `${at.name}~${out.length}`,
        service: context.strings.share(at.name),
        endpoints: endpoints.slice(from, from + MAX_SLICE_ENDPOINTS),
        ports,
      });
    }
  }
  return out;
}

/** Whether a slice came from an Endpoints object. */
export function isFromEndpoints(sliceName: string): boolean {
  return sliceName.includes("~");
}

function sliceEndpoint(
  value: unknown,
  field: string,
  check: Checker,
  context: ConvertContext,
): Endpoint | undefined {
  const raw = check.fields(value, field);
  if (!raw) return undefined;
  // The addresses of one endpoint are interchangeable and consumers use the first (discovery/v1 API comment).
  const ip = address(check.list(raw.addresses, `${field}.addresses`)[0], `${field}.addresses[0]`, check);
  if (ip === undefined) return undefined;
  const conditions = check.fields(raw.conditions, `${field}.conditions`) ?? {};
  // Unset conditions: ready means yes, serving follows ready, terminating means no (discovery/v1 API comments).
  const ready = check.flag(conditions.ready, `${field}.conditions.ready`) ?? true;
  const hints = check.fields(raw.hints, `${field}.hints`) ?? {};
  const topology = check.fields(raw.deprecatedTopology, `${field}.deprecatedTopology`) ?? {};
  return endpoint(ip, {
    node: name(raw.nodeName, `${field}.nodeName`, check, context),
    zone: labelValue(raw.zone ?? topology[ZONE], `${field}.zone`, check, context),
    hostname: check.name(raw.hostname || undefined, `${field}.hostname`, isLabel),
    pod: podOf(raw.targetRef, `${field}.targetRef`, check),
    ready,
    serving: check.flag(conditions.serving, `${field}.conditions.serving`) ?? ready,
    terminating: check.flag(conditions.terminating, `${field}.conditions.terminating`) ?? false,
    hintZones: hintNames(hints.forZones, `${field}.hints.forZones`, check, context),
    hintNodes: hintNames(hints.forNodes, `${field}.hints.forNodes`, check, context),
  });
}

function subsetEndpoint(
  value: unknown,
  field: string,
  ready: boolean,
  check: Checker,
  context: ConvertContext,
): Endpoint | undefined {
  const raw = check.fields(value, field);
  const ip = raw && address(raw.ip, `${field}.ip`, check);
  if (!raw || ip === undefined) return undefined;
  return endpoint(ip, {
    node: name(raw.nodeName, `${field}.nodeName`, check, context),
    zone: undefined,
    hostname: check.name(raw.hostname || undefined, `${field}.hostname`, isLabel),
    pod: podOf(raw.targetRef, `${field}.targetRef`, check),
    ready,
    serving: ready,
    terminating: false,
    hintZones: undefined,
    hintNodes: undefined,
  });
}

type Details = { readonly [K in Exclude<keyof Endpoint, "ip">]-?: Endpoint[K] | undefined } & {
  readonly ready: boolean;
  readonly serving: boolean;
  readonly terminating: boolean;
};

/** Always adds the fields in one order: objects of few shapes are what keeps 50 000 of them small and quick. */
function endpoint(ip: string, d: Details): Endpoint {
  return {
    ip,
    ...(d.node === undefined ? {} : { node: d.node }),
    ...(d.zone === undefined ? {} : { zone: d.zone }),
    ...(d.hostname === undefined ? {} : { hostname: d.hostname }),
    ...(d.pod === undefined ? {} : { pod: d.pod }),
    ready: d.ready,
    serving: d.serving,
    terminating: d.terminating,
    ...(d.hintZones === undefined ? {} : { hintZones: d.hintZones }),
    ...(d.hintNodes === undefined ? {} : { hintNodes: d.hintNodes }),
  };
}

/** Loopback and link-local endpoints would reach the dialling node's own services (CVE-2020-8558, CVE-2021-25740). */
function address(value: unknown, field: string, check: Checker): string | undefined {
  if (value === undefined || value === null) return check.bad(field, value, "is required");
  const ip = check.ip(value, field);
  if (ip === undefined || isUnicastEndpoint(ip)) return ip;
  return check.bad(field, ip, "is a loopback, link-local, multicast or unspecified address");
}

function endpointPorts(
  value: unknown,
  field: string,
  check: Checker,
  context: ConvertContext,
): readonly EndpointPort[] {
  const out: EndpointPort[] = [];
  for (const [i, item] of check.list(value, field).entries()) {
    const raw = check.fields(item, `${field}[${i}]`);
    // A slice port without a number means "all ports"; no Service port maps to it.
    if (!raw || raw.port === undefined || raw.port === null) continue;
    if (out.length >= MAX_SLICE_PORTS) {
      check.bad(field, i + 1, `holds more than ${MAX_SLICE_PORTS} ports; the rest is ignored`);
      break;
    }
    const protocol = protocolOf(raw.protocol, `${field}[${i}].protocol`, check);
    const port = check.port(raw.port, `${field}[${i}].port`);
    const name = check.text(raw.name, `${field}[${i}].name`) ?? "";
    if (protocol === undefined || port === undefined) continue;
    if (out.some((p) => p.name === name && p.protocol === protocol)) {
      check.bad(`${field}[${i}].name`, name, `is there twice for ${protocol}`);
      continue;
    }
    out.push({ name: context.strings.share(name), protocol, port });
  }
  return context.sharePorts(out);
}

function name(value: unknown, field: string, check: Checker, context: ConvertContext): string | undefined {
  const text = check.name(value === "" ? undefined : value, field, isSubdomain);
  return text === undefined ? undefined : context.strings.share(text);
}

function labelValue(value: unknown, field: string, check: Checker, context: ConvertContext): string | undefined {
  const text = check.name(value === "" ? undefined : value, field, (t) => LABEL_VALUE.test(t));
  return text === undefined ? undefined : context.strings.share(text);
}

function podOf(value: unknown, field: string, check: Checker): string | undefined {
  const ref = check.fields(value, field);
  if (!ref || (ref.kind !== undefined && ref.kind !== "Pod")) return undefined;
  return check.name(ref.name === "" ? undefined : ref.name, `${field}.name`, isSubdomain);
}

function hintNames(
  value: unknown,
  field: string,
  check: Checker,
  context: ConvertContext,
): readonly string[] | undefined {
  const list = check.list(value, field);
  if (list.length === 0) return undefined;
  const out: string[] = [];
  for (const [i, item] of list.entries()) {
    const text = labelValue(check.fields(item, `${field}[${i}]`)?.name, `${field}[${i}].name`, check, context);
    if (text !== undefined) out.push(text);
  }
  return out.length === 0 ? undefined : out;
}
