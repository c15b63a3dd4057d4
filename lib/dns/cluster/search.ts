/**
 * Names that resolvers make by appending search domains. Two duties: short names of Services for this host's own
 * processes, and keeping the rest of a search storm (`db.prod.svc.cluster.local.corp.example` …) away from upstreams.
 */
import type { MetaReader } from "../../meta/model.ts";
import { endsWith, type Labels } from "../wire/labels.ts";
import type { Zone } from "./name.ts";

/**
 * The Service that a short name means: `web`, `web.shop` or `web.shop.svc`, in namespaces named by local
 * configuration only; no pushed object can claim such a name. Returns the full name; undefined when it is none.
 */
export function shortName(
  lower: Labels,
  meta: MetaReader,
  options: { readonly namespaces: readonly string[]; readonly zone: Labels | undefined },
): Labels | undefined {
  const { namespaces, zone } = options;
  if (zone === undefined || namespaces.length === 0) return undefined;
  const [service, namespace, svc] = lower;
  if (service === undefined || lower.length > 3 || (svc !== undefined && svc !== "svc")) return undefined;
  const candidates = namespace === undefined ? namespaces : namespaces.filter((n) => n === namespace);
  for (const candidate of candidates) {
    if (meta.service(candidate, service)) return [service, candidate, "svc", ...zone];
  }
  return undefined;
}

/**
 * Whether a name carries a complete cluster name in front of something else: `x.svc.cluster.local.<more>` is a search
 * list at work, never a name that exists. Returns `<zone>.<more>`, which the negative answer is about.
 */
export function stormZone(lower: Labels, zones: readonly Zone[]): Labels | undefined {
  for (const { labels: zone } of zones) {
    for (let at = 1; at + zone.length < lower.length; at++) {
      const top = lower[at - 1];
      if ((top === "svc" || top === "pod") && endsWith(lower.slice(0, at + zone.length), zone)) return lower.slice(at);
    }
  }
  return undefined;
}
