/** What can be configured, with the defaults. lib/config.ts mirrors this in its schema. */
import type { UpstreamSpec } from "./upstream/server_state.ts";

/** Another resolver for one zone and everything below it. */
export interface ForwardZone {
  /** `corp.example`; `.` would replace the default upstreams. */
  readonly zone: string;
  readonly upstreams: readonly UpstreamSpec[];
}

export interface DnsConfig {
  /** Zones answered from the cluster's objects. The first one names PTR targets. */
  readonly zones: readonly string[];
  /** Of them (or more), those whose endpoint names carry a cluster id. */
  readonly multiclusterZones: readonly string[];
  /** Seconds: TTL of answers from the cluster's objects, 0–3600. */
  readonly ttl: number;
  /** Names of pods, `1-2-3-4.<ns>.pod.<zone>`. */
  readonly pods: "disabled" | "insecure" | "verified";
  /** A Service without ready endpoint does not exist (NXDOMAIN) instead of answering its virtual address. */
  readonly ignoreEmptyServices: boolean;
  /** Only these namespaces have names; undefined = all. */
  readonly namespaces: readonly string[] | undefined;
  /** Networks (CIDR) nobody else can name: unknown addresses in them have no name, instead of being asked upstream. */
  readonly reverseNetworks: readonly string[];
  /**
   * `cluster`: cluster zones from the snapshot. `cache`: every name is asked of the cluster's own DNS Services (found
   * by name and label) and of `upstreams`, and kept up to `cacheTtl`: for nodes that keep CoreDNS.
   */
  readonly mode: "cluster" | "cache";
  /** In `cache` mode: find the cluster's DNS Services by themselves. */
  readonly autoDetect: boolean;
  /** Resolvers for all other names; empty = those of `resolvConf`. */
  readonly upstreams: readonly UpstreamSpec[];
  readonly forwards: readonly ForwardZone[];
  /** File to find upstreams in; systemd-resolved's own file is preferred where this one points at its stub. */
  readonly resolvConf: string;
  /** Name → addresses, before everything else. `*.example.org` matches every name below. */
  readonly hosts: Readonly<Record<string, readonly string[]>>;
  /** Namespaces whose Services this host's own processes may call `web` and `web.shop`; empty = none. */
  readonly searchNamespaces: readonly string[];
  /**
   * Strips addresses of private, loopback and link-local networks from upstreams' answers, so that no web page can make
   * a browser on this network talk to what is in it. Off: names of companies and homes lead to such addresses rightly.
   */
  readonly rebindProtection: boolean;
  /** Zones whose names may have such addresses all the same; zones of `forwards` always may. */
  readonly rebindAllow: readonly string[];
  /** Bytes for answers of upstreams. */
  readonly cacheBytes: number;
  /** Seconds: upper bound for TTLs of upstreams. */
  readonly maxTtl: number;
  /** Seconds: upper bound for negative answers of upstreams. */
  readonly maxNegativeTtl: number;
  /** Seconds an expired answer may still be served while no upstream answers; 0 = never. */
  readonly serveStale: number;
  /** Queries per second and source; a source may save up twice as many. 0 = no limit. */
  readonly maxQueriesPerSecond: number;
  /** Queries of one source that wait for upstreams at the same time. */
  readonly maxPendingPerSource: number;
  /** Networks (CIDR) beyond this host and its pods that may ask. */
  readonly allowFrom: readonly string[];
}

export const DEFAULT_DNS_CONFIG: DnsConfig = {
  zones: ["cluster.local"],
  multiclusterZones: [],
  ttl: 5,
  pods: "insecure",
  ignoreEmptyServices: false,
  namespaces: undefined,
  reverseNetworks: [],
  mode: "cluster",
  autoDetect: true,
  upstreams: [],
  forwards: [],
  resolvConf: "/etc/resolv.conf",
  hosts: {},
  searchNamespaces: [],
  rebindProtection: false,
  rebindAllow: [],
  cacheBytes: 8 << 20,
  maxTtl: 3600,
  maxNegativeTtl: 300,
  serveStale: 86400,
  maxQueriesPerSecond: 20000,
  maxPendingPerSource: 256,
  allowFrom: [],
};

/** Cap on TTLs in `cache` mode, seconds: what the original had. */
export const CACHE_MODE_TTL = 30;
