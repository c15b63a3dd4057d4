/** Counts what crosses the interfaces of a namespace: the lab's word on paths, independent of the agents'. */
import type { Namespace } from "./namespace.ts";

/** Traffic of one direction of one pair of addresses on one interface, as seen on the wire (after NAT). */
export interface FlowCount {
  readonly iface: string;
  readonly direction: "in" | "out";
  readonly source: string;
  readonly destination: string;
  /** `tcp`, `udp`, `icmp`, `ipv6-icmp` or a number. */
  readonly protocol: string;
  /** Segments that the kernel carries as one (GSO) count as one. */
  readonly packets: number;
  /** Bytes from the IP header on. */
  readonly bytes: number;
}

/** What to add up; what is left out matches everything. */
export interface FlowFilter {
  readonly iface?: string;
  readonly direction?: "in" | "out";
  /** Both ends in either order. */
  readonly between?: readonly [string, string];
  /** Either end. */
  readonly address?: string;
  readonly protocol?: string;
}

export interface Total {
  readonly packets: number;
  readonly bytes: number;
}

/** Flows of one namespace, counted by nf_tables in a table of its own. */
export class Meter {
  readonly #ns: Namespace;
  readonly #table: string;

  private constructor(ns: Namespace, label: string) {
    this.#ns = ns;
    this.#table = meterTable(label);
  }

  /** Starts counting. A meter that exists under the label starts again from zero. */
  static async start(ns: Namespace, label: string): Promise<Meter> {
    await ns.nft(meterRules(label));
    return new Meter(ns, label);
  }

  /** All flows since the start, loopback left out. */
  async read(): Promise<FlowCount[]> {
    const { stdout } = await this.#ns.execOk(["nft", "-j", "list", "table", "inet", this.#table]);
    return parseMeter(stdout);
  }

  /** Sum of the flows that match. */
  async total(filter: FlowFilter = {}): Promise<Total> {
    return sumFlows(await this.read(), filter);
  }

  async reset(): Promise<void> {
    await this.#ns.nft(METER_SETS.map((set) => `flush set inet ${this.#table} ${set}`).join("\n"));
  }

  async stop(): Promise<void> {
    await this.#ns.nft(`delete table inet ${this.#table}`);
  }
}

/** Sum of the flows that match a filter. */
export function sumFlows(flows: readonly FlowCount[], filter: FlowFilter = {}): Total {
  let [packets, bytes] = [0, 0];
  for (const flow of flows) {
    if (filter.iface !== undefined && flow.iface !== filter.iface) continue;
    if (filter.direction !== undefined && flow.direction !== filter.direction) continue;
    if (filter.protocol !== undefined && flow.protocol !== filter.protocol) continue;
    const ends = [flow.source, flow.destination];
    if (filter.address !== undefined && !ends.includes(filter.address)) continue;
    if (filter.between !== undefined) {
      const [a, b] = filter.between;
      if (!(ends[0] === a && ends[1] === b) && !(ends[0] === b && ends[1] === a)) continue;
    }
    packets += flow.packets;
    bytes += flow.bytes;
  }
  return { packets, bytes };
}

const METER_SETS = ["in4", "in6", "out4", "out6"] as const;

/** Rules that count: before any DNAT on the way in, after any SNAT on the way out. */
export function meterRules(label: string): string {
  const table = meterTable(label);
  const set = (name: string, type: string) =>
    `  set ${name} {\n    type ifname . ${type} . ${type} . inet_proto\n    size 65535\n    flags dynamic\n    counter\n  }`;
  return `add table inet ${table}
delete table inet ${table}
table inet ${table} {
${set("in4", "ipv4_addr")}
${set("in6", "ipv6_addr")}
${set("out4", "ipv4_addr")}
${set("out6", "ipv6_addr")}
  chain incoming {
    type filter hook prerouting priority -400; policy accept;
    iifname "lo" accept
    meta nfproto ipv4 update @in4 { iifname . ip saddr . ip daddr . meta l4proto }
    meta nfproto ipv6 update @in6 { iifname . ip6 saddr . ip6 daddr . meta l4proto }
  }
  chain outgoing {
    type filter hook postrouting priority 400; policy accept;
    oifname "lo" accept
    meta nfproto ipv4 update @out4 { oifname . ip saddr . ip daddr . meta l4proto }
    meta nfproto ipv6 update @out6 { oifname . ip6 saddr . ip6 daddr . meta l4proto }
  }
}`;
}

interface SetElement {
  readonly elem: {
    readonly val: { readonly concat: readonly [string, string, string, string | number] };
    readonly counter: { readonly packets: number; readonly bytes: number };
  };
}

/** Reads the output of `nft -j list table`. */
export function parseMeter(json: string): FlowCount[] {
  const { nftables } = JSON.parse(json) as {
    nftables: readonly { readonly set?: { readonly name: string; readonly elem?: readonly SetElement[] } }[];
  };
  const flows: FlowCount[] = [];
  for (const { set } of nftables) {
    for (const { elem } of set?.elem ?? []) {
      const [iface, source, destination, protocol] = elem.val.concat;
      const direction = set!.name.startsWith("in") ? "in" : "out";
      flows.push({ iface, direction, source, destination, protocol: String(protocol), ...elem.counter });
    }
  }
  return flows;
}

function meterTable(label: string): string {
  return `lab_meter_${label.replace(/[^a-z0-9]/g, "_")}`;
}
