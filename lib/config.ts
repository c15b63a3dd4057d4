/**
 * The configuration of both roles: one strict schema each. Unknown keys are errors; every field has a default that
 * suits most, a unit in its name where it is a quantity, and a sentence for `edgemesh config schema` and the docs.
 */
import * as z from "zod";
import { isNodeName, parseCidr, parseHostPort, parseIp } from "./addr.ts";
import { issueSentence, type ValueIssue } from "./config_issue.ts";
import { isProxyUrl } from "./http_proxy.ts";
import { LOG_LEVELS } from "./log.ts";
import { nearest } from "./nearest.ts";

// Each schema is used once per start: code made for it costs more than it saves.
z.config({ jitless: true, customError: (issue) => issueSentence(issue as ValueIssue) });

const ip = z.string().refine((v) => parseIp(v) === v, {
  error: "must be an IP address in canonical form, like 10.0.0.1 or fd00::1",
});
const cidr = z.string().refine((v) => parseCidr(v) !== undefined, {
  error: "must be a network like 10.96.0.0/12 (host bits zero)",
});
const listenAddress = z.string().refine((v) => parseHostPort(v) !== undefined, {
  error: "must be address:port, like 0.0.0.0:443",
});
/** Text that passes a test, or off. */
const orOff = (test: (text: string) => boolean, error: string) =>
  z.string({ error }).refine((v) => v === "off" || test(v), { error });
const listenOrOff = orOff((v) => parseHostPort(v) !== undefined, "must be address:port, like 0.0.0.0:443, or off");
const ipOrOff = orOff((v) => parseIp(v) === v, "must be an IP address in canonical form, like fd00::1, or off");
const isPlainPath = (text: string) => text.startsWith("/") && !text.split("/").includes("..");
const absolutePath = z.string().refine(isPlainPath, { error: "must be an absolute path without '..'" });
const pathOrOff = orOff(isPlainPath, "must be an absolute path without '..', or off");
/** Of a flag it may be relative to where the command was typed. */
const tokenPath = z.string().refine((v) => !v.split("/").includes(".."), { error: "must be a path without '..'" });
const kubeconfig = z.union([z.literal("in-cluster"), absolutePath], {
  error: "must be in-cluster or an absolute path without '..'",
});
const port = z.int().min(1).max(65535);
const zone = z.string().regex(/^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$/, {
  error: "must be a DNS name in lower case without a final dot",
});
const nodeName = z.string().refine(isNodeName, {
  error: "must be one RFC 1123 label: a-z, 0-9 and '-', at most 63 characters, no '-' at either end",
});
const serverUrl = z.string().refine(isServerUrl, { error: "must be wss://HOST or wss://HOST:PORT" });
const releaseUrl = z.string().regex(/^https:\/\/[A-Za-z0-9.:[\]-]+(\/[A-Za-z0-9._~/-]*)?$/, {
  error: "must be https://HOST or https://HOST/FOLDER",
});
const PROXY_FORM = "must be auto, off or http://[user:password@]host:port";
const proxyUrl = z.string().refine(isProxyUrl, { error: PROXY_FORM });
/** host:port of a control address; a bare IP means port 443. */
const trustDomain = z.string().regex(/^[a-z0-9._-]{1,255}$/, {
  error: "must be lower-case letters, digits, '.', '_' or '-'",
});

const log = z.strictObject({
  level: z.enum(LOG_LEVELS).default("info").describe("Lowest level written: trace, debug, info, warn or error"),
  format: z.enum(["auto", "text", "json"]).default("auto").describe(
    "text on a terminal and JSON elsewhere, unless said here",
  ),
}).prefault({});

const httpUrl = z.string().refine(isHttpUrl, { error: "must be http://HOST:PORT or https://HOST:PORT" });

