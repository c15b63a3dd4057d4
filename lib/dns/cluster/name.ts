/**
 * What a name inside a cluster zone asks for. The shapes are those of the Kubernetes DNS specification 1.1 and, where
 * it is silent, CoreDNS's `kubernetes` plugin:
 *
 *     <zone>                                              apex
 *     dns-version.<zone>                                  version
 *     ns.dns.<zone>                                       nameserver (dns.<zone> only leads to it)
 *     svc.<zone>, pod.<zone>                              container
 *     <ns>.svc.<zone>, <ns>.pod.<zone>                    namespace
 *     <svc>.<ns>.svc.<zone>                               service
 *     <host or dashed ip>.<svc>.<ns>.svc.<zone>           endpoint
 *     <host>.<cluster>.<svc>.<ns>.svc.<zone>              endpoint, in zones that span clusters
 *     _<port>._<proto>.<svc>.<ns>.svc.<zone>              port
 *     _<proto>.<svc>.<ns>.svc.<zone>                      protocol (only leads to ports)
 *     <dashed ip>.<ns>.pod.<zone>                         pod
 *
 * Every other name inside a zone does not exist.
 */
import { parseIp } from "../../addr.ts";
import { endsWith, type Labels } from "../wire/labels.ts";

export interface Zone {
  /** Lower case, without the root. */
  readonly labels: Labels;
  /** Endpoint names carry a cluster id, as in zones of the multi-cluster services API. */
  readonly multicluster: boolean;
}

export type RecordRequest =
  | { readonly kind: "apex" }
  | { readonly kind: "version" }
  | { readonly kind: "nameserver"; readonly leaf: boolean }
  | { readonly kind: "container"; readonly of: "svc" | "pod" }
  | { readonly kind: "namespace"; readonly of: "svc" | "pod"; readonly namespace: string }
  | { readonly kind: "service"; readonly namespace: string; readonly service: string }
  | {
    readonly kind: "endpoint";
    readonly namespace: string;
    readonly service: string;
    readonly host: string;
    readonly cluster?: string;
  }
  | {
    readonly kind: "port";
    readonly namespace: string;
    readonly service: string;
    readonly port: string;
    readonly protocol: string;
  }
  | { readonly kind: "protocol"; readonly namespace: string; readonly service: string; readonly protocol: string }
  | { readonly kind: "pod"; readonly namespace: string; readonly ip: string | undefined }
  | { readonly kind: "none" };

const NONE: RecordRequest = { kind: "none" };

/** The zone a name lies in; the longest when zones lie inside each other. `name` in lower case. */
export function zoneOf(name: Labels, zones: readonly Zone[]): Zone | undefined {
  let best: Zone | undefined;
  for (const zone of zones) {
    if (endsWith(name, zone.labels) && zone.labels.length >= (best?.labels.length ?? 0)) best = zone;
  }
  return best;
}

/** What `name` (lower case, inside `zone`) asks for. */
export function parseName(name: Labels, zone: Zone): RecordRequest {
  // By position from the zone outwards: nothing is cut out of the name.
  const n = name.length - zone.labels.length;
  const top = name[n - 1];
  if (n === 0 || top === undefined) return { kind: "apex" };
  if (top === "dns-version") return n === 1 ? { kind: "version" } : NONE;
  if (top === "dns") {
    if (n === 1) return { kind: "nameserver", leaf: false };
    return n === 2 && name[0] === "ns" ? { kind: "nameserver", leaf: true } : NONE;
  }
  if (top !== "svc" && top !== "pod") return NONE;
  if (n === 1) return { kind: "container", of: top };
  const namespace = name[n - 2]!;
  if (n === 2) return { kind: "namespace", of: top, namespace };
  const service = name[n - 3]!;
  if (top === "pod") return n === 3 ? { kind: "pod", namespace, ip: undash(service) } : NONE;
  if (n === 3) return { kind: "service", namespace, service };
  const second = name[n - 4]!;
  if (n === 4) {
    return second.startsWith("_")
      ? { kind: "protocol", namespace, service, protocol: second.slice(1) }
      : { kind: "endpoint", namespace, service, host: second };
  }
  if (n > 5) return NONE;
  const first = name[0]!;
  if (first.startsWith("_") && second.startsWith("_")) {
    return { kind: "port", namespace, service, port: first.slice(1), protocol: second.slice(1) };
  }
  if (zone.multicluster && !first.startsWith("_") && !second.startsWith("_")) {
    return { kind: "endpoint", namespace, service, host: first, cluster: second };
  }
  return NONE;
}

/** The dashed form of an address: the name of an endpoint or pod that has no host name. */
export function dashedIp(ip: string): string {
  const dashed = ip.replaceAll(/[.:]/g, "-");
  // A label must not end in a dash: `1234::` becomes `1234--0`, which reads back as the same address.
  return dashed.endsWith("-") ? dashed + "0" : dashed;
}

/** The address of a dashed form; undefined if it is none. */
export function undash(label: string): string | undefined {
  const v4 = label.split("-").length === 4 && !label.includes("--");
  return parseIp(label.replaceAll("-", v4 ? "." : ":"));
}
