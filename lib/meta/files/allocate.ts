/**
 * Virtual addresses for Services that nobody gave one: a folder of manifests has no API server that allocates them.
 * An address follows from the Service's name, so it survives restarts and is the same wherever the same folder is read;
 * only where two names collide does the order of names decide.
 */
import type { Cidr } from "../../addr.ts";
import { familyOf, ipBytes, ipFromBytes } from "../../addr.ts";
import type { Service } from "../model.ts";
import { serviceKey } from "../model.ts";
import { hashText } from "../store/pmap.ts";

/** Host bits used of a larger network: 2^20 addresses are enough and keep the arithmetic in small integers. */
const MAX_HOST_BITS = 20;

/**
 * Services of `services` that need an address (ClusterIP, NodePort or LoadBalancer, not headless, none given), each
 * with one from `cidr`. `previous` keeps addresses given before; it is updated. Services for which the network has no
 * address left are absent from the result.
 */
export function allocate(
  services: readonly Service[],
  cidr: Cidr,
  previous: Map<string, string>,
): Map<string, string> {
  const taken = new Set<string>();
  for (const service of services) for (const ip of service.clusterIPs) taken.add(ip);
  const needy = services.filter(needsAddress).map((s) => serviceKey(s.namespace, s.name)).sort();
  const out = new Map<string, string>();
  for (const key of needy) {
    const ip = previous.get(key);
    if (ip === undefined || taken.has(ip)) continue;
    taken.add(ip);
    out.set(key, ip);
  }
  for (const key of needy) {
    if (out.has(key)) continue;
    const ip = free(key, cidr, taken);
    if (ip === undefined) continue;
    taken.add(ip);
    out.set(key, ip);
  }
  previous.clear();
  for (const [key, ip] of out) previous.set(key, ip);
  return out;
}

/** Whether Kubernetes would give this Service a cluster IP. */
export function needsAddress(service: Service): boolean {
  return service.type !== "ExternalName" && !service.headless && service.clusterIPs.length === 0;
}

/** The first free address from the one the name hashes to; never the network's first or last (often special). */
function free(key: string, cidr: Cidr, taken: ReadonlySet<string>): string | undefined {
  const size = 2 ** Math.min(MAX_HOST_BITS, (familyOf(cidr.ip) === 4 ? 32 : 128) - cidr.bits);
  const usable = size - 2;
  if (usable < 1) return undefined;
  const start = hashText(key) % usable;
  for (let i = 0; i < usable; i++) {
    const ip = addressAt(cidr, 1 + (start + i) % usable);
    if (!taken.has(ip)) return ip;
  }
  return undefined;
}

function addressAt(cidr: Cidr, offset: number): string {
  const bytes = ipBytes(cidr.ip);
  for (let i = bytes.length - 1, rest = offset; rest > 0; i--, rest = Math.floor(rest / 256)) bytes[i]! |= rest % 256;
  return ipFromBytes(bytes);
}
