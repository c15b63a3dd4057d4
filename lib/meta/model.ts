/**
 * What the mesh knows about the cluster: Kubernetes objects slimmed to the fields the product uses. Every value is
 * readonly and checked at the border (lib/meta/convert/convert.ts): addresses are canonical, ports are in range, names are
 * valid. Nothing here is a Kubernetes type, and nothing here does I/O.
 */

export type Protocol = "TCP" | "UDP";
export type TrafficPolicy = "Cluster" | "Local";

/** `namespace/name`: how Services are keyed everywhere. */
export type ServiceKey = string;

export interface ServicePort {
  /** Empty for a single unnamed port. */
  readonly name: string;
  readonly protocol: Protocol;
  readonly port: number;
  /** Set for NodePort and LoadBalancer Services. */
  readonly nodePort?: number;
  readonly appProtocol?: string;
}

export interface Service {
  readonly namespace: string;
  readonly name: string;
  readonly type: "ClusterIP" | "NodePort" | "LoadBalancer" | "ExternalName";
  /** Virtual addresses, one per family; empty for headless and ExternalName Services. */
  readonly clusterIPs: readonly string[];
  /** `clusterIP: None`: no virtual address, names resolve to the endpoints. */
  readonly headless: boolean;
  readonly externalName?: string;
  readonly ports: readonly ServicePort[];
  readonly externalIPs: readonly string[];
  readonly loadBalancerIPs: readonly string[];
  /** Client-IP affinity in seconds; undefined = none. */
  readonly affinitySeconds?: number;
  readonly internalTrafficPolicy: TrafficPolicy;
  readonly externalTrafficPolicy: TrafficPolicy;
  readonly publishNotReadyAddresses: boolean;
  readonly trafficDistribution?: string;
  /** Labels and annotations the product reads (proxy name, headless, hints); all others are dropped at the border. */
  readonly labels: Readonly<Record<string, string>>;
  readonly annotations: Readonly<Record<string, string>>;
  /** Seconds since 1970 of its creation: the older of two claims on one address wins. Undefined: not said (files). */
  readonly created?: number;
}

/** One address behind a Service. Identity is (node, ip): pod addresses repeat between nodes without a shared CNI. */
export interface Endpoint {
  readonly ip: string;
  /** Undefined: outside the cluster, or not said. */
  readonly node?: string;
  readonly zone?: string;
  readonly hostname?: string;
  /** Name of the pod behind it, for explanations. */
  readonly pod?: string;
  readonly ready: boolean;
  readonly serving: boolean;
  readonly terminating: boolean;
  readonly hintZones?: readonly string[];
  readonly hintNodes?: readonly string[];
}

export interface EndpointPort {
  readonly name: string;
  readonly protocol: Protocol;
  readonly port: number;
}

/** One EndpointSlice (or one subset of an Endpoints object): addresses that share ports. */
export interface EndpointSlice {
  readonly namespace: string;
  /** Name of the slice itself; unique within the namespace. */
  readonly name: string;
  /** Name of the Service it belongs to. */
  readonly service: string;
  readonly endpoints: readonly Endpoint[];
  readonly ports: readonly EndpointPort[];
  /** Label `multicluster.kubernetes.io/source-cluster`: the cluster an imported slice comes from. */
  readonly sourceCluster?: string;
}

export interface Node {
  readonly name: string;
  readonly zone?: string;
  readonly internalIPs: readonly string[];
  /** Pod networks of this node, as CIDR text. */
  readonly podCIDRs: readonly string[];
  readonly labels: Readonly<Record<string, string>>;
}

export interface Pod {
  readonly namespace: string;
  readonly name: string;
  readonly node?: string;
  readonly ips: readonly string[];
  readonly hostNetwork: boolean;
}

export interface Namespace {
  readonly name: string;
  readonly labels: Readonly<Record<string, string>>;
}

/** An Istio or Gateway API object: stored and passed on as it is; L7 reads it later. */
export interface RouteObject {
  readonly kind: string;
  readonly apiVersion: string;
  /** Empty for cluster-scoped kinds (GatewayClass). */
  readonly namespace: string;
  readonly name: string;
  readonly spec: unknown;
  readonly labels: Readonly<Record<string, string>>;
  /** Seconds since 1970 of its creation: Gateway API breaks ties by it. */
  readonly created?: number;
}

/** Kinds of objects and the type of each; the key is the kind's name on the wire and on disk. */
export interface Kinds {
  readonly service: Service;
  readonly slice: EndpointSlice;
  readonly node: Node;
  readonly pod: Pod;
  readonly namespace: Namespace;
  readonly route: RouteObject;
}
export type Kind = keyof Kinds;
export const KINDS: readonly Kind[] = ["service", "slice", "node", "pod", "namespace", "route"];

/**
 * Version of a snapshot. Deltas apply only to the same source and epoch and to exactly the number they were made
 * from. `source` names who counts (a server's id, "files", "kube:<uid>"), `epoch` changes whenever that source
 * starts counting anew.
 */
export interface MetaVersion {
  readonly source: string;
  readonly epoch: string;
  readonly number: number;
}

/** What consumers of metadata may ask. Implemented by a snapshot; DNS and forwarding see nothing else. */
export interface MetaReader {
  /** False until something was learned: answers are then "not ready", never "no". */
  readonly synced: boolean;
  readonly version: MetaVersion;
  service(namespace: string, name: string): Service | undefined;
  services(): Iterable<Service>;
  /** The Service that owns a virtual address (clusterIPs only). */
  serviceByIp(ip: string): Service | undefined;
  /**
   * The Service that owns (address, protocol, port), whatever kind of address it is: cluster IP before external IP or
   * load-balancer IP, then the oldest, then by name. Two claims on one external IP are resolved by asking this.
   */
  ownerOf(ip: string, protocol: Protocol, port: number): Service | undefined;
  slicesOf(namespace: string, service: string): readonly EndpointSlice[];
  /** Slices that contain an endpoint with this address. */
  slicesByIp(ip: string): readonly EndpointSlice[];
  node(name: string): Node | undefined;
  nodes(): Iterable<Node>;
  hasNamespace(name: string): boolean;
  pod(namespace: string, name: string): Pod | undefined;
  podsByIp(ip: string): readonly Pod[];
  /** Istio and Gateway API objects of one API group and kind, like ("gateway.networking.k8s.io", "HTTPRoute"). */
  routes(group: string, kind: string): Iterable<RouteObject>;
}

/** `namespace/name`. */
export function serviceKey(namespace: string, name: string): ServiceKey {
  return `${namespace}/${name}`;
}
