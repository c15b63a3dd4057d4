/**
 * An agent's whole tunnel, put together: connections to the servers, the engine for carriers, the relay path and the
 * manager of peers. cmd/agent.ts hands in identity, metadata and what to do with streams of others.
 */
import { type Clock, sleep } from "../clock.ts";
import type { Logger } from "../log.ts";
import type { IpPort } from "../net.ts";
import type { PeerIdentity } from "./carrier.ts";
import type { CarrierEngine, EngineOptions } from "./carriers/engine.ts";
import { PortableEngine } from "./carriers/tls.ts";
import type { ControlClient } from "./control/client.ts";
import { Servers, type ServersEvents, type ServersOptions, type ServerStatus } from "./control/servers.ts";
import type { ChannelDuplex } from "./legs/channel_duplex.ts";
import { RelayPath } from "./legs/relay_path.ts";
import { TunnelManager, type TunnelManagerOptions, type TunnelStatus } from "./manager.ts";
import type { SessionEvents } from "./session_types.ts";

/** How long peers may take to hear that we stop. */
const GOODBYE_MS = 500;
const GOODBYE_STEP_MS = 10;

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
  readonly manager?: Pick<TunnelManagerOptions, "establishMs" | "idleMs">;
}

export interface AgentTunnelStatus extends TunnelStatus {
  readonly engine: CarrierEngine<ChannelDuplex>["name"];
  readonly servers: readonly ServerStatus[];
  /** Where the first connected server sees us. */
  readonly observed: IpPort | undefined;
}

export class AgentTunnel {
  readonly manager: TunnelManager;
  readonly servers: Servers;
  readonly #engine: CarrierEngine<ChannelDuplex>;
  readonly #clock: Clock;

  constructor(options: AgentTunnelOptions) {
    const { clock, log, credentials, random, node, events } = options;
    this.#clock = clock;
    this.#engine = new PortableEngine({ clock, credentials, verify: options.verifyNode });
    this.servers = new Servers({ ...options, log: log.child("control"), verify: options.verifyServer }, {
      ...events,
      onPeers: (server, online, offline) => {
        this.manager.reachable(online);
        events?.onPeers?.(server, online, offline);
      },
      onUp: (server, welcome) => {
        this.manager.retryNow();
        events?.onUp?.(server, welcome);
      },
      onChannel: (leg) => relay.accept(leg),
      onChange: () => relay.serversChanged(),
    });
    const relay = new RelayPath({
      engine: this.#engine,
      servers: this.servers,
      log: log.child("relay"),
      onCarrier: (carrier) => this.manager.accept(carrier),
    });
    this.manager = new TunnelManager({
      node,
      clock,
      log: log.child("tunnel"),
      paths: relay,
      random,
      onStream: options.onStream,
      onFlow: options.onFlow,
      ...options.manager,
    });
  }

  /** Connects to the servers. */
  start(): void {
    this.servers.start();
  }

  /** Ends sessions, lets peers hear of it, and ends the connections. Takes {@link GOODBYE_MS} at most. */
  async close(): Promise<void> {
    this.manager.close("SHUTDOWN");
    // The goodbyes go through TLS and a channel: the connections below must outlive them.
    for (let waited = 0; waited < GOODBYE_MS && this.servers.channels > 0; waited += GOODBYE_STEP_MS) {
      await sleep(this.#clock, GOODBYE_STEP_MS);
    }
    this.servers.close();
  }

  status(): AgentTunnelStatus {
    const up = this.servers.clients.map((client: ControlClient) => client.state).find((state) => state.phase === "up");
    return {
      ...this.manager.status(),
      engine: this.#engine.name,
      servers: this.servers.status(),
      observed: up?.phase === "up" ? up.welcome.observed : undefined,
    };
  }
}
