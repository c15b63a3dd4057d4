/** Kubernetes Service (core/v1) → slim Service. */
import type { Protocol, Service, ServicePort, TrafficPolicy } from "../model.ts";
import type { Checker, Fields } from "./checker.ts";
import { isSubdomain } from "./checker.ts";
import type { ConvertContext } from "./convert.ts";
import { created } from "./convert_meta.ts";
import { keepServiceAnnotation, keepServiceLabel, TOLERATE_UNREADY } from "../labels.ts";
import { isUnicastEndpoint } from "../../addr.ts";

const TYPES = ["ClusterIP", "NodePort", "LoadBalancer", "ExternalName"] as const;
const POLICIES: readonly TrafficPolicy[] = ["Cluster", "Local"];
/** Kubernetes' default of `sessionAffinityConfig.clientIP.timeoutSeconds`: three hours. */
const DEFAULT_AFFINITY_SECONDS = 10800;
const MAX_AFFINITY_SECONDS = 86400;
/** Ports of one Service; Kubernetes sets no bound of its own, etcd's object size does. */
export const MAX_SERVICE_PORTS = 1024;
/** externalIPs or load-balancer addresses of one Service. */
export const MAX_SERVICE_ADDRESSES = 256;

/** Converts a Service whose name and namespace are checked already. */
export function convertService(
  at: { readonly namespace: string; readonly name: string },
  raw: Fields,
  check: Checker,
  context: ConvertContext,
): Service | undefined {
  const meta = check.fields(raw.metadata, "metadata") ?? {};
  const spec = check.fields(raw.spec, "spec");
  if (!spec) return check.bad("spec", raw.spec, "is required");
  const type = check.word(spec.type, "spec.type", TYPES, "ClusterIP");
  const annotations = check.labels(meta.annotations, "metadata.annotations", keepServiceAnnotation);
  const headless = type !== "ExternalName" && isNone(spec);
  const affinity = affinitySeconds(spec, check);
  const distribution = check.text(spec.trafficDistribution, "spec.trafficDistribution");
  const age = created(meta, check);
  const externalName = type === "ExternalName" ? externalNameOf(spec, check) : undefined;
  if (type === "ExternalName" && externalName === undefined) return undefined;
  return {
    namespace: context.strings.share(at.namespace),
    name: context.strings.share(at.name),
    type,
    clusterIPs: headless || type === "ExternalName" ? [] : clusterIPs(spec, check),
    headless,
    ...(externalName === undefined ? {} : { externalName }),
    ports: ports(spec, check, context),
    externalIPs: addresses(check.list(spec.externalIPs, "spec.externalIPs"), "spec.externalIPs", check),
    loadBalancerIPs: type === "LoadBalancer" ? loadBalancerIPs(raw, check) : [],
    ...(affinity === undefined ? {} : { affinitySeconds: affinity }),
    internalTrafficPolicy: check.word(spec.internalTrafficPolicy, "spec.internalTrafficPolicy", POLICIES, "Cluster"),
    externalTrafficPolicy: check.word(spec.externalTrafficPolicy, "spec.externalTrafficPolicy", POLICIES, "Cluster"),
    publishNotReadyAddresses: check.flag(spec.publishNotReadyAddresses, "spec.publishNotReadyAddresses") === true ||
      annotations[TOLERATE_UNREADY] === "true",
    ...(distribution === undefined ? {} : { trafficDistribution: context.strings.share(distribution) }),
    labels: check.labels(meta.labels, "metadata.labels", context.keepLabel(keepServiceLabel)),
    annotations,
    ...(age === undefined ? {} : { created: age }),
  };
}

function isNone(spec: Fields): boolean {
  return spec.clusterIP === "None" || (Array.isArray(spec.clusterIPs) && spec.clusterIPs[0] === "None");
}

/** `clusterIPs` wins over the older single field; an empty text is "not yet allocated". */
function clusterIPs(spec: Fields, check: Checker): readonly string[] {
  const many = check.list(spec.clusterIPs, "spec.clusterIPs");
  if (many.length > 0) return addresses(many, "spec.clusterIPs", check);
  if (spec.clusterIP === "" || spec.clusterIP === undefined || spec.clusterIP === null) return [];
  const ip = unicast(spec.clusterIP, "spec.clusterIP", check);
  return ip === undefined ? [] : [ip];
}

function addresses(values: readonly unknown[], field: string, check: Checker): readonly string[] {
  if (values.length === 0) return NONE;
  const out: string[] = [];
  for (const [i, value] of values.entries()) {
    if (out.length >= MAX_SERVICE_ADDRESSES) {
      check.bad(field, values.length, `holds more than ${MAX_SERVICE_ADDRESSES} addresses; the rest is ignored`);
      break;
    }
    const ip = unicast(value, `${field}[${i}]`, check);
    if (ip !== undefined && !out.includes(ip)) out.push(ip);
  }
  return out;
}