/** KubeEdge's local API server; keys and defaults are the original's (`kubeAPIConfig.metaServer`). */
const metaServer = z.strictObject({
  server: httpUrl.optional().describe(
    "KubeEdge's MetaServer to learn from instead of the server, like http://127.0.0.1:10550; never asked unless named here",
  ),
  security: z.strictObject({
    requireAuthorization: z.boolean().default(false).describe("Use TLS and the token of tokenFile"),
    insecureSkipTLSVerify: z.boolean().default(false).describe("Do not check the MetaServer's certificate"),
    tlsCaFile: absolutePath.default("/etc/edgemesh/metaserver/rootCA.crt").describe("Authority of its certificate"),
    tlsCertFile: pathOrOff.default("/etc/edgemesh/metaserver/server.crt").describe(
      "Client certificate; off: none",
    ),
    tlsPrivateKeyFile: absolutePath.default("/etc/edgemesh/metaserver/server.key").describe("Key of tlsCertFile"),
    tokenFile: absolutePath.default("/var/run/secrets/kubernetes.io/serviceaccount/token").describe(
      "Token of a service account; read anew when it is refused",
    ),
  }).prefault({}),
}).prefault({});

/** What is read from a Kubernetes API, whichever. */
const reading = {
  namespaces: z.array(z.string()).default([]).describe(
    "Only objects of these namespaces are read from a Kubernetes API; needs rights in them only; empty: all",
  ),
  routes: z.boolean().default(true).describe("Read Istio's and the Gateway API's objects, too"),
};

/** Virtual addresses pushed from outside are believed only inside these networks (see SECURITY.md). */
const DEFAULT_SERVICE_CIDRS = ["10.96.0.0/12", "10.43.0.0/16", "fd00:10:96::/112"];

const BothSources = { path: ["metaServer", "server"], error: "cannot be given beside kubeconfig: drop one of the two" };

