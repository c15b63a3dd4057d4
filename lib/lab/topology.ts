/**
 * The standard lab: an internet with delay, a server with two public addresses, a cloud node, and edge sites behind
 * NATs, each node with pods. One call builds it. Programs are told names and the server's address, nothing else.
 */
import { MeshError } from "../errors.ts";
import { exec } from "./exec.ts";
import { RUNTIME_DIR } from "./host.ts";
import { Internet, type Leg } from "./internet.ts";
import { Lab } from "./namespace.ts";
import type { NatKind } from "./nat.ts";
import { LabNode } from "./node.ts";
import { type Pod, PodNetwork, type PodNetworkOptions } from "./pod.ts";
import { Site, type SiteOptions } from "./site.ts";

export interface SiteSpec extends Partial<Omit<SiteOptions, "number" | "kind">> {
  readonly nat: NatKind;
  /** Edge nodes on the site's first network. Default 1. */
  readonly nodes?: number;
  /** Put each node after the first on a network of its own, behind the same router. */
  readonly ownLans?: boolean;
  /** Behind the provider's NAT of this name in {@link TopologyOptions.providers}. */
  readonly behind?: string;
}

export interface TopologyOptions {
  /** How to start the product; its `lab-delay` makes the delay. */
  readonly command: readonly string[];
  /** Default 20: a round trip of 40 ms between any two sites, and between a site and the server. */
  readonly oneWayDelayMs?: number;
  readonly jitterMs?: number;
  readonly loss?: number;
  readonly seed?: number;
  /** Default: two sites behind `cone` NATs with one node each. Nodes are called edge-1, edge-2, … in order. */
  readonly sites?: readonly SiteSpec[];
  /** Providers' NATs (CGN) that sites stand behind. */
  readonly providers?: readonly (SiteSpec & { readonly name: string })[];
  /** The cloud node `cloud-1`: in the server's data centre (no delay between them), elsewhere, or none. Default datacenter. */
  readonly cloud?: "datacenter" | "public" | "none";
  /** Server and cloud node also have IPv6 addresses; sites say so themselves. Default false. */
  readonly ipv6?: boolean;
  /** Pods of each node, called `edge-1-pod-1`, …. Default 1. */
  readonly podsPerNode?: number;
  /** Pod network of the n-th node (cloud: 0). Default 10.244.n.0/24. */
  readonly podNetwork?: (n: number) => PodNetworkOptions;
  /** Edge nodes have a default route. Without, they have routes to the server's addresses only. Default true. */
  readonly defaultRoute?: boolean;
}

export const SERVER_ADDRESSES = ["203.0.113.1", "203.0.113.2"] as const;
export const SERVER_ADDRESSES6 = ["2001:db8:ffff::a1", "2001:db8:ffff::a2"] as const;
const CLOUD_ADDRESSES = ["203.0.113.3", "2001:db8:ffff::a3"] as const;
const DEFAULT_DELAY_MS = 20;
/** Sites under construction at the same time. */
const BUILT_AT_ONCE = 8;
/** Providers are numbered from here, after the sites. */
const FIRST_PROVIDER = 200;

/** What a standing lab consists of. */
export interface TopologyParts {
  readonly lab: Lab;
  readonly internet: Internet;
  readonly server: LabNode;
  readonly cloud: LabNode | undefined;
  readonly sites: readonly Site[];
  readonly providers: readonly Site[];
  /** Edge nodes in order: edge-1, edge-2, …. */
  readonly edges: readonly LabNode[];
}

/** A standing lab with handles on everything in it. */
export class Topology implements TopologyParts, AsyncDisposable {
  readonly lab: Lab;
  readonly internet: Internet;
  readonly server: LabNode;
  readonly cloud: LabNode | undefined;
  readonly sites: readonly Site[];
  readonly providers: readonly Site[];
  readonly edges: readonly LabNode[];

