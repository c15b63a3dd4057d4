/** A node that runs only the DNS server, a pod on it, and a network of upstream resolvers. */
import { DEFAULT_DNS_CONFIG, type DnsConfig } from "../../lib/dns/config.ts";
import { endpoint, type MemoryMetaInput, port, service, slice } from "../../lib/dns/testing_meta.ts";
import type { ExecResult } from "../../lib/lab/exec.ts";
import { Host } from "../../lib/lab/host.ts";
import { Lab } from "../../lib/lab/namespace.ts";
import type { HostProcess } from "../../lib/lab/process.ts";
import type { DnsNodeConfig } from "./dns_node.ts";
import { fixture } from "./support.ts";

const ROOT = new URL("../..", import.meta.url).pathname;
export const MESH = "169.254.96.16";
export const MESH6 = "fd96:ed9e::16";
const NODE_IP = "198.51.100.100";
const POD_IP = "10.244.1.2";
const POD_GATEWAY = "10.244.1.1";

export const POD_RESOLV_CONF =
  `nameserver ${MESH}\nsearch shop.svc.cluster.local svc.cluster.local cluster.local\noptions ndots:5\n`;

/** Services that the tests ask for: one of every kind. */
export const SHOP: MemoryMetaInput = {
  services: [
    service("shop", "web", { clusterIPs: ["10.96.0.7", "fd00:96::7"], ports: [port("http", 80)] }),
    service("shop", "2048", { clusterIPs: ["10.96.0.8"] }),
    service("shop", "db", { headless: true, ports: [port("pg", 5432)] }),
    service("shop", "many", { headless: true }),
    service("shop", "out", { type: "ExternalName", externalName: "www.example.test" }),
    service("other", "api", { clusterIPs: ["10.96.0.9"] }),
  ],
  slices: [
    slice({ namespace: "shop", service: "db" }, [
      endpoint("10.244.1.10", { hostname: "db-0", node: "edge-1" }),
      endpoint("10.244.2.10", { hostname: "db-1", node: "edge-2" }),
      endpoint("10.244.3.10", { hostname: "db-2", node: "edge-3", ready: false }),
    ], [port("pg", 5432)]),
    slice(
      { namespace: "shop", service: "many" },
      Array.from({ length: 150 }, (_, i) => endpoint(`10.244.9.${i + 1}`)),
    ),
  ],
};

export const UPSTREAM_ZONE = {
  "www.example.test/A": ["192.0.2.80"],
  "big.example.test/A": Array.from({ length: 120 }, (_, i) => `192.0.2.${i + 1}`),
};

export interface DnsLabOptions {
  readonly dns?: Partial<DnsConfig>;
  readonly meta?: MemoryMetaInput;
  /** resolv.conf of the node. Default: the first upstream. */
  readonly resolvConf?: string;
  readonly podResolvConf?: string;
}

/** What stands while a test runs. */
export class DnsLab implements AsyncDisposable {
  readonly lab: Lab;
  readonly node: Host;
  readonly pod: Host;
  readonly up: Host;
  readonly #options: DnsLabOptions;
  #server: HostProcess | undefined;

  private constructor(lab: Lab, hosts: readonly [Host, Host, Host], options: DnsLabOptions) {
    this.lab = lab;
    [this.node, this.pod, this.up] = hosts;
    this.#options = options;
  }

