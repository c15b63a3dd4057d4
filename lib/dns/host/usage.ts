/**
 * What resolvers this host and its pods use, judged: the data behind the DNS lines of `edgemesh check`. Pods keep the
 * servers they were created with, so that one older than the agent may ask somebody else until it is created anew.
 */
import type { IpPort } from "../../net.ts";
import { isOurs, parseResolvConf } from "./resolvconf.ts";

export interface UsageFacts {
  /** Where we answer. */
  readonly ourselves: readonly IpPort[];
  /** Addresses of the cluster's own DNS Services. */
  readonly clusterDns: readonly string[];
  readonly zone: string;
}

export type Uses = "mesh" | "mesh-later" | "cluster-dns" | "other" | "none";

export interface ResolverUsage {
  readonly uses: Uses;
  readonly nameservers: readonly string[];
  readonly search: readonly string[];
  readonly ndots: number;
  /** Whether `web.shop` is completed to a cluster name. */
  readonly completesNames: boolean;
  /** One line, without a final period. */
  readonly summary: string;
  /** What to do about it; undefined when nothing is wrong. */
  readonly hint?: string;
}

/** Judges one resolv.conf. `who`: `this host` or `pod shop/web-1`. */
export function judgeUsage(who: string, text: string | undefined, facts: UsageFacts): ResolverUsage {
  const { nameservers, search, ndots } = parseResolvConf(text ?? "");
  const ips = nameservers.map((n) => n.ip);
  const at = nameservers.findIndex((n) => isOurs(n, facts.ourselves));
  const uses: Uses = at === 0
    ? "mesh"
    : at > 0
    ? "mesh-later"
    : ips.some((ip) => facts.clusterDns.includes(ip))
    ? "cluster-dns"
    : ips.length > 0
    ? "other"
    : "none";
  const completesNames = search.includes(`svc.${facts.zone}`) || search.some((s) => s.endsWith(`.svc.${facts.zone}`));
  const base = { uses, nameservers: ips, search, ndots, completesNames };
  const list = ips.join(", ");
  const pod = who !== "this host";
  const address = facts.ourselves[0]?.ip ?? "the agent";
  switch (uses) {
    case "mesh":
      return { ...base, summary: `${who} asks the agent` };
    case "mesh-later":
      return {
        ...base,
        summary: `${who} asks ${ips[0]} before the agent, and takes its "no" for cluster names`,
        hint: `put nameserver ${address} first`,
      };
    case "cluster-dns":
      return {
        ...base,
        summary:
          `${who} asks the cluster's DNS at ${list}; without the cloud that works only while it runs on this node`,
        ...(pod ? { hint: `set the kubelet's clusterDNS to ${address} and create the pod anew` } : {}),
      };
    case "other":
      return {
        ...base,
        summary: `${who} asks ${list}, which does not know names of the cluster`,
        hint: pod
          ? `set the kubelet's clusterDNS to ${address} and create the pod anew: pods keep the servers they were created with`
          : `set dns.integrate to auto, or put nameserver ${address} first in resolv.conf`,
      };
    case "none":
      return {
        ...base,
        summary: `${who} has no nameserver`,
        hint: pod ? `set the kubelet's clusterDNS to ${address}` : "set dns.integrate to auto",
      };
  }
}
