/**
 * Answers for names inside the cluster's zones: a pure function of a snapshot. Rules: Kubernetes DNS specification 1.1;
 * what exists without records is NODATA, what does not exist is NXDOMAIN, and nothing is "not there" before the
 * metadata is known (SERVFAIL).
 */
import { familyOf, parseIp } from "../../addr.ts";
import type { MetaReader, Service } from "../../meta/model.ts";
import { DNS_SCHEMA_VERSION, DNS_VERSION_TTL, MAX_CHASE, RCODE, TYPE } from "../wire/constants.ts";
import { chooseEndpoints } from "./endpoints.ts";
import { type Labels, labelsOf, lowerLabels } from "../wire/labels.ts";
import { parseName, type RecordRequest, type Zone, zoneOf } from "./name.ts";
import { addressRecord, nameRecord, type ResourceRecord, srvRecord, textRecord } from "../wire/records.ts";

export interface AnswerOptions {
  readonly zones: readonly Zone[];
  /** Seconds. */
  readonly ttl: number;
  /** Names of pods (`1-2-3-4.<ns>.pod.<zone>`): none, any address, or addresses of known pods only. */
  readonly pods: "disabled" | "insecure" | "verified";
  /** Services with virtual addresses but no ready endpoint do not exist. */
  readonly ignoreEmptyServices: boolean;
  /** Only these namespaces are answered; undefined = all. */
  readonly namespaces: ReadonlySet<string> | undefined;
  /** Addresses of `ns.dns.<zone>`: where this server listens. */
  readonly nameservers: readonly string[];
}

/** Why an answer is what it is; `resolve` prints a sentence for each. */
export type AnswerReason =
  | "found"
  | "no-records-of-type"
  | "no-such-shape"
  | "no-namespace"
  | "namespace-hidden"
  | "no-service"
  | "no-ready-endpoint"
  | "no-such-endpoint"
  | "no-such-port"
  | "external-name-is-address"
  | "pods-disabled"
  | "no-pod"
  | "not-an-address"
  | "chain-too-long"
  | "not-synced";

export interface ClusterAnswer {
  readonly rcode: number;
  readonly answers: readonly ResourceRecord[];
  readonly additionals: readonly ResourceRecord[];
  /** The zone, as asked, whose SOA goes into the authority section: negative answers. */
  readonly soaOf: Labels | undefined;
  /** A CNAME leads out of our zones: the answer goes on with the records of this name. */
  readonly chase: Labels | undefined;
  /**
   * Whether names repeat the letter case of the question in full (targets of SRV, which may not be compressed): the
   * bytes then serve only questions in the same case. All other names point into the question.
   */
  readonly caseBound: boolean;
  readonly reason: AnswerReason;
}

/** What one request yields before it is turned into records. */
interface Found {
  readonly reason: AnswerReason;
  /** Addresses at the name itself. */
  readonly addresses?: readonly string[];
  readonly srv?: readonly SrvEntry[];
  readonly alias?: Labels;
  readonly text?: readonly string[];
}

interface SrvEntry {
  /** Labels in front of the zone. */
  readonly host: Labels;
  readonly ip: string;
  /** Undefined where the endpoint has no ports: it counts, but has no SRV record (as CoreDNS). */
  readonly port: number | undefined;
}

/** Reasons for which the name itself exists. */
const EXISTS = new Set<AnswerReason>(["found", "no-records-of-type", "chain-too-long"]);

/** Answers `name` (labels as asked), which lies in `zone`; follows aliases while they stay inside our zones. */
export function answerCluster(
  name: Labels,
  type: number,
  meta: MetaReader,
  options: AnswerOptions,
): ClusterAnswer {
  const chain: ResourceRecord[] = [];
  let owner = name;
  for (let hops = 0; hops <= MAX_CHASE; hops++) {
    const lower = lowerLabels(owner);
    const zone = zoneOf(lower, options.zones);
    if (zone === undefined) return positive(chain, [], { chase: owner });
    const asked = owner.slice(owner.length - zone.labels.length);
    const request = parseName(lower, zone);
    const found = find(request, meta, options, zone);
    if (found.alias === undefined) return finish(found, { owner, asked, type, request, chain }, meta, options);
    chain.push(nameRecord(owner, TYPE.CNAME, found.alias, options.ttl));
    if (type === TYPE.CNAME || type === TYPE.ANY) return positive(chain, []);
    owner = found.alias;
  }
  return { ...positive(chain, []), rcode: RCODE.SERVFAIL, reason: "chain-too-long" };
}

