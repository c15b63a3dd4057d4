/** Node, Pod and Namespace (core/v1) and route objects → slim model. */
import { cidrText, parseCidr } from "../../addr.ts";
import type { Checker, Fields } from "./checker.ts";
import { isSubdomain } from "./checker.ts";
import type { ConvertContext } from "./convert.ts";
import type { Identity } from "./convert_meta.ts";
import { created } from "./convert_meta.ts";
import { keepEveryLabel, keepNodeLabel, LEGACY_ZONE, ZONE } from "../labels.ts";
import type { Namespace, Node, Pod, RouteObject } from "../model.ts";

/** Addresses or pod networks of one node, addresses of one pod. */
const MAX_ADDRESSES = 32;
/** Size of a route object's spec as JSON: Kubernetes objects are bounded by etcd's 1.5 MB, sane routes are far below. */
export const MAX_ROUTE_BYTES = 256 * 1024;

export function convertNode(id: Identity, raw: Fields, check: Checker, context: ConvertContext): Node {
  const meta = check.fields(raw.metadata, "metadata") ?? {};
  const spec = check.fields(raw.spec, "spec") ?? {};
  const status = check.fields(raw.status, "status") ?? {};
  const labels = check.labels(meta.labels, "metadata.labels", keepNodeLabel);
  const legacy = check.fields(meta.labels, "metadata.labels")?.[LEGACY_ZONE];
  const zone = labels[ZONE] ?? (typeof legacy === "string" ? legacy : undefined);
  const internalIPs: string[] = [];
  for (const [i, value] of check.list(status.addresses, "status.addresses").entries()) {
    const entry = check.fields(value, `status.addresses[${i}]`);
    if (entry?.type !== "InternalIP" || internalIPs.length >= MAX_ADDRESSES) continue;
    const ip = check.ip(entry.address, `status.addresses[${i}].address`);
    if (ip !== undefined && !internalIPs.includes(ip)) internalIPs.push(ip);
  }
  return {
    name: context.strings.share(id.name),
    ...(zone ? { zone: context.strings.share(zone) } : {}),
    internalIPs,
    podCIDRs: podCIDRs(spec, check),
    labels,
  };
}

/** Undefined for a pod without addresses and for a finished one: its address may be another pod's by now. */
export function convertPod(id: Identity, raw: Fields, check: Checker, context: ConvertContext): Pod | undefined {
  const spec = check.fields(raw.spec, "spec") ?? {};
  const status = check.fields(raw.status, "status") ?? {};
  if (status.phase === "Succeeded" || status.phase === "Failed") return undefined;
  const ips: string[] = [];
  const podIPs = check.list(status.podIPs, "status.podIPs");
  const values = podIPs.length > 0 ? podIPs.map((e) => check.fields(e, "status.podIPs[]")?.ip) : [status.podIP];
  for (const [i, value] of values.slice(0, MAX_ADDRESSES).entries()) {
    if (value === "") continue;
    const ip = check.ip(value, podIPs.length > 0 ? `status.podIPs[${i}].ip` : "status.podIP");
    if (ip !== undefined && !ips.includes(ip)) ips.push(ip);
  }
  if (ips.length === 0) return undefined;
  const node = check.name(spec.nodeName === "" ? undefined : spec.nodeName, "spec.nodeName", isSubdomain);
  return {
    namespace: context.strings.share(id.namespace),
    name: id.name,
    ...(node === undefined ? {} : { node: context.strings.share(node) }),
    ips,
    hostNetwork: check.flag(spec.hostNetwork, "spec.hostNetwork") ?? false,
  };
}

/** Labels are kept whole: Gateway API listeners select namespaces by any of them. */
export function convertNamespace(id: Identity, raw: Fields, check: Checker): Namespace {
  const meta = check.fields(raw.metadata, "metadata") ?? {};
  return { name: id.name, labels: check.labels(meta.labels, "metadata.labels", keepEveryLabel) };
}

/** Istio and Gateway API objects are kept whole; what they mean is the business of whoever reads them. */
export function convertRoute(id: Identity, raw: Fields, check: Checker): RouteObject | undefined {
  const meta = check.fields(raw.metadata, "metadata") ?? {};
  const spec = raw.spec ?? {};
  if (!check.fields(spec, "spec")) return undefined;
  const bytes = JSON.stringify(spec).length;
  if (bytes > MAX_ROUTE_BYTES) {
    return check.bad("spec", `${bytes} bytes`, `is larger than ${MAX_ROUTE_BYTES} bytes`);
  }
  const age = created(meta, check);
  return {
    kind: id.kind,
    apiVersion: id.apiVersion,
    namespace: id.namespace,
    name: id.name,
    spec,
    labels: check.labels(meta.labels, "metadata.labels", keepEveryLabel),
    ...(age === undefined ? {} : { created: age }),
  };
}

function podCIDRs(spec: Fields, check: Checker): readonly string[] {
  const many = check.list(spec.podCIDRs, "spec.podCIDRs");
  const values = many.length > 0 ? many : spec.podCIDR ? [spec.podCIDR] : [];
  const out: string[] = [];
  for (const [i, value] of values.slice(0, MAX_ADDRESSES).entries()) {
    const field = many.length > 0 ? `spec.podCIDRs[${i}]` : "spec.podCIDR";
    const text = check.text(value, field);
    if (text === undefined) continue;
    const cidr = parseCidr(text);
    if (cidr) out.push(cidrText(cidr));
    else check.bad(field, text, "is not a network (host bits must be zero)");
  }
  return out;
}
