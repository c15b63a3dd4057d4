/** `edgemesh token …`: clients of the server's admin socket. */
import { MeshError } from "../lib/errors.ts";
import { adminCall } from "./admin_client.ts";
import { duration, type Format, print, printDocument, table } from "./output.ts";

interface TokenFlags {
  readonly runDir: string;
  readonly output: Format;
}

/** A created token as the server answers it; the secret is in `token` and nowhere else. */
export interface CreatedToken {
  readonly id: string;
  readonly token: string;
  readonly role: "node" | "server";
  readonly node?: string;
  readonly uses: number;
  readonly expiresAt: string;
  readonly url: string;
  readonly pin: string;
  /** Folder of the release that nodes are installed from, where the server knows it. */
  readonly installUrl?: string;
}

export interface ListedToken {
  readonly id: string;
  readonly role: "node" | "server";
  readonly node?: string;
  readonly usesLeft: number;
  readonly expiresInSeconds: number;
}

export interface TokenCreateFlags extends TokenFlags {
  readonly node?: string;
  readonly server?: string;
  readonly ttl: string;
  readonly uses: string;
}

export async function tokenCreate(flags: TokenCreateFlags): Promise<number> {
  const uses = Number(flags.uses);
  if (!Number.isInteger(uses) || uses < 1 || uses > 10000) {
    throw new MeshError("CONFIG_INVALID", `--uses must be a whole number from 1 to 10000, not ${flags.uses}`);
  }
  if (flags.server !== undefined && (flags.node !== undefined || uses !== 1)) {
    throw new MeshError("CONFIG_INVALID", "A token for a server is for one server, once: --node and --uses do not fit");
  }
  const name = flags.server ?? flags.node;
  const role = flags.server === undefined ? "node" : "server";
  const body = { ttlSeconds: parseDuration(flags.ttl), uses, role, ...(name ? { node: name } : {}) };
  const created = await adminCall({ role: "server", runDir: flags.runDir }, "POST", "/v1/tokens", body) as CreatedToken;
  await printDocument(created, flags.output, () => joinCommand(created));
  return 0;
}

export async function tokenList(flags: TokenFlags): Promise<number> {
  const tokens = await adminCall({ role: "server", runDir: flags.runDir }, "GET", "/v1/tokens") as ListedToken[];
  await printDocument(tokens, flags.output, () =>
    tokens.length === 0 ? "no tokens" : table([
      ["ID", "NODE", "USES LEFT", "EXPIRES IN"],
      ...tokens.map((t) => [
        t.id,
        t.role === "server" ? `server ${t.node ?? "any"}` : t.node ?? "any",
        String(t.usesLeft),
        t.expiresInSeconds > 0 ? duration(t.expiresInSeconds) : "expired",
      ]),
    ]));
  return 0;
}

export async function tokenRevoke(id: string, flags: { runDir: string }): Promise<number> {
  await adminCall({ role: "server", runDir: flags.runDir }, "DELETE", `/v1/tokens/${encodeURIComponent(id)}`);
  print(`revoked ${id}`);
  return 0;
}

/**
 * What to paste on the new server's host, or on the edge host: the line that installs the agent as a service, and the one that only runs it. The token
 * travels by environment or stdin: it appears in no process list.
 */
export function joinCommand(t: CreatedToken): string {
  if (t.role === "server") {
    return `# good once, until ${t.expiresAt}; on the new server's host, as root, with its own address:\n` +
      `echo ${t.token} | edgemesh server join --name ${t.node} --url wss://HOST --server ${t.url} --ca-pin ${t.pin} ` +
      "--token-file -";
  }
  const agent = `--node-name ${t.node ?? "$(hostname -s)"} --server ${t.url} --ca-pin ${t.pin}`;
  const install = t.installUrl === undefined
    ? `EDGEMESH_TOKEN=${t.token} sh install.sh agent --from ./edgemesh ${agent}`
    : `curl -fsSL ${t.installUrl}/install.sh | EDGEMESH_TOKEN=${t.token} sh -s - agent ${agent}`;
  return [
    `# good for ${t.uses === 1 ? "one node" : `${t.uses} nodes`} until ${t.expiresAt}; on the edge host, as root`,
    t.installUrl === undefined ? "# as a service, with install.sh and the executable copied there:" : "# as a service:",
    install,
    "# in the foreground, where edgemesh is installed:",
    `echo ${t.token} | edgemesh agent ${agent} --token-file -`,
  ].join("\n");
}

/** `30m`, `1h`, `7d`, `90s` → seconds. */
export function parseDuration(text: string, flag = "--ttl"): number {
  const m = /^(\d{1,6})([smhd])$/.exec(text);
  const unit = { s: 1, m: 60, h: 3600, d: 86400 } as const;
  const seconds = m ? Number(m[1]) * unit[m[2] as keyof typeof unit] : 0;
  if (seconds < 1 || seconds > 365 * 86400) {
    throw new MeshError("CONFIG_INVALID", `${flag} must be a duration like 30m, 1h or 7d, at most 365d, not ${text}`);
  }
  return seconds;
}
