/** Kubernetes objects as the lab tests write them: a Service of one port, its slices, and what balances it. */

export interface EndpointSpec {
  readonly ip: string;
  readonly node?: { readonly name: string };
}

export interface ServiceSpec {
  readonly name: string;
  readonly ip: string;
  /** The address of the other family; its endpoints are given among the others. */
  readonly ip6?: string;
  readonly endpoints: readonly EndpointSpec[];
  readonly port?: number;
  readonly targetPort?: number;
  readonly protocol?: "TCP" | "UDP";
  readonly nodePort?: number;
  /** More lines of the Service's spec. */
  readonly spec?: string;
  /** The Service's status, as a cloud's controller writes it. */
  readonly status?: string;
  readonly labels?: string;
  readonly annotations?: string;
  /** `loadBalancer` of a DestinationRule for it. */
  readonly balance?: string;
}

/** YAML of the Service, its EndpointSlices (one per family) and, where it is balanced, its DestinationRule. */
export function manifest(of: ServiceSpec): string {
  const { name, protocol = "TCP", port = 80, targetPort = 8080 } = of;
  const nodePort = of.nodePort === undefined ? "" : `, nodePort: ${of.nodePort}`;
  const dual = of.ip6 === undefined ? "" : `clusterIPs: ["${of.ip}", "${of.ip6}"]\n  ipFamilies: [IPv4, IPv6]`;
  const documents = [`apiVersion: v1
kind: Service
metadata: { name: ${name}, namespace: default, labels: { ${of.labels ?? ""} }, annotations: { ${
    of.annotations ?? ""
  } } }
spec:
  clusterIP: ${of.ip}
  ports: [{ name: main, port: ${port}, targetPort: ${targetPort}, protocol: ${protocol}${nodePort} }]
  ${dual}
  ${of.spec ?? ""}
status: ${of.status ?? "{}"}
`];
  for (const family of ["IPv4", "IPv6"] as const) {
    const endpoints = of.endpoints.filter(({ ip }) => ip.includes(":") === (family === "IPv6"));
    if (endpoints.length === 0 && (family === "IPv6" || of.endpoints.length > 0)) continue;
    documents.push(`apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata:
  name: ${name}-${family.toLowerCase()}
  namespace: default
  labels: { kubernetes.io/service-name: ${name} }
addressType: ${family}
ports: [{ name: main, port: ${targetPort}, protocol: ${protocol} }]
endpoints:${endpoints.length === 0 ? " []" : endpoints.map((e) => `\n${endpoint(e)}`).join("")}
`);
  }
  if (of.balance !== undefined) {
    documents.push(`apiVersion: networking.istio.io/v1beta1
kind: DestinationRule
metadata: { name: ${name}, namespace: default }
spec: { host: ${name}, trafficPolicy: { loadBalancer: ${of.balance} } }
`);
  }
  return documents.join("---\n");
}

function endpoint({ ip, node }: EndpointSpec): string {
  return `- addresses: ["${ip}"]\n  conditions: { ready: true }${
    node === undefined ? "" : `\n  nodeName: ${node.name}`
  }`;
}
