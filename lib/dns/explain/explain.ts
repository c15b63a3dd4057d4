/** Why a name resolves as it does: the data behind `edgemesh resolve`, made by the same functions that answer. */
import type { Endpoint, MetaReader, Service } from "../../meta/model.ts";
import type { AnswerReason } from "../cluster/answer.ts";
import { TYPE } from "../wire/constants.ts";
import { type Decision, type LocalOrigin } from "../cluster/decide.ts";
import { chooseEndpoints } from "../cluster/endpoints.ts";
import { type Labels, lowerLabels, nameText } from "../wire/labels.ts";
import type { PresentedRecord } from "./message.ts";
import { parseName, type RecordRequest, type Zone, zoneOf } from "../cluster/name.ts";
import { reverseAddress } from "../cluster/reverse.ts";
import type { UpstreamState } from "../upstream/server_state.ts";

/** Where an answer came from. */
export type AnswerOrigin = LocalOrigin | "cache" | "stale" | "upstream" | "failed";

export interface ExplainedEndpoint {
  readonly ip: string;
  readonly node?: string;
  readonly pod?: string;
  /** Its own name. */
  readonly name: string;
}

export interface ExplainedService {
  readonly namespace: string;
  readonly name: string;
  /** `ClusterIP`, `Headless`, `ExternalName` … */
  readonly kind: string;
  readonly addresses: readonly string[];
  readonly externalName?: string;
  readonly ports: readonly string[];
  readonly endpoints: readonly ExplainedEndpoint[];
  readonly excluded: readonly (ExplainedEndpoint & { readonly why: string })[];
}

export interface ExplainedForward {
  /** The name asked of upstreams: the question, or where an alias led. */
  readonly name: string;
  /** Zone whose upstreams are responsible; `.` for the default ones. */
  readonly zone: string;
  readonly upstreams: readonly UpstreamState[];
  /** Who gave the answer. */
  readonly answeredBy?: string;
  /** Age of the cached answer and what is left of its life, seconds; negative when stale. */
  readonly cache?: { readonly ageSeconds: number; readonly leftSeconds: number };
}

export interface Explanation {
  readonly question: { readonly name: string; readonly type: string };
  readonly rcode: string;
  readonly flags: { readonly aa: boolean; readonly tc: boolean; readonly ra: boolean; readonly ad: boolean };
  readonly answers: readonly PresentedRecord[];
  readonly authorities: readonly PresentedRecord[];
  readonly additionals: readonly PresentedRecord[];
  readonly origin: AnswerOrigin;
  readonly zone?: string;
  /** Of the cluster's zones. */
  readonly reason?: AnswerReason;
  /** Sentences, from the decision to the answer. */
  readonly why: readonly string[];
  readonly services: readonly ExplainedService[];
  readonly forward?: ExplainedForward;
  /** How long it took, milliseconds. */
  readonly ms: number;
}

/** Services behind a local answer, in the order in which aliases lead through them. */
export function explainServices(name: Labels, meta: MetaReader, zones: readonly Zone[]): readonly ExplainedService[] {
  const services: ExplainedService[] = [];
  let lower = lowerLabels(name);
  for (let hop = 0; hop < 9; hop++) {
    const zone = zoneOf(lower, zones);
    const request = zone && parseName(lower, zone);
    const service = request && "service" in request ? meta.service(request.namespace, request.service) : undefined;
    if (service === undefined || zone === undefined || request === undefined) return services;
    services.push(explainService(service, meta, { request, zone }));
    if (service.type !== "ExternalName" || !service.externalName) return services;
    lower = lowerLabels(service.externalName.replace(/\.$/, "").split("."));
  }
  return services;
}

/** Services that have an address: what a PTR answer is made of. */
export function explainReverse(lower: Labels, meta: MetaReader, zones: readonly Zone[]): readonly ExplainedService[] {
  const ip = reverseAddress(lower);
  const zone = zones.find((z) => !z.multicluster);
  if (ip === undefined || zone === undefined) return [];
  const owner = meta.serviceByIp(ip);
  const keys = owner ? [owner] : meta.slicesByIp(ip).map((s) => meta.service(s.namespace, s.service));
  const request: RecordRequest = { kind: "none" };
  return [...new Set(keys)].flatMap((s) => s ? [explainService(s, meta, { request, zone })] : []);
}

