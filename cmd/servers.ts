/** `edgemesh server list|remove`, on a server host: which servers share this mesh's authority. */
import { adminCall } from "./admin_client.ts";
import { duration, type Format, print, printDocument, table } from "./output.ts";

interface ServersFlags {
  readonly runDir: string;
  readonly output: Format;
}

/** One server of the mesh as the admin socket gives it. */
export interface ListedServer {
  readonly name: string;
  readonly url: string;
  /** The one that was asked. */
  readonly self: boolean;
  /** Since both knew the same; absent before the first time, and for the one that was asked. */
  readonly syncedSecondsAgo?: number;
  /** Why the last exchange failed; absent when it did not. */
  readonly error?: string;
}

export async function serverList(flags: ServersFlags): Promise<number> {
  const servers = await adminCall({ role: "server", runDir: flags.runDir }, "GET", "/v1/servers") as ListedServer[];
  await printDocument(
    servers,
    flags.output,
    () => table([["SERVER", "ADDRESS", "IN STEP"], ...servers.map((s) => [s.name, s.url, inStep(s)])]),
  );
  return 0;
}

/** How a server stands to the one that was asked. */
export function inStep(s: ListedServer): string {
  if (s.self) return "this one";
  const since = s.syncedSecondsAgo === undefined ? "never" : `${duration(s.syncedSecondsAgo)} ago`;
  return s.error === undefined ? since : `${since}: ${s.error}`;
}

export async function serverRemove(name: string, flags: { runDir: string }): Promise<number> {
  await adminCall({ role: "server", runDir: flags.runDir }, "DELETE", `/v1/servers/${encodeURIComponent(name)}`);
  print(
    `${name} is no server of this mesh any more; it still has the authority's key: ` +
      "`edgemesh server ca rotate` makes that worthless",
  );
  return 0;
}
