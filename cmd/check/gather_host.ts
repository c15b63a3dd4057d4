/** Gathers what is judged about a host. Reads; makes nothing but a file in the state directory, which it removes. */
import { hostPort, parseHostPort } from "../../lib/addr.ts";
import { systemClock } from "../../lib/clock.ts";
import type { AgentConfig } from "../../lib/config.ts";
import { describe, MeshError } from "../../lib/errors.ts";
import { PROXY_VARIABLES, proxyChoice, type ProxyFor } from "../../lib/http_proxy.ts";
import { NetlinkRules } from "../../lib/forward/rules/netlink.ts";
import { loadAgentState, type LoadedAgentState } from "../../lib/identity/agent_state.ts";
import type { StateFiles } from "../../lib/identity/state_files.ts";
import { ffiProblem } from "../../lib/linux/ffi.ts";
import { fileSize, readIfThere, readRange } from "../../lib/linux/files.ts";
import { nftRunner } from "../../lib/linux/nft_exec.ts";
import { missingCapabilities, raiseFileLimit, readSysctl } from "../../lib/linux/privileges.ts";
import { BUILD_TIME_MS } from "../../lib/version.ts";
import type { HostFacts, PortFact, ReachFact, StartFacts } from "./facts.ts";
import { type ReachOptions, reachServer } from "./reach.ts";
import { holderOf, listeningSockets } from "./holders.ts";

/** This host, with the bridges that a running agent knows pods on. */
export async function gatherHost(podBridges: readonly string[]): Promise<HostFacts> {
  return {
    kernel: Deno.osRelease(),
    glibc: await glibcVersion(),
    wall: systemClock.wall(),
    built: BUILD_TIME_MS,
    proxies: PROXY_VARIABLES.filter((name) => (Deno.env.get(name) ?? "") !== ""),
    bridges: podBridges,
    bridgeCall: readSysctl("net/bridge/bridge-nf-call-iptables"),
  };
}

/** What a start would find, of a host where no agent runs. */
export async function gatherStart(config: AgentConfig): Promise<StartFacts> {
  const { joined, pin, servers } = await identityOf(config);
  return {
    missingCapabilities: missingCapabilities(["CAP_NET_ADMIN", "CAP_NET_BIND_SERVICE"]),
    nftables: await nftables(config),
    ports: await portFacts(config),
    openFiles: raiseFileLimit().soft,
    ffi: ffiProblem(),
    stateDir: { path: config.stateDir, ...await writeProblem(config.stateDir) },
    joined,
    servers: await reachAll(servers, { pin, proxyFor: proxyOf(config) }),
  };
}

/** All servers at once. */
export function reachAll(urls: readonly string[], options: ReachOptions): Promise<ReachFact[]> {
  return Promise.all(urls.map((url) => reachServer(url, options)));
}

/** What leads to the servers; nothing where the configuration names no usable proxy, which an agent says at its start. */
export function proxyOf(config: AgentConfig): ProxyFor {
  try {
    return proxyChoice(config.proxy, Deno.env.get);
  } catch {
    return () => undefined;
  }
}

/** Which servers, and by which pin they are known: as configured, else as the join left it. */
export async function identityOf(
  config: AgentConfig,
): Promise<
  { readonly joined: StartFacts["joined"]; readonly pin: string | undefined; readonly servers: readonly string[] }
> {
  let loaded: LoadedAgentState | undefined;
  let joined: StartFacts["joined"];
  try {
    loaded = await loadAgentState(readOnly(config.stateDir));
    joined = loaded ? { node: loaded.state.node } : undefined;
  } catch (error) {
    joined = { problem: describe(error) };
  }
  const pin = loaded?.state.pin ?? config.caPin;
  return { joined, pin, servers: config.server.length > 0 ? config.server : loaded?.state.mesh.servers ?? [] };
}

/** A state directory that is looked at and left as it is. */
function readOnly(dir: string): StateFiles {
  const refuse = () => Promise.reject(new MeshError("NOT_ALLOWED", `${dir} is only read here`));
  return {
    read: (name) => readIfThere(`${dir}/${name}`),
    size: (name) => fileSize(`${dir}/${name}`),
    readRange: (name, from, max) => readRange(`${dir}/${name}`, from, max),
    writeAtomic: refuse,
    append: refuse,
    remove: refuse,
  };
}

/** Whether a file can be made, written and removed there; the directory itself where it is missing. */
export async function writeProblem(dir: string): Promise<{ readonly problem?: string }> {
  let at = dir;
  while (at !== "/" && !await Deno.stat(at).then((s) => s.isDirectory, () => false)) {
    at = at.slice(0, at.lastIndexOf("/")) || "/";
  }
  const file = `${at}/.edgemesh-check-${Deno.pid}`;
  try {
    await Deno.writeFile(file, new Uint8Array(4096), { createNew: true, mode: 0o600 });
    await Deno.remove(file);
    return {};
  } catch (error) {
    await Deno.remove(file).catch(() => {});
    return { problem: describe(error) };
  }
}

async function nftables(config: AgentConfig): Promise<StartFacts["nftables"]> {
  let why = "";
  if (config.forward.backend !== "nft") {
    try {
      const rules = NetlinkRules.open();
      try {
        await rules.list(new Map());
      } finally {
        rules.close();
      }
      return { by: "netlink" };
    } catch (error) {
      why = describe(error);
    }
  }
  if (config.forward.backend !== "netlink") {
    try {
      const { code, stderr } = await nftRunner(systemClock)(["list", "tables"], "");
      if (code === 0) return { by: "nft" };
      why ||= stderr.trim();
    } catch (error) {
      why ||= describe(error);
    }
  }
  return { problem: why };
}

async function portFacts(config: AgentConfig): Promise<PortFact[]> {
  const sockets = await listeningSockets();
  const out: PortFact[] = [];
  const add = async (what: string, ip: string, port: number, protocols: readonly string[]) => {
    const holder = await holderOf({ ip, port }, protocols, sockets);
    out.push({ what, at: hostPort({ ip, port }), ...(holder === undefined ? {} : { holder }) });
  };
  if (config.dns.enabled) await add("DNS", config.mesh.address, config.dns.port, ["tcp", "udp"]);
  const listen = config.tunnel.enabled && config.tunnel.mode !== "off"
    ? parseHostPort(config.tunnel.listen)
    : undefined;
  if (listen) await add("agents", listen.ip, listen.port, ["tcp"]);
  const metrics = parseHostPort(config.metricsListen);
  if (metrics) await add("metrics", metrics.ip, metrics.port, ["tcp"]);
  return out;
}

async function glibcVersion(): Promise<string | undefined> {
  try {
    const { stdout } = await new Deno.Command("getconf", { args: ["GNU_LIBC_VERSION"], stderr: "null" }).output();
    return /glibc (\S+)/.exec(new TextDecoder().decode(stdout))?.[1];
  } catch {
    return undefined;
  }
}
