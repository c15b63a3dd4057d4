/** Where the cluster's own DNS answers: for nodes that keep CoreDNS and want a cache in front of it. */
import { familyOf } from "../../addr.ts";
import type { MetaReader, Service } from "../../meta/model.ts";

const NAMESPACE = "kube-system";
const NAMES = ["coredns", "kube-dns"];

/**
 * Virtual addresses of `kube-system/coredns`, `kube-system/kube-dns` and every Service labelled `k8s-app=kube-dns`, as
 * the original finds them; IPv4 first, each once, in the order of their names.
 */
export function clusterDnsAddresses(meta: MetaReader): readonly string[] {
  const found = new Map<string, Service>();
  for (const service of meta.services()) {
    const byName = service.namespace === NAMESPACE && NAMES.includes(service.name);
    if (byName || service.labels["k8s-app"] === "kube-dns") found.set(`${service.namespace}/${service.name}`, service);
  }
  const services = [...found.keys()].sort().map((key) => found.get(key)!);
  const ips = [...new Set(services.flatMap((s) => s.headless ? [] : s.clusterIPs))];
  return [...ips.filter((ip) => familyOf(ip) === 4), ...ips.filter((ip) => familyOf(ip) === 6)];
}
