/**
 * What the lab tests share: a standing topology with the built executable on it. Edge nodes have no default route
 * unless a test asks for one: what works without it works with it, and the demo runs with it.
 */
import { Mesh, nodesYaml, serviceYaml } from "../../lib/lab/mesh.ts";
import type { HostProcess } from "../../lib/lab/process.ts";
import { startNginx } from "../../lib/lab/backends.ts";
import type { Pod } from "../../lib/lab/pod.ts";
import { buildTopology, type TopologyOptions } from "../../lib/lab/topology.ts";
import { describe } from "../../lib/errors.ts";
import { builtCommand, say } from "./support.ts";

export interface MeshOptions extends Omit<TopologyOptions, "command"> {
  /** Pods that serve HTTP on port 8080 and say who they are. Default: all. */
  readonly web?: readonly string[];
}

/** Runs a test on a standing topology; shows the logs of the product when it fails, and always cleans up. */
export async function withMesh(options: MeshOptions, test: (mesh: Mesh) => Promise<void>): Promise<void> {
  const { web, ...topologyOptions } = options;
  const topology = await buildTopology({ command: builtCommand(), defaultRoute: false, ...topologyOptions });
  const mesh = new Mesh(topology);
  try {
    const pods = topology.nodes.flatMap((node) => node.pods).filter((pod) =>
      web === undefined || web.includes(pod.name)
    );
    await Promise.all(
      pods.map((pod) => startNginx(pod.host, { port: 8080, text: `${pod.name} on ${pod.node.name}\n` })),
    );
    await mesh.writeManifest("nodes.yaml", nodesYaml(topology));
    await test(mesh);
  } catch (error) {
    await showLogs(topology.lab.dir);
    throw error;
  } finally {
    await topology.close();
  }
}

/** Starts the server and joins every node. */
export async function startAll(mesh: Mesh): Promise<void> {
  await mesh.startServer();
  await Promise.all(mesh.topology.nodes.map((node) => mesh.join(node)));
}

/** A Service on port 80 in front of pods that serve on 8080. */
export function webService(name: string, clusterIP: string, pods: readonly Pod[]): string {
  return serviceYaml({
    name,
    clusterIP,
    port: 80,
    targetPort: 8080,
    endpoints: pods.map((pod) => ({ ip: pod.ip, node: pod.node.name })),
  });
}

/** `curl` inside a pod or node: body, code and milliseconds. */
export async function curl(
  from: { readonly host: Pod["host"] },
  url: string,
  flags: readonly string[] = [],
): Promise<{ readonly code: number; readonly body: string; readonly stderr: string; readonly ms: number }> {
  const { code, stdout, stderr, ms } = await from.host.exec(["curl", "-sS", "--max-time", "8", ...flags, url]);
  return { code, body: stdout.trim(), stderr: stderr.trim(), ms };
}

/** Prints a number of the run, for people who read the log. */
export function tell(text: string): void {
  say(`    ${text}`);
}

/**
 * A limit in milliseconds on this machine now: what is promised for a machine that has nothing else to do is stretched
 * by the number of programs that share each processor, or a busy machine would fail what the product keeps.
 */
export function allowed(ms: number): number {
  return ms * Math.max(1, Deno.loadavg()[0]! / navigator.hardwareConcurrency);
}

/** Waits for the end of a process that is expected to give up by itself. */
export async function outcome(process: HostProcess): Promise<{ readonly code: number; readonly log: string }> {
  const status = await process.ended;
  return { code: status.code, log: await process.log() };
}

async function showLogs(dir: string): Promise<void> {
  try {
    for await (const host of Deno.readDir(dir)) {
      if (!host.isDirectory || host.name.endsWith(".root")) continue;
      for await (const file of Deno.readDir(`${dir}/${host.name}`)) {
        if (!/^(agent|server)\..*log$/.test(file.name)) continue;
        const text = await Deno.readTextFile(`${dir}/${host.name}/${file.name}`);
        tell(`--- ${host.name} ${file.name}\n${text.slice(-3000)}`);
      }
    }
  } catch (error) {
    tell(`logs cannot be shown: ${describe(error)}`);
  }
}
