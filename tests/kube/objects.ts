/** Kubernetes objects for tests, as an API server would store them. */
import type { Obj } from "./fake_apiserver.ts";

export const SERVICES = "/api/v1/services";
export const SLICES = "/apis/discovery.k8s.io/v1/endpointslices";
export const ENDPOINTS = "/api/v1/endpoints";
export const NODES = "/api/v1/nodes";
export const PODS = "/api/v1/pods";
export const NAMESPACES = "/api/v1/namespaces";

export function kubeService(name: string, ip: string, namespace = "shop"): Obj {
  return {
    metadata: { namespace, name, labels: { app: name }, creationTimestamp: "2026-01-01T00:00:00Z", managedFields },
    spec: {
      type: "ClusterIP",
      clusterIP: ip,
      clusterIPs: [ip],
      ports: [{ name: "http", port: 80, targetPort: 8080, protocol: "TCP" }],
      selector: { app: name },
      sessionAffinity: "None",
    },
    status: { loadBalancer: {} },
  };
}

export function kubeSlice(name: string, service: string, ips: readonly string[], namespace = "shop"): Obj {
  return {
    metadata: { namespace, name, labels: { "kubernetes.io/service-name": service }, managedFields },
    addressType: "IPv4",
    endpoints: ips.map((ip, i) => ({
      addresses: [ip],
      conditions: { ready: true, serving: true, terminating: false },
      nodeName: `node-${i % 200}`,
      targetRef: { kind: "Pod", namespace, name: `${service}-7d9f8b6c5-${i}`, uid: crypto.randomUUID() },
      zone: `zone-${i % 3}`,
    })),
    ports: [{ name: "http", port: 8080, protocol: "TCP" }],
  };
}

export function kubeEndpoints(name: string, subsets: readonly (readonly string[])[], namespace = "shop"): Obj {
  return {
    metadata: { namespace, name },
    subsets: subsets.map((ips, i) => ({ addresses: ips.map((ip) => ({ ip })), ports: [{ port: 8080 + i }] })),
  };
}

export function kubePod(name: string, node: string, ip: string, phase = "Running"): Obj {
  return {
    metadata: { namespace: "shop", name },
    spec: { nodeName: node },
    status: { phase, podIP: ip, podIPs: [{ ip }] },
  };
}

export function kubeNode(name: string): Obj {
  return {
    metadata: { name, labels: { "topology.kubernetes.io/zone": "z1" } },
    spec: { podCIDR: "10.1.0.0/24", podCIDRs: ["10.1.0.0/24"] },
    status: { addresses: [{ type: "InternalIP", address: "192.168.1.10" }] },
  };
}

/** What half of a real object consists of. */
const managedFields = [{
  manager: "kubectl-client-side-apply",
  operation: "Update",
  apiVersion: "v1",
  time: "2026-01-01T00:00:00Z",
  fieldsType: "FieldsV1",
  fieldsV1: {
    "f:metadata": { "f:annotations": { ".": {}, "f:kubectl.kubernetes.io/last-applied-configuration": {} } },
    "f:spec": { "f:ports": { ".": {}, 'k:{"port":80,"protocol":"TCP"}': { ".": {}, "f:name": {}, "f:port": {} } } },
  },
}];