export const AgentConfig = z.strictObject({
  nodeName: nodeName.optional().describe("Name of this node; after the join it is on disk"),
  server: z.array(serverUrl).max(3).default([]).describe("Servers to join and to stay connected to, at most three"),
  tokenFile: tokenPath.optional().describe("File with the join token, or - for stdin; deleted after the join"),
  proxy: z.union([z.enum(["auto", "off"]), proxyUrl], { error: PROXY_FORM }).default("auto").describe(
    "HTTP proxy (CONNECT) on the way to the servers, http://[user:password@]host:port; auto: as HTTPS_PROXY and NO_PROXY say",
  ),
  caPin: z.string().optional().describe("sha256:… of the server's authority, as printed by `edgemesh token create`"),
  sockets: z.enum(["auto", "portable"]).default("auto").describe(
    "portable: the runtime's own sockets, as where FFI is refused; slower, and without direct paths to other nodes",
  ),
  stateDir: absolutePath.default("/var/lib/edgemesh/agent").describe("Identity and snapshot, readable by root only"),
  runDir: absolutePath.default("/run/edgemesh").describe("Admin socket"),
  manifests: absolutePath.optional().describe("Folder of YAML whose objects win over what the server says"),
  kubeconfig: kubeconfig.optional().describe(
    "Kubernetes API to learn from instead of the server: a kubeconfig file, or in-cluster",
  ),
  metaServer,
  metadata: z.strictObject({
    enabled: z.boolean().default(true).describe(
      "Learn from the server, or from the API that is named; off: what is known stays as it is",
    ),
    ...reading,
  }).prefault({}),
  metricsListen: listenOrOff.default("127.0.0.1:9464").describe(
    "Prometheus metrics and health; off to disable",
  ),
  log,
  mesh: z.strictObject({
    interface: z.string().regex(/^[a-z0-9._-]{1,15}$/, {
      error: "must be 1 to 15 of a-z, 0-9, '.', '_' and '-'",
    }).default("edgemesh0").describe(
      "Link that carries the mesh address",
    ),
    address: ip.default("169.254.96.16").describe("Address of DNS and of the agent's listeners on this node"),
    address6: ipOrOff.default("fd96:ed9e::16").describe("The same for IPv6; off to disable"),
    serviceCIDRs: z.array(cidr).default([]).describe("Networks of virtual addresses; empty: as fixed at the join"),
    podCIDRs: z.array(cidr).default([]).describe("Pod networks of this node; empty: as the Node object says"),
    routableCIDRs: z.array(cidr).default([]).describe(
      "Pod networks of other nodes that this node's CNI routes: the kernel brings connections there, without a tunnel",
    ),
  }).prefault({}),
  dns: z.strictObject({
    enabled: z.boolean().default(true).describe("Answer names on the mesh address, port 53"),
    port: port.default(53),
    zone: zone.default("cluster.local").describe("Cluster zone"),
    extraZones: z.array(zone).default([]).describe("More zones answered from the cluster's objects"),
    multiclusterZones: z.array(zone).default([]).describe("Zones whose endpoint names carry a cluster id"),
    ttlSeconds: z.int().min(0).max(3600).default(5).describe("TTL of answers from the cluster's objects"),
    pods: z.enum(["disabled", "insecure", "verified"]).default("insecure").describe("Names like 1-2-3-4.ns.pod.zone"),
    ignoreEmptyServices: z.boolean().default(false).describe("A Service without ready endpoint has no name"),
    namespaces: z.array(z.string()).default([]).describe("Only these namespaces have names; empty: all"),
    searchNamespaces: z.array(z.string()).default([]).describe(
      "Namespaces whose Services processes of this host may call `web` and `web.shop`",
    ),
    hosts: z.record(z.string(), z.array(ip)).default({}).describe("Name → addresses, before everything else"),
    upstreams: z.array(z.string()).default([]).describe(
      "address or address:port for all other names; empty: from resolvConf",
    ),
    forwards: z.array(z.strictObject({ zone: z.string(), upstreams: z.array(z.string()).min(1) })).default([]).describe(
      "Other resolvers for a zone and everything below it",
    ),
    resolvConf: absolutePath.default("/etc/resolv.conf").describe("File to find upstreams in"),
    integrate: z.enum(["off", "auto", "resolved", "file"]).default("off").describe(
      "Make this host's own processes ask us: by systemd-resolved, by resolvConf, or by what is in charge; undone at stop",
    ),
    mode: z.enum(["cluster", "cache"]).default("cluster").describe(
      "cache: ask the cluster's own DNS and keep its answers, for nodes that keep CoreDNS",
    ),
    autoDetect: z.boolean().default(true).describe("In cache mode: find the cluster's DNS Services by themselves"),
    cacheBytes: z.int().min(65536).default(8 * 1024 * 1024).describe("Memory for answers of upstreams"),
    maxTtlSeconds: z.int().min(1).default(3600).describe("Upper bound for TTLs of upstreams"),
    maxNegativeTtlSeconds: z.int().min(0).default(300).describe("Upper bound for negative answers of upstreams"),
    serveStaleSeconds: z.int().min(0).default(86400).describe(
      "How long expired answers are served while upstreams are gone",
    ),
    maxQueriesPerSecond: z.int().min(0).default(20000).describe("Of one source; 0 = no limit"),
    maxPendingPerSource: z.int().min(1).default(256).describe(
      "Queries of one source that wait for upstreams at a time",
    ),
    allowFrom: z.array(cidr).default([]).describe("Networks beyond this host and its pods that may ask"),
    rebindProtection: z.boolean().default(false).describe("Drop private addresses from answers of upstreams"),
    rebindAllow: z.array(zone).default([]).describe("Zones that rebindProtection leaves alone"),
  }).prefault({}),
  forward: z.strictObject({
    enabled: z.boolean().default(true).describe("Bring Service traffic to its endpoints"),
    serviceFilterMode: z.enum(["FilterIfLabelExists", "FilterIfLabelDoesNotExists"]).default("FilterIfLabelExists")
      .describe(
        "What the label service.edgemesh.kubeedge.io/service-proxy-name does: Services with it are left alone, or all others",
      ),
    namespaces: z.array(z.string()).default([]).describe("Only Services of these namespaces are forwarded; empty: all"),
    excludeNamespaces: z.array(z.string()).default([]).describe("Services of these namespaces are left alone"),
    nativeProxy: z.enum(["auto", "on", "off"]).default("auto").describe(
      "Whether this node's kube-proxy keeps default/kubernetes and the cluster DNS; auto: while its health check answers",
    ),
    backend: z.enum(["auto", "netlink", "nft"]).default("auto").describe(
      "How kernel rules are written; auto probes netlink first",
    ),
    externalIPs: z.array(cidr).default([]).describe(
      "externalIPs and load-balancer addresses that Services may claim here",
    ),
    hostPorts: z.array(port).default([]).describe(
      "Ports of this host that hostNetwork endpoints may be reached on from other nodes",
    ),
    allowPrivateExternalEndpoints: z.boolean().default(false).describe(
      "Dial private addresses of endpoints that belong to no node",
    ),
    balance: z.enum(["round-robin", "random", "source-hash", "least-connections"]).default("round-robin").describe(
      "How connections are spread where no DestinationRule says it",
    ),
    prefer: z.enum(["none", "node", "lan", "zone"]).default("none").describe(
      "Nearest endpoints preferred while there are some, where the Service does not say: node, then LAN, then zone",
    ),
    connectTimeoutMs: z.int().min(100).max(60000).default(5000).describe("Deadline for connecting to one endpoint"),
    udpIdleMs: z.int().min(1000).default(60000).describe("A UDP flow without datagrams ends after this"),
    accessLog: z.boolean().default(false).describe("One log line per finished connection"),
    maxConnections: z.int().min(16).default(8192).describe("Connections carried by the agent at a time"),
  }).prefault({}),
  tunnel: z.strictObject({
    enabled: z.boolean().default(true).describe("Connect to the servers and to other agents"),
    listen: listenOrOff.default("[::]:20006").describe(
      "Listener for other agents; [::] is all addresses of both families",
    ),
    mode: z.enum(["lazy", "eager", "off"]).default("lazy").describe(
      "When to look for direct paths: on the first connection, at once, never",
    ),
    engine: z.enum(["auto", "fast", "portable"]).default("auto").describe(
      "TLS of the paths to other agents: fast is the system's OpenSSL 3, portable is built in, auto is fast where it works",
    ),
    discovery: z.boolean().default(true).describe("Find agents of the same LAN without a server (multicast)"),
    punchPorts: z.tuple([port, port], { error: "must be a list of the first and the last port, like [20100, 29999]" })
      .default([20100, 29999]).describe("Local ports for hole punching"),
    advertise: z.array(z.string()).default([]).describe(
      "address:port under which others reach the listener (port forwarding)",
    ),
    directNetworks: z.array(cidr).default([]).describe(
      "Networks beyond this host's own in which any address that a peer names is dialled",
    ),
    offlineGraceDays: z.int().min(0).max(3650).default(30).describe(
      "How long peers with an expired certificate are still trusted",
    ),
  }).prefault({}),
}).refine((c) => c.kubeconfig === undefined || c.metaServer.server === undefined, BothSources);

