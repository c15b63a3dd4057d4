/** How commands talk to a running agent or server: HTTP over its unix socket. */
import { MeshError, type ReasonCode, REASONS } from "../lib/errors.ts";

export type Role = "agent" | "server";

export interface AdminTarget {
  readonly role: Role;
  readonly runDir: string;
}

/** Exit code of commands that need a running process and find none (conventions of `status`). */
export const EXIT_NOT_RUNNING = 3;

/** Thrown when nothing answers on the socket. */
export class NotRunningError extends MeshError {}

/** One call; the parsed JSON of the reply. Errors of the other side are thrown as MeshError with their code. */
export async function adminCall(
  target: AdminTarget,
  method: "GET" | "POST" | "DELETE" | "PUT",
  path: string,
  body?: unknown,
): Promise<unknown> {
  const socket = `${target.runDir}/${target.role}${method === "GET" ? "" : ".root"}.sock`;
  const client = Deno.createHttpClient({ proxy: { transport: "unix", path: socket } });
  try {
    let response = await request(client, socket, method, path, body);
    if (response === undefined && method === "GET") {
      // Root reads through its own socket where the group's is closed or missing.
      using root = Deno.createHttpClient({
        proxy: { transport: "unix", path: `${target.runDir}/${target.role}.root.sock` },
      });
      response = await request(root, socket, method, path, body);
    }
    if (response === undefined) throw await notReachable(target, socket);
    return response;
  } finally {
    client.close();
  }
}

async function request(
  client: Deno.HttpClient,
  socket: string,
  method: string,
  path: string,
  body: unknown,
): Promise<unknown> {
  let response: Response;
  try {
    // An address, not a name: the runtime looks names up although the socket is given, and a host whose resolver is
    // broken is just where status is wanted.
    response = await fetch(`http://127.0.0.1${path}`, {
      method,
      client,
      ...(body === undefined ? {} : { body: JSON.stringify(body), headers: { "content-type": "application/json" } }),
    });
  } catch {
    return undefined;
  }
  const text = await response.text();
  const type = response.headers.get("content-type") ?? "";
  const value: unknown = type.includes("json") ? JSON.parse(text) : text;
  if (response.ok) return value ?? {};
  const error = (value as { error?: { code?: string; message?: string; hint?: string } }).error;
  const code = error?.code && error.code in REASONS ? error.code as ReasonCode : "INTERNAL";
  throw new MeshError(
    code,
    error?.message ?? `${socket} answered ${response.status}`,
    error?.hint ? { hint: error.hint } : {},
  );
}

async function notReachable(target: AdminTarget, socket: string): Promise<MeshError> {
  // Asked of the socket itself: that it is there, a user sees who may not open it.
  const closed = await Deno.connect({ transport: "unix", path: socket }).then(
    (conn) => void conn.close(),
    (e) => e instanceof Deno.errors.PermissionDenied,
  );
  if (closed) {
    return new MeshError("NOT_ALLOWED", `${socket} cannot be opened by this user`, {
      hint: socket.endsWith(".root.sock") ? "run as root" : "run as root, or join the group edgemesh",
    });
  }
  const hint = target.role === "agent"
    ? "systemctl start edgemesh-agent, or: edgemesh agent --node-name NAME"
    : "systemctl start edgemesh-server, or: edgemesh server";
  return new NotRunningError(
    "SERVER_UNREACHABLE",
    `No edgemesh ${target.role} is running here (nothing answers on ${socket})`,
    { hint },
  );
}
