/** What the agent's admin socket answers. */
import type { AdminRoute } from "../../lib/admin.ts";
import { hostPort } from "../../lib/addr.ts";
import { systemClock } from "../../lib/clock.ts";
import { MeshError } from "../../lib/errors.ts";
import { memoryUse } from "../../lib/linux/process.ts";
import type { LogLevel } from "../../lib/log.ts";
import { problemText } from "../../lib/meta/problems.ts";
import type { SourceStatus } from "../../lib/meta/source.ts";
import {
  type AgentStatus,
  type ModuleStatus,
  type PeerStatus,
  type ServerLinkStatus,
  STATUS_VERSION,
} from "../../lib/status.ts";
import type { PeerStatus as TunnelPeer } from "../../lib/tunnel/peer/peer_types.ts";
import type { ServerStatus as TunnelServer } from "../../lib/tunnel/control/servers.ts";
import { buildInfo, VERSION } from "../../lib/version.ts";
import { checkRoutes } from "./check.ts";
import { networkRoutes } from "./netcheck.ts";
import { pingRoutes } from "./ping.ts";
import { commonRoutes } from "../daemon/common_routes.ts";
import { sourceView } from "../daemon/meta_sources.ts";
import type { RunningAgent } from "./running.ts";
import { agentWarnings } from "./warnings.ts";
import { WITHOUT_FFI } from "../without_ffi.ts";

export function agentRoutes(agent: RunningAgent, setLogLevel: (level: LogLevel) => void): AdminRoute[] {
  return [
    ...commonRoutes(agent.readiness, setLogLevel),
    ...pingRoutes(agent),
    ...checkRoutes(agent),
    ...networkRoutes(agent),
    { method: "GET", path: "/v1/status", changes: false, handle: () => agentStatus(agent) },
    {
      method: "GET",
      path: "/v1/resolve",
      changes: false,
      handle: ({ query }) => {
        const server = agent.dns?.server;
        if (!server) {
          throw new MeshError(
            "KERNEL",
            `DNS does not run here: ${agent.dns?.problem ?? "it is switched off in the configuration"}`,
          );
        }
        return server.explain(query.get("name") ?? "", query.get("type") ?? "A");
      },
    },
    {
      method: "GET",
      path: "/v1/dns",
      changes: false,
      handle: () => agent.dns?.stats() ?? {},
    },
  ];
}

function agentStatus(agent: RunningAgent): AgentStatus {
  const { store, readiness, forwarder, identity, guard } = agent;
  const { commit, form } = buildInfo();
  const tunnel = agent.tunnel.status();
  const forward = forwarder?.status();
  const snapshot = store.snapshot;
  const servers = tunnel.servers.map(serverLink);
  const online = servers.some((s) => s.state === "connected");
  const source = (agent.explicit ?? agent.source).status();
  let endpoints = 0;
  for (const [, slice] of snapshot.entries("slice")) endpoints += slice.endpoints.length;
  return {
    apiVersion: STATUS_VERSION,
    role: "agent",
    version: VERSION,
    commit,
    form,
    pid: Deno.pid,
    uptimeSeconds: Math.floor((systemClock.now() - agent.startedAt) / 1000),
    ready: readiness.ready,
    waitingFor: readiness.missing.map(({ name }) => name),
    missing: readiness.missing,
    memory: memoryUse(),
    warnings: agentWarnings(agent, { servers, ...(forward ? { forward } : {}) }),
    node: identity.node,
    mode: online ? "online" : "offline",
    modeSince: new Date(agent.modeSince).toISOString(),
    tlsEngine: tunnel.engine.name,
    tlsDetail: tunnel.engine.detail,
    modules: modules(agent, forward?.problem),
    servers,
    metadata: {
      source: snapshot.version.source,
      epoch: snapshot.version.epoch,
      number: snapshot.version.number,
      ageSeconds: metadataAge(agent, source),
      follows: sourceView(source),
      ...(agent.local ? { local: sourceView(agent.local.status()) } : {}),
      services: snapshot.count("service"),
      endpoints,
      nodes: snapshot.count("node"),
      refused: [...[...guard.book.all()].map(problemText), ...(forward?.notes ?? [])],
    },
    peers: tunnel.peers.map((peer) => peerStatus(peer, tunnel.why.get(peer.node))),
    services: forward?.services ?? [],
    leftAlone: forward?.leftAlone ?? [],
  };
}

