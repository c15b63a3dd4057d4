/**
 * DNS as a module of the agent: a port that is taken does not keep the rest from working; it is said, and tried again.
 */
import { type Cidr, cidrText } from "../../lib/addr.ts";
import { systemClock } from "../../lib/clock.ts";
import type { AgentConfig } from "../../lib/config.ts";
import type { DnsConfig } from "../../lib/dns/config.ts";
import type { CacheStore } from "../../lib/dns/cache/persist.ts";
import type { DnsServer, DnsStats } from "../../lib/dns/server.ts";
import { explain, MeshError } from "../../lib/errors.ts";
import type { HostResolver } from "./host_resolver.ts";
import type { NodeFacts } from "../../lib/forward/facts.ts";
import { writeAtomic } from "../../lib/linux/files.ts";
import { rootHelps } from "../root_helps.ts";
import type { Logger } from "../../lib/log.ts";
import type { Loop } from "../../lib/net.ts";
import type { MetaStore } from "../../lib/meta/store/store.ts";

/** Whoever holds the port may be stopping just now (an upgrade, another resolver). */
const RETRY_MS = 5000;

export interface DnsModuleParts {
  readonly config: AgentConfig;
  readonly loop: Loop;
  readonly log: Logger;
  readonly store: MetaStore;
  /** Networks of virtual addresses: unknown addresses in them have no name anywhere else. */
  readonly cidrs: readonly Cidr[];
  /** Addresses of the mesh link; none where it could not be made, and then the reason. */
  readonly mesh: readonly string[];
  readonly noMesh?: { readonly text: string; readonly hint?: string };
  /** Folder for answers that outlive a restart. */
  readonly stateDir: string;
  facts(): NodeFacts;
}

export class DnsModule {
  #parts: DnsModuleParts;
  #config: DnsConfig;
  #server: DnsServer | undefined;
  #problem: { readonly text: string; readonly hint?: string } | undefined;
  #host: HostResolver | undefined;
  #cancel: (() => void) | undefined;

  private constructor(parts: DnsModuleParts, config: DnsConfig) {
    this.#parts = parts;
    this.#config = config;
  }

  /** Starts answering, now or as soon as it can. Throws CONFIG_INVALID only. */
  static async start(parts: DnsModuleParts): Promise<DnsModule> {
    const module = new DnsModule(parts, await dnsConfig(parts));
    await module.#try();
    return module;
  }

  /** The server while it listens. */
  get server(): DnsServer | undefined {
    return this.#server;
  }

  /** Why it does not listen. */
  get problem(): string | undefined {
    return this.#problem?.text;
  }

  /** What to do about it. */
  get hint(): string | undefined {
    return this.#problem?.hint;
  }

  stats(): DnsStats | undefined {
    return this.#server?.stats();
  }

  /** Addresses or routes of this host changed: upstreams that were out of reach are tried again. */
  networkChanged(): void {
    this.#server?.networkChanged();
  }

