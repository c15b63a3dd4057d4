/** Admin routes about the servers of the mesh and their authority. */
import type { AdminRoute } from "../../lib/admin.ts";
import { MeshError } from "../../lib/errors.ts";
import type { RunningServer } from "./running.ts";
import type { ListedServer } from "../servers.ts";

export function memberRoutes(server: RunningServer): AdminRoute[] {
  const { identity } = server;
  return [
    { method: "GET", path: "/v1/authority", changes: false, handle: () => identity.keeper.status() },
    {
      method: "POST",
      path: "/v1/authority/*",
      changes: true,
      handle: async ({ body }, step) => {
        const { overlapSeconds, force } = (body ?? {}) as { overlapSeconds?: unknown; force?: unknown };
        if (step === "rotate" && typeof overlapSeconds === "number") {
          await identity.keeper.rotate(overlapSeconds * 1000);
        } else if (step === "switch" || step === "finish" || step === "rollback") {
          await identity.keeper.step(step, force === true);
        } else throw new MeshError("PROTOCOL", `An authority has no step ${step}`);
        return identity.keeper.status();
      },
    },
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
