/**
 * What a node believes of metadata that was pushed to it. The server knows the cluster, but it must not be able to
 * redirect this node's own traffic: virtual addresses only where the node was told to expect them, external addresses
 * only by the node's own list, nothing that belongs to the node, its gateways, resolvers or servers, and no names
 * outside the cluster's zones. Pure; applied to every pushed change. What is refused is left out, counted and shown.
 */
import type { Cidr } from "../addr.ts";
import { cidrContains, cidrText, isUnicastEndpoint, parseCidr } from "../addr.ts";
import type { EndpointSlice, Kind, Kinds, Node, Pod, RouteObject, Service } from "./model.ts";
import type { Changes, ObjectChange } from "./objects.ts";
import { groupOf, put, sameValue } from "./objects.ts";
import type { Problem } from "./problems.ts";
import { ProblemBook, shown } from "./problems.ts";
import type { Snapshot } from "./store/snapshot.ts";

export interface GuardPolicy {
  /** Networks of virtual addresses: fixed at the join or by local configuration. */
  readonly serviceCidrs: readonly Cidr[];
  /** externalIPs and load-balancer addresses that may be claimed here. */
  readonly externalCidrs: readonly Cidr[];
  /** Addresses of this node, the mesh's own included. */
  readonly own: ReadonlySet<string>;
  /** Gateways, DNS resolvers and servers this node depends on. */
  readonly vital: ReadonlySet<string>;
  /** Zones the mesh answers for, without final dot: `cluster.local`. */
  readonly zones: readonly string[];
  /** Ports of this host that Services may take as node ports. */
  readonly nodePorts?: { readonly min: number; readonly max: number };
}

/** Kubernetes' default `--service-node-port-range`: outside of it lie the host's own services, like SSH. */
const DEFAULT_NODE_PORTS = { min: 30000, max: 32767 };
/** Widest pod network believed: a wider one would declare somebody else's addresses to be pods. */
const MIN_POD_BITS = { v4: 8, v6: 16 };

/** Objects that are kept as they were told because they are not believed so; of more, {@link Guard.revise} knows nothing. */
const MAX_REFUSED = 50_000;

export class Guard {
  #policy: GuardPolicy;
  /** What is refused now, by object. */
  readonly book = new ProblemBook();
  /** As they were told: objects refused, or believed in part only. */
  readonly #refused = new Map<string, ObjectChange>();
  /** Kinds of which the policy may judge objects otherwise than it did. */
  readonly #stale = new Set<Kind>();

  constructor(policy: GuardPolicy) {
    this.#policy = policy;
  }

