/** What forwarding and the guard must know about this node, gathered from configuration, kernel and metadata. */
import { type Cidr, cidrContains, parseCidr, parseIp } from "../lib/addr.ts";
import type { AgentConfig } from "../lib/config.ts";
import { DEFAULT_FORWARD_CONFIG, type ForwardConfig, type NodeFacts } from "../lib/forward/facts.ts";
import { unhookedBridges } from "../lib/linux/bridges.ts";
import { Links } from "../lib/linux/links.ts";
import type { GuardPolicy } from "../lib/meta/guard.ts";
import type { MetaReader } from "../lib/meta/model.ts";

/** The agent's own ports on this host's addresses: nobody is ever connected to them through the mesh. */
const RESERVED_PORTS = [53, 9464, 9465, 20006];

/** This host's addresses in canonical form, the mesh addresses included. */
export function hostAddresses(config: AgentConfig): string[] {
  const out = new Set<string>([config.mesh.address]);
  if (config.mesh.address6 !== "off") out.add(config.mesh.address6);
  for (const { address } of Deno.networkInterfaces()) {
    const ip = parseIp(address.replace(/%.*$/, ""));
    if (ip !== undefined) out.add(ip);
  }
  return [...out];
}

/** Networks of virtual addresses: local configuration, or what the join fixed. */
export function serviceCidrs(config: AgentConfig, joined: readonly string[]): Cidr[] {
  return (config.mesh.serviceCIDRs.length > 0 ? config.mesh.serviceCIDRs : joined)
    .map((text) => parseCidr(text)).filter((c) => c !== undefined);
}

/** This node's pod networks: local configuration wins over the Node object. */
export function podCidrs(config: AgentConfig, meta: MetaReader, node: string): Cidr[] {
  const texts = config.mesh.podCIDRs.length > 0 ? config.mesh.podCIDRs : meta.node(node)?.podCIDRs ?? [];
  return texts.map((text) => parseCidr(text)).filter((c) => c !== undefined);
}

export function nodeFacts(config: AgentConfig, meta: MetaReader, node: string): NodeFacts {
  const zone = meta.node(node)?.zone;
  const pods = podCidrs(config, meta, node);
  return {
    node,
    ...(zone === undefined ? {} : { zone }),
    addresses: hostAddresses(config),
    podCidrs: pods,
    routable: [],
    mesh4: config.mesh.address,
    mesh6: config.mesh.address6 === "off" ? undefined : config.mesh.address6,
    hairpinLinks: unhookedBridges((ip) => pods.some((cidr) => cidrContains(cidr, ip))),
  };
}

/** Facts change rarely and replanning compares references: the old object stays while nothing changed. */
export function sameFacts(a: NodeFacts, b: NodeFacts): boolean {
  return JSON.stringify(a) === JSON.stringify(b);
}

/** `nativeProxy`: whether this node's kube-proxy works, where the configuration leaves it to us to find out. */
export function forwardConfig(config: AgentConfig, cidrs: readonly Cidr[], nativeProxy: boolean): ForwardConfig {
  const { serviceFilterMode, namespaces, excludeNamespaces } = config.forward;
  return {
    ...DEFAULT_FORWARD_CONFIG,
    // Without it the mesh link would swallow what no Service has: a person would wait three seconds for the error.
    refuseCidrs: cidrs,
    externalIPs: config.forward.externalIPs.map((text) => parseCidr(text)!),
    hostPorts: config.forward.hostPorts,
    reservedPorts: RESERVED_PORTS,
    filter: {
      mode: serviceFilterMode,
      ...(namespaces.length > 0 ? { namespaces } : {}),
      excludeNamespaces,
      nativeProxy: config.forward.nativeProxy === "auto" ? nativeProxy : config.forward.nativeProxy === "on",
    },
    privateEndpoints: config.forward.allowPrivateExternalEndpoints,
  };
}

/** Addresses this node depends on and nobody may claim: gateways, resolvers, servers. */
export function vitalAddresses(servers: readonly string[]): string[] {
  const out = new Set<string>();
  for (const url of servers) {
    const ip = parseIp(new URL(url).hostname.replace(/^\[|\]$/g, ""));
    if (ip !== undefined) out.add(ip);
  }
  try {
    for (const [, ip] of Deno.readTextFileSync("/etc/resolv.conf").matchAll(/^nameserver\s+(\S+)/gm)) {
      const resolver = parseIp(ip!);
      if (resolver !== undefined) out.add(resolver);
    }
  } catch {
    // No file, no resolvers.
  }
  const links = new Links();
  try {
    for (const { gateway } of links.routes()) if (gateway !== undefined) out.add(gateway);
  } finally {
    links.close();
  }
  return [...out];
}

/** What this node believes of pushed metadata. */
export function guardPolicy(config: AgentConfig, cidrs: readonly Cidr[], vital: Iterable<string>): GuardPolicy {
  const own = new Set(hostAddresses(config));
  return {
    // Networks that overlap the node's own would let a Service take the node's addresses.
    serviceCidrs: cidrs.filter((c) => ![...own].some((ip) => cidrContains(c, ip))),
    externalCidrs: config.forward.externalIPs.map((text) => parseCidr(text)!),
    own,
    vital: new Set(vital),
    zones: [config.dns.zone, ...config.dns.extraZones],
  };
}
