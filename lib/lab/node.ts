/** A machine that runs the product: an edge node, a cloud node or the server host. */
import type { ExecOptions, ExecResult } from "./exec.ts";
import { Host, type HostOptions } from "./host.ts";
import type { Leg } from "./internet.ts";
import { Meter } from "./meter.ts";
import type { Namespace } from "./namespace.ts";
import type { Pod, PodNetwork } from "./pod.ts";
import type { HostProcess, StartOptions } from "./process.ts";
import type { Plug } from "./site.ts";

/** How a node is connected: to a site's network, or with public addresses of its own. */
export type Attachment = { readonly plug: Plug } | { readonly leg: Leg };

export interface NodeOptions extends HostOptions {
  /** How to start the product: `["/path/dist/edgemesh"]`. Absolute, or relative to the current folder. */
  readonly command: readonly string[];
  /** May still be under way: the machine is built meanwhile. */
  readonly attachment: Attachment | Promise<Attachment>;
}

export class LabNode {
  readonly name: string;
  readonly host: Host;
  readonly attachment: Attachment;
  readonly command: readonly string[];
  /** Set by `PodNetwork.create`; a server host has none. */
  podNetwork: PodNetwork | undefined;
  readonly #meters = new Map<string, Meter>();

  private constructor(host: Host, command: readonly string[], attachment: Attachment) {
    this.name = host.name;
    this.host = host;
    this.command = command;
    this.attachment = attachment;
  }

  static async create(ns: Namespace, options: NodeOptions): Promise<LabNode> {
    const [host, attachment] = await Promise.all([Host.create(ns, options), options.attachment]);
    return new LabNode(host, options.command, attachment);
  }

  /** The node's own IPv4 address: on its site's network, or public. */
  get address(): string {
    return "plug" in this.attachment ? this.attachment.plug.address : this.attachment.leg.addresses[0]!;
  }

  /** Its own IPv6 address, if it has one. */
  get address6(): string | undefined {
    return "plug" in this.attachment
      ? this.attachment.plug.address6
      : this.attachment.leg.addresses.find((address) => address.includes(":"));
  }

  get pods(): readonly Pod[] {
    return this.podNetwork?.pods ?? [];
  }

  /** Starts the product: `node.start("agent", ["agent", "--node-name", node.name], { ready: … })`. */
  start(name: string, args: readonly string[], options?: StartOptions): Promise<HostProcess> {
    return this.host.start(name, [...this.command, ...args], options);
  }

  /** Runs a command of the product to its end: `node.run(["status", "-o", "json"])`. */
  run(args: readonly string[], options?: ExecOptions): Promise<ExecResult> {
    return this.host.exec([...this.command, ...args], options);
  }

  /** What crossed this node's interfaces since the label was first asked for. */
  async counters(label: string): Promise<Meter> {
    const meter = this.#meters.get(label) ?? await Meter.start(this.host.ns, label);
    this.#meters.set(label, meter);
    return meter;
  }
}
