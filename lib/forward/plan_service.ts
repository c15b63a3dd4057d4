/** The plan of one Service: its addresses, its endpoints and how each is reached. Pure. */
import { cidrContains, type Family, familyOf, hostPort, isPrivate, isUnicastEndpoint } from "../addr.ts";
import { filterReason } from "../meta/filters.ts";
import type { Endpoint, EndpointSlice, Protocol, Service, ServiceKey, ServicePort } from "../meta/model.ts";
import { serviceKey } from "../meta/model.ts";
import type { Balance, ForwardConfig, NodeFacts, Preference } from "./facts.ts";
import {
  type Frontend,
  KERNEL_BALANCES,
  type PlannedPort,
  type PlannedService,
  type Slot,
  type Verdict,
  type Way,
  type WayReason,
} from "./plan_model.ts";
import type { Balancing, ServicePolicy } from "./policies.ts";
import { type Selectable, selectEndpoints } from "./select.ts";

/** Where endpoints of the Service are preferred: `none`, `node`, `lan` or `zone`. */
const ANNOTATION_PREFER = "edgemesh.io/prefer";

/** Whether this node brings traffic of the Service anywhere at all. */
export function handlesService(service: Service, config: ForwardConfig): boolean {
  return hasVirtualAddress(service) && filterReason(service, config.filter) === undefined;
}

/** Whether there is anything to forward. */
export function hasVirtualAddress(service: Service): boolean {
  return service.type !== "ExternalName" && !service.headless && service.clusterIPs.length > 0;
}

/** What a Service's plan is made from. */
export interface ServiceSource {
  readonly service: Service;
  readonly slices: readonly EndpointSlice[];
  readonly policy: ServicePolicy | undefined;
}

/** Plans all ports of a Service that {@link handlesService} accepted. */
export function planService(source: ServiceSource, facts: NodeFacts, config: ForwardConfig): PlannedService {
  const { service, slices, policy } = source;
  const key = serviceKey(service.namespace, service.name);
  const notes: string[] = [...policy?.notes ?? []];
  const ports: PlannedPort[] = [];
  for (const ip of service.clusterIPs) {
    for (const port of service.ports) ports.push(planPort({ ...source, key, facts, config, notes }, port, ip));
  }
  return { key, from: service, slices, policy, ports, complete: true, notes };
}

interface Work extends ServiceSource {
  readonly key: ServiceKey;
  readonly facts: NodeFacts;
  readonly config: ForwardConfig;
  readonly notes: string[];
}

interface Candidate extends Selectable {
  readonly slot: Slot;
  readonly zone: string | undefined;
}

function planPort(work: Work, port: ServicePort, clusterIp: string): PlannedPort {
  const { service } = work;
  const family = familyOf(clusterIp);
  const { balance, hashOn } = balancingOf(work, port);
  const candidates = gather(work, port, family, balance);
  const externallyAccessible = service.externalIPs.length > 0 || service.loadBalancerIPs.length > 0 ||
    service.ports.some((p) => p.nodePort !== undefined);
  const internalLocal = service.internalTrafficPolicy === "Local";
  const externalLocal = service.externalTrafficPolicy === "Local";
  const selection = selectEndpoints(candidates.usable, { internalLocal, externalLocal, externallyAccessible }, {
    node: work.facts.node,
    ...(work.facts.zone === undefined ? {} : { zone: work.facts.zone }),
  });
  const near = preferNear(selection.cluster ?? [], preferenceOf(work), work.facts);
  const verdict = (local: boolean): Verdict => {
    const chosen = local ? selection.local ?? [] : near;
    if (chosen.length > 0) return { verdict: "forward", slots: chosen.map((c) => c.slot) };
    if (local && selection.hasAny) return { verdict: "drop", reason: "traffic-policy" };
    return { verdict: "reject", reason: candidates.leftOut ? "none-usable" : "no-endpoints" };
  };
  const external = verdict(externalLocal);
  return {
    id: `${work.key} ${port.protocol}/${port.port} v${family}`,
    namespace: service.namespace,
    service: service.name,
    portName: port.name,
    protocol: port.protocol,
    port: port.port,
    family,
    frontends: frontendsOf(work, port, clusterIp, family),
    balance,
    ...(hashOn === undefined ? {} : { hashOn }),
    affinitySeconds: service.affinitySeconds,
    internal: verdict(internalLocal),
    external,
    externalFromHere: externalLocal ? verdict(false) : external,
  };
}

/** The rule's word for this port, where it can be kept; else the configuration's. */
function balancingOf({ policy, service, config, notes }: Work, port: ServicePort): Balancing {
  const asked = policy?.perPort.get(port.port) ?? policy?.balancing ?? { balance: config.balance };
  if (asked.balance !== "request-hash") return asked;
  const because = service.affinitySeconds !== undefined
    ? "its sessionAffinity, which wins"
    : port.protocol === "UDP"
    ? "UDP has no requests"
    : undefined;
  if (because === undefined) return asked;
  notes.push(`${port.protocol}/${port.port} is not balanced by request: ${because}`);
  return { balance: config.balance };
}

function frontendsOf(work: Work, port: ServicePort, clusterIp: string, family: Family): Frontend[] {
  const { service, config, facts, notes } = work;
  const out: Frontend[] = [{ kind: "cluster-ip", ip: clusterIp, port: port.port }];
  const claim = (kind: "external-ip" | "load-balancer-ip", ip: string) => {
    if (familyOf(ip) !== family) return;
    if (facts.addresses.includes(ip)) notes.push(`${kind} ${ip} is an address of this node and is left alone`);
    else if (!config.externalIPs.some((cidr) => cidrContains(cidr, ip))) {
      notes.push(`${kind} ${ip} is outside the networks this node allows (forward.externalIPs)`);
    } else out.push({ kind, ip, port: port.port });
  };
  for (const ip of service.externalIPs) claim("external-ip", ip);
  for (const ip of service.loadBalancerIPs) claim("load-balancer-ip", ip);
  if (port.nodePort !== undefined && config.nodePorts) out.push({ kind: "node-port", ip: "", port: port.nodePort });
  return out;
}