interface Step {
  readonly owner: Labels;
  readonly asked: Labels;
  readonly type: number;
  readonly request: RecordRequest;
  readonly chain: ResourceRecord[];
}

function finish(found: Found, step: Step, meta: MetaReader, options: AnswerOptions): ClusterAnswer {
  const { owner, asked, type, chain } = step;
  const negative = (rcode: number, reason: AnswerReason): ClusterAnswer => ({
    rcode,
    answers: chain,
    additionals: [],
    soaOf: asked,
    chase: undefined,
    caseBound: false,
    reason,
  });
  if (!EXISTS.has(found.reason)) {
    return meta.synced ? negative(RCODE.NXDOMAIN, found.reason) : negative(RCODE.SERVFAIL, "not-synced");
  }
  if (type === TYPE.SRV && found.srv) {
    const { answers, additionals } = srvRecords(owner, found.srv, asked, options.ttl);
    if (answers.length > 0) return positive([...chain, ...answers], additionals, { caseBound: true });
  }
  if ((type === TYPE.A || type === TYPE.AAAA) && found.addresses) {
    const family = type === TYPE.A ? 4 : 6;
    const records: ResourceRecord[] = [...chain];
    for (const ip of unique(found.addresses)) {
      if (familyOf(ip) === family) records.push(addressRecord(owner, ip, options.ttl));
    }
    if (records.length > chain.length) return positive(records, []);
  }
  if (type === TYPE.TXT && found.text) {
    return positive([...chain, textRecord(owner, TYPE.TXT, found.text, DNS_VERSION_TTL)], []);
  }
  if (type === TYPE.NS && step.request.kind === "apex") {
    const ns = ["ns", "dns", ...asked];
    const glue = options.nameservers.map((ip) => addressRecord(ns, ip, options.ttl));
    return positive([...chain, nameRecord(asked, TYPE.NS, ns, options.ttl)], glue);
  }
  return negative(RCODE.NOERROR, "no-records-of-type");
}

function positive(
  answers: readonly ResourceRecord[],
  additionals: readonly ResourceRecord[],
  more: { readonly chase?: Labels; readonly caseBound?: boolean } = {},
): ClusterAnswer {
  return {
    rcode: RCODE.NOERROR,
    answers,
    additionals,
    soaOf: undefined,
    chase: more.chase,
    caseBound: more.caseBound ?? false,
    reason: "found",
  };
}

function find(request: RecordRequest, meta: MetaReader, options: AnswerOptions, zone: Zone): Found {
  switch (request.kind) {
    case "apex":
    case "container":
      return { reason: "found" };
    case "version":
      return { reason: "found", text: [DNS_SCHEMA_VERSION] };
    case "nameserver":
      return { reason: "found", addresses: request.leaf ? options.nameservers : [] };
    case "namespace":
      if (hidden(request.namespace, options)) return { reason: "namespace-hidden" };
      if (request.of === "pod" && options.pods === "disabled") return { reason: "pods-disabled" };
      return { reason: meta.hasNamespace(request.namespace) ? "found" : "no-namespace" };
    case "pod":
      return findPod(request.namespace, request.ip, meta, options);
    case "service":
    case "endpoint":
    case "port":
    case "protocol":
      return findService(request, meta, options, zone);
    case "none":
      return { reason: "no-such-shape" };
  }
}

function findPod(namespace: string, ip: string | undefined, meta: MetaReader, options: AnswerOptions): Found {
  if (options.pods === "disabled") return { reason: "pods-disabled" };
  if (hidden(namespace, options)) return { reason: "namespace-hidden" };
  if (ip === undefined) return { reason: "not-an-address" };
  if (options.pods === "verified") {
    const known = meta.podsByIp(ip).some((pod) => pod.namespace === namespace);
    return known ? { reason: "found", addresses: [ip] } : { reason: "no-pod" };
  }
  return meta.hasNamespace(namespace) ? { reason: "found", addresses: [ip] } : { reason: "no-namespace" };
}

type ServiceRequest = Extract<RecordRequest, { readonly service: string }>;