export const ServerConfig = z.strictObject({
  name: nodeName.default("server").describe("Name of this server in certificates and status"),
  listen: listenAddress.default("0.0.0.0:443").describe("Control connections, join and relay"),
  observeListen: listenOrOff.default("[::]:3478").describe(
    "Second port that tells agents their public address; [::] is all addresses of both families",
  ),
  url: serverUrl.optional().describe(
    "Address that agents use, printed in join commands; default: wss:// and this host's first address",
  ),
  installUrl: releaseUrl.optional().describe(
    "Where a release is published: `edgemesh token create` prints the line that installs a node from there",
  ),
  trustDomain: trustDomain.default("edgemesh").describe("Trust domain of the identities"),
  zone: zone.default("cluster.local").describe("DNS zone of the cluster, told to agents at their join"),
  stateDir: absolutePath.default("/var/lib/edgemesh/server").describe(
    "Authority, enrolments, tokens; readable by root only",
  ),
  runDir: absolutePath.default("/run/edgemesh").describe("Admin socket"),
  manifests: absolutePath.optional().describe("Folder of Kubernetes YAML to serve to the agents"),
  kubeconfig: kubeconfig.optional().describe("Kubernetes API to serve from: a kubeconfig file, or in-cluster"),
  metadata: z.strictObject({
    ...reading,
    scopes: z.array(z.strictObject({
      nodes: z.array(z.string()).min(1),
      namespaces: z.array(z.string()).optional(),
      serviceLabels: z.record(z.string(), z.string()).optional(),
      pods: z.enum(["own", "all", "none"]).optional(),
    })).default([]).describe(
      "Which part an agent is given: the first entry with its node's name (* stands for any part); others get all",
    ),
  }).prefault({}),
  metricsListen: listenOrOff.default("127.0.0.1:9465").describe(
    "Prometheus metrics and health; off to disable",
  ),
  serviceCIDRs: z.array(cidr).default(DEFAULT_SERVICE_CIDRS).describe(
    "Networks of virtual addresses, fixed for an agent at its join",
  ),
  relayTap: absolutePath.optional().describe(
    "File that gets every byte of relayed channels as this process sees them: to check for yourself that it cannot read them",
  ),
  certificateHours: z.number().min(0.01).max(8760).default(24).describe("Lifetime of node certificates"),
  log,
});

