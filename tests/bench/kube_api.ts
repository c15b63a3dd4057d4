/**
 * As much of a Kubernetes API server as CoreDNS's `kubernetes` plugin asks for: lists of Services, EndpointSlices and
 * Namespaces, and watches that stay open and say nothing.
 *
 *   deno run -A tests/bench/kube_api.ts PORT dns-node-config.json
 */
import type { DnsNodeConfig } from "../lab/dns_node.ts";

const [port, file] = Deno.args;
const { meta } = JSON.parse(Deno.readTextFileSync(file!)) as DnsNodeConfig;
const services = meta.services ?? [];
const metadata = (name: string, namespace?: string) => ({
  name,
  ...(namespace === undefined ? {} : { namespace }),
  uid: `${namespace ?? ""}/${name}`,
  resourceVersion: "1",
  creationTimestamp: "2026-01-01T00:00:00Z",
});

const LISTS: Readonly<
  Record<string, { readonly kind: string; readonly apiVersion: string; readonly items: unknown[] }>
> = {
  "/api/v1/services": {
    kind: "ServiceList",
    apiVersion: "v1",
    items: services.map((s) => ({
      metadata: metadata(s.name, s.namespace),
      spec: { type: s.type, clusterIP: s.clusterIPs[0], clusterIPs: s.clusterIPs, ports: s.ports },
    })),
  },
  "/api/v1/namespaces": {
    kind: "NamespaceList",
    apiVersion: "v1",
    items: [...new Set(services.map((s) => s.namespace))].map((name) => ({ metadata: metadata(name) })),
  },
  "/apis/discovery.k8s.io/v1/endpointslices": {
    kind: "EndpointSliceList",
    apiVersion: "discovery.k8s.io/v1",
    items: [],
  },
};

const json = (value: unknown) => Response.json(value);

Deno.serve({
  port: Number(port),
  hostname: "127.0.0.1",
  onListen: () => void Deno.stdout.writeSync(new TextEncoder().encode("ready\n")),
}, (request) => {
  const url = new URL(request.url);
  const list = LISTS[url.pathname];
  if (list && url.searchParams.get("watch")) {
    return new Response(new ReadableStream({ start() {} }), { headers: { "content-type": "application/json" } });
  }
  if (list) return json({ ...list, metadata: { resourceVersion: "1" } });
  if (url.pathname === "/version") return json({ major: "1", minor: "33", gitVersion: "v1.33.0" });
  if (url.pathname === "/apis/discovery.k8s.io/v1") {
    return json({
      kind: "APIResourceList",
      apiVersion: "v1",
      groupVersion: "discovery.k8s.io/v1",
      resources: [{
        name: "endpointslices",
        singularName: "",
        namespaced: true,
        kind: "EndpointSlice",
        verbs: ["list", "watch"],
      }],
    });
  }
  return new Response("not found", { status: 404 });
});
