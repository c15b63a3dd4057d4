/**
 * The admin interface: pure request → response, served by cmd/daemon/admin_server.ts on a unix socket. Readers may look at
 * everything that is no secret; changes are taken on the root-only socket alone.
 */
import { describe, MeshError } from "./errors.ts";

export interface AdminRequest {
  readonly method: string;
  readonly path: string;
  readonly query: URLSearchParams;
  /** Parsed JSON body; undefined without one. */
  readonly body: unknown;
  /** True on the socket that only root can open. */
  readonly mayChange: boolean;
}

export interface AdminReply {
  readonly status: number;
  /** Sent as JSON, or as it is when a string. */
  readonly body: unknown;
}

export interface AdminRoute {
  readonly method: "GET" | "POST" | "DELETE" | "PUT";
  /** Path; a final `/*` matches one more segment, handed over as `rest`. */
  readonly path: string;
  /** Needs the root-only socket. */
  readonly changes: boolean;
  handle(request: AdminRequest, rest: string): unknown | Promise<unknown>;
}

/** Finds the route, checks the right to change, and turns errors into replies. */
export async function handleAdmin(routes: readonly AdminRoute[], request: AdminRequest): Promise<AdminReply> {
  let pathKnown = false;
  for (const route of routes) {
    const rest = match(route.path, request.path);
    if (rest === undefined) continue;
    pathKnown = true;
    if (route.method !== request.method) continue;
    if (route.changes && !request.mayChange) {
      return refusal(403, "NOT_ALLOWED", "This socket is read-only", "run the command as root");
    }
    try {
      return { status: 200, body: await route.handle(request, rest) };
    } catch (e) {
      const code = e instanceof MeshError ? e.code : "INTERNAL";
      return refusal(e instanceof MeshError ? 400 : 500, code, describe(e));
    }
  }
  return pathKnown ? refusal(405, "PROTOCOL", `Method ${request.method} is not offered for ${request.path}`) : refusal(
    404,
    "PROTOCOL",
    `There is no ${request.path} in this version`,
    "compare `edgemesh version` with the running process",
  );
}

function refusal(status: number, code: string, message: string, hint?: string): AdminReply {
  return { status, body: { error: { code, message, ...(hint ? { hint } : {}) } } };
}

function match(pattern: string, path: string): string | undefined {
  if (!pattern.endsWith("/*")) return pattern === path ? "" : undefined;
  const prefix = pattern.slice(0, -1);
  if (!path.startsWith(prefix)) return undefined;
  const rest = path.slice(prefix.length);
  return rest !== "" && !rest.includes("/") ? decodeURIComponent(rest) : undefined;
}
