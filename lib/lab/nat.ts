/**
 * The kinds of NAT and firewall a site's router can be, as nf_tables text. Terms of RFC 4787: mapping and filtering are
 * endpoint-independent (EIM, EIF), address-dependent (ADF) or address-and-port-dependent (APDM, APDF). What each kind
 * does to TCP hole punching was measured; the lab reproduces the mechanism, not any vendor's box.
 */
import { hostPort } from "../addr.ts";
import { assertNever, MeshError } from "../errors.ts";
import type { IpPort } from "../net.ts";

/** Every kind with what it stands for. */
export const NAT_KINDS = {
  public: "no NAT, no filter: hosts have public addresses",
  fw: "no NAT, stateful firewall: hosts have public addresses and nobody gets in uninvited",
  fwrst: "like fw, answering an uninvited TCP SYN with RST",
  cone: "EIM while the port is free, APDF, drops the uninvited: most home routers",
  conerst: "like cone, answering an uninvited TCP SYN with RST",
  owrt: "like cone with OpenWrt's default: reject on the WAN side",
  adf: "EIM, address-dependent filtering",
  fullcone: "EIM, EIF: whoever knows the mapping gets in",
  eimrand: "EIM with a mapped port unrelated to the local one, APDF",
  symrand: "APDM with random ports: symmetric, carrier-grade and cloud NATs",
  symseq: "APDM with ascending ports: symmetric, but predictable",
  "cone-udpblock": "like cone, no UDP",
  "https-only": "like cone, TCP port 443 only, no UDP",
} as const;

export type NatKind = keyof typeof NAT_KINDS;

/** What happens to IPv6 at the router: none at all, a stateful firewall, or everything passes. There is no NAT. */
export type Ipv6Policy = "none" | "fw" | "open";

/** A TCP port of the router and where it leads to. */
export interface PortForward {
  readonly port: number;
  readonly to: IpPort;
}

export interface NatOptions {
  readonly kind: NatKind;
  /** The router's public IPv4 address. */
  readonly wanAddress: string;
  /** Interface towards the internet. */
  readonly wan: string;
  /** Interfaces towards the site, as an nft pattern: `lan*`. */
  readonly lan: string;
  /** Hosts of the site reach each other by their mappings (RFC 4787 REQ-9). Needs kind `fullcone`. */
  readonly hairpin?: boolean;
  /** Networks of the site do not reach each other directly, as with a guest network. */
  readonly isolated?: boolean;
  /** TCP ports of the router that lead to a host of the site, as an owner sets them up by hand. */
  readonly forwards?: readonly PortForward[];
  readonly ipv6?: Ipv6Policy;
}

/** Whether hosts behind this kind have public addresses of their own instead of sharing the router's. */
export function isRouted(kind: NatKind): boolean {
  return kind === "public" || kind === "fw" || kind === "fwrst";
}

/** The router's complete rules; applying them again replaces the former ones in one step. */
export function natRules(options: NatOptions): string {
  if (options.hairpin && options.kind !== "fullcone") {
    throw new MeshError(
      "CONFIG_INVALID",
      `NAT kind ${options.kind} cannot hairpin: only fullcone keeps a table of mappings`,
    );
  }
  return [
    replaced("ip", "lab_nat", natTable(options)),
    replaced("ip", "lab_filter", filterTable(options)),
    replaced("ip6", "lab_filter6", filter6Table(options)),
  ].join("\n");
}

const PROTOCOLS = ["tcp", "udp"] as const;
/** Port ranges of the kinds that choose ports themselves: clear of what hosts and servers listen on. */
const SYMSEQ_FIRST = 30_000;
const SYMSEQ_PORTS = 4_000;
const EIMRAND_FIRST = 30_000;
const EIMRAND_PORTS = 25_000;
/** A mapping without traffic is forgotten after this time. */
const MAPPING_TIMEOUT = "5m";

