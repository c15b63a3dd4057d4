/** Admin routes behind `edgemesh netcheck` and `edgemesh connections`: what the running agent sees of the network. */
import type { AdminRoute } from "../../lib/admin.ts";
import type { SeenConnection } from "../../lib/forward/connections.ts";
import type { ForwardStatus } from "../../lib/forward/status.ts";
import type { IpPort } from "../../lib/net.ts";
import type { RunningAgent } from "./running.ts";

/** The control connection to one server. */
export interface ServerSeen {
  readonly url: string;
  readonly name?: string;
  readonly state: "up" | "connecting" | "down";
  readonly rttMs?: number;
  /** Server's clock minus ours. */
  readonly clockOffsetMs?: number;
  readonly local?: IpPort;
  readonly remote?: IpPort;
  readonly observed?: IpPort;
  readonly lastError?: string;
}

export interface NetworkSeen {
  readonly node: string;
  readonly servers: readonly ServerSeen[];
  /** Port of the listener for other agents; 0 = it does not listen, or direct paths are off. */
  readonly listener: number;
  readonly peers: { readonly lan: number; readonly direct: number; readonly relay: number; readonly none: number };
}

export interface ConnectionsSeen extends Pick<ForwardStatus, "connections" | "traffic" | "inbound" | "refused"> {
  readonly max: number;
  /** The oldest open ones, at most {@link MAX_LISTED}. */
  readonly open: readonly SeenConnection[];
}

/** More than a person reads; all are in the numbers. */
const MAX_LISTED = 500;

export function networkRoutes(agent: RunningAgent): AdminRoute[] {
  return [
    { method: "GET", path: "/v1/netcheck", changes: false, handle: () => networkSeen(agent) },
    { method: "GET", path: "/v1/connections", changes: false, handle: () => connectionsSeen(agent) },
  ];
}

function networkSeen({ identity, tunnel }: RunningAgent): NetworkSeen {
  const peers = { lan: 0, direct: 0, relay: 0, none: 0 };
  for (const peer of tunnel.manager.status().peers) peers[peer.path ?? "none"]++;
  return {
    node: identity.node,
    servers: tunnel.servers.clients.map((client): ServerSeen => {
      const { state, rttMs, clockOffsetMs, ends, lastError } = client;
      return {
        url: client.url,
        state: state.phase === "up" ? "up" : state.phase === "connecting" ? "connecting" : "down",
        ...(state.phase === "up" ? { name: state.welcome.server, observed: state.welcome.observed } : {}),
        ...(rttMs === undefined ? {} : { rttMs }),
        ...(clockOffsetMs === undefined ? {} : { clockOffsetMs }),
        ...(ends === undefined ? {} : { local: ends.local }),
        ...(ends?.remote === undefined ? {} : { remote: ends.remote }),
        ...(lastError === "" ? {} : { lastError }),
      };
    }),
    listener: tunnel.paths?.status().port ?? 0,
    peers,
  };
}

function connectionsSeen({ forwarder, config }: RunningAgent): ConnectionsSeen {
  const status = forwarder?.status();
  const none = {
    opened: 0,
    active: 0,
    dialFailures: 0,
    bytesIn: 0,
    bytesOut: 0,
    connectBuckets: [],
    connectSeconds: 0,
    refused: {},
  };
  return {
    connections: status?.connections ?? 0,
    traffic: status?.traffic ?? [],
    inbound: status?.inbound ?? none,
    refused: status?.refused ?? {},
    max: config.forward.maxConnections,
    open: forwarder?.connections(MAX_LISTED) ?? [],
  };
}
