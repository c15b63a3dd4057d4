/** Pods: namespaces that hang on a node with addresses of the node's pod network. */
import { cidrText, parseCidr } from "../addr.ts";
import { MeshError } from "../errors.ts";
import { nthAddress } from "./addresses.ts";
import { Host } from "./host.ts";
import type { Namespace } from "./namespace.ts";
import type { LabNode } from "./node.ts";

export interface PodNetworkOptions {
  /** The node's pod network, at most 254 addresses of it are used: `10.244.1.0/24`, `172.17.0.0/16`. */
  readonly cidr: string;
  /**
   * `ptp`: each pod has a link of its own and the node routes between pods (CNI's ptp plugin, Calico).
   * `bridge`: pods share a bridge (Docker, CNI's bridge plugin) and bridged packets pass the node's rules
   * (`bridge-nf-call-iptables`), without which no Service on the same bridge works with any proxy. Default `ptp`.
   */
  readonly mode?: "ptp" | "bridge";
  /**
   * The node hides its pods behind its own address when they leave the cluster, as Docker and CNI's `ipMasq` do.
   * Default true.
   */
  readonly masquerade?: boolean;
  /** Default: the mesh's resolver with the search list of namespace `default`. */
  readonly resolvConf?: string;
}

/** What kubelet writes into pods (dnsPolicy ClusterFirst), with the mesh address as resolver. */
export const POD_RESOLV_CONF = `nameserver 169.254.96.16
search default.svc.cluster.local svc.cluster.local cluster.local
options ndots:5
`;

const BRIDGE = "pods0";
/** Where pods keep their source address: all pod networks of the default topology. */
const CLUSTER_CIDR = "10.244.0.0/16";

/** A pod: a machine of its own with one interface. */
export interface Pod {
  readonly name: string;
  readonly ip: string;
  readonly node: LabNode;
  readonly host: Host;
}

/** The pods of one node. */
export class PodNetwork {
  readonly node: LabNode;
  /** Canonical text of the network. */
  readonly cidr: string;
  readonly gateway: string;
  readonly #mode: "ptp" | "bridge";
  readonly #bits: number;
  readonly #resolvConf: string;
  readonly #pods: Pod[] = [];
  #used = 1;

  private constructor(node: LabNode, options: PodNetworkOptions) {
    const parsed = parseCidr(options.cidr);
    if (parsed === undefined || parsed.bits > 28 || options.cidr.includes(":")) {
      throw new MeshError("CONFIG_INVALID", `"${options.cidr}" is not an IPv4 network of at least 16 addresses`);
    }
    this.node = node;
    this.cidr = cidrText(parsed);
    this.gateway = nthAddress(parsed.ip, 1);
    this.#mode = options.mode ?? "ptp";
    this.#bits = parsed.bits;
    this.#resolvConf = options.resolvConf ?? POD_RESOLV_CONF;
  }

  /** Makes the node ready for pods. */
  static async create(node: LabNode, options: PodNetworkOptions): Promise<PodNetwork> {
    const network = new PodNetwork(node, options);
    const bridged = network.#mode === "bridge";
    await node.host.ns.configure({
      sysctl: {
        "net.ipv4.ip_forward": 1,
        "net.ipv6.conf.all.forwarding": 1,
        ...(bridged ? { "net.bridge.bridge-nf-call-iptables": 1 } : {}),
      },
      ip: bridged
        ? [
          `link add ${BRIDGE} type bridge`,
          `link set ${BRIDGE} up`,
          `addr add ${network.gateway}/${network.#bits} dev ${BRIDGE}`,
        ]
        : [],
      ...((options.masquerade ?? true) ? { nft: masqueradeRules(network.cidr) } : {}),
    });
    node.podNetwork = network;
    return network;
  }

  get pods(): readonly Pod[] {
    return this.#pods;
  }

  /** Adds a pod with the next address. The name is unique in the lab. */
  async add(name: string): Promise<Pod> {
    const n = ++this.#used;
    const ip = nthAddress(this.gateway, n - 1);
    const ns = await this.node.host.ns.lab.namespace(name);
    const [, host] = await Promise.all([this.#wire(ns, ip, n), Host.create(ns, { resolvConf: this.#resolvConf })]);
    const pod: Pod = { name, ip, node: this.node, host };
    this.#pods.push(pod);
    return pod;
  }

  async #wire(ns: Namespace, ip: string, n: number): Promise<void> {
    const node = this.node.host.ns;
    const port = `pod${n}`;
    await ns.lab.link([{ ns: node, ifname: port }, { ns, ifname: "eth0" }]);
    const bridged = this.#mode === "bridge";
    await Promise.all([
      node.ip(
        ...(bridged
          ? [`link set ${port} master ${BRIDGE}`]
          : [`addr add ${this.gateway}/32 dev ${port}`, `route add ${ip}/32 dev ${port}`]),
      ),
      ns.ip(
        `addr add ${ip}/${bridged ? this.#bits : 32} dev eth0`,
        ...(bridged ? [] : [`route add ${this.gateway}/32 dev eth0 scope link`]),
        `route add default via ${this.gateway}`,
      ),
    ]);
  }
}

function masqueradeRules(cidr: string): string {
  return `table ip lab_cni {
  chain post {
    type nat hook postrouting priority srcnat; policy accept;
    ip saddr ${cidr} ip daddr != ${CLUSTER_CIDR} ip daddr != ${cidr} oifname != "pod*" masquerade
  }
}`;
}