function natTable(o: NatOptions): string {
  const outgoing = (rule: string) => `    oifname "${o.wan}" ${rule}`;
  const incoming = (rule: string) => `    iifname "${o.wan}" ip daddr ${o.wanAddress} ${rule}`;
  let maps = "";
  const pre: string[] = [];
  const post: string[] = [];
  for (const { port, to } of o.forwards ?? []) pre.push(incoming(`tcp dport ${port} dnat ip to ${hostPort(to)}`));
  switch (o.kind) {
    case "public":
    case "fw":
    case "fwrst":
      break;
    case "cone":
    case "conerst":
    case "owrt":
    case "cone-udpblock":
    case "https-only":
      post.push(outgoing("masquerade"));
      break;
    case "symrand":
      post.push(outgoing("masquerade random"));
      break;
    case "symseq": {
      // Without the map the kernel would step the port in the wrong byte order: by 256.
      const ports = Array.from({ length: SYMSEQ_PORTS }, (_, i) => `${i} : ${SYMSEQ_FIRST + i}`).join(", ");
      post.push(
        outgoing(
          `meta l4proto { tcp, udp } snat to ${o.wanAddress} : numgen inc mod ${SYMSEQ_PORTS} map { ${ports} }`,
        ),
        outgoing("masquerade"),
      );
      break;
    }
    case "eimrand":
      for (const p of PROTOCOLS) {
        const hash = `jhash ip saddr . ${p} sport mod ${EIMRAND_PORTS} seed 0x5eed offset ${EIMRAND_FIRST}`;
        post.push(outgoing(`meta l4proto ${p} snat to ${o.wanAddress} : ${hash}`));
      }
      post.push(outgoing("masquerade"));
      break;
    case "fullcone":
      maps = mappingTables("inet_service");
      for (const p of PROTOCOLS) {
        if (o.hairpin) {
          pre.push(`    iifname "${o.lan}" ip daddr ${o.wanAddress} dnat ip to ${p} dport map @${p}_mapped`);
        }
        pre.push(incoming(`dnat ip to ${p} dport map @${p}_mapped`));
        post.push(outgoing(`meta l4proto ${p} update @${p}_mapped { ${p} sport : ip saddr . ${p} sport }`));
      }
      post.push(outgoing("masquerade"));
      // The peer behind the same router must see the mapping as the source, or it answers around the NAT.
      if (o.hairpin) post.push(`    iifname "${o.lan}" oifname "${o.lan}" ct status dnat snat to ${o.wanAddress}`);
      break;
    case "adf":
      maps = mappingTables("ipv4_addr . inet_service");
      for (const p of PROTOCOLS) {
        pre.push(incoming(`dnat ip to ip saddr . ${p} dport map @${p}_mapped`));
        post.push(
          outgoing(`meta l4proto ${p} update @${p}_mapped { ip daddr . ${p} sport : ip saddr . ${p} sport }`),
        );
      }
      post.push(outgoing("masquerade"));
      break;
    default:
      return assertNever(o.kind);
  }
  return `${maps}  chain pre {
    type nat hook prerouting priority dstnat; policy accept;
${pre.join("\n")}
  }
  chain post {
    type nat hook postrouting priority srcnat; policy accept;
${post.join("\n")}
  }`;
}

/** For each protocol: what stands outside (key) belongs to which address and port inside. */
function mappingTables(key: string): string {
  return PROTOCOLS.map((p) =>
    `  map ${p}_mapped {
    type ${key} : ipv4_addr . inet_service
    flags dynamic,timeout
    timeout ${MAPPING_TIMEOUT}
    size 65535
  }
`
  ).join("");
}

function filterTable(o: NatOptions): string {
  const reset = "meta l4proto tcp reject with tcp reset";
  const input = o.kind === "owrt" ? `    ${reset}\n    meta l4proto udp reject\n` : "";
  // A router that accepts has nothing listening: its own kernel answers the SYN with RST.
  const inputPolicy = o.kind === "conerst" || o.kind === "public" ? "accept" : "drop";
  const forward: string[] = [];
  // Not `ct status != dnat`: that would compare the whole mask.
  if (o.isolated) forward.push(`iifname "${o.lan}" oifname "${o.lan}" ct status and dnat == 0 drop`);
  forward.push("ct state established,related accept");
  if (o.kind === "cone-udpblock" || o.kind === "https-only") forward.push("meta l4proto udp drop");
  if (o.kind === "https-only") forward.push(`iifname "${o.lan}" tcp dport != 443 drop`);
  forward.push(`iifname "${o.lan}" accept`, "ct status dnat accept");
  if (o.kind === "public") forward.push("accept");
  if (o.kind === "fwrst") forward.push(reset);
  return `  chain input {
    type filter hook input priority filter; policy ${inputPolicy};
    iifname "lo" accept
    iifname "${o.lan}" accept
    ct state established,related accept
    icmp type echo-request accept
${input}  }
  chain forward {
    type filter hook forward priority filter; policy drop;
${forward.map((rule) => `    ${rule}`).join("\n")}
  }`;
}

function filter6Table(o: NatOptions): string {
  const policy = o.ipv6 ?? "none";
  const rules = {
    none: [],
    fw: [
      "ct state established,related accept",
      `iifname "${o.lan}" accept`,
      // RFC 4890 §4.3.1: without these IPv6 breaks.
      "icmpv6 type { destination-unreachable, packet-too-big, time-exceeded, parameter-problem } accept",
    ],
    open: ["accept"],
  }[policy];
  return `  chain forward {
    type filter hook forward priority filter; policy drop;
${rules.map((rule) => `    ${rule}\n`).join("")}  }`;
}

/** The table is made if missing, deleted, and made anew: one transaction that works the first time and again. */
function replaced(family: "ip" | "ip6", name: string, body: string): string {
  return `add table ${family} ${name}\ndelete table ${family} ${name}\ntable ${family} ${name} {\n${body}\n}`;
}
