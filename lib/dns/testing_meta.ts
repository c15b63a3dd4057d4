/** A snapshot from literals, for tests and benches. */
import type {
  Endpoint,
  EndpointSlice,
  MetaReader,
  Node,
  Pod,
  RouteObject,
  Service,
  ServicePort,
} from "../meta/model.ts";

export interface MemoryMetaInput {
  readonly services?: readonly Service[];
  readonly slices?: readonly EndpointSlice[];
  readonly pods?: readonly Pod[];
  readonly nodes?: readonly Node[];
  /** Beside those of the services. */
  readonly namespaces?: readonly string[];
  readonly synced?: boolean;
  readonly number?: number;
}

/** The plainest implementation of the interface: linear or by map, immutable. */
export class MemoryMeta implements MetaReader {
  readonly synced: boolean;
  readonly version;
  readonly #services = new Map<string, Service>();
  readonly #slices = new Map<string, EndpointSlice[]>();
  readonly #byIp = new Map<string, Service>();
  readonly #sliceByIp = new Map<string, EndpointSlice[]>();
  readonly #pods: readonly Pod[];
  readonly #nodes = new Map<string, Node>();
  readonly #namespaces = new Set<string>();

  constructor(input: MemoryMetaInput) {
    this.synced = input.synced ?? true;
    this.version = { source: "test", epoch: "1", number: input.number ?? 7 };
    for (const s of input.services ?? []) {
      this.#services.set(`${s.namespace}/${s.name}`, s);
      this.#namespaces.add(s.namespace);
      for (const ip of s.clusterIPs) if (!this.#byIp.has(ip)) this.#byIp.set(ip, s);
    }
    for (const slice of input.slices ?? []) {
      push(this.#slices, `${slice.namespace}/${slice.service}`, slice);
      for (const ip of new Set(slice.endpoints.map((e) => e.ip))) push(this.#sliceByIp, ip, slice);
    }
    this.#pods = input.pods ?? [];
    for (const n of input.nodes ?? []) this.#nodes.set(n.name, n);
    for (const n of input.namespaces ?? []) this.#namespaces.add(n);
  }

  service(namespace: string, name: string): Service | undefined {
    return this.#services.get(`${namespace}/${name}`);
  }
  services(): Iterable<Service> {
    return this.#services.values();
  }
  serviceByIp(ip: string): Service | undefined {
    return this.#byIp.get(ip);
  }
  ownerOf(ip: string): Service | undefined {
    return this.#byIp.get(ip);
  }
  routes(): Iterable<RouteObject> {
    return [];
  }
  slicesOf(namespace: string, service: string): readonly EndpointSlice[] {
    return this.#slices.get(`${namespace}/${service}`) ?? [];
  }
  slicesByIp(ip: string): readonly EndpointSlice[] {
    return this.#sliceByIp.get(ip) ?? [];
  }
  node(name: string): Node | undefined {
    return this.#nodes.get(name);
  }
  nodes(): Iterable<Node> {
    return this.#nodes.values();
  }
  hasNamespace(name: string): boolean {
    return this.#namespaces.has(name);
  }
  pod(namespace: string, name: string): Pod | undefined {
    return this.#pods.find((p) => p.namespace === namespace && p.name === name);
  }
  podsByIp(ip: string): readonly Pod[] {
    return this.#pods.filter((p) => p.ips.includes(ip));
  }
}

/** A Service with every field at its plainest. */
export function service(namespace: string, name: string, more: Partial<Service> = {}): Service {
  return {
    namespace,
    name,
    type: "ClusterIP",
    clusterIPs: [],
    headless: false,
    ports: [port("http", 80)],
    externalIPs: [],
    loadBalancerIPs: [],
    internalTrafficPolicy: "Cluster",
    externalTrafficPolicy: "Cluster",
    publishNotReadyAddresses: false,
    labels: {},
    annotations: {},
    ...more,
  };
}

export function port(name: string, number: number, protocol: "TCP" | "UDP" = "TCP"): ServicePort {
  return { name, protocol, port: number };
}

/** A ready endpoint. */
export function endpoint(ip: string, more: Partial<Endpoint> = {}): Endpoint {
  return { ip, ready: true, serving: true, terminating: false, ...more };
}

export function slice(
  of: { readonly namespace: string; readonly service: string; readonly name?: string; readonly sourceCluster?: string },
  endpoints: readonly Endpoint[],
  ports: EndpointSlice["ports"] = [port("http", 80)],
): EndpointSlice {
  return { ...of, name: of.name ?? `${of.service}-1`, endpoints, ports };
}

function push<V>(map: Map<string, V[]>, key: string, value: V): void {
  const list = map.get(key);
  if (list) list.push(value);
  else map.set(key, [value]);
}
