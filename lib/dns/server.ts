/** The node's DNS server: sockets, who may ask, upstreams and their changes. Everything else is in {@link Resolver}. */
import { type Cidr, hostPort } from "../addr.ts";
import type { Clock } from "../clock.ts";
import type { Logger } from "../log.ts";
import type { MetaReader } from "../meta/model.ts";
import type { IpPort, Listener, Loop, UdpSocket } from "../net.ts";
import { AnswerCache, type CacheStats } from "./cache/cache.ts";
import { CacheKeeper } from "./cache/cache_keeper.ts";
import { clusterDnsAddresses } from "./cluster/cluster_dns.ts";
import { CACHE_MODE_TTL, type DnsConfig } from "./config.ts";
import { rcodeName } from "./wire/constants.ts";
import type { Explanation } from "./explain/explain.ts";
import { explainName } from "./explain/name.ts";
import { Forwarder, type ForwardRoute } from "./upstream/forwarder.ts";
import { HostsTable } from "./cluster/hosts.ts";
import { type Sources, SourceTable } from "./limit.ts";
import { answerOptions, cidrs, rebindAllowed, zoneLabels } from "./options.ts";
import type { CacheStore } from "./cache/persist.ts";
import type { Query } from "./wire/query.ts";
import { rebindFilter } from "./upstream/rebind.ts";
import { DNS_PORT, findUpstreams, isOurs, type ReadText } from "./host/resolvconf.ts";
import { type ReplyPath, Resolver, type Transport } from "./resolver.ts";
import { udpLimit } from "./cache/response.ts";
import type { ReverseOptions } from "./cluster/reverse.ts";
import { TcpFrontend } from "./tcp.ts";
import type { UpstreamSpec, UpstreamState } from "./upstream/server_state.ts";
import { MessageWriter } from "./wire/writer.ts";

/** How often resolv.conf is looked at, at most. */
const RESOLV_CONF_EVERY_MS = 5000;

export interface DnsServerDeps {
  readonly loop: Loop;
  readonly clock: Clock;
  readonly log: Logger;
  /** Addresses to listen on, UDP and TCP each. A port 0 gets one port for both. */
  readonly listen: readonly IpPort[];
  /** The current snapshot; asked for each query. */
  readonly meta: () => MetaReader;
  readonly config: DnsConfig;
  /** Who may ask. A new object whenever it changes; asked for each query. */
  readonly sources: () => Sources;
  readonly readText: ReadText;
  readonly random?: (into: Uint8Array) => void;
  /** Keeps foreign answers across restarts. */
  readonly store?: CacheStore;
}

export interface DnsStats {
  readonly queries: number;
  readonly clusterHits: number;
  readonly local: number;
  readonly foreignHits: number;
  readonly forwarded: number;
  readonly stale: number;
  readonly refused: number;
  readonly malformed: number;
  /** Datagrams and connections of sources that may not ask. */
  readonly denied: number;
  /** Queries over a source's rate. */
  readonly limited: number;
  /** Responses by code, only those that occurred. */
  readonly rcodes: Readonly<Record<string, number>>;
  readonly tcpConnections: number;
  readonly cluster: CacheStats;
  readonly foreign: CacheStats;
  readonly upstreams: readonly (UpstreamState & { readonly zone: string })[];
  /** Why upstreams that were named are not asked: they are this resolver itself. */
  readonly leftOut: readonly string[];
}

export class DnsServer {
  readonly #deps: DnsServerDeps;
  readonly #sources: SourceTable;
  readonly #foreign: AnswerCache;
  readonly #forwarder: Forwarder;
  readonly #resolver: Resolver;
  readonly #tcp: TcpFrontend;
  readonly #udp: UdpSocket[] = [];
  readonly #listeners: Listener[] = [];
  readonly #allowed: readonly Cidr[];
  readonly #options: ReverseOptions;
  readonly #keeper: CacheKeeper | undefined;
  /** In `cache` mode: the snapshot in which the cluster's DNS Services were last looked for, and what was found. */
  #seen: MetaReader | undefined;
  #clusterDns: readonly string[] = [];
  #resolvConf: string | undefined;
  #resolvConfAt = 0;
  #leftOut: string[] = [];
  #given: Sources | undefined;
  #denied = 0;
  #limited = 0;
  #warnedLimit = false;

