/**
 * Which endpoints of a Service this node may use: the selection that kube-proxy publishes as `CategorizeEndpoints`
 * (kubernetes/kubernetes pkg/proxy/topology.go), so that traffic policies, topology hints and terminating endpoints
 * mean here what they mean everywhere else. Pure; all rows of kube-proxy's own test table pass.
 */

/** What the selection needs to know of one endpoint; EndpointSlice conditions after their defaults are applied. */
export interface Selectable {
  readonly ready: boolean;
  readonly serving: boolean;
  readonly terminating: boolean;
  /** Runs on this node. */
  readonly local: boolean;
  readonly hintZones?: readonly string[];
  readonly hintNodes?: readonly string[];
}

/** What the selection needs to know of the Service. */
export interface SelectionPolicy {
  readonly internalLocal: boolean;
  readonly externalLocal: boolean;
  /** Has a node port, a load-balancer address or an external address: only then externalTrafficPolicy counts. */
  readonly externallyAccessible: boolean;
}

/** Where the selection is made. */
export interface Here {
  readonly node: string;
  readonly zone?: string;
}

export interface Selection<E> {
  /** Used by traffic whose policy is Cluster; undefined when the Service has no such traffic. */
  readonly cluster: readonly E[] | undefined;
  /** Used by traffic whose policy is Local; undefined when the Service has no such traffic. */
  readonly local: readonly E[] | undefined;
  /** Every endpoint some traffic through this node may reach. */
  readonly all: readonly E[];
  /** A usable endpoint exists somewhere: traffic that gets none was excluded by policy (drop), not refused (reject). */
  readonly hasAny: boolean;
}

type TopologyMode = "none" | "same-node" | "same-zone";

/** Sorts the endpoints of one Service port by what traffic may use them. Order within the input is kept. */
export function selectEndpoints<E extends Selectable>(
  endpoints: readonly E[],
  policy: SelectionPolicy,
  here: Here,
): Selection<E> {
  const usesCluster = !policy.internalLocal || policy.externallyAccessible;
  const usesLocal = policy.internalLocal || (policy.externallyAccessible && policy.externalLocal);
  const mode = usesCluster ? topologyMode(endpoints, here) : "none";
  const cluster = usesCluster ? clusterEndpoints(endpoints, mode, here) : undefined;
  if (!usesLocal) return { cluster, local: undefined, all: cluster ?? [], hasAny: (cluster?.length ?? 0) > 0 };

  const local = localEndpoints(endpoints);
  const hasAny = endpoints.some((e) => e.ready || lastResort(e));
  if (cluster === undefined) return { cluster, local, all: local, hasAny };
  const inCluster = new Set(cluster);
  const inLocal = new Set(local);
  return { cluster, local, all: endpoints.filter((e) => inCluster.has(e) || inLocal.has(e)), hasAny };
}

/** Serving while it terminates: used only when nothing ready is left. */
function lastResort(e: Selectable): boolean {
  return !e.ready && e.serving && e.terminating;
}

function clusterEndpoints<E extends Selectable>(endpoints: readonly E[], mode: TopologyMode, here: Here): readonly E[] {
  const ready = endpoints.filter((e) => e.ready && matches(e, mode, here));
  return ready.length > 0 ? ready : endpoints.filter(lastResort);
}

function localEndpoints<E extends Selectable>(endpoints: readonly E[]): readonly E[] {
  const ready = endpoints.filter((e) => e.local && e.ready);
  return ready.length > 0 ? ready : endpoints.filter((e) => e.local && lastResort(e));
}

function matches(e: Selectable, mode: TopologyMode, here: Here): boolean {
  switch (mode) {
    case "none":
      return true;
    case "same-node":
      return e.hintNodes?.includes(here.node) ?? false;
    case "same-zone":
      return e.hintZones?.includes(here.zone ?? "") ?? false;
  }
}

/**
 * Hints count only when every ready endpoint carries them and at least one names us: a half-written slice must not
 * empty the Service.
 */
function topologyMode(endpoints: readonly Selectable[], here: Here): TopologyMode {
  let allNodeHints = true;
  let allZoneHints = true;
  let oneForNode = false;
  let oneForZone = false;
  for (const e of endpoints) {
    if (!e.ready) continue;
    if ((e.hintNodes?.length ?? 0) === 0) allNodeHints = false;
    else if (e.hintNodes!.includes(here.node)) oneForNode = true;
    if ((e.hintZones?.length ?? 0) === 0) allZoneHints = false;
    else if (here.zone && e.hintZones!.includes(here.zone)) oneForZone = true;
  }
  if (allNodeHints && oneForNode) return "same-node";
  if (allZoneHints && oneForZone) return "same-zone";
  return "none";
}
