/** What forwarding and the guard must know about this node, gathered from configuration, kernel and metadata. */
import { type Cidr, cidrContains, parseCidr, parseIp } from "../../lib/addr.ts";
import type { AgentConfig } from "../../lib/config.ts";
import {
  DEFAULT_FORWARD_CONFIG,
  type ForwardConfig,
  type NodeFacts,
  type RoutableSubnet,
} from "../../lib/forward/facts.ts";
import { unhookedBridges } from "../../lib/linux/bridges.ts";
import { openLinks } from "../../lib/linux/link_table.ts";
import { raiseFileLimit } from "../../lib/linux/privileges.ts";
import type { Logger } from "../../lib/log.ts";
import type { GuardPolicy } from "../../lib/meta/guard.ts";
import type { MetaReader } from "../../lib/meta/model.ts";

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
  return parseCidrs(config.mesh.serviceCIDRs.length > 0 ? config.mesh.serviceCIDRs : joined);
}

/** This node's pod networks: local configuration wins over the Node object. */
export function podCidrs(config: AgentConfig, meta: MetaReader, node: string): Cidr[] {
  const texts = config.mesh.podCIDRs.length > 0 ? config.mesh.podCIDRs : meta.node(node)?.podCIDRs ?? [];
  return parseCidrs(texts);
}

/**
 * Pod networks of other nodes that this node's configuration declares to be routed here. Not those that this node's own
 * pods or several nodes have (Docker's, on every machine the same): an address in them says nothing about the node.
 */
function routableSubnets(config: AgentConfig, meta: MetaReader, self: string, own: readonly Cidr[]): RoutableSubnet[] {
  if (config.mesh.routableCIDRs.length === 0) return [];
  const declared = parseCidrs(config.mesh.routableCIDRs);
  const all: RoutableSubnet[] = [];
  for (const { name, podCIDRs } of meta.nodes()) {
    if (name !== self) { for (const cidr of parseCidrs(podCIDRs)) all.push({ node: name, cidr }); }
  }
  return all.filter(({ node, cidr }) =>
    declared.some((wide) => wide.bits <= cidr.bits && cidrContains(wide, cidr.ip)) &&
    !own.some((mine) => overlap(mine, cidr)) &&
    !all.some((other) => other.node !== node && overlap(other.cidr, cidr))
  );
}

function parseCidrs(texts: readonly string[]): Cidr[] {
  return texts.map((text) => parseCidr(text)).filter((c) => c !== undefined);
}

function overlap(a: Cidr, b: Cidr): boolean {
  return cidrContains(a, b.ip) || cidrContains(b, a.ip);
}

export interface Surroundings {
  readonly config: AgentConfig;
  readonly meta: MetaReader;
  readonly node: string;
  /** Nodes met in a LAN of this host. */
  readonly lan?: readonly string[];
}

export function nodeFacts({ config, meta, node, lan }: Surroundings): NodeFacts {
  const zone = meta.node(node)?.zone;
  const pods = podCidrs(config, meta, node);
  return {
    node,
    ...(zone === undefined ? {} : { zone }),
    addresses: hostAddresses(config),
    podCidrs: pods,
    routable: routableSubnets(config, meta, node, pods),
    ...(lan === undefined ? {} : { lan }),
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
    balance: config.forward.balance,
    prefer: config.forward.prefer,
  };
}

/** Descriptors kept for all else: the tunnel's legs, DNS, files, commands, and the pipes that wait for reuse (128). */
const DESCRIPTORS_FOR_OTHERS = 256;
/** A proxied connection has two sockets. */
const DESCRIPTORS_EACH = 2;
const FEWEST_CONNECTIONS = 16;

/** Connections that are carried at a time; says so where the machine allows fewer than the configuration. */
export function allowedConnections(config: AgentConfig, log: Logger): number {
  const openFiles = raiseFileLimit().soft;
  const maxConnections = connectionLimit(config, openFiles);
  if (maxConnections < config.forward.maxConnections) {
    log.warn("fewer connections than forward.maxConnections are carried at a time: open files are limited", {
      maxConnections,
      openFiles,
      hint: "LimitNOFILE= in the unit, or ulimit -n",
    });
  }
  return maxConnections;
}

/** Connections that may be open at a time: as configured, as far as this process has descriptors for them. */
export function connectionLimit(config: AgentConfig, fileLimit: number): number {
  const affordable = Math.floor((fileLimit - DESCRIPTORS_FOR_OTHERS) / DESCRIPTORS_EACH);
  return Math.min(config.forward.maxConnections, Math.max(FEWEST_CONNECTIONS, affordable));
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
  const links = openLinks();
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
