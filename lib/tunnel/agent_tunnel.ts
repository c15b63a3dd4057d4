/**
 * An agent's whole tunnel, put together: connections to the servers, the engine for carriers, the relay path and the
 * manager of peers. cmd/agent.ts hands in identity, metadata and what to do with streams of others.
 */
import { type Clock, sleep } from "../clock.ts";
import type { Logger } from "../log.ts";
import type { IpPort } from "../net.ts";
import type { PeerIdentity } from "./carrier.ts";
import type { EngineOptions } from "./carriers/engine.ts";
import { Engines, type EnginesStatus, type FastParts } from "./carriers/engines.ts";
import type { ControlClient } from "./control/client.ts";
import { Servers, type ServersEvents, type ServersOptions, type ServerStatus } from "./control/servers.ts";
import { RelayPath } from "./legs/relay_path.ts";
import { RelayLegs } from "./legs/relay_legs.ts";
import { AUTHORITIES_FEATURE } from "./control/authority_message.ts";
import { LEGS_FEATURE } from "./control/leg_message.ts";
import { PATHS_FEATURE } from "./control/path_message.ts";
import { TunnelManager, type TunnelManagerOptions, type TunnelStatus } from "./peer/manager.ts";
import type { PathSockets } from "./path/legs.ts";
import { Paths, type PathsOptions } from "./path/paths.ts";
import type { SessionEvents } from "./session/session_types.ts";

/** How long peers may take to hear that we stop. */
const GOODBYE_MS = 500;
const GOODBYE_STEP_MS = 10;
/** Between two sessions that are made before anybody asked. */
const GREET_MS = 50;

export interface AgentTunnelOptions extends Omit<ServersOptions, "verify" | "log"> {
  readonly log: Logger;
  /** Chain in DER → the server it proves. Throws MeshError. */
  verifyServer(chain: readonly Uint8Array[]): PeerIdentity;
  /** Chain in DER, and the node that is meant → the node it proves. Throws MeshError. */
  readonly verifyNode: EngineOptions["verify"];
  readonly onStream: SessionEvents["onStream"];
  readonly onFlow: SessionEvents["onFlow"];
  /** What the servers say, the relay's part aside. */
  readonly events?: Omit<ServersEvents, "onChannel" | "onChange">;
  readonly manager?: Pick<TunnelManagerOptions, "establishMs" | "idleMs" | "later">;
  /** The fast engine; without it every leg must be one of the portable engine. */
  readonly fast?: () => FastParts | string;
  /** Sockets for relay legs; without them all that is relayed goes through channels. */
  readonly legs?: PathSockets;
  /** Direct paths; without it everything goes through the servers. */
  readonly paths?: AgentPathsOptions;
}

/** What this host has for direct paths. */
export interface AgentPathsOptions extends
  Omit<
    PathsOptions,
    "node" | "clock" | "log" | "random" | "relay" | "engine" | "servers" | "onCarrier" | "onNote"
  > {
  /** Make a session with every node that is online at once, and keep it. */
  readonly eager: boolean;
}

export interface AgentTunnelStatus extends TunnelStatus {
  /** What is known about the way to each peer, beside its state: why it is not direct. */
  readonly why: ReadonlyMap<string, string>;
  /** Undefined when direct paths are off. */
  readonly paths: ReturnType<Paths["status"]> | undefined;
  readonly engine: EnginesStatus;
  readonly servers: readonly ServerStatus[];
  /** Where the first connected server sees us. */
  readonly observed: IpPort | undefined;
}

export class AgentTunnel {
  readonly manager: TunnelManager;
  readonly servers: Servers;
  /** Undefined when direct paths are off. */
  readonly paths: Paths | undefined;
  readonly #engine: Engines;
  readonly #legs: RelayLegs | undefined;
  readonly #clock: Clock;
  readonly #node: string;
  readonly #ending = new AbortController();