  private constructor(deps: DnsServerDeps) {
    const { config, clock, loop, log } = deps;
    this.#deps = deps;
    this.#allowed = cidrs(config.allowFrom, "allowFrom");
    this.#sources = new SourceTable(config.maxQueriesPerSecond);
    this.#foreign = new AnswerCache({ maxEntries: 65536, maxBytes: config.cacheBytes });
    this.#options = answerOptions(config, deps.listen);
    const writer = new MessageWriter();
    this.#forwarder = new Forwarder({
      loop,
      clock,
      log,
      cache: this.#foreign,
      writer,
      random: deps.random ?? ((into) => void crypto.getRandomValues(into as Uint8Array<ArrayBuffer>)),
      times: {
        maxTtl: config.mode === "cache" ? Math.min(CACHE_MODE_TTL, config.maxTtl) : config.maxTtl,
        maxNegativeTtl: config.maxNegativeTtl,
        staleFor: config.serveStale,
        ...(config.rebindProtection ? { allow: rebindFilter(rebindAllowed(config)) } : {}),
      },
      refresh: () => this.#followResolvConf(),
    });
    this.#keeper = deps.store && new CacheKeeper(deps.store, {
      clock,
      log,
      cache: this.#foreign,
      learned: () => this.#forwarder.stats.answered,
    });
    this.#resolver = new Resolver({
      clock,
      meta: config.mode === "cache" ? () => this.#watchClusterDns() : deps.meta,
      forwarder: this.#forwarder,
      foreign: this.#foreign,
      writer,
      options: this.#options,
      hosts: new HostsTable(config.hosts),
      searchNamespaces: config.searchNamespaces,
      forwardZones: config.forwards.map((f) => zoneLabels(f.zone)),
      maxPendingPerSource: config.maxPendingPerSource,
    });
    this.#tcp = new TcpFrontend({
      resolver: this.#resolver,
      clock,
      admit: (ip) => {
        const source = this.#source(ip);
        return source.allowed ? source : undefined;
      },
      allow: (source, now) => this.#allow(source, now),
    });
  }

  /** Starts to listen. Throws MeshError: KERNEL when an address cannot be bound, CONFIG_INVALID. */
  static start(deps: DnsServerDeps): DnsServer {
    const server = new DnsServer(deps);
    try {
      for (const at of deps.listen) server.#listen(at);
    } catch (error) {
      void server.close();
      throw error;
    }
    server.#keeper?.restore();
    if (deps.config.mode === "cache") server.#watchClusterDns();
    server.reloadUpstreams();
    return server;
  }

  /** Where it listens, with the ports the kernel chose. */
  get addresses(): readonly IpPort[] {
    return this.#udp.map((s) => s.local);
  }

  /** Finds the upstreams anew: after a change of resolv.conf, and when the network changed. */
  reloadUpstreams(): void {
    this.#forwarder.setRoutes(this.#routes());
  }

  networkChanged(): void {
    this.#forwarder.networkChanged();
  }

  stats(): DnsStats {
    const { stats } = this.#resolver;
    const rcodes: Record<string, number> = {};
    stats.rcodes.forEach((n, code) => {
      if (n > 0) rcodes[rcodeName(code)] = n;
    });
    return {
      queries: stats.queries,
      clusterHits: stats.clusterHits,
      local: stats.local,
      foreignHits: stats.foreignHits,
      forwarded: stats.forwarded,
      stale: stats.stale,
      refused: stats.refused,
      malformed: stats.malformed,
      denied: this.#denied,
      limited: this.#limited,
      rcodes,
      tcpConnections: this.#tcp.size,
      cluster: this.#resolver.clusterCache.stats,
      foreign: this.#foreign.stats,
      upstreams: this.#forwarder.routes.flatMap(({ zone, io }) =>
        io.pool.states().map((state) => ({ zone: zone.length === 0 ? "." : zone.join("."), ...state }))
      ),
      leftOut: this.#leftOut,
    };
  }

  /**
   * Resolves a name as a process of this host would, and says why it came out so. Throws MeshError CONFIG_INVALID
   * for a name or type that is none.
   */
  explain(name: string, type: string): Promise<Explanation> {
    return explainName(name, type, {
      resolver: this.#resolver,
      forwarder: this.#forwarder,
      foreign: this.#foreign,
      clock: this.#deps.clock,
      meta: this.#deps.meta,
      options: this.#options,
      source: this.#source("127.0.0.1"),
    });
  }

  /** Stops at once; resolves when the foreign answers are on disk. */
  async close(): Promise<void> {
    for (const socket of this.#udp) socket.close();
    for (const listener of this.#listeners) listener.close();
    this.#tcp.close();
    this.#forwarder.close();
    await this.#keeper?.close();
  }

  #listen(at: IpPort): void {
    const front = new UdpFrontend();
    const socket = this.#deps.loop.bindUdp(at, (bytes, length, from) => {
      const source = this.#source(from.ip);
      if (!source.allowed) {
        this.#denied++;
        return;
      }
      if (!this.#allow(source, this.#deps.clock.now())) return;
      front.from = from;
      const n = this.#resolver.handle(bytes, length, source, front);
      if (n > 0) socket.send(this.#resolver.out, n, from);
    }, { freeBind: true });
    front.socket = socket;
    this.#udp.push(socket);
    const tcpAt = { ip: at.ip, port: socket.local.port };
    this.#listeners.push(this.#deps.loop.listenTcp(tcpAt, (a) => this.#tcp.accept(a), { freeBind: true }));
    this.#deps.log.info("DNS listens", { address: hostPort(socket.local) });
  }

  #source(ip: string) {
    const given = this.#deps.sources();
    if (given !== this.#given) {
      this.#given = given;
      const own = this.#deps.listen.map((at) => at.ip);
      this.#sources.use({ hostIps: [...given.hostIps, ...own], networks: [...given.networks, ...this.#allowed] });
    }
    return this.#sources.get(ip);
  }

  #allow(source: Parameters<SourceTable["take"]>[0], now: number): boolean {
    if (this.#sources.take(source, now)) return true;
    this.#limited++;
    if (!this.#warnedLimit) {
      this.#warnedLimit = true;
      this.#deps.log.warn("A source asks more than it may; its queries beyond that are dropped", {
        source: source.ip,
        perSecond: this.#deps.config.maxQueriesPerSecond,
      });
    }
    return false;
  }

  #routes(): ForwardRoute[] {
    const { config } = this.#deps;
    this.#leftOut = [];
    const routes = config.forwards.map(({ zone, upstreams }) => ({
      zone: zoneLabels(zone),
      upstreams: this.#notOurselves(upstreams, `forward for ${zone}`),
    }));
    if (!routes.some((r) => r.zone.length === 0)) routes.push({ zone: [], upstreams: this.#defaultUpstreams() });
    return routes;
  }

  #defaultUpstreams(): readonly UpstreamSpec[] {
    const { config, readText, log, listen } = this.#deps;
    if (config.mode === "cache") {
      const found = this.#clusterDns.map((ip) => ({ at: { ip, port: DNS_PORT } }));
      return [...found, ...this.#notOurselves(config.upstreams, "upstreams")];
    }
    if (config.upstreams.length > 0) return this.#notOurselves(config.upstreams, "upstreams");
    this.#resolvConf = readText(config.resolvConf);
    const found = findUpstreams(config.resolvConf, readText, this.#udp.length > 0 ? this.addresses : listen);
    for (const line of found.refused) this.#leaveOut(line);
    if (found.upstreams.length === 0) {
      log.warn("No upstream resolver is known; only names of the cluster can be answered", { file: config.resolvConf });
    }
    return found.upstreams;
  }

  /**
   * Networks change under a node that moves. The file is looked at when somebody has to be asked anyway, so that a
   * node at rest is not woken for it.
   */
  #followResolvConf(): void {
    const { config, clock, readText } = this.#deps;
    const now = clock.now();
    if (config.mode === "cache" || config.upstreams.length > 0 || now < this.#resolvConfAt + RESOLV_CONF_EVERY_MS) {
      return;
    }
    this.#resolvConfAt = now;
    const text = readText(config.resolvConf);
    if (text === this.#resolvConf) return;
    this.#deps.log.info("The upstreams are found anew", { file: config.resolvConf });
    this.reloadUpstreams();
  }

  /** `cache` mode: the cluster's DNS Services are the upstreams, wherever the metadata says they are now. */
  #watchClusterDns(): MetaReader {
    const meta = this.#deps.meta();
    if (meta === this.#seen || !this.#deps.config.autoDetect) return meta;
    this.#seen = meta;
    const found = clusterDnsAddresses(meta);
    if (found.join() !== this.#clusterDns.join()) {
      this.#clusterDns = found;
      this.#deps.log.info("The cluster's DNS Services are the upstreams", { addresses: found.join(" ") });
      this.reloadUpstreams();
    }
    return meta;
  }

  /** A query to ourselves would come back for ever. */
  #notOurselves(upstreams: readonly UpstreamSpec[], what: string): readonly UpstreamSpec[] {
    return upstreams.filter((u) => {
      if (!isOurs(u.at, this.addresses)) return true;
      this.#leaveOut(`${what} names ${hostPort(u.at)}, which is this resolver itself`);
      return false;
    });
  }

  #leaveOut(why: string): void {
    this.#leftOut.push(why);
    this.#deps.log.warn("An upstream is left out", { why });
  }
}

/** Datagrams: `from` is set before each query; a path keeps it only for answers that come later. */
class UdpFrontend implements Transport {
  socket: UdpSocket | undefined;
  from: IpPort = { ip: "0.0.0.0", port: 0 };

  limit(query: Query): number {
    return udpLimit(query);
  }

  later(): ReplyPath {
    const { from, socket } = this;
    return { send: (bytes, length) => void socket?.send(bytes, length, from) };
  }
}