function findService(request: ServiceRequest, meta: MetaReader, options: AnswerOptions, zone: Zone): Found {
  if (hidden(request.namespace, options)) return { reason: "namespace-hidden" };
  const service = meta.service(request.namespace, request.service);
  if (service === undefined) {
    return { reason: meta.hasNamespace(request.namespace) ? "no-service" : "no-namespace" };
  }
  if (service.type === "ExternalName") return findExternal(request, service);
  const byEndpoint = service.headless || request.kind === "endpoint";
  // Most names are of Services with an address of their own: their endpoints need not be looked at.
  const usable = byEndpoint || options.ignoreEmptyServices
    ? chooseEndpoints(meta, service, zone.multicluster).usable
    : [];
  if (options.ignoreEmptyServices && !service.headless && usable.length === 0) return { reason: "no-ready-endpoint" };
  const base = [service.name, service.namespace, "svc"];
  const wanted = request.kind === "port" || request.kind === "protocol" ? request : undefined;
  const port = request.kind === "port" ? request.port : undefined;
  const fits = (p: { readonly name: string; readonly protocol: string }) =>
    wanted === undefined ||
    (p.protocol.toLowerCase() === wanted.protocol && p.name !== "" && (port === undefined || p.name === port));
  const entries: SrvEntry[] = [];
  if (byEndpoint) {
    for (const e of usable) {
      if (request.kind === "endpoint" && (e.host !== request.host || e.cluster !== request.cluster)) continue;
      const host = e.cluster === undefined ? [e.host, ...base] : [e.host, e.cluster, ...base];
      if (e.ports.length === 0 && wanted === undefined) entries.push({ host, ip: e.ip, port: undefined });
      for (const p of e.ports) if (fits(p)) entries.push({ host, ip: e.ip, port: p.port });
    }
    if (entries.length === 0) return { reason: whyNone(request, usable.length) };
  } else {
    for (const p of service.ports) {
      if (fits(p)) { for (const ip of service.clusterIPs) entries.push({ host: base, ip, port: p.port }); }
    }
    if (entries.length === 0 && wanted !== undefined) return { reason: "no-such-port" };
  }
  // `_tcp.<svc>…` exists only because something lies below it (RFC 8020 §2): it has no records.
  if (request.kind === "protocol") return { reason: "found" };
  const addresses = entries.length > 0 ? entries.map((e) => e.ip) : service.clusterIPs;
  return { reason: "found", addresses, srv: entries };
}

/** ExternalName: an alias at the Service's own name, and nothing below it. */
function findExternal(request: ServiceRequest, service: Service): Found {
  if (request.kind !== "service") return { reason: "no-such-endpoint" };
  const target = service.externalName ?? "";
  if (parseIp(target.replace(/\.$/, "")) !== undefined) return { reason: "external-name-is-address" };
  const alias = labelsOf(target);
  return alias === undefined || alias.length === 0 ? { reason: "no-such-endpoint" } : { reason: "found", alias };
}

function whyNone(request: ServiceRequest, usable: number): AnswerReason {
  if (usable === 0) return "no-ready-endpoint";
  return request.kind === "endpoint" ? "no-such-endpoint" : "no-such-port";
}

/** Each value once, in order; most lists have one. */
function unique(values: readonly string[]): Iterable<string> {
  return values.length > 1 ? new Set(values) : values;
}

function hidden(namespace: string, options: AnswerOptions): boolean {
  return options.namespaces !== undefined && !options.namespaces.has(namespace);
}

/** SRV records with equal weights that sum up to about 100 (as CoreDNS), and the addresses of their targets. */
function srvRecords(
  owner: Labels,
  entries: readonly SrvEntry[],
  zone: Labels,
  ttl: number,
): { answers: ResourceRecord[]; additionals: ResourceRecord[] } {
  const weight = Math.max(1, Math.floor(100 / entries.length));
  const answers: ResourceRecord[] = [];
  const additionals: ResourceRecord[] = [];
  const seen = new Set<string>();
  const isNew = (key: string) => !seen.has(key) && seen.add(key);
  for (const { host, ip, port } of entries) {
    if (port === undefined) continue;
    const target = [...host, ...zone];
    const key = host.join(".");
    if (isNew(`${key}:${port}`)) answers.push(srvRecord(owner, { weight, port, target }, ttl));
    if (isNew(`${key}@${ip}`)) additionals.push(addressRecord(target, ip, ttl));
  }
  return { answers, additionals };
}