/** Seconds since the metadata at hand was known to be what its source has. */
function metadataAge({ disk }: RunningAgent, source: SourceStatus): number {
  if (source.state === "synced") return 0;
  const { loaded } = disk.status();
  const ms = loaded ? systemClock.wall() - loaded.savedAt : systemClock.now() - source.since;
  return Math.max(0, Math.floor(ms / 1000));
}

function serverLink(s: TunnelServer): ServerLinkStatus {
  const up = s.state.phase === "up";
  return {
    url: s.url,
    state: up ? "connected" : s.state.phase === "connecting" ? "connecting" : "down",
    ...(s.rttMs === undefined ? {} : { rttMs: s.rttMs }),
    ...(s.state.phase === "up" ? { observed: hostPort(s.state.welcome.observed) } : {}),
    ...(!up && s.lastError !== "" ? { detail: s.lastError } : {}),
  };
}

function peerStatus(p: TunnelPeer, why: string | undefined): PeerStatus {
  const detail = (p.state === "up" ? why : [p.lastError, why].filter((text) => text !== undefined).join("; ")) ||
    undefined;
  return {
    node: p.node,
    path: p.path ?? "none",
    ...(p.rttMs === undefined ? {} : { rttMs: p.rttMs }),
    streams: p.streams + p.flows,
    bytesIn: p.bytesReceived,
    bytesOut: p.bytesSent,
    ...(detail === undefined ? {} : { detail }),
    events: p.events.map((e) => ({
      at: new Date(e.at).toISOString(),
      kind: e.kind,
      ...(e.path === undefined ? {} : { path: e.path }),
      ...(e.reason === undefined ? {} : { reason: e.reason }),
      text: e.text,
    })),
  };
}

function modules(agent: RunningAgent, forwardProblem: string | undefined): ModuleStatus[] {
  const { config, dns } = agent;
  const meta = (agent.explicit ?? agent.source).status();
  const queries = dns?.stats();
  return [
    {
      name: "metadata",
      state: !config.metadata.enabled ? "off" : meta.state === "synced" ? "on" : "degraded",
      detail: !config.metadata.enabled
        ? "switched off in the configuration; what is known stays"
        : meta.state === "synced"
        ? `follows ${meta.from}`
        : meta.lastError ?? "nothing learned yet",
    },
    {
      name: "dns",
      state: !dns ? "off" : queries ? "on" : "degraded",
      detail: !dns
        ? "switched off in the configuration"
        : queries
        ? `${config.mesh.address}:${config.dns.port}, zone ${config.dns.zone}, ${queries.queries} queries`
        : dns.problem ?? "starting",
    },
    forwardModule(agent, forwardProblem),
    {
      name: "tunnel",
      state: config.tunnel.enabled ? "on" : "off",
      detail: config.tunnel.enabled
        ? `${agent.tunnel.status().sessions} sessions`
        : "switched off in the configuration",
    },
  ];
}

function forwardModule({ forwarder, link, sockets }: RunningAgent, problem: string | undefined): ModuleStatus {
  if (!forwarder) return { name: "forward", state: "off", detail: "switched off in the configuration" };
  if (problem !== undefined) return { name: "forward", state: "degraded", detail: problem };
  const detail = `rules by ${forwarder.status().backend}, mesh link ${link.name}`;
  const { without } = sockets;
  if (!without) return { name: "forward", state: "on", detail };
  return { name: "forward", state: "degraded", detail: `${detail}; ${without.why}: ${WITHOUT_FFI}` };
}
