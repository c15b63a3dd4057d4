/**
 * All servers an agent is connected to, as one: at most three, each with its own control connection, no state shared
 * between them (design §5). Which server carries a channel to a peer is decided here.
 */
import { MeshError, type ReasonCode } from "../../errors.ts";
import type { MonoMs } from "../../clock.ts";
import type { ChannelDuplex } from "../legs/channel_duplex.ts";
import { ControlClient, type ControlClientOptions, type ControlState } from "./client.ts";
import type { AuthoritiesMessage } from "./authority_message.ts";
import type { LegMessage } from "./leg_message.ts";
import type { Welcome } from "./message.ts";
import type { PathMessage } from "./path_message.ts";

/** Most servers of an agent. */
export const MAX_SERVERS = 3;

export interface ServersEvents {
  onUp?(server: ControlClient, welcome: Welcome): void;
  onDown?(server: ControlClient, reason: ReasonCode): void;
  /** Nodes that came or went at one server. */
  onPeers?(server: ControlClient, online: readonly string[], offline: readonly string[]): void;
  onMeta?(server: ControlClient, message: Uint8Array): void;
  onMetaDrain?(server: ControlClient): void;
  /** A server's whole revocation list, as it came. */
  onRevocations?(server: ControlClient, list: unknown): void;
  /** A server's time, asked at `sentAt` on the monotonic clock. */
  onTime?(server: ControlClient, time: number, sentAt: MonoMs): void;
  onPath?(server: ControlClient, message: PathMessage): void;
  onLeg?(server: ControlClient, message: LegMessage): void;
  /** Which authorities a server trusts. */
  onAuthorities?(server: ControlClient, message: AuthoritiesMessage): void;
  onChannel(leg: ChannelDuplex): void;
  /** Something changed that a waiting dial may want to know: a server came, went, or could not be reached. */
  onChange(): void;
}

type ClientBasics = Pick<
  ControlClientOptions,
  "clock" | "log" | "credentials" | "verify" | "node" | "version" | "boot" | "features" | "random" | "dial" | "proxyFor"
>;

export interface ServersOptions extends ClientBasics {
  /** `wss://host[:port]`, in order of preference. */
  readonly urls: readonly string[];
}

/** What `status` shows of one server. */
export interface ServerStatus {
  readonly url: string;
  readonly state: ControlState;
  readonly rttMs: number | undefined;
  readonly clockOffsetMs: number | undefined;
  readonly online: number;
  readonly channels: number;
  readonly lastError: string;
}

export class Servers {
  readonly #make: (url: string) => ControlClient;
  #clients: readonly ControlClient[] = [];
  #started = false;

  /** Throws MeshError CONFIG_INVALID for no or too many addresses. */
  constructor(options: ServersOptions, events: ServersEvents) {
    const { urls, ...basics } = options;
    this.#make = (url) => {
      const client: ControlClient = new ControlClient({
        ...basics,
        url,
        onUp: (welcome) => {
          events.onUp?.(client, welcome);
          events.onChange();
        },
        onDown: (reason) => {
          events.onDown?.(client, reason);
          events.onChange();
        },
        onRetry: () => events.onChange(),
        onPeers: (online, offline) => events.onPeers?.(client, online, offline),
        onMeta: (message) => events.onMeta?.(client, message),
        onMetaDrain: () => events.onMetaDrain?.(client),
        onRevocations: (list) => events.onRevocations?.(client, list),
        onTime: (time, sentAt) => events.onTime?.(client, time, sentAt),
        onPath: (message) => events.onPath?.(client, message),
        onLeg: (message) => events.onLeg?.(client, message),
        onAuthorities: (message) => events.onAuthorities?.(client, message),
        onChannel: (leg) => events.onChannel(leg),
      });
      return client;
    };
    this.use(urls);
  }

  /** In the configured order. Another array after {@link use}. */
  get clients(): readonly ControlClient[] {
    return this.#clients;
  }

  start(): void {
    this.#started = true;
    for (const client of this.clients) client.start();
  }

  /**
   * Connects to these servers from now on. One that is named still keeps its connection; one that is not any more ends
   * it, as if it were lost: what was relayed there moves. Throws MeshError CONFIG_INVALID for no or too many addresses.
   */
  use(urls: readonly string[]): void {
    if (urls.length === 0 || urls.length > MAX_SERVERS) {
      throw new MeshError("CONFIG_INVALID", `${urls.length} servers are configured; 1 to ${MAX_SERVERS} are possible`);
    }
    const before = this.#clients;
    this.#clients = urls.map((url) => before.find((client) => client.url === url) ?? this.#make(url));
    if (this.#started) this.start();
    for (const client of before) if (!urls.includes(client.url)) client.retire();
  }

  close(): void {
    for (const client of this.clients) client.close();
  }

  /** Tries at once instead of waiting on: the network has changed. */
  retryNow(): void {
    for (const client of this.clients) client.retryNow();
  }

  /** Connected servers, best first for reaching `node`: those that see it, then the nearest. */
  candidates(node: string): ControlClient[] {
    const rank = (client: ControlClient) => (client.online.has(node) ? 0 : 1e9) + (client.rttMs ?? 1e6);
    return this.clients.filter((client) => client.state.phase === "up").sort((a, b) => rank(a) - rank(b));
  }

  /** Whether a server is being connected to right now that has not been silent all the time. */
  get connecting(): boolean {
    return this.clients.some((client) => client.promising);
  }

  /** Milliseconds in which a node that a connected server had is expected back there; 0: nowhere. */
  returnsWithin(node: string): number {
    return Math.max(...this.clients.map((client) => client.returnsWithin(node)));
  }

  /** Channels open on all connections. */
  get channels(): number {
    return this.clients.reduce((sum, client) => sum + client.channels, 0);
  }

  /** Whether any connected server sees the node. */
  sees(node: string): boolean {
    return this.clients.some((client) => client.online.has(node));
  }

  /** One sentence about why no server is connected. */
  get lastError(): string {
    return this.clients.map((client) => client.lastError).find((text) => text !== "") ?? "not connected yet";
  }

  /** Sends a renewal to the first server that answers. Rejects with the last server's error. */
  async renew(body: string): Promise<string> {
    let last = new MeshError("SERVER_UNREACHABLE", `No server is connected: ${this.lastError}`);
    for (const client of this.clients) {
      try {
        if (client.state.phase === "up") return await client.renew(body);
      } catch (error) {
        last = error as MeshError;
      }
    }
    throw last;
  }

  status(): ServerStatus[] {
    return this.clients.map((client) => ({
      url: client.url,
      state: client.state,
      rttMs: client.rttMs,
      clockOffsetMs: client.clockOffsetMs,
      online: client.online.size,
      channels: client.channels,
      lastError: client.lastError,
    }));
  }
}
