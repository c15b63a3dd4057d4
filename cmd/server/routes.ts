/** What the server's admin socket answers. */
import type { AdminRoute } from "../../lib/admin.ts";
import { hostPort } from "../../lib/addr.ts";
import { systemClock } from "../../lib/clock.ts";
import { MeshError } from "../../lib/errors.ts";
import { memoryUse } from "../../lib/linux/process.ts";
import type { LogLevel } from "../../lib/log.ts";
import { lostClaims } from "../../lib/meta/store/claims.ts";
import { problemText } from "../../lib/meta/problems.ts";
import { type ServerStatus, STATUS_VERSION } from "../../lib/status.ts";
import { buildInfo, VERSION } from "../../lib/version.ts";
import { commonRoutes } from "../daemon/common_routes.ts";
import { sourceView } from "../daemon/meta_sources.ts";
import type { RunningServer } from "./running.ts";
import { listedServers, memberRoutes } from "./members.ts";
import { nodeRoutes } from "./nodes.ts";
import { serverWarnings } from "./warnings.ts";
import type { CreatedToken, ListedToken } from "../token.ts";

export function serverRoutes(server: RunningServer, setLogLevel: (level: LogLevel) => void): AdminRoute[] {
  const { identity } = server;
  return [
    ...commonRoutes(server.readiness, setLogLevel),
    ...nodeRoutes(server),
    ...memberRoutes(server),
    { method: "GET", path: "/v1/status", changes: false, handle: () => serverStatus(server) },
    {
      method: "GET",
      path: "/v1/tokens",
      changes: false,
      handle: () =>
        identity.tokens.list().map((t): ListedToken => ({
          id: t.id,
          role: t.role,
          ...(t.node === undefined ? {} : { node: t.node }),
          usesLeft: Math.max(0, t.maxUses - t.uses.length),
          expiresInSeconds: Math.floor((t.expiresAt - identity.now().ms) / 1000),
        })),
    },
    { method: "POST", path: "/v1/tokens", changes: true, handle: ({ body }) => createToken(server, body) },
    {
      method: "DELETE",
      path: "/v1/tokens/*",
      changes: true,
      handle: async (_request, id) => {
        if (!await identity.tokens.revoke(id)) {
          throw new MeshError("TOKEN_INVALID", `There is no token ${id}`, { hint: "edgemesh token list" });
        }
        return {};
      },
    },
  ];
}

async function createToken(server: RunningServer, body: unknown): Promise<CreatedToken> {
  const { ttlSeconds, uses, node, role = "node" } = (body ?? {}) as Readonly<Record<string, unknown>>;
  if (role !== "node" && role !== "server") throw new MeshError("PROTOCOL", "A token is for a node or a server");
  if (typeof ttlSeconds !== "number" || typeof uses !== "number" || (node !== undefined && typeof node !== "string")) {
    throw new MeshError("PROTOCOL", "A token needs ttlSeconds and uses as numbers");
  }
  const { text, record } = await server.identity.tokens.create({
    now: server.identity.now().ms,
    ttlMs: ttlSeconds * 1000,
    maxUses: uses,
    role,
    ...(node === undefined ? {} : { node }),
  });
  return {
    id: record.id,
    token: text,
    role,
    ...(record.node === undefined ? {} : { node: record.node }),
    uses: record.maxUses,
    expiresAt: new Date(record.expiresAt).toISOString(),
    url: server.url,
    pin: server.pin,
    ...(server.config.installUrl === undefined ? {} : { installUrl: server.config.installUrl.replace(/\/$/, "") }),
  };
}

function serverStatus(server: RunningServer): ServerStatus {
  const { control, store, sources, readiness } = server;
  const stats = control.stats();
  const { commit, form } = buildInfo();
  const lines = new Map(stats.relay.lines.map((line) => [line.node, line]));
  const problems = sources.flatMap((source) => {
    const status = source.status();
    // A cluster without Istio is no broken cluster: kinds that are not installed are shown, and no problem.
    const wrong = status.problems.filter((p) => p.code !== "SOURCE_UNKNOWN");
    return [...(status.lastError ? [status.lastError] : []), ...wrong.map(problemText)];
  }).concat(lostClaims(store.snapshot).map(problemText));
  const wall = systemClock.wall();
  return {
    apiVersion: STATUS_VERSION,
    role: "server",
    version: VERSION,
    commit,
    form,
    pid: Deno.pid,
    uptimeSeconds: Math.floor((systemClock.now() - server.startedAt) / 1000),
    ready: readiness.ready,
    waitingFor: readiness.missing.map(({ name }) => name),
    missing: readiness.missing,
    memory: memoryUse(),
    warnings: serverWarnings(server, problems.length),
    name: server.config.name,
    url: server.url,
    pin: server.pin,
    trustDomain: server.config.trustDomain,
    servers: listedServers(server),
    ...(server.identity.authority.view.rotation ? { rotation: server.identity.keeper.status() } : {}),
    agents: stats.agents.map((a) => {
      const line = lines.get(a.node);
      return {
        node: a.node,
        address: hostPort(a.from),
        since: new Date(wall - a.upMs).toISOString(),
        version: a.version,
        channels: line?.channels ?? 0,
        relayedBytes: (line?.bytesIn ?? 0) + (line?.bytesOut ?? 0) + server.control.legBytes(a.node),
      };
    }).sort((a, b) => a.node < b.node ? -1 : 1),
    metadata: {
      source: store.snapshot.version.source,
      number: store.snapshot.version.number,
      services: store.snapshot.count("service"),
      problems,
      ...(sources[0] ? { follows: sourceView(sources[0].status()) } : {}),
    },
  };
}