export type AgentConfig = z.infer<typeof AgentConfig>;
export type ServerConfig = z.infer<typeof ServerConfig>;
export type Role = "agent" | "server";

export interface ConfigIssue {
  /** Dotted path of the value, like `dns.zone`. */
  readonly path: string;
  readonly problem: string;
}

/** The schema of a role; what the loader walks for environment names and suggestions. */
export function schemaOf(role: "agent"): typeof AgentConfig;
export function schemaOf(role: "server"): typeof ServerConfig;
export function schemaOf(role: Role): typeof AgentConfig | typeof ServerConfig;
export function schemaOf(role: Role): typeof AgentConfig | typeof ServerConfig {
  return role === "agent" ? AgentConfig : ServerConfig;
}

/** Checks a raw object: the typed configuration, or every problem at once. */
export function parseConfig<R extends Role>(
  role: R,
  raw: unknown,
): { config: R extends "agent" ? AgentConfig : ServerConfig } | { issues: ConfigIssue[] } {
  const result = schemaOf(role as Role).safeParse(raw);
  if (result.success) return { config: result.data as R extends "agent" ? AgentConfig : ServerConfig };
  const issues: ConfigIssue[] = [];
  for (const issue of result.error.issues) {
    const path = issue.path.map(String).join(".");
    if (issue.code === "unrecognized_keys") {
      for (const key of issue.keys) {
        const full = path ? `${path}.${key}` : key;
        const near = nearest(full, withGroups(configPaths(role)));
        issues.push({ path: full, problem: `is not a known key${near ? `; did you mean ${near}?` : ""}` });
      }
    } else {
      issues.push({ path: path || "(whole file)", problem: lowerFirst(issue.message) });
    }
  }
  return { issues };
}

/** Paths and the groups they are in: `dns.port` makes `dns` a word as well. */
function withGroups(paths: readonly string[]): readonly string[] {
  return [...new Set(paths.flatMap((path) => path.split(".").map((_, i, keys) => keys.slice(0, i + 1).join("."))))];
}

/** Every dotted path of a role's configuration that holds a value. */
export function configPaths(role: Role): string[] {
  const out: string[] = [];
  walk(schemaOf(role), "", (path) => out.push(path));
  return out;
}

/** The paths among {@link configPaths} that hold a list: their text form is separated by commas. */
export function listPaths(role: Role): Set<string> {
  const out = new Set<string>();
  walk(schemaOf(role), "", (path, schema) => {
    if (schema instanceof z.ZodArray || schema instanceof z.ZodTuple) out.add(path);
  });
  return out;
}

/** JSON Schema of a role's configuration file. */
export function configJsonSchema(role: Role): unknown {
  return z.toJSONSchema(schemaOf(role), { io: "input" });
}

function walk(schema: z.ZodType, prefix: string, seen: (path: string, schema: z.ZodType) => void): void {
  const inner = unwrap(schema);
  if (!(inner instanceof z.ZodObject)) {
    seen(prefix, inner);
    return;
  }
  for (const [key, value] of Object.entries(inner.shape)) {
    walk(value as z.ZodType, prefix ? `${prefix}.${key}` : key, seen);
  }
}

function unwrap(schema: z.ZodType): z.ZodType {
  let s: z.ZodType = schema;
  while (s instanceof z.ZodDefault || s instanceof z.ZodPrefault || s instanceof z.ZodOptional) {
    s = s.unwrap() as z.ZodType;
  }
  return s;
}

function isServerUrl(text: string): boolean {
  try {
    const url = new URL(text);
    return url.protocol === "wss:" && url.hostname !== "" && (url.pathname === "/" || url.pathname === "") &&
      url.username === "" &&
      url.search === "" && url.hash === "";
  } catch {
    return false;
  }
}

function isHttpUrl(text: string): boolean {
  const url = URL.parse(text);
  return url !== null && /^https?:$/.test(url.protocol) && url.pathname === "/" && url.username === "" &&
    url.search === "" && url.hash === "";
}

function lowerFirst(text: string): string {
  return text.charAt(0).toLowerCase() + text.slice(1);
}
