/**
 * The product on a standing topology: a server, agents that join with tokens, manifests. It does what a person would:
 * types commands, pastes join lines, writes YAML. Used by `edgemesh demo` and by the tests in tests/lab.
 */
import { MeshError } from "../errors.ts";
import type { AgentStatus, ServerStatus } from "../status.ts";
import type { ExecResult } from "./exec.ts";
import type { LabNode } from "./node.ts";
import type { FakeTime, HostProcess } from "./process.ts";
import type { Topology } from "./topology.ts";
import { SERVER_ADDRESSES } from "./topology.ts";

/** Where the server reads manifests, as it sees it. */
const MANIFESTS = "/etc/edgemesh/manifests";
const READY = { log: /agent ready/ } as const;
const SERVER_READY = { log: /server ready/ } as const;

export interface ServerFlags {
  /** More flags, like `--set certificateHours=1`. */
  readonly flags?: readonly string[];
  readonly clock?: FakeTime;
  /** Serve the manifests written so far. Default true; false for a server with another source. */
  readonly manifests?: boolean;
}

export interface AgentFlags {
  readonly flags?: readonly string[];
  readonly clock?: FakeTime;
  /** Wait until it says it is ready. Default true. */
  readonly waitReady?: boolean;
  readonly env?: Readonly<Record<string, string>>;
}

/** A created token with what the join line holds. */
export interface JoinToken {
  readonly id: string;
  readonly token: string;
  readonly url: string;
  readonly pin: string;
}

export class Mesh {
  readonly topology: Topology;
  readonly url = `wss://${SERVER_ADDRESSES[0]}`;
  readonly #agents = new Map<string, HostProcess>();
  #server: HostProcess | undefined;

  constructor(topology: Topology) {
    this.topology = topology;
  }

  /** The running server. */
  get server(): HostProcess {
    if (!this.#server) throw new MeshError("INTERNAL", "The lab's server is not running");
    return this.#server;
  }

  /** The running agent of a node. */
  agent(name: string): HostProcess {
    const process = this.#agents.get(name);
    if (!process) throw new MeshError("INTERNAL", `No agent runs on ${name}`);
    return process;
  }

  /** Starts the server with the manifests written so far. */
  async startServer(options: ServerFlags = {}): Promise<HostProcess> {
    const { host } = this.topology.server;
    await Deno.mkdir(host.path(MANIFESTS), { recursive: true });
    this.#server = await this.topology.server.start(
      "server",
      [
        ...["server", "--url", this.url],
        ...(options.manifests === false ? [] : ["--manifests", MANIFESTS]),
        ...options.flags ?? [],
      ],
      { ready: SERVER_READY, ...(options.clock ? { clock: options.clock } : {}) },
    );
    return this.#server;
  }

  /** Stops (SIGTERM) or kills the server. */
  async stopServer(how: "stop" | "kill" = "stop"): Promise<void> {
    await (how === "stop" ? this.server.stop() : this.server.kill());
    this.#server = undefined;
  }

  /** Writes a manifest; the running server notices by itself. */
  async writeManifest(name: string, yaml: string): Promise<void> {
    const dir = this.topology.server.host.path(MANIFESTS);
    await Deno.mkdir(dir, { recursive: true });
    await Deno.writeTextFile(`${dir}/${name}.tmp`, yaml);
    await Deno.rename(`${dir}/${name}.tmp`, `${dir}/${name}`);
  }

  async removeManifest(name: string): Promise<void> {
    await Deno.remove(`${this.topology.server.host.path(MANIFESTS)}/${name}`);
  }

  /** `edgemesh token create` on the server host. */
  async token(flags: readonly string[] = []): Promise<JoinToken> {
    const { stdout } = await this.topology.server.host.execOk([
      ...this.topology.server.command,
      ...["token", "create", "-o", "json", ...flags],
    ]);
    return JSON.parse(stdout) as JoinToken;
  }