  /** From now on; for what is known already, see {@link revise}. */
  set policy(policy: GuardPolicy) {
    for (const kind of judgedOtherwise(this.#policy, policy)) this.#stale.add(kind);
    this.#policy = policy;
  }

  /** What makes `snapshot`, which came through this guard, what the policy of now lets through. */
  revise(snapshot: Snapshot): Changes {
    const again: ObjectChange[] = [];
    for (const kind of this.#stale) {
      for (const [key, object] of snapshot.entries(kind)) {
        if (!this.#refused.has(idOf(kind, key))) again.push(put(kind, object));
      }
    }
    for (const change of this.#refused.values()) if (this.#stale.has(change.kind)) again.push(change);
    this.#stale.clear();
    return this.filter(again).filter(({ kind, key, object }) => snapshot.get(kind, key) !== object);
  }

  /** An object as it was told, where that is not how it is believed. */
  told<K extends Kind>(kind: K, key: string): Kinds[K] | undefined {
    return this.#refused.get(idOf(kind, key))?.object as Kinds[K] | undefined;
  }

  /** All of them. */
  refused(): Iterable<ObjectChange> {
    return this.#refused.values();
  }

  /** The changes that may be believed. An object refused as a whole becomes its removal. */
  filter(changes: Changes): Changes {
    return changes.map((change) => {
      const problems: Problem[] = [];
      const allowed = change.object === undefined ? change : inspect(change, this.#policy, problems);
      const id = idOf(change.kind, change.key);
      this.book.set(id, problems);
      if (allowed.object === change.object) this.#refused.delete(id);
      else if (this.#refused.size < MAX_REFUSED || this.#refused.has(id)) this.#refused.set(id, change);
      return allowed;
    });
  }

  /** Forgets what was refused: a complete new state begins. */
  reset(): void {
    this.book.clear();
    this.#refused.clear();
  }
}

function idOf(kind: Kind, key: string): string {
  return `${kind} ${key}`;
}

/** Kinds whose objects two policies may judge differently; see the functions below for what each looks at. */
function judgedOtherwise(a: GuardPolicy, b: GuardPolicy): Kind[] {
  const networks = !sameValue(a.serviceCidrs, b.serviceCidrs);
  const vital = !sameSet(a.vital, b.vital);
  const external = !sameValue(a.externalCidrs, b.externalCidrs) || !sameValue(a.nodePorts, b.nodePorts);
  const out: Kind[] = [];
  if (networks || vital || external || !sameSet(a.own, b.own)) out.push("service");
  if (networks) out.push("slice");
  if (networks || vital) out.push("node");
  if (!sameValue(a.zones, b.zones)) out.push("route");
  return out;
}

function sameSet(a: ReadonlySet<string>, b: ReadonlySet<string>): boolean {
  return a.size === b.size && a.isSubsetOf(b);
}

/** One change as far as the policy allows it; what it does not goes to `problems`. */
export function inspect(change: ObjectChange, policy: GuardPolicy, problems: Problem[]): ObjectChange {
  if (change.object === undefined) return change;
  switch (change.kind) {
    case "service":
      return { ...change, object: service(change.object, policy, problems) };
    case "slice":
      return { ...change, object: slice(change.object, policy, problems) };
    case "node":
      return { ...change, object: node(change.object, policy, problems) };
    case "pod":
      return { ...change, object: pod(change.object, problems) };
    case "route":
      return { ...change, object: route(change.object, policy, problems) };
    case "namespace":
      return change;
  }
}

function service(s: Service, policy: GuardPolicy, problems: Problem[]): Service | undefined {
  const refuse = refuser(`Service ${s.namespace}/${s.name}`, problems);
  const keep = (field: string, ips: readonly string[], where: readonly Cidr[], outside: string) =>
    filtered(ips, (ip, i) => {
      const why = reserved(ip, policy) ?? (where.some((c) => cidrContains(c, ip)) ? undefined : outside);
      return why === undefined || refuse(`${field}[${i}]`, ip, why);
    });
  const clusterIPs = keep("clusterIPs", s.clusterIPs, policy.serviceCidrs, "is outside the service networks");
  // Without its virtual address a Service would be something else than was meant (its name would answer nothing).
  if (s.clusterIPs.length > 0 && clusterIPs.length === 0) return undefined;
  const allowList = "is not in this node's list of external addresses";
  const externalIPs = keep("externalIPs", s.externalIPs, policy.externalCidrs, allowList);
  const loadBalancerIPs = keep("loadBalancerIPs", s.loadBalancerIPs, policy.externalCidrs, allowList);
  const range = policy.nodePorts ?? DEFAULT_NODE_PORTS;
  const ports = mapped(s.ports, (port, i) => {
    const { nodePort, ...rest } = port;
    if (nodePort === undefined || (nodePort >= range.min && nodePort <= range.max)) return port;
    refuse(`ports[${i}].nodePort`, nodePort, `is outside the node-port range ${range.min}-${range.max}`);
    return rest;
  });
  const same = clusterIPs === s.clusterIPs && externalIPs === s.externalIPs &&
    loadBalancerIPs === s.loadBalancerIPs && ports === s.ports;
  return same ? s : { ...s, clusterIPs, externalIPs, loadBalancerIPs, ports };
}

function slice(s: EndpointSlice, policy: GuardPolicy, problems: Problem[]): EndpointSlice {
  const refuse = refuser(`EndpointSlice ${s.namespace}/${s.name}`, problems);
  const endpoints = filtered(s.endpoints, ({ ip }, i) => {
    const field = `endpoints[${i}]`;
    if (!isUnicastEndpoint(ip)) return refuse(field, ip, "is a loopback, link-local or multicast address");
    // An endpoint that is a virtual address would send traffic round in circles.
    if (policy.serviceCidrs.some((c) => cidrContains(c, ip))) {
      return refuse(field, ip, "is inside the service networks");
    }
    return true;
  });
  return endpoints === s.endpoints ? s : { ...s, endpoints };
}

function node(n: Node, policy: GuardPolicy, problems: Problem[]): Node {
  const refuse = refuser(`Node ${n.name}`, problems);
  const podCIDRs = filtered(n.podCIDRs, (text, i) => {
    const why = podNetworkProblem(text, policy);
    return why === undefined || refuse(`podCIDRs[${i}]`, text, why);
  });
  return podCIDRs === n.podCIDRs ? n : { ...n, podCIDRs };
}

/** Pod networks decide which addresses a node dials for others, so a lie here would open the node's surroundings. */
function podNetworkProblem(text: string, policy: GuardPolicy): string | undefined {
  const cidr = parseCidr(text);
  if (!cidr) return "is not a network";
  if (cidr.bits < (cidr.ip.includes(":") ? MIN_POD_BITS.v6 : MIN_POD_BITS.v4)) return "is too wide for a pod network";
  if (!isUnicastEndpoint(cidr.ip)) return "is a loopback, link-local or multicast network";
  for (const other of policy.serviceCidrs) {
    if (cidrContains(cidr, other.ip) || cidrContains(other, cidr.ip)) {
      return `overlaps the service network ${cidrText(other)}`;
    }
  }
  for (const ip of policy.vital) {
    if (cidrContains(cidr, ip)) return `holds ${ip}, a gateway, resolver or server of this node`;
  }
  return undefined;
}

function pod(p: Pod, problems: Problem[]): Pod | undefined {
  const refuse = refuser(`Pod ${p.namespace}/${p.name}`, problems);
  const ips = filtered(p.ips, (ip, i) => {
    return isUnicastEndpoint(ip) || refuse(`ips[${i}]`, ip, "is a loopback, link-local or multicast address");
  });
  if (ips.length === 0) return undefined;
  return ips === p.ips ? p : { ...p, ips };
}

/** Routes that capture traffic of the mesh by host name may name hosts of the cluster only. */
function route(r: RouteObject, policy: GuardPolicy, problems: Problem[]): RouteObject | undefined {
  if (groupOf(r.apiVersion) !== "networking.istio.io") return r;
  if (r.kind !== "VirtualService" && r.kind !== "ServiceEntry") return r;
  const refuse = refuser(`${r.kind} ${r.namespace}/${r.name}`, problems);
  const spec = r.spec as { readonly hosts?: unknown; readonly gateways?: unknown };
  const gateways = Array.isArray(spec.gateways) ? spec.gateways : [];
  // Bound to gateways only, it speaks for names that come in from outside, which is what a gateway is for.
  if (r.kind === "VirtualService" && gateways.length > 0 && !gateways.includes("mesh")) return r;
  const hosts = Array.isArray(spec.hosts) ? spec.hosts : [];
  for (const [i, host] of hosts.entries()) {
    if (typeof host === "string" && insideZones(host.toLowerCase(), policy.zones)) continue;
    refuse(`spec.hosts[${i}]`, shown(host), "is outside the zones of this mesh");
    return undefined;
  }
  return r;
}

/** A short name, `name.namespace.svc`, or a name of one of the zones. */
function insideZones(host: string, zones: readonly string[]): boolean {
  const name = host.endsWith(".") ? host.slice(0, -1) : host;
  if (name === "" || name === "*") return false;
  return !name.includes(".") || name.endsWith(".svc") ||
    zones.some((zone) => name === zone || name.endsWith(`.${zone}`));
}

function reserved(ip: string, policy: GuardPolicy): string | undefined {
  if (!isUnicastEndpoint(ip)) return "is a loopback, link-local or multicast address";
  if (policy.own.has(ip)) return "is an address of this node";
  if (policy.vital.has(ip)) return "is a gateway, resolver or server of this node";
  return undefined;
}

function refuser(
  object: string,
  problems: Problem[],
): (field: string, value: string | number, reason: string) => false {
  return (field, value, reason) => {
    problems.push({ object, field, value: shown(value), reason, code: "META_REFUSED" });
    return false;
  };
}

/** The list itself when nothing is left out: unchanged objects stay the same objects. */
function filtered<T>(list: readonly T[], keep: (item: T, i: number) => boolean): readonly T[] {
  const out = list.filter(keep);
  return out.length === list.length ? list : out;
}

function mapped<T>(list: readonly T[], change: (item: T, i: number) => T): readonly T[] {
  const out = list.map(change);
  return out.every((item, i) => item === list[i]) ? list : out;
}