  constructor(parts: TopologyParts) {
    this.lab = parts.lab;
    this.internet = parts.internet;
    this.server = parts.server;
    this.cloud = parts.cloud;
    this.sites = parts.sites;
    this.providers = parts.providers;
    this.edges = parts.edges;
  }

  /** The nodes that run an agent: the cloud node, if any, and the edges. */
  get nodes(): readonly LabNode[] {
    return this.cloud ? [this.cloud, ...this.edges] : this.edges;
  }

  /** The node of a name: `edge-2`, `cloud-1`, `server`. */
  node(name: string): LabNode {
    const node = [this.server, ...this.nodes].find((n) => n.name === name);
    if (!node) throw new MeshError("UNKNOWN_NODE", `The lab has no node ${name}`);
    return node;
  }

  site(name: string): Site {
    const site = [...this.sites, ...this.providers].find((s) => s.name === name);
    if (!site) throw new MeshError("CONFIG_INVALID", `The lab has no site ${name}`);
    return site;
  }

  /** The pod of a name: `edge-1-pod-1`. */
  pod(name: string): Pod {
    const pod = this.nodes.flatMap((node) => node.pods).find((p) => p.name === name);
    if (!pod) throw new MeshError("CONFIG_INVALID", `The lab has no pod ${name}`);
    return pod;
  }

  /** Where a node with public addresses of its own (server, cloud) is attached: for {@link Internet.meter} and cuts. */
  leg(node: LabNode): Leg {
    if ("leg" in node.attachment) return node.attachment.leg;
    throw new MeshError("CONFIG_INVALID", `Node ${node.name} is in a site's network; ask its site`);
  }

  close(): Promise<void> {
    return this.lab.close();
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.close();
  }
}

/** Builds the standard lab. Whatever fails, nothing is left standing. */
export async function buildTopology(options: TopologyOptions): Promise<Topology> {
  const lab = await Lab.open();
  try {
    return await build(lab, options);
  } catch (error) {
    // What is still being built at the same time may keep the clean-up from ending well; the first error tells more.
    await lab.close().catch(() => {});
    throw error;
  }
}

async function build(lab: Lab, options: TopologyOptions): Promise<Topology> {
  await shareRuntime(options.command);
  const internet = await Internet.create(lab, {
    command: options.command,
    shape: {
      delayMs: options.oneWayDelayMs ?? DEFAULT_DELAY_MS,
      jitterMs: options.jitterMs ?? 0,
      loss: options.loss ?? 0,
    },
    ...(options.seed === undefined ? {} : { seed: options.seed }),
  });
  const providers = await Promise.all((options.providers ?? []).map((spec, i) => {
    return createSite(lab, internet, spec, { name: spec.name, number: FIRST_PROVIDER + i });
  }));
  const specs = options.sites ?? [{ nat: "cone" }, { nat: "cone" }];
  // Names are given out before anything runs at the same time, so that they do not depend on who is first.
  let edge = 0;
  const plans = specs.map((spec, i) => ({
    spec,
    number: i + 1,
    name: spec.name ?? `site-${i + 1}`,
    edges: Array.from({ length: spec.nodes ?? 1 }, () => ++edge),
  }));
  const [server, cloud, built] = await Promise.all([
    createServer(lab, internet, options),
    options.cloud === "none" ? undefined : createCloud(lab, internet, options),
    inTurns(plans, async (plan) => {
      const uplink = plan.spec.behind === undefined ? internet : providers.find((p) => p.name === plan.spec.behind);
      if (!uplink) throw new MeshError("CONFIG_INVALID", `The lab has no provider ${plan.spec.behind}`);
      const site = await createSite(lab, uplink, plan.spec, plan);
      return { site, nodes: await createEdges(lab, site, plan, options) };
    }),
    internet.ready,
  ]);
  return new Topology({
    lab,
    internet,
    server,
    cloud,
    providers,
    sites: built.map((part) => part.site),
    edges: built.flatMap((part) => part.nodes),
  });
}