/**
 * Loopback, link-local, multicast, unspecified and broadcast addresses can never be a Service's: a rule for one would
 * capture the node's own traffic (CVE-2020-8558 and its like).
 */
function unicast(value: unknown, field: string, check: Checker): string | undefined {
  const ip = check.ip(value, field);
  if (ip === undefined || isUnicastEndpoint(ip)) return ip;
  return check.bad(field, ip, "is a loopback, link-local, multicast or unspecified address");
}

/** Addresses the load balancer was given, except those whose `ipMode` says the balancer proxies (KEP-1860). */
function loadBalancerIPs(raw: Fields, check: Checker): readonly string[] {
  const status = check.fields(raw.status, "status");
  const balancer = status && check.fields(status.loadBalancer, "status.loadBalancer");
  const ingress = balancer ? check.list(balancer.ingress, "status.loadBalancer.ingress") : NONE;
  const ips: unknown[] = [];
  for (const [i, entry] of ingress.entries()) {
    const fields = check.fields(entry, `status.loadBalancer.ingress[${i}]`);
    if (fields && typeof fields.ip === "string" && fields.ip !== "" && fields.ipMode !== "Proxy") ips.push(fields.ip);
  }
  return addresses(ips, "status.loadBalancer.ingress", check);
}

function ports(spec: Fields, check: Checker, context: ConvertContext): readonly ServicePort[] {
  const list = check.list(spec.ports, "spec.ports");
  const out: ServicePort[] = [];
  for (const [i, value] of list.entries()) {
    const field = `spec.ports[${i}]`;
    if (out.length >= MAX_SERVICE_PORTS) {
      check.bad("spec.ports", list.length, `holds more than ${MAX_SERVICE_PORTS} ports; the rest is ignored`);
      break;
    }
    const entry = check.fields(value, field);
    if (!entry) continue;
    const protocol = protocolOf(entry.protocol, `${field}.protocol`, check);
    const port = check.port(entry.port, `${field}.port`);
    const name = check.text(entry.name, `${field}.name`) ?? "";
    if (protocol === undefined || port === undefined) continue;
    if (out.some((p) => p.port === port && p.protocol === protocol)) {
      check.bad(`${field}.port`, port, `is there twice for ${protocol}`);
      continue;
    }
    if (out.some((p) => p.name === name)) {
      check.bad(`${field}.name`, name, name === "" ? "is required where there are several ports" : "is there twice");
      continue;
    }
    const nodePort = check.int(entry.nodePort, `${field}.nodePort`, { min: 0, max: 65535 });
    const appProtocol = check.text(entry.appProtocol, `${field}.appProtocol`);
    out.push({
      name: context.strings.share(name),
      protocol,
      port,
      ...(nodePort ? { nodePort } : {}),
      ...(appProtocol ? { appProtocol: context.strings.share(appProtocol) } : {}),
    });
  }
  return out;
}

/** TCP when absent; SCTP is valid Kubernetes but not carried, so it is left out with a note. */
export function protocolOf(value: unknown, field: string, check: Checker): Protocol | undefined {
  const text = check.text(value, field);
  if (text === undefined || text === "TCP") return "TCP";
  if (text === "UDP") return "UDP";
  if (text === "SCTP") return check.bad(field, text, "is not carried by the mesh", "UNSUPPORTED");
  return check.bad(field, text, "must be TCP or UDP");
}

function affinitySeconds(spec: Fields, check: Checker): number | undefined {
  const affinity = check.word(spec.sessionAffinity, "spec.sessionAffinity", ["None", "ClientIP"], "None");
  if (affinity === "None") return undefined;
  const config = check.fields(spec.sessionAffinityConfig, "spec.sessionAffinityConfig");
  const client = config && check.fields(config.clientIP, "spec.sessionAffinityConfig.clientIP");
  const field = "spec.sessionAffinityConfig.clientIP.timeoutSeconds";
  return check.int(client?.timeoutSeconds, field, { min: 1, max: MAX_AFFINITY_SECONDS }) ?? DEFAULT_AFFINITY_SECONDS;
}

function externalNameOf(spec: Fields, check: Checker): string | undefined {
  const text = check.text(spec.externalName, "spec.externalName");
  if (text === undefined) return check.bad("spec.externalName", spec.externalName, "is required");
  const name = (text.endsWith(".") ? text.slice(0, -1) : text).toLowerCase();
  return isSubdomain(name) ? name : check.bad("spec.externalName", text, "is not a DNS name");
}

const NONE: readonly never[] = [];
