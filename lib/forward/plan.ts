/**
 * Metadata → plan: for every Service port, which connections are forwarded to which endpoints, and which *way* each
 * endpoint is reached (`kernel | proxy | tunnel`) with the reason. Pure. What did not change keeps its identity from
 * the previous plan, so that rules, listeners and flows are updated by comparing references.
 */
import type { Family } from "../addr.ts";
import type { IpPort } from "../net.ts";
import type { EndpointSlice, MetaReader, Protocol, Service, ServiceKey } from "../meta/model.ts";
import { serviceKey } from "../meta/model.ts";
import type { ForwardConfig, NodeFacts } from "./facts.ts";
import { handlesService, planService } from "./plan_service.ts";

/** How connections are spread over the endpoints. */
export type Balance = "round-robin" | "random" | "source-hash" | "least-connections";

/** Balances that nf_tables can do; all others make every endpoint of the Service go through the agent. */
export const KERNEL_BALANCES: ReadonlySet<Balance> = new Set(["round-robin", "random", "source-hash"]);

export type Way = "kernel" | "proxy" | "tunnel";

export type WayReason =
  /** kernel: the endpoint runs here. */
  | "own-node"
  /** kernel: in a pod network of another node that this node reaches without us. */
  | "routable-subnet"
  /** tunnel: on another node whose pods are not reachable from here. */
  | "other-node"
  /** proxy: outside the cluster, dialled by the agent of the client's node. */
  | "no-node"
  /** proxy: the kernel cannot do the Service's balancing. */
  | "balance";

/** One endpoint in a Service's balancing. */
export interface Slot {
  /** (node, address, port): the endpoint's identity, because pod addresses may repeat between nodes. */
  readonly key: string;
  readonly endpoint: IpPort;
  readonly node: string | undefined;
  readonly way: Way;
  readonly reason: WayReason;
}

export type Verdict =
  | { readonly verdict: "forward"; readonly slots: readonly Slot[] }
  /** Nobody can serve: refused at once with TCP reset or ICMP. */
  | { readonly verdict: "reject"; readonly reason: "no-endpoints" | "none-usable" }
  /** Others can serve, but the Service's traffic policy keeps this node's traffic from them: dropped, as kube-proxy does. */
  | { readonly verdict: "drop"; readonly reason: "traffic-policy" };

/** An address and port that clients use. */
export interface Frontend {
  readonly kind: "cluster-ip" | "external-ip" | "load-balancer-ip" | "node-port";
  /** Empty for node ports: every address of this host. */
  readonly ip: string;
  readonly port: number;
}

/** One port of one Service in one address family. */
export interface PlannedPort {
  /** `namespace/name TCP/80 v4`: stable while the Service exists. */
  readonly id: string;
  readonly namespace: string;
  readonly service: string;
  readonly portName: string;
  readonly protocol: Protocol;
  readonly port: number;
  readonly family: Family;
  readonly frontends: readonly Frontend[];
  readonly balance: Balance;
  /** Client-IP affinity in seconds; undefined = none. */
  readonly affinitySeconds: number | undefined;
  /** Traffic to the cluster IP. */
  readonly internal: Verdict;
  /** Traffic to node ports, external and load-balancer addresses. */
  readonly external: Verdict;
}

export interface PlannedService {
  readonly key: ServiceKey;
  /** The objects this was made from: equal references mean nothing changed. */
  readonly from: Service;
  readonly slices: readonly EndpointSlice[];
  readonly ports: readonly PlannedPort[];
  /** False: another Service owns some of its addresses, so it is made anew each time (the other may go). */
  readonly complete: boolean;
  /** Endpoints and addresses that were left out, one sentence each. */
  readonly notes: readonly string[];
}

export interface Plan {
  readonly facts: NodeFacts;
  readonly config: ForwardConfig;
  readonly services: ReadonlyMap<ServiceKey, PlannedService>;
}

/** The plan before anything is known: no rule at all. */
export function emptyPlan(facts: NodeFacts, config: ForwardConfig): Plan {
  return { facts, config, services: new Map() };
}

/** Decides for every Service. `previous` saves work and keeps identities; it never changes the result. */
export function planForwarding(meta: MetaReader, facts: NodeFacts, config: ForwardConfig, previous?: Plan): Plan {
  const reusable = previous && previous.facts === facts && previous.config === config ? previous.services : undefined;
  const services = new Map<ServiceKey, PlannedService>();
  for (const service of meta.services()) {
    const key = serviceKey(service.namespace, service.name);
    if (!handlesService(service, key, config)) continue;
    const slices = meta.slicesOf(service.namespace, service.name);
    const before = reusable?.get(key);
    services.set(
      key,
      before?.complete && before.from === service && sameSlices(before.slices, slices)
        ? before
        : planService(service, slices, facts, config),
    );
  }
  resolveClaims(services, reusable);
  return { facts, config, services };
}

/** The text under which a frontend is found: `TCP 10.96.0.1:80`, `UDP :30053`. */
export function frontendKey(protocol: Protocol, ip: string, port: number): string {
  return `${protocol} ${ip}:${port}`;
}

function sameSlices(a: readonly EndpointSlice[], b: readonly EndpointSlice[]): boolean {
  return a === b || (a.length === b.length && a.every((slice, i) => slice === b[i]));
}

/** Two Services that claim the same address and port: the one whose key sorts first keeps it, on every node alike. */
function resolveClaims(
  services: Map<ServiceKey, PlannedService>,
  reusable: ReadonlyMap<ServiceKey, PlannedService> | undefined,
): void {
  const owners = new Map<string, ServiceKey>();
  let contested = false;
  for (const [key, planned] of services) {
    for (const port of planned.ports) {
      for (const frontend of port.frontends) {
        for (const claim of claimsOf(port, frontend)) {
          const owner = owners.get(claim);
          if (owner === key) continue;
          if (owner !== undefined) contested = true;
          if (owner === undefined || key < owner) owners.set(claim, key);
        }
      }
    }
  }
  if (!contested) return;
  for (const [key, planned] of services) {
    const winner = (port: PlannedPort, frontend: Frontend) =>
      claimsOf(port, frontend).map((claim) => owners.get(claim)!).find((owner) => owner !== key);
    if (!planned.ports.some((port) => port.frontends.some((f) => winner(port, f) !== undefined))) continue;
    const notes = [...planned.notes];
    const ports = planned.ports.map((port) => ({
      ...port,
      frontends: port.frontends.filter((frontend) => {
        const owner = winner(port, frontend);
        if (owner === undefined) return true;
        notes.push(`${frontendKey(port.protocol, frontend.ip, frontend.port)} is claimed by ${owner}, which keeps it`);
        return false;
      }),
    }));
    const before = reusable?.get(key);
    const next = { ...planned, ports, notes, complete: false };
    services.set(key, before && samePlanned(before, next) ? before : next);
  }
}

/** A cluster IP belongs to one Service as a whole, as in Kubernetes; other addresses are shared by port. */
function claimsOf(port: PlannedPort, frontend: Frontend): string[] {
  const one = frontendKey(port.protocol, frontend.ip, frontend.port);
  return frontend.kind === "cluster-ip" ? [frontend.ip, one] : [one];
}

function samePlanned(a: PlannedService, b: PlannedService): boolean {
  return a.from === b.from && sameSlices(a.slices, b.slices) && JSON.stringify(a.ports) === JSON.stringify(b.ports);
}