  /**
   * Goes on with another configuration, and looks at the host's upstreams again in any case. What was learned is kept;
   * a question that is under way at that moment is asked again by its client. Throws CONFIG_INVALID; then nothing changed.
   */
  async reload(config: AgentConfig): Promise<void> {
    const parts = { ...this.#parts, config };
    const wanted = await dnsConfig(parts);
    const same = JSON.stringify(wanted) === JSON.stringify(this.#config);
    this.#parts = parts;
    this.#config = wanted;
    if (same) return this.#server?.reloadUpstreams();
    this.#cancel?.();
    await this.#server?.close();
    this.#server = undefined;
    await this.#try();
  }

  /** Gives the host its own resolver back, saves what is worth keeping, and stops answering. */
  async close(): Promise<void> {
    this.#cancel?.();
    await this.#host?.undo();
    await this.#server?.close();
  }

  async #try(): Promise<void> {
    const { config, loop, log, store, mesh, stateDir, noMesh } = this.#parts;
    if (noMesh) {
      this.#problem = noMesh;
      return;
    }
    const { DnsServer } = await import("../../lib/dns/server.ts");
    try {
      this.#server = DnsServer.start({
        loop,
        clock: systemClock,
        log: log.child("dns"),
        listen: mesh.map((ip) => ({ ip, port: config.dns.port })),
        meta: () => store.snapshot,
        config: this.#config,
        sources: this.#sources(),
        readText,
        store: cacheStore(`${stateDir}/dns-cache`),
      });
      if (this.#problem !== undefined) log.info("DNS listens now");
      this.#problem = undefined;
      // Only now: a host that asks us while nobody listens would have no names at all.
      if (config.dns.integrate !== "off" && !this.#host && !rootHelps()) {
        const { HostResolver } = await import("./host_resolver.ts");
        this.#host = new HostResolver(config, log);
        await this.#host.apply(mesh);
      }
    } catch (error) {
      const first = this.#problem === undefined;
      this.#problem = await this.#explain(error);
      if (first) log.error("DNS cannot listen; everything else goes on", this.#problem);
      this.#cancel = systemClock.timer(RETRY_MS, () => void this.#try());
    }
  }

  /** A port that is taken: by whom, because that is what a person wants to know. */
  async #explain(error: unknown): Promise<{ readonly text: string; readonly hint?: string }> {
    const { text, hint } = explain(error);
    const said = { text, ...(hint === undefined ? {} : { hint }) };
    if (!text.includes("EADDRINUSE")) return said;
    const { config, mesh } = this.#parts;
    const { holderOf } = await import("../check/holders.ts");
    for (const ip of mesh) {
      const holder = await holderOf({ ip, port: config.dns.port }, ["udp", "tcp"]);
      if (holder === undefined) continue;
      const hint = `stop ${holder}, or have it listen on its own addresses only; the agent tries again every ${
        RETRY_MS / 1000
      } s`;
      return { text: `${text}: held by ${holder}`, hint };
    }
    return said;
  }

  /** Who may ask: this host and its pods. A new object only when the facts changed, as the server wants it. */
  #sources(): () => { readonly hostIps: readonly string[]; readonly networks: readonly Cidr[] } {
    let from: NodeFacts | undefined;
    let sources = { hostIps: [] as readonly string[], networks: [] as readonly Cidr[] };
    return () => {
      const facts = this.#parts.facts();
      if (facts !== from) {
        from = facts;
        sources = { hostIps: facts.addresses, networks: facts.podCidrs };
      }
      return sources;
    };
  }
}

async function dnsConfig({ config, cidrs }: DnsModuleParts): Promise<DnsConfig> {
  const { parseUpstream } = await import("../../lib/dns/host/resolvconf.ts");
  const { dns } = config;
  const upstream = (text: string, where: string) => {
    const spec = parseUpstream(text);
    if (spec) return spec;
    throw new MeshError("CONFIG_INVALID", `${where} holds ${text}, which is no address`, {
      hint: "1.1.1.1 or 1.1.1.1:53",
    });
  };
  return {
    zones: [dns.zone, ...dns.extraZones],
    multiclusterZones: dns.multiclusterZones,
    ttl: dns.ttlSeconds,
    pods: dns.pods,
    ignoreEmptyServices: dns.ignoreEmptyServices,
    namespaces: dns.namespaces.length > 0 ? dns.namespaces : undefined,
    reverseNetworks: cidrs.map(cidrText),
    mode: dns.mode,
    autoDetect: dns.autoDetect,
    upstreams: dns.upstreams.map((text) => upstream(text, "dns.upstreams")),
    forwards: dns.forwards.map((f) => ({
      zone: f.zone,
      upstreams: f.upstreams.map((text) => upstream(text, `dns.forwards of ${f.zone}`)),
    })),
    resolvConf: dns.resolvConf,
    hosts: dns.hosts,
    searchNamespaces: dns.searchNamespaces,
    rebindProtection: dns.rebindProtection,
    rebindAllow: dns.rebindAllow,
    cacheBytes: dns.cacheBytes,
    maxTtl: dns.maxTtlSeconds,
    maxNegativeTtl: dns.maxNegativeTtlSeconds,
    serveStale: dns.serveStaleSeconds,
    maxQueriesPerSecond: dns.maxQueriesPerSecond,
    maxPendingPerSource: dns.maxPendingPerSource,
    allowFrom: dns.allowFrom,
  };
}

/** A cache, so a file that cannot be read or written is as good as none. */
function cacheStore(path: string): CacheStore {
  return {
    load() {
      try {
        return Deno.readFileSync(path);
      } catch {
        return undefined;
      }
    },
    save: (bytes) => writeAtomic(path, bytes).catch(() => {}),
  };
}

function readText(path: string): string | undefined {
  try {
    return Deno.readTextFileSync(path);
  } catch {
    return undefined;
  }
}