/** Results in order; a few at a time, or the first of many would miss its deadline waiting for the last. */
async function inTurns<T, R>(items: readonly T[], make: (item: T) => Promise<R>): Promise<readonly R[]> {
  const results: R[] = [];
  const waiting = [...items.entries()];
  await Promise.all(Array.from({ length: BUILT_AT_ONCE }, async () => {
    for (let next = waiting.shift(); next !== undefined; next = waiting.shift()) {
      results[next[0]] = await make(next[1]);
    }
  }));
  return results;
}

function createSite(
  lab: Lab,
  uplink: Internet | Site,
  spec: SiteSpec,
  place: { readonly name: string; readonly number: number },
): Promise<Site> {
  const { nat, nodes: _nodes, ownLans: _ownLans, behind: _behind, ...rest } = spec;
  return Site.create(lab, uplink, { ...rest, kind: nat, name: place.name, number: place.number });
}

async function createServer(lab: Lab, internet: Internet, options: TopologyOptions): Promise<LabNode> {
  const ns = await lab.namespace("server");
  const addresses = [...SERVER_ADDRESSES, ...(options.ipv6 ? SERVER_ADDRESSES6 : [])];
  const attachment = internet.attach(ns, { addresses, ifname: "eth0", zone: "datacenter" }).then((leg) => ({ leg }));
  return await LabNode.create(ns, { command: options.command, attachment });
}

async function createCloud(lab: Lab, internet: Internet, options: TopologyOptions): Promise<LabNode> {
  const ns = await lab.namespace("cloud-1");
  const attachment = internet.attach(ns, {
    addresses: options.ipv6 ? CLOUD_ADDRESSES : CLOUD_ADDRESSES.slice(0, 1),
    ifname: "eth0",
    ...(options.cloud === "public" ? {} : { zone: "datacenter" }),
  }).then((leg) => ({ leg }));
  const node = await LabNode.create(ns, { command: options.command, attachment });
  await addPods(node, 0, options);
  return node;
}

async function createEdges(
  lab: Lab,
  site: Site,
  plan: { readonly spec: SiteSpec; readonly number: number; readonly edges: readonly number[] },
  options: TopologyOptions,
): Promise<LabNode[]> {
  const lans = [0];
  if (plan.spec.ownLans) {
    // One after the other: a network's number is its place in the router.
    for (let k = 1; k < plan.edges.length; k++) {
      lans.push(await site.addLan(`172.${19 + k}.${plan.number}.0/24`));
    }
  }
  const routes = options.defaultRoute === false
    ? { defaultRoute: false, routes: [...SERVER_ADDRESSES, ...(options.ipv6 && site.hasIpv6 ? SERVER_ADDRESSES6 : [])] }
    : {};
  return await Promise.all(plan.edges.map(async (n, k) => {
    const ns = await lab.namespace(`edge-${n}`);
    const attachment = site.plug(ns, { lan: lans[k] ?? 0, ...routes }).then((plug) => ({ plug }));
    const node = await LabNode.create(ns, { command: options.command, attachment });
    await addPods(node, n, options);
    return node;
  }));
}

async function addPods(node: LabNode, n: number, options: TopologyOptions): Promise<void> {
  const network = await PodNetwork.create(node, options.podNetwork?.(n) ?? { cidr: `10.244.${n}.0/24` });
  for (let k = 1; k <= (options.podsPerNode ?? 1); k++) await network.add(`${node.name}-pod-${k}`);
}

/**
 * The self-extracting executable unpacks itself at its first start. Once on the real machine, where each host finds it
 * (Host), instead of once per host.
 */
async function shareRuntime(command: readonly string[]): Promise<void> {
  const unpacked = await Deno.stat(RUNTIME_DIR).then(() => true, () => false);
  if (!unpacked) await exec([...command, "version"]);
}