/** Sentences about a decision that needed nobody else. */
export function explainDecision(
  decision: Decision,
  options: { readonly type: number; readonly synced: boolean },
): string[] {
  if (decision.kind === "forward") {
    return [
      decision.zone.length === 0
        ? "The name lies in no zone of the cluster: it is asked of the default upstreams"
        : `The name lies in ${nameText(decision.zone)}, which has upstreams of its own`,
    ];
  }
  const { answer } = decision;
  const sentences = [ORIGIN[decision.origin]];
  if (decision.origin === "zone" || decision.origin === "reverse" || decision.origin === "short-name") {
    sentences.push(REASON[answer.reason]);
  }
  if (answer.chase) sentences.push(`An alias leads to ${nameText(answer.chase)}, outside the cluster's zones`);
  if (answer.reason === "no-records-of-type" && options.type === TYPE.AAAA) {
    sentences.push("Clients that ask for A and AAAA together use the other one");
  }
  if (!options.synced) sentences.push("No metadata was learned yet: what is not known is not denied (SERVFAIL)");
  return sentences;
}

const ORIGIN: Readonly<Record<LocalOrigin, string>> = {
  hosts: "A hosts override of local configuration has this name",
  zone: "The name lies in a zone of the cluster: it is answered from the metadata",
  reverse: "The address is one of the cluster's",
  "short-name": "A short name, resolved in the search namespaces of local configuration because this host asks",
  "search-storm": "A complete cluster name with a search domain behind it: it cannot exist and is asked of nobody",
  special: "A special-use name (RFC 6761): it never leaves this machine",
};

const REASON: Readonly<Record<AnswerReason, string>> = {
  found: "It exists",
  "no-records-of-type": "It exists, but has no records of this type",
  "no-such-shape": "Names of this shape do not exist in the zone",
  "no-namespace": "There is no such namespace",
  "namespace-hidden": "Local configuration answers for other namespaces only",
  "no-service": "There is no such Service in the namespace",
  "no-ready-endpoint": "The Service has no ready endpoint",
  "no-such-endpoint": "The Service has no endpoint of this name",
  "no-such-port": "The Service has no port of this name and protocol",
  "external-name-is-address": "The Service's externalName is an address, which an alias cannot lead to",
  "pods-disabled": "Names of pods are switched off",
  "no-pod": "No pod of this namespace has the address",
  "not-an-address": "The first label is no dashed address",
  "chain-too-long": "Aliases lead in circles",
  "not-synced": "Nothing is known yet",
};

function explainService(
  service: Service,
  meta: MetaReader,
  about: { readonly request: RecordRequest; readonly zone: Zone },
): ExplainedService {
  const { request, zone } = about;
  const choice = chooseEndpoints(meta, service, zone.multicluster);
  const suffix = `${service.name}.${service.namespace}.svc.${zone.labels.join(".")}`;
  const plain = (e: Endpoint, host: string): ExplainedEndpoint => ({
    ip: e.ip,
    ...(e.node === undefined ? {} : { node: e.node }),
    ...(e.pod === undefined ? {} : { pod: e.pod }),
    name: `${host}.${suffix}`,
  });
  const shown = choice.usable.map((u) => {
    const host = u.cluster === undefined ? u.host : `${u.host}.${u.cluster}`;
    const other = request.kind === "endpoint" && (u.host !== request.host || u.cluster !== request.cluster);
    return { ...plain(u.endpoint, host), why: other ? `is called ${host}` : undefined };
  });
  return {
    namespace: service.namespace,
    name: service.name,
    kind: service.headless ? "Headless" : service.type,
    addresses: service.clusterIPs,
    ...(service.externalName === undefined ? {} : { externalName: service.externalName }),
    ports: service.ports.map((p) => `${p.name ? p.name + " " : ""}${p.port}/${p.protocol}`),
    endpoints: shown.filter((e) => e.why === undefined).map(({ why: _why, ...e }) => e),
    excluded: [
      ...shown.flatMap(({ why, ...e }) => why === undefined ? [] : [{ ...e, why }]),
      ...choice.excluded.map((x) => ({ ...plain(x.endpoint, x.endpoint.hostname ?? x.endpoint.ip), why: x.why })),
    ],
  };
}
