/**
 * Which endpoints of a Service have names, and why the others have none. Used for answers and, with `excluded`, for
 * explanations, so that both can never disagree.
 */
import type { Endpoint, EndpointPort, EndpointSlice, MetaReader, Service } from "../../meta/model.ts";
import { dashedIp } from "./name.ts";

/** One address of a Service that names may resolve to. */
export interface NamedEndpoint {
  /** First label of its own name: its host name, else the dashed address. */
  readonly host: string;
  /** Cluster id, in zones that span clusters. */
  readonly cluster: string | undefined;
  readonly ip: string;
  readonly endpoint: Endpoint;
  /** Ports of its slice; empty for Services without ports. */
  readonly ports: readonly EndpointPort[];
}

export interface ExcludedEndpoint {
  readonly endpoint: Endpoint;
  readonly slice: string;
  /** A sentence's end: `is not ready`. */
  readonly why: string;
}

export interface EndpointChoice {
  readonly usable: readonly NamedEndpoint[];
  readonly excluded: readonly ExcludedEndpoint[];
}

/** Cluster id of slices that do not say where they come from, in zones that span clusters. */
export const LOCAL_CLUSTER_ID = "local";

/**
 * Endpoints that names of `service` may resolve to: the ready ones, and all of them where the Service publishes
 * not-ready addresses (Kubernetes DNS specification §2.4.1).
 */
export function chooseEndpoints(meta: MetaReader, service: Service, multicluster: boolean): EndpointChoice {
  const usable: NamedEndpoint[] = [];
  const excluded: ExcludedEndpoint[] = [];
  for (const slice of meta.slicesOf(service.namespace, service.name)) {
    for (const endpoint of slice.endpoints) {
      const why = whyUnusable(endpoint, service);
      if (why !== undefined) {
        excluded.push({ endpoint, slice: slice.name, why });
        continue;
      }
      usable.push({
        host: endpointHost(endpoint),
        cluster: multicluster ? clusterOf(slice) : undefined,
        ip: endpoint.ip,
        endpoint,
        ports: slice.ports,
      });
    }
  }
  return { usable, excluded };
}

/** First label of an endpoint's own name, in lower case. */
export function endpointHost(endpoint: Endpoint): string {
  return endpoint.hostname?.toLowerCase() || dashedIp(endpoint.ip);
}

/** Whether an endpoint has no name: the words say why. */
export function whyUnusable(endpoint: Endpoint, service: Service): string | undefined {
  if (endpoint.ready || service.publishNotReadyAddresses) return undefined;
  return endpoint.terminating ? "is terminating" : "is not ready";
}

function clusterOf(slice: EndpointSlice): string {
  return slice.sourceCluster ?? LOCAL_CLUSTER_ID;
}
