/**
 * Serves the admin interface on two unix sockets: `<role>.sock` (group edgemesh may read) and `<role>.root.sock`
 * (root alone, may change things). Which socket a request came in by is the whole of its authorisation, so no
 * credential exists that could leak.
 */
import { type AdminRoute, handleAdmin } from "../../lib/admin.ts";
import type { Logger } from "../../lib/log.ts";
import { MeshError } from "../../lib/errors.ts";

/** Largest request body: a reader of the socket cannot make the process grow. */
const MAX_BODY = 64 * 1024;

export interface AdminServerOptions {
  readonly runDir: string;
  readonly role: "agent" | "server";
  readonly routes: readonly AdminRoute[];
  readonly log: Logger;
}

/** Starts both sockets. Throws KERNEL when another process of the same role already serves them. */
export async function startAdmin(options: AdminServerOptions): Promise<AsyncDisposable> {
  await Deno.mkdir(options.runDir, { recursive: true, mode: 0o755 });
  const servers: Deno.HttpServer[] = [];
  for (const [suffix, mode, mayChange] of [["", 0o660, false], [".root", 0o600, true]] as const) {
    const path = `${options.runDir}/${options.role}${suffix}.sock`;
    await removeStale(path, options.role);
    // Created closed, then opened as far as meant: there is no moment in which others could connect.
    const old = Deno.umask(0o177);
    try {
      servers.push(Deno.serve({ path, onListen() {} }, (request) => answer(options.routes, request, mayChange)));
    } finally {
      Deno.umask(old);
    }
    if (mode !== 0o600) await openToGroup(path, mode, options.log);
  }
  return {
    async [Symbol.asyncDispose]() {
      await Promise.all(servers.map((s) => s.shutdown()));
      for (const suffix of ["", ".root"]) {
        await Deno.remove(`${options.runDir}/${options.role}${suffix}.sock`).catch(() => {});
      }
    },
  };
}

async function answer(routes: readonly AdminRoute[], request: Request, mayChange: boolean): Promise<Response> {
  const url = new URL(request.url);
  let body: unknown;
  if (request.method !== "GET") {
    const text = await readBody(request);
    if (text === undefined) {
      return Response.json({ error: { code: "LIMIT", message: "Request is too large" } }, { status: 413 });
    }
    try {
      body = text === "" ? undefined : JSON.parse(text);
    } catch {
      return Response.json({ error: { code: "PROTOCOL", message: "Request body is not JSON" } }, { status: 400 });
    }
  }
  const reply = await handleAdmin(routes, {
    method: request.method,
    path: url.pathname,
    query: url.searchParams,
    body,
    mayChange,
  });
  return typeof reply.body === "string"
    ? new Response(reply.body, { status: reply.status, headers: { "content-type": "text/plain; charset=utf-8" } })
    : Response.json(reply.body ?? {}, { status: reply.status });
}

/** The body, or undefined for one that is too long; no more than that is ever held. */
async function readBody(request: Request): Promise<string | undefined> {
  const decoder = new TextDecoder();
  let text = "";
  for await (const chunk of request.body ?? []) {
    text += decoder.decode(chunk, { stream: true });
    if (text.length > MAX_BODY) return undefined;
  }
  return text;
}

async function removeStale(path: string, role: string): Promise<void> {
  try {
    const conn = await Deno.connect({ transport: "unix", path });
    conn.close();
  } catch (e) {
    if (!(e instanceof Deno.errors.NotFound)) await Deno.remove(path).catch(() => {});
    return;
  }
  throw new MeshError("KERNEL", `Another edgemesh ${role} already answers on ${path}`, {
    hint: `stop it first (systemctl stop edgemesh-${role}), or give this one its own runDir`,
  });
}

async function openToGroup(path: string, mode: number, log: Logger): Promise<void> {
  const group = (await Deno.readTextFile("/etc/group").catch(() => "")).split("\n").find((l) =>
    l.startsWith("edgemesh:")
  );
  if (!group) return;
  try {
    await Deno.chown(path, null, Number(group.split(":")[2]));
    await Deno.chmod(path, mode);
  } catch (e) {
    log.debug("admin socket stays root-only", { path, error: String(e) });
  }
}