  static async open(options: DnsLabOptions = {}): Promise<DnsLab> {
    const lab = await Lab.open();
    try {
      const [node, pod, up] = await lab.namespaces(["node", "pod", "up"]);
      await lab.link(
        [{ ns: node, ifname: "pod0" }, { ns: pod, ifname: "eth0" }],
        [{ ns: node, ifname: "eth0" }, { ns: up, ifname: "eth0" }],
      );
      await Promise.all([
        node.configure({
          sysctl: { "net.ipv4.ip_forward": 1 },
          ip: [
            "link add edgemesh0 type bridge",
            "link set edgemesh0 up",
            `addr add ${MESH}/32 dev edgemesh0`,
            `-6 addr add ${MESH6}/128 dev edgemesh0 nodad`,
            `addr add ${POD_GATEWAY}/32 dev pod0`,
            `route add ${POD_IP}/32 dev pod0`,
            `addr add ${NODE_IP}/24 dev eth0`,
          ],
        }),
        pod.configure({
          ip: [
            `addr add ${POD_IP}/32 dev eth0`,
            `route add ${POD_GATEWAY} dev eth0`,
            `route add default via ${POD_GATEWAY}`,
          ],
        }),
        up.configure({
          ip: [1, 2, 3].map((n) => `addr add 198.51.100.${n}/24 dev eth0`).concat(`route add ${MESH} via ${NODE_IP}`),
        }),
      ]);
      const hosts = await Promise.all([
        Host.create(node, { resolvConf: options.resolvConf ?? "nameserver 198.51.100.1\n" }),
        Host.create(pod, { resolvConf: options.podResolvConf ?? POD_RESOLV_CONF }),
        Host.create(up),
      ]);
      return new DnsLab(lab, hosts, options);
    } catch (error) {
      await lab.close();
      throw error;
    }
  }

  /** Starts a resolver at 198.51.100.n. */
  async upstream(n: number, zone: Readonly<Record<string, readonly string[]>> = UPSTREAM_ZONE): Promise<HostProcess> {
    return await this.up.start(
      `upstream-${n}`,
      [...fixture("dns_upstream"), `198.51.100.${n}`, "53", JSON.stringify(zone)],
      { ready: { log: /^ready/ } },
    );
  }

  /** Makes addresses of the upstream network silent: what is sent there is lost. */
  async blackhole(...n: readonly number[]): Promise<void> {
    const set = n.map((i) => `198.51.100.${i}`).join(", ");
    const rule = n.length > 0 ? `chain in {\ntype filter hook input priority 0\nip daddr { ${set} } drop\n}` : "";
    await this.up.ns.nft(`table ip hole\ndelete table ip hole\ntable ip hole {\n${rule}\n}`);
  }

  /** Starts the DNS server on the node; returns how long it took until it listened, in ms. */
  async start(): Promise<HostProcess> {
    const config: DnsNodeConfig = {
      listen: [{ ip: MESH, port: 53 }, { ip: MESH6, port: 53 }],
      dns: { ...DEFAULT_DNS_CONFIG, reverseNetworks: ["10.96.0.0/12"], ...this.#options.dns },
      meta: this.#options.meta ?? SHOP,
      hostIps: [NODE_IP, POD_GATEWAY],
      networks: ["10.244.1.0/24"],
      cacheFile: "/var/lib/edgemesh/dns-cache",
    };
    const path = "/var/lib/edgemesh/dns.json";
    await Deno.writeTextFile(this.node.path(path), JSON.stringify(config));
    const argv = [`${ROOT}scripts/deno`, "run", "-A", "--quiet", `${ROOT}tests/lab/dns_node.ts`, path];
    return this.#server = await this.node.start("dns", argv, {
      ready: { log: /"listening"/ },
      // Its own look for updates would show up at the upstreams.
      env: { DENO_NO_UPDATE_CHECK: "1" },
    });
  }

  get server(): HostProcess {
    return this.#server!;
  }

  /** `dig` on a host. */
  dig(host: Host, ...args: readonly string[]): Promise<ExecResult> {
    return host.exec(["dig", "+tries=1", "+time=5", `@${MESH}`, ...args]);
  }

  /** Addresses, or what dig says instead: `NXDOMAIN`, `SERVFAIL`, `timeout`; and the time dig measured, ms. */
  async lookup(
    host: Host,
    name: string,
    ...args: readonly string[]
  ): Promise<{ readonly got: string; readonly ms: number }> {
    const { stdout } = await this.dig(host, "+noall", "+answer", "+comments", "+stats", name, ...args);
    const status = /status: (\w+)/.exec(stdout)?.[1] ?? "timeout";
    const answers = [...stdout.matchAll(/^\S+\s+\d+\s+IN\s+(?:A|AAAA)\s+(\S+)$/gm)].map((m) => m[1]!).sort();
    return {
      got: answers.length > 0 ? answers.join(" ") : status === "NOERROR" ? "NODATA" : status,
      ms: Number(/Query time: (\d+) msec/.exec(stdout)?.[1] ?? NaN),
    };
  }

  close(): Promise<void> {
    return this.lab.close();
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.close();
  }
}
