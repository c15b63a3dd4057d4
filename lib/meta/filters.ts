/**
 * Which Services the mesh forwards. Names of all Services are answered either way; this is about traffic. Compatible
 * with the original: its label with both modes, namespaces, Kubernetes' headless label, and what the native component
 * serves well is left to it.
 */
import { HEADLESS, K8S_APP, K8S_SERVICE_PROXY_NAME, SERVICE_PROXY_NAME } from "./labels.ts";
import type { Service } from "./model.ts";

/** The original's `serviceFilterMode`. */
export type ServiceFilterMode = "FilterIfLabelExists" | "FilterIfLabelDoesNotExists";

export interface FilterConfig {
  readonly mode: ServiceFilterMode;
  /** Only these namespaces; undefined: all. */
  readonly namespaces?: readonly string[];
  readonly excludeNamespaces?: readonly string[];
  /**
   * Whether this node's native service proxy works (kube-proxy or alike beside us, as on cloud nodes): the API server
   * and the cluster's DNS are then left to it. Where nothing else serves them, the mesh does.
   */
  readonly nativeProxy: boolean;
}

export const DEFAULT_FILTER: FilterConfig = { mode: "FilterIfLabelExists", nativeProxy: false };

/** Why a Service is not forwarded. */
export type FilterReason =
  | "label-exists"
  | "label-missing"
  | "namespace"
  | "headless-label"
  | "other-proxy"
  | "native-apiserver"
  | "native-dns";

/** Namespace, names and label value of the cluster's DNS Service, as all distributions have it. */
const DNS_NAMESPACE = "kube-system";
const DNS_NAMES = new Set(["kube-dns", "coredns"]);
const DNS_APP = "kube-dns";

/** Why the mesh leaves a Service alone; undefined: it forwards it. */
export function filterReason(service: Service, config: FilterConfig): FilterReason | undefined {
  if (Object.hasOwn(service.labels, HEADLESS)) return "headless-label";
  if (Object.hasOwn(service.labels, K8S_SERVICE_PROXY_NAME)) return "other-proxy";
  const labelled = Object.hasOwn(service.labels, SERVICE_PROXY_NAME);
  if (config.mode === "FilterIfLabelExists" && labelled) return "label-exists";
  if (config.mode === "FilterIfLabelDoesNotExists" && !labelled) return "label-missing";
  if (config.namespaces && !config.namespaces.includes(service.namespace)) return "namespace";
  if (config.excludeNamespaces?.includes(service.namespace)) return "namespace";
  if (!config.nativeProxy) return undefined;
  if (service.namespace === "default" && service.name === "kubernetes") return "native-apiserver";
  return isClusterDns(service) ? "native-dns" : undefined;
}

/** Whether this is the Service of the cluster's own DNS. */
export function isClusterDns(service: Service): boolean {
  if (service.labels[K8S_APP] === DNS_APP) return true;
  return service.namespace === DNS_NAMESPACE && DNS_NAMES.has(service.name);
}

/** One sentence for a reason. */
export function filterText(reason: FilterReason): string {
  switch (reason) {
    case "label-exists":
      return `it has the label ${SERVICE_PROXY_NAME}`;
    case "label-missing":
      return `it lacks the label ${SERVICE_PROXY_NAME} (serviceFilterMode)`;
    case "namespace":
      return "its namespace is not forwarded here (forward.namespaces, forward.excludeNamespaces)";
    case "headless-label":
      return `it has the label ${HEADLESS}`;
    case "other-proxy":
      return `its label ${K8S_SERVICE_PROXY_NAME} names another proxy`;
    case "native-apiserver":
    case "native-dns":
      return "this node's kube-proxy serves it (forward.nativeProxy)";
  }
}