/** Every endpoint of the port in this family, once, in an order that does not depend on the order of slices. */
function gather(
  work: Work,
  port: ServicePort,
  family: Family,
  balance: Balance,
): { usable: Candidate[]; leftOut: boolean } {
  const byKey = new Map<string, Candidate>();
  let leftOut = false;
  for (const slice of work.slices) {
    const target = slice.ports.find((p) => p.name === port.name && p.protocol === port.protocol);
    if (!target) continue;
    for (const e of slice.endpoints) {
      if (familyOf(e.ip) !== family) continue;
      const refusal = refuse(e, port.protocol, target.port, work);
      if (refusal) {
        leftOut ||= e.ready;
        work.notes.push(`endpoint ${hostPort({ ip: e.ip, port: target.port })} ${refusal}`);
        continue;
      }
      const candidate = candidateOf(e, target.port, balance, work);
      const known = byKey.get(candidate.slot.key);
      // The same address in two slices (a slice being split): the better condition counts.
      if (!known || rank(candidate) > rank(known)) byKey.set(candidate.slot.key, candidate);
    }
  }
  const usable = [...byKey.values()].sort((a, b) => a.slot.key < b.slot.key ? -1 : 1);
  return { usable, leftOut };
}

function candidateOf(e: Endpoint, port: number, balance: Balance, work: Work): Candidate {
  const { facts, service } = work;
  const [way, reason] = wayTo(e, balance, facts);
  return {
    slot: {
      key: `${e.node ?? ""}/${hostPort({ ip: e.ip, port })}`,
      endpoint: { ip: e.ip, port },
      node: e.node,
      way,
      reason,
    },
    zone: e.zone,
    ready: e.ready || service.publishNotReadyAddresses,
    serving: e.serving,
    terminating: e.terminating,
    local: e.node === facts.node,
    ...(e.hintZones ? { hintZones: e.hintZones } : {}),
    ...(e.hintNodes ? { hintNodes: e.hintNodes } : {}),
  };
}

function wayTo(e: Endpoint, balance: Balance, facts: NodeFacts): readonly [Way, WayReason] {
  if (e.node === undefined) return ["proxy", "no-node"];
  const routable = e.node === facts.node ||
    facts.routable.some((subnet) => subnet.node === e.node && cidrContains(subnet.cidr, e.ip));
  if (!routable) return ["tunnel", "other-node"];
  if (!KERNEL_BALANCES.has(balance)) return ["proxy", "balance"];
  return ["kernel", e.node === facts.node ? "own-node" : "routable-subnet"];
}

/** Why an endpoint is never connected to, or undefined. Metadata comes from outside and is not believed blindly. */
function refuse(e: Endpoint, protocol: Protocol, port: number, work: Work): string | undefined {
  const { facts, config } = work;
  if (!isUnicastEndpoint(e.ip)) return "is loopback, link-local or multicast";
  // Another site may use the very addresses this host has: there they mean something else.
  if (e.node !== undefined && e.node !== facts.node) return undefined;
  if (e.node === undefined) {
    if (isPrivate(e.ip) && !config.privateEndpoints) {
      return "belongs to no node and is private; forward.allowPrivateExternalEndpoints would allow it";
    }
    if (facts.addresses.includes(e.ip)) return "belongs to no node but is an address of this one";
  }
  if (facts.addresses.includes(e.ip) && config.reservedPorts.includes(port)) {
    return `uses ${protocol} port ${port} of this host, which is the agent's own`;
  }
  return undefined;
}

function rank(c: Candidate): number {
  return (c.ready ? 2 : 0) + (c.serving ? 1 : 0);
}

/** What the Service asks for, by our annotation or in Kubernetes' words; else the configuration's word. */
function preferenceOf({ service, config, notes }: Work): Preference {
  const asked = service.annotations[ANNOTATION_PREFER];
  switch (asked) {
    case "none":
    case "node":
    case "lan":
    case "zone":
      return asked;
    case undefined:
      break;
    default: {
      const note = `${ANNOTATION_PREFER}: ${JSON.stringify(asked)} is none of none, node, lan and zone`;
      if (!notes.includes(note)) notes.push(note);
    }
  }
  switch (service.trafficDistribution) {
    case "PreferSameNode":
      return "node";
    case "PreferClose":
    case "PreferSameZone":
      return "zone";
    default:
      return config.prefer;
  }
}

/**
 * Keeps only near endpoints while there are some. Kubernetes does this through hints that its controller writes;
 * hand-written slices and Endpoints objects carry none, and an edge site that is cut off needs the preference most.
 */
function preferNear(chosen: readonly Candidate[], prefer: Preference, facts: NodeFacts): readonly Candidate[] {
  if (prefer === "none" || chosen.length < 2) return chosen;
  for (const tier of TIERS.slice(TIERS.findIndex(([name]) => name === prefer))) {
    const near = chosen.filter((candidate) => tier[1](candidate, facts));
    if (near.length > 0) return near;
  }
  return chosen;
}

/** Each holds what is nearer than itself, too. */
const TIERS: readonly (readonly [Preference, (candidate: Candidate, facts: NodeFacts) => boolean])[] = [
  ["node", ({ local }) => local],
  ["lan", ({ local, slot }, { lan }) => local || (slot.node !== undefined && lan?.includes(slot.node) === true)],
  ["zone", ({ zone }, facts) => facts.zone !== undefined && zone === facts.zone],
];
