/** Programs of the system that the lab needs: where they are, and which Debian packages are missing. */
import { MeshError } from "../errors.ts";

/** Program → Debian package that has it. */
const PACKAGES = {
  conntrack: "conntrack",
  curl: "curl",
  dig: "bind9-dnsutils",
  ip: "iproute2",
  iperf3: "iperf3",
  "iptables-legacy": "iptables",
  "iptables-nft": "iptables",
  nft: "nftables",
  nginx: "nginx",
  nsenter: "util-linux",
  openssl: "openssl",
  ping: "iputils-ping",
  "redis-cli": "redis-tools",
  "redis-server": "redis-server",
  socat: "socat",
  tcpdump: "tcpdump",
} as const;

export type Tool = keyof typeof PACKAGES;

/** Programs that scripts/fetch_backends.sh can unpack without installing them, so that no service starts on the host. */
const FETCHABLE: ReadonlySet<Tool> = new Set(["conntrack", "nginx", "ping", "redis-cli", "redis-server", "socat"]);
/** Where Debian keeps programs for root; not in the PATH of every shell. */
const SYSTEM_DIRS = ["/usr/local/sbin", "/usr/sbin", "/sbin", "/usr/local/bin", "/usr/bin", "/bin"];

/** Absolute path of a program: from PATH, the system's folders, or the unpacked back ends; undefined if nowhere. */
export async function findTool(tool: Tool): Promise<string | undefined> {
  const path = (Deno.env.get("PATH") ?? "").split(":").filter((dir) => dir.startsWith("/"));
  const backends = backendsDir();
  for (const dir of [...path, ...SYSTEM_DIRS, ...(backends ? [`${backends}/bin`] : [])]) {
    const info = await Deno.stat(`${dir}/${tool}`).catch(() => undefined);
    if (info?.isFile && ((info.mode ?? 0) & 0o111) !== 0) return `${dir}/${tool}`;
  }
  return undefined;
}

/**
 * Absolute paths of all `tools`.
 * @throws MeshError TOOL_MISSING naming every missing program and the packages to install
 */
export async function requireTools<const T extends Tool>(tools: readonly T[]): Promise<Record<T, string>> {
  const found: Partial<Record<T, string>> = {};
  const missing: T[] = [];
  await Promise.all(tools.map(async (tool) => {
    const path = await findTool(tool);
    if (path === undefined) missing.push(tool);
    else found[tool] = path;
  }));
  if (missing.length === 0) return found as Record<T, string>;
  throw missingTools(missing);
}

/** The error for programs that are nowhere: names them, and what to install. */
export function missingTools(missing: readonly Tool[]): MeshError {
  const packages = [...new Set(missing.map((tool) => PACKAGES[tool]))].sort().join(" ");
  const names = [...missing].sort().join(", ");
  return new MeshError("TOOL_MISSING", `The lab needs programs that are not installed: ${names}`, {
    hint: missing.every((tool) => FETCHABLE.has(tool))
      ? `scripts/fetch_backends.sh, or apt-get install ${packages}`
      : `apt-get install ${packages}`,
  });
}

/** libfaketime for threaded programs, from the system or the unpacked back ends; undefined if nowhere. */
export async function findFaketime(): Promise<string | undefined> {
  const triplet = Deno.build.arch === "aarch64" ? "aarch64-linux-gnu" : "x86_64-linux-gnu";
  const backends = backendsDir();
  for (const root of ["", ...(backends ? [`${backends}/root`] : [])]) {
    const path = `${root}/usr/lib/${triplet}/faketime/libfaketimeMT.so.1`;
    if (await Deno.stat(path).then(() => true, () => false)) return path;
  }
  return undefined;
}

/** The folder scripts/fetch_backends.sh unpacks into; the same rule stands there. */
function backendsDir(): string | undefined {
  const home = Deno.env.get("HOME");
  const cache = Deno.env.get("EDGEMESH_CACHE") ??
    (Deno.env.get("XDG_CACHE_HOME") ?? (home ? `${home}/.cache` : undefined));
  if (cache === undefined) return undefined;
  return Deno.env.has("EDGEMESH_CACHE") ? `${cache}/backends` : `${cache}/edgemesh-dev/backends`;
}
