/** Admin routes about the servers of the mesh and their authority. */
import type { AdminRoute } from "../lib/admin.ts";
import type { RunningServer } from "./server.ts";
import type { ListedServer } from "./servers.ts";

export function memberRoutes(server: RunningServer): AdminRoute[] {
  const { identity } = server;
  return [
    { method: "GET", path: "/v1/servers", changes: false, handle: () => listedServers(server) },
    {
      method: "DELETE",
      path: "/v1/servers/*",
      changes: true,
      handle: async (_request, name) => {
        await identity.removeServer(name);
        return {};
      },
    },
  ];
}

/** This server first, then the others with how they are. */
export function listedServers({ identity, config, url }: RunningServer): readonly ListedServer[] {
  return [
    { name: config.name, url, self: true },
    ...identity.group.status().map(({ name, url, syncedMsAgo, error }): ListedServer => ({
      name,
      url,
      self: false,
      ...(syncedMsAgo === undefined ? {} : { syncedSecondsAgo: Math.round(syncedMsAgo / 1000) }),
      ...(error === "" ? {} : { error }),
    })),
  ];
}
