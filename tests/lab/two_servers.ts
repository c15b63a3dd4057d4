/** A second server beside the lab's first one, on the same host with another address: joined as an operator would. */
import type { Mesh } from "../../lib/lab/mesh.ts";
import type { LabNode } from "../../lib/lab/node.ts";
import type { HostProcess } from "../../lib/lab/process.ts";

export const URLS = ["wss://203.0.113.1", "wss://203.0.113.2"] as const;
/** State of each, and where its admin socket is. */
export const STATE = ["/var/lib/edgemesh/server", "/var/lib/edgemesh/server2"] as const;
export const RUN_DIR = ["/run/edgemesh", "/run/edgemesh2"] as const;
const NAMES = ["server", "server-2"] as const;

/** Each server has one of the host's two addresses, and folders of its own. */
export function flagsOf(index: 0 | 1): string[] {
  const ip = URLS[index].slice("wss://".length);
  const own = index === 0 ? [] : ["--state-dir", STATE[1], "--run-dir", RUN_DIR[1], "--name", NAMES[1]];
  return [...own, "--listen", `${ip}:443`, "--set", `observeListen=${ip}:3478`, "--set", "metricsListen=off"];
}

export function startFirst(mesh: Mesh): Promise<HostProcess> {
  return mesh.startServer({ flags: flagsOf(0) });
}

/** `edgemesh token create --server` on the first host, `edgemesh server join` on the second. */
export async function joinSecond(mesh: Mesh): Promise<{ readonly said: string; readonly token: string }> {
  const { server } = mesh.topology;
  const { token, pin, url } = await mesh.token(["--server", NAMES[1]]);
  const file = "/etc/edgemesh/server-token";
  await Deno.mkdir(server.host.path("/etc/edgemesh"), { recursive: true });
  await Deno.writeTextFile(server.host.path(file), token + "\n", { mode: 0o600 });
  const { stdout } = await server.host.execOk([
    ...server.command,
    ...["server", "join", "--name", NAMES[1], "--url", URLS[1], "--state-dir", STATE[1]],
    ...["--server", url, "--ca-pin", pin, "--token-file", file],
  ]);
  return { said: stdout.trim(), token };
}

/** Default: it serves the same manifests as the first one. */
export function startSecond(mesh: Mesh, manifests = "/etc/edgemesh/manifests"): Promise<HostProcess> {
  const argv = ["server", "--url", URLS[1], "--manifests", manifests, ...flagsOf(1)];
  return mesh.topology.server.start("server-2", argv, { ready: { log: /server ready/ } });
}

/** Servers an agent is connected to. */
export async function connected(mesh: Mesh, node: LabNode): Promise<readonly string[]> {
  return (await mesh.status(node)).servers.filter((server) => server.state === "connected").map((server) => server.url);
}

/** Writes the servers into a node's configuration file, which it takes at its start and at each reload. */
export async function configureServers(node: LabNode, urls: readonly string[]): Promise<void> {
  await Deno.mkdir(node.host.path("/etc/edgemesh"), { recursive: true });
  await Deno.writeTextFile(node.host.path("/etc/edgemesh/agent.yaml"), `server: [${urls.join(", ")}]\n`);
}
