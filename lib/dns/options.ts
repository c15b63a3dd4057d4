/** From configuration to what the pure parts take. */
import { type Cidr, parseCidr } from "../addr.ts";
import { MeshError } from "../errors.ts";
import type { IpPort } from "../net.ts";
import type { DnsConfig } from "./config.ts";
import { type Labels, labelsOf, lowerLabels } from "./wire/labels.ts";
import type { Zone } from "./cluster/name.ts";
import { type ReverseOptions, reverseZones } from "./cluster/reverse.ts";

/** Zones, networks and switches as the pure answers take them. Throws MeshError CONFIG_INVALID. */
export function answerOptions(config: DnsConfig, listen: readonly IpPort[]): ReverseOptions {
  const ownNetworks = cidrs(config.reverseNetworks, "reverseNetworks");
  const multi = new Set(config.multiclusterZones);
  const zones: Zone[] = config.mode === "cache" ? [] : [
    ...config.zones.filter((z) => !multi.has(z)).map((z) => ({ labels: zoneLabels(z), multicluster: false })),
    ...config.multiclusterZones.map((z) => ({ labels: zoneLabels(z), multicluster: true })),
  ];
  return {
    zones,
    ttl: config.ttl,
    pods: config.pods,
    ignoreEmptyServices: config.ignoreEmptyServices,
    namespaces: config.namespaces && new Set(config.namespaces),
    nameservers: listen.map((at) => at.ip),
    ownNetworks,
    ownZones: ownNetworks.flatMap((n) => [...reverseZones(n)]),
  };
}

/** Zones whose names may lead into private networks. Throws MeshError CONFIG_INVALID. */
export function rebindAllowed(config: DnsConfig): readonly Labels[] {
  return [...config.rebindAllow, ...config.forwards.map((f) => f.zone)].map(zoneLabels).filter((z) => z.length > 0);
}

/** Labels of a configured zone, lower case. Throws MeshError CONFIG_INVALID. */
export function zoneLabels(zone: string): Labels {
  const labels = labelsOf(zone);
  if (labels === undefined) throw new MeshError("CONFIG_INVALID", `${JSON.stringify(zone)} is no DNS zone`);
  return lowerLabels(labels);
}

/** Networks of a configuration value. Throws MeshError CONFIG_INVALID. */
export function cidrs(texts: readonly string[], what: string): readonly Cidr[] {
  return texts.map((text) => {
    const cidr = parseCidr(text);
    if (cidr === undefined) throw new MeshError("CONFIG_INVALID", `${what}: ${JSON.stringify(text)} is no network`);
    return cidr;
  });
}
