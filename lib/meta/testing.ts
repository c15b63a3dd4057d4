/** Objects for tests: small builders with sensible defaults. */
import type { FakeClock } from "../clock.ts";
import { pause } from "../clock.ts";
import type { Endpoint, EndpointSlice, Node, Pod, Service } from "./model.ts";
import type { Changes } from "./objects.ts";
import { put } from "./objects.ts";
import { Snapshot } from "./store/snapshot.ts";

export function aService(over: Partial<Service> = {}): Service {
  return {
    namespace: "shop",
    name: "web",
    type: "ClusterIP",
    clusterIPs: ["10.96.0.10"],
    headless: false,
    ports: [{ name: "http", protocol: "TCP", port: 80 }],
    externalIPs: [],
    loadBalancerIPs: [],
    internalTrafficPolicy: "Cluster",
    externalTrafficPolicy: "Cluster",
    publishNotReadyAddresses: false,
    labels: {},
    annotations: {},
    ...over,
  };
}

export function anEndpoint(ip: string, over: Partial<Endpoint> = {}): Endpoint {
  return { ip, node: "edge-1", ready: true, serving: true, terminating: false, ...over };
}

export function aSlice(over: Partial<EndpointSlice> = {}): EndpointSlice {
  return {
    namespace: "shop",
    name: "web-abc12",
    service: "web",
    endpoints: [anEndpoint("10.1.0.5")],
    ports: [{ name: "http", protocol: "TCP", port: 8080 }],
    ...over,
  };
}

export function aNode(over: Partial<Node> = {}): Node {
  return { name: "edge-1", internalIPs: ["192.168.1.10"], podCIDRs: ["10.1.0.0/24"], labels: {}, ...over };
}

export function aPod(over: Partial<Pod> = {}): Pod {
  return { namespace: "shop", name: "web-1", node: "edge-1", ips: ["10.1.0.5"], hostNetwork: false, ...over };
}

/** A synced snapshot of these changes. */
export function snapshotOf(changes: Changes, number = 1): Snapshot {
  return Snapshot.empty().apply(changes, { version: { source: "t", epoch: "e", number }, synced: true }).snapshot;
}

/** A cluster of `services` Services with `endpoints` endpoints each, all distinct. */
export function* bigCluster(services: number, endpoints: number): IterableIterator<Changes> {
  for (let i = 0; i < services; i++) {
    const namespace = `ns-${i % 50}`;
    const name = `service-${i}`;
    const ip = `10.${96 + (i >> 16)}.${(i >> 8) & 255}.${i & 255}`;
    const list: Endpoint[] = [];
    for (let j = 0; j < endpoints; j++) {
      const n = i * endpoints + j;
      list.push(anEndpoint(`10.${128 + (n >> 16)}.${(n >> 8) & 255}.${n & 255}`, {
        node: `node-${n % 200}`,
        pod: `${name}-7d9f8b6c5-${n.toString(36).padStart(5, "x")}`,
        zone: `zone-${n % 3}`,
      }));
    }
    yield [
      put("service", aService({ namespace, name, clusterIPs: [ip] })),
      put("slice", aSlice({ namespace, name: `${name}-x7k2p`, service: name, endpoints: list })),
    ];
  }
}

/** Virtual time per look at a condition: at least this, more where there is much to wait for. */
const STEP_MS = 50;
/** Looks in which the whole of a long wait passes. */
const LOOKS = 80;

/** Virtual milliseconds until a condition holds, while real bytes flow; undefined when it does not within `limit`. */
export async function virtually(
  clock: FakeClock,
  condition: () => boolean,
  limit: number,
): Promise<number | undefined> {
  const from = clock.now();
  const step = Math.max(STEP_MS, limit / LOOKS);
  for (;;) {
    // Real bytes need real turns of the loop, whatever the virtual time.
    for (let i = 0; i < 5; i++) {
      if (condition()) return clock.now() - from;
      await pause(1);
      // Workers that let the loop turn go on with the turn, not with the time.
      clock.advance(0);
    }
    if (clock.now() - from > limit) return undefined;
    clock.advance(step);
  }
}
