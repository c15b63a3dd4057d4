/** Names of labels and annotations the product reads. All others are dropped where objects enter. */

/** The original's filter label: which Services the mesh handles depends on its presence, its value does not matter. */
export const SERVICE_PROXY_NAME = "service.edgemesh.kubeedge.io/service-proxy-name";
/** Kubernetes: a Service with it belongs to another proxy, as for kube-proxy. The original ignores it. */
export const K8S_SERVICE_PROXY_NAME = "service.kubernetes.io/service-proxy-name";
/** Kubernetes: no proxy shall handle this Service, whatever its clusterIP. */
export const HEADLESS = "service.kubernetes.io/headless";
/** The Service a slice belongs to. */
export const SLICE_SERVICE = "kubernetes.io/service-name";
/** The cluster an imported slice comes from (Multi-Cluster Services API). */
export const SLICE_SOURCE_CLUSTER = "multicluster.kubernetes.io/source-cluster";
/** Marks the cluster's own DNS Service with value `kube-dns`. */
export const K8S_APP = "k8s-app";
export const ZONE = "topology.kubernetes.io/zone";
/** What {@link ZONE} was called before Kubernetes 1.17. */
export const LEGACY_ZONE = "failure-domain.beta.kubernetes.io/zone";
/** Annotation from before `spec.publishNotReadyAddresses`. */
export const TOLERATE_UNREADY = "service.alpha.kubernetes.io/tolerate-unready-endpoints";

/** Prefix of every label and annotation that is ours or the original's. */
const OURS = /^([a-z0-9-]+\.)*(edgemesh\.kubeedge\.io|edgemesh\.io)\//;
const SERVICE_LABELS = new Set([K8S_SERVICE_PROXY_NAME, HEADLESS, K8S_APP]);
const SERVICE_ANNOTATIONS = new Set([
  TOLERATE_UNREADY,
  "service.kubernetes.io/topology-mode",
  "service.kubernetes.io/topology-aware-hints",
]);
const NODE_LABELS =
  /^(topology\.kubernetes\.io\/|node-role\.kubernetes\.io\/|kubernetes\.io\/hostname$|apps\.kubeedge\.io\/)/;

/** Decides per key whether a label or annotation is kept. */
export type KeepKey = (key: string) => boolean;

export const keepServiceLabel: KeepKey = (key) => SERVICE_LABELS.has(key) || OURS.test(key);
export const keepServiceAnnotation: KeepKey = (key) => SERVICE_ANNOTATIONS.has(key) || OURS.test(key);
export const keepNodeLabel: KeepKey = (key) => NODE_LABELS.test(key) || OURS.test(key);
export const keepEveryLabel: KeepKey = () => true;