  /** Joins a node and leaves its agent running: what pasting the join line does. */
  async join(
    node: LabNode,
    options: AgentFlags & { readonly token?: JoinToken; readonly name?: string } = {},
  ): Promise<HostProcess> {
    const token = options.token ?? await this.token();
    const file = "/etc/edgemesh/join-token";
    await Deno.mkdir(node.host.path("/etc/edgemesh"), { recursive: true });
    await Deno.writeTextFile(node.host.path(file), token.token + "\n", { mode: 0o600 });
    const join = ["--server", token.url, "--ca-pin", token.pin, "--token-file", file];
    return await this.startAgent(node, { ...options, flags: [...join, ...options.flags ?? []] });
  }

  /** Starts the agent of a node that has joined: `edgemesh agent --node-name NAME`. */
  async startAgent(node: LabNode, options: AgentFlags & { readonly name?: string } = {}): Promise<HostProcess> {
    const args = ["agent", "--node-name", options.name ?? node.name, ...options.flags ?? []];
    const process = await node.start("agent", args, {
      ...(options.waitReady === false ? {} : { ready: READY }),
      ...(options.clock ? { clock: options.clock } : {}),
      ...(options.env ? { env: options.env } : {}),
    });
    this.#agents.set(node.name, process);
    return process;
  }

  async stopAgent(node: LabNode, how: "stop" | "kill" = "stop"): Promise<void> {
    const process = this.agent(node.name);
    await (how === "stop" ? process.stop() : process.kill());
    this.#agents.delete(node.name);
  }

  /** `edgemesh status -o json` on a node. */
  async status(node: LabNode): Promise<AgentStatus> {
    return JSON.parse(await this.#statusText(node, "agent")) as AgentStatus;
  }

  async serverStatus(): Promise<ServerStatus> {
    return JSON.parse(await this.#statusText(this.topology.server, "server")) as ServerStatus;
  }

  async #statusText(node: LabNode, role: "agent" | "server"): Promise<string> {
    const result: ExecResult = await node.run(["status", "--role", role, "-o", "json"]);
    // 1 = degraded: the document is there all the same.
    if (result.code > 1) throw new MeshError("KERNEL", `status on ${node.name} failed: ${result.stderr.trim()}`);
    return result.stdout;
  }
}

/** YAML of a Service with the endpoints that are given as pod addresses per node. */
export function serviceYaml(options: {
  readonly name: string;
  readonly namespace?: string;
  readonly clusterIP: string;
  readonly port: number;
  readonly targetPort: number;
  readonly protocol?: "TCP" | "UDP";
  readonly endpoints: readonly { readonly ip: string; readonly node?: string }[];
}): string {
  const { name, namespace = "default", clusterIP, port, targetPort, protocol = "TCP", endpoints } = options;
  const items = endpoints.map((e) =>
    `- addresses: ["${e.ip}"]\n  conditions: { ready: true }${e.node === undefined ? "" : `\n  nodeName: ${e.node}`}`
  );
  return `apiVersion: v1
kind: Service
metadata: { name: ${name}, namespace: ${namespace} }
spec:
  clusterIP: ${clusterIP}
  ports: [{ name: main, port: ${port}, targetPort: ${targetPort}, protocol: ${protocol} }]
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata:
  name: ${name}-1
  namespace: ${namespace}
  labels: { kubernetes.io/service-name: ${name} }
addressType: IPv4
ports: [{ name: main, port: ${targetPort}, protocol: ${protocol} }]
endpoints:${items.length === 0 ? " []" : "\n" + items.join("\n")}
`;
}

/** YAML of the Node objects of a topology: names and pod networks, as the cluster's API would have them. */
export function nodesYaml(topology: Topology): string {
  return topology.nodes.map((node) =>
    `apiVersion: v1
kind: Node
metadata: { name: ${node.name} }
spec: { podCIDR: ${node.podNetwork!.cidr} }
status: { addresses: [{ type: InternalIP, address: ${node.address} }] }
`
  ).join("---\n");
}
