/** Admin routes that both roles have. */
import type { AdminRoute } from "../../lib/admin.ts";
import { MeshError } from "../../lib/errors.ts";
import { LOG_LEVELS, type LogLevel } from "../../lib/log.ts";
import { missingText, type Readiness } from "../../lib/readiness.ts";

export function commonRoutes(readiness: Readiness, setLogLevel: (level: LogLevel) => void): AdminRoute[] {
  return [
    { method: "GET", path: "/livez", changes: false, handle: () => "ok\n" },
    {
      method: "GET",
      path: "/readyz",
      changes: false,
      handle: () => {
        if (!readiness.ready) {
          throw new MeshError("NOT_SYNCED", `Waiting for ${readiness.missing.map(missingText).join("; ")}`);
        }
        return "ok\n";
      },
    },
    {
      method: "PUT",
      path: "/v1/log-level",
      changes: true,
      handle: ({ body }) => {
        const level = (body as { level?: string } | undefined)?.level;
        if (!LOG_LEVELS.includes(level as LogLevel)) {
          throw new MeshError("CONFIG_INVALID", `Log level must be one of ${LOG_LEVELS.join(", ")}`);
        }
        setLogLevel(level as LogLevel);
        return {};
      },
    },
  ];
}
