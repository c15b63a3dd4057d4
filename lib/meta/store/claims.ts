/** Addresses that more than one Service claims, as problems of those that do not get them. For status. */
import { hostPort } from "../../addr.ts";
import type { Service } from "../model.ts";
import { serviceKey } from "../model.ts";
import type { Problem } from "../problems.ts";
import type { Snapshot } from "./snapshot.ts";

/** Problems listed; a cluster with more is broken in one way many times. */
const MAX_CLAIMS = 200;

/**
 * Every port of every Service that another one keeps: a cluster IP comes before other claims, the oldest Service before
 * younger ones, then the name decides (see {@link Snapshot.ownerOf}), so that all nodes agree.
 */
export function lostClaims(snapshot: Snapshot): Problem[] {
  const out: Problem[] = [];
  for (const { ip, services } of snapshot.contested()) {
    for (const service of services) {
      for (const { protocol, port } of service.ports) {
        const owner = snapshot.ownerOf(ip, protocol, port);
        if (owner === undefined || owner === service) continue;
        if (out.length >= MAX_CLAIMS) return out;
        out.push({
          object: `Service ${serviceKey(service.namespace, service.name)}`,
          field: roleOf(service, ip),
          value: hostPort({ ip, port }),
          reason: `${protocol} belongs to Service ${serviceKey(owner.namespace, owner.name)}, which claims it, too`,
          code: "CLAIM_LOST",
        });
      }
    }
  }
  return out;
}

function roleOf(service: Service, ip: string): string {
  if (service.clusterIPs.includes(ip)) return "spec.clusterIPs";
  return service.externalIPs.includes(ip) ? "spec.externalIPs" : "status.loadBalancer";
}
