/** What a plan is made of: values only. */
import type { Family } from "../addr.ts";
import type { EndpointSlice, Protocol, Service, ServiceKey } from "../meta/model.ts";
import type { IpPort } from "../net.ts";
import type { Balance, ForwardConfig, NodeFacts } from "./facts.ts";
import type { ServicePolicy } from "./policies.ts";
import type { HashOn } from "./request_key.ts";

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

/** The slots of a verdict; none unless it forwards. */
export function slotsOf(verdict: Verdict): readonly Slot[] {
  return verdict.verdict === "forward" ? verdict.slots : [];
}

/** Whether some of a port's connections come to the agent. */
export function needsAgent(port: PlannedPort): boolean {
  return [port.internal, port.external].some((verdict) => slotsOf(verdict).some((slot) => slot.way !== "kernel"));
}

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
  /** What of a connection's first request decides; set for `request-hash` only. */
  readonly hashOn?: HashOn;
  /** Client-IP affinity in seconds; undefined = none. */
  readonly affinitySeconds: number | undefined;
  /** Traffic to the cluster IP. */
  readonly internal: Verdict;
  /** Traffic from elsewhere to node ports, external and load-balancer addresses. */
  readonly external: Verdict;
  /**
   * The same from this host and its pods: as if they had used the cluster address, because externalTrafficPolicy is
   * about clients outside. The same object as `external` where the policy makes no difference.
   */
  readonly externalFromHere: Verdict;
}

export interface PlannedService {
  readonly key: ServiceKey;
  /** The objects this was made from: equal references mean nothing changed. */
  readonly from: Service;
  readonly slices: readonly EndpointSlice[];
  readonly policy: ServicePolicy | undefined;
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

/** The text under which a frontend is found: `TCP 10.96.0.1:80`, `UDP :30053`. */
export function frontendKey(protocol: Protocol, ip: string, port: number): string {
  return `${protocol} ${ip}:${port}`;
}
