/** Admin routes behind `edgemesh ping` and `endpoints`: they look and measure, and change nothing. */
import type { AdminRoute } from "../../lib/admin.ts";
import { MeshError } from "../../lib/errors.ts";
import type { RunningAgent } from "./running.ts";
import type { PingReply } from "../ping_report.ts";
import { resolveTarget, servicesNamed, type TargetView } from "../target.ts";
import { within } from "../within.ts";

/** A person does not wait longer for one reply; the caller asks again. */
const MAX_TIMEOUT_MS = 30_000;
const DEFAULT_TIMEOUT_MS = 5_000;

export function pingRoutes(agent: RunningAgent): AdminRoute[] {
  return [
    {
      method: "GET",
      path: "/v1/target",
      changes: false,
      handle: ({ query }) => resolveTarget(query.get("name") ?? "", targetView(agent)),
    },
    {
      method: "GET",
      path: "/v1/service",
      changes: false,
      handle: ({ query }) => servicesNamed(query.get("name") ?? "", targetView(agent)),
    },
    {
      method: "GET",
      path: "/v1/ping",
      changes: false,
      handle: async ({ query }): Promise<PingReply> => {
        const node = query.get("node") ?? "";
        const wanted = Number(query.get("timeoutMs") ?? DEFAULT_TIMEOUT_MS);
        const timeoutMs = wanted > 0 ? Math.min(MAX_TIMEOUT_MS, wanted) : DEFAULT_TIMEOUT_MS;
        if (!agent.config.tunnel.enabled) {
          throw new MeshError("NOT_ALLOWED", "The tunnel is switched off here, so that no other node can be reached", {
            hint: "tunnel.enabled: true in the configuration",
          });
        }
        const { rttMs, path } = await within(
          timeoutMs,
          `No answer from ${node} within ${timeoutMs} ms`,
          agent.tunnel.manager.ping(node),
        );
        return { node, rttMs, path, ...(path === "relay" ? via(agent) : {}) };
      },
    },
  ];
}

/** What names mean on this node now. */
export function targetView(agent: RunningAgent): TargetView {
  const { store, config, identity, tunnel, forwarder } = agent;
  const nodes = new Set([...store.snapshot.nodes()].map((n) => n.name));
  for (const peer of tunnel.manager.status().peers) nodes.add(peer.node);
  for (const client of tunnel.servers.clients) for (const name of client.online) nodes.add(name);
  return { node: identity.node, zone: config.dns.zone, nodes, services: forwarder?.status().services ?? [] };
}

/** The relaying server's name, where it can be no other one. */
function via({ tunnel }: RunningAgent): { server?: string } {
  const up = tunnel.servers.clients.map((c) => c.state).filter((s) => s.phase === "up");
  return up.length === 1 ? { server: up[0]!.welcome.server } : {};
}
