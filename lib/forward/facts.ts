/**
 * What forwarding is told about the node it runs on and how it shall behave. Both are values: whoever composes the
 * agent gathers them and hands over a new one when something changed.
 */
import { type Cidr, cidrContains } from "../addr.ts";
import { DEFAULT_FILTER, type FilterConfig } from "../meta/filters.ts";

/** A pod network of another node that packets of this node reach without us: declared, or proven by that node's agent. */
export interface RoutableSubnet {
  readonly node: string;
  readonly cidr: Cidr;
}

export interface NodeFacts {
  readonly node: string;
  readonly zone?: string;
  /** Every address this host has, the mesh addresses included. */
  readonly addresses: readonly string[];
  /** Pod networks of this node. */
  readonly podCidrs: readonly Cidr[];
  readonly routable: readonly RoutableSubnet[];
  /** Other nodes whose agents were met in a LAN of this host. */
  readonly lan?: readonly string[];
  /** The addresses of the mesh link: where the kernel sends connections that the agent carries. */
  readonly mesh4: string | undefined;
  readonly mesh6: string | undefined;
  /**
   * Bridges that carry pods and whose frames do not pass the IP hooks (`bridge-nf-call-iptables` off): a reply between
   * two pods of one such bridge would bypass our address translation, so those connections get our source address.
   */
  readonly hairpinLinks: readonly string[];
}

/** Clients that are remembered per facts. */
const CLIENTS_MAX = 1024;
const clients = new WeakMap<NodeFacts, Map<string, boolean>>();

/** Whether an address belongs to this host or to a pod on it; asked for each connection, so the answers are kept. */
export function isOurs(ip: string, facts: NodeFacts): boolean {
  let known = clients.get(facts);
  if (!known) clients.set(facts, known = new Map());
  let ours = known.get(ip);
  if (ours === undefined) {
    ours = facts.addresses.includes(ip) || facts.podCidrs.some((cidr) => cidrContains(cidr, ip));
    if (known.size === CLIENTS_MAX) known.clear();
    known.set(ip, ours);
  }
  return ours;
}

/** How connections are spread over the endpoints. */
export type Balance = "round-robin" | "random" | "source-hash" | "least-connections" | "request-hash";

export interface ForwardConfig {
  readonly balance: Balance;
  /**
   * Networks in which every address without a Service is refused at once, unless another service proxy on this node
   * takes it: the service CIDRs.
   */
  readonly refuseCidrs: readonly Cidr[];
  /** externalIPs and load-balancer addresses outside these networks are ignored: Services may not claim foreign addresses. */
  readonly externalIPs: readonly Cidr[];
  /** Program node ports. */
  readonly nodePorts: boolean;
  /** Ports of this host that other nodes may reach through us when a hostNetwork endpoint uses them. */
  readonly hostPorts: readonly number[];
  /** Ports on this host's own addresses that nobody is ever connected to: our listeners and control sockets. */
  readonly reservedPorts: readonly number[];
  /** Dial private addresses of endpoints that belong to no node. */
  readonly privateEndpoints: boolean;
  /** Which Services are left to another service proxy on this node, or to nobody. */
  readonly filter: FilterConfig;
  /** Preference for near endpoints of Services that do not say anything themselves. */
  readonly prefer: Preference;
}

/**
 * Where preferred endpoints are, from near to far: this node, then nodes in its LAN, then its zone, then all. The name
 * says at which of these to begin; "none" is what Kubernetes does by default.
 */
export type Preference = "none" | "node" | "lan" | "zone";

export const DEFAULT_FORWARD_CONFIG: ForwardConfig = {
  balance: "round-robin",
  refuseCidrs: [],
  externalIPs: [],
  nodePorts: true,
  hostPorts: [],
  reservedPorts: [],
  privateEndpoints: false,
  filter: DEFAULT_FILTER,
  prefer: "none",
};