  constructor(options: AgentTunnelOptions) {
    const { clock, log, credentials, random, node, events, paths } = options;
    this.#clock = clock;
    this.#node = node;
    this.#engine = new Engines({ clock, credentials, verify: options.verifyNode }, options.fast);
    const control = {
      ...options,
      log: log.child("control"),
      verify: options.verifyServer,
      features: [
        ...(paths ? [PATHS_FEATURE] : []),
        ...(options.legs ? [LEGS_FEATURE] : []),
        ...(events?.onAuthorities ? [AUTHORITIES_FEATURE] : []),
      ],
    };
    this.servers = new Servers(control, {
      ...events,
      onPeers: (server, online, offline) => {
        relay.appeared(online);
        this.manager.reachable(online);
        if (paths?.eager) void this.#greet(online);
        events?.onPeers?.(server, online, offline);
      },
      onUp: (server, welcome) => {
        this.paths?.serverUp(server);
        this.manager.retryNow();
        events?.onUp?.(server, welcome);
      },
      onDown: (server, reason) => {
        // The client counts as connected until it has told everybody.
        queueMicrotask(() => this.paths?.serverDown());
        events?.onDown?.(server, reason);
      },
      onPath: (server, message) => this.paths?.message(server, message),
      onLeg: (server, message) => this.#legs?.message(server, message),
      onChannel: (leg) => relay.accept(leg),
      onChange: () => relay.serversChanged(),
    });
    this.#legs = options.legs && new RelayLegs({
      node,
      clock,
      log: log.child("relay"),
      engine: this.#engine,
      sockets: options.legs,
      servers: (peer) => this.servers.candidates(peer),
      direct: (peer) => (this.manager.pathTo(peer) ?? "relay") !== "relay",
      onCarrier: (carrier) => this.manager.accept(carrier),
    });
    const relay = new RelayPath({
      clock,
      engine: this.#engine,
      servers: this.servers,
      log: log.child("relay"),
      onCarrier: (carrier) => this.manager.accept(carrier),
      onBusy: (peer) => this.#legs?.busy(peer),
    });
    this.paths = paths && new Paths({
      ...paths,
      node,
      clock,
      log,
      random,
      relay,
      engine: this.#engine,
      servers: (peer) => this.servers.candidates(peer ?? ""),
      onCarrier: (carrier) => this.manager.accept(carrier),
      onNote: (peer, path, text) => this.manager.note(peer, path, text),
    });
    this.manager = new TunnelManager({
      node,
      clock,
      log: log.child("tunnel"),
      paths: this.paths ?? relay,
      random,
      onStream: options.onStream,
      onFlow: options.onFlow,
      ...(paths?.eager ? { idleMs: Infinity } : {}),
      ...options.manager,
    });
  }

  /** Connects to the servers. */
  start(): void {
    this.paths?.start();
    this.servers.start();
  }

  /**
   * Addresses or routes of this host changed: ways that failed may work, and ways that worked may not. `addresses` are
   * all it has now, also on links that are down: a connection from any other is dead, one over a pulled cable may live on.
   */
  networkChanged(addresses: ReadonlySet<string>): void {
    for (const client of this.servers.clients) {
      if (client.ends && !addresses.has(client.ends.local.ip)) client.moved();
    }
    this.servers.retryNow();
    this.paths?.networkChanged(addresses);
    this.manager.retryNow();
    // An answer that does not come is what makes a path be doubted.
    for (const { node, state } of this.manager.status().peers) {
      if (state === "up") this.manager.ping(node).catch(() => {});
    }
  }

  /** Ends sessions, lets peers hear of it, and ends the connections. Takes {@link GOODBYE_MS} at most. */
  async close(): Promise<void> {
    this.#ending.abort();
    this.manager.close("SHUTDOWN");
    this.paths?.close();
    this.#legs?.close();
    // The goodbyes go through TLS and a channel: the connections below must outlive them.
    for (let waited = 0; waited < GOODBYE_MS && this.servers.channels > 0; waited += GOODBYE_STEP_MS) {
      await sleep(this.#clock, GOODBYE_STEP_MS);
    }
    this.servers.close();
  }

  status(): AgentTunnelStatus {
    const up = this.servers.clients.map((client: ControlClient) => client.state).find((state) => state.phase === "up");
    const tunnel = this.manager.status();
    const why = new Map<string, string>();
    for (const { node } of tunnel.peers) {
      const text = this.paths?.explain(node);
      if (text !== undefined) why.set(node, text);
    }
    return {
      ...tunnel,
      why,
      paths: this.paths?.status(),
      engine: this.#engine.status(),
      servers: this.servers.status(),
      observed: up?.phase === "up" ? up.welcome.observed : undefined,
    };
  }

  /** Makes sessions with nodes that came online, one after the other so that a start is no storm. */
  async #greet(nodes: readonly string[]): Promise<void> {
    const { signal } = this.#ending;
    // Each greets those whose name sorts after its own: a session per pair is made once.
    for (const node of nodes.filter((node) => node > this.#node)) {
      await sleep(this.#clock, GREET_MS, signal).catch(() => {});
      if (signal.aborted) return;
      this.manager.ping(node).catch(() => {});
    }
  }
}
