/**
 * Which addresses of this host lead to other machines: what peers on the LAN are told, and where they are looked for.
 * Pure. Links of pods, containers, virtual machines, overlays and our own mesh are left out: their addresses exist on
 * every host, or nowhere else.
 */
import { type Cidr, cidrContains, familyOf, isUnicastEndpoint } from "../addr.ts";
import { OUR_MARK } from "./links.ts";
import type { Link, LinkAddress } from "./rtnetlink.ts";

export interface LanAddress {
  readonly ip: string;
  /** Length of the network's prefix. */
  readonly bits: number;
  /** Index of the link. */
  readonly link: number;
}

/** Kinds of link that hold virtual addresses, or lead into a tunnel whose other end is reached otherwise, too. */
const VIRTUAL = new Set([
  "dummy",
  "ifb",
  "tun",
  "wireguard",
  "vxlan",
  "geneve",
  "gre",
  "gretap",
  "ip6gre",
  "ip6gretap",
  "erspan",
  "ip6erspan",
  "ipip",
  "ip6tnl",
  "sit",
  "vti",
  "vti6",
  "xfrm",
  "nlmon",
  "vcan",
  "can",
  "vxcan",
  "bareudp",
]);

/** Addresses of links that are up and lead to other machines; not those inside `exclude` (pod and service networks). */
export function lanAddresses(
  links: readonly Link[],
  addresses: readonly LinkAddress[],
  exclude: readonly Cidr[],
): LanAddress[] {
  const usable = new Map(links.filter((link) => leadsOut(link, links)).map((link) => [link.index, link]));
  return addresses
    .filter((a) => usable.has(a.index) && !a.tentative && isUnicastEndpoint(a.ip))
    .filter((a) => !exclude.some((cidr) => cidrContains(cidr, a.ip)))
    // Addresses that we made, on whatever link.
    .filter((a) => a.protocol !== OUR_MARK)
    .map((a) => ({ ip: a.ip, bits: a.bits, link: a.index }))
    .sort((a, b) => a.link - b.link || familyOf(a.ip) - familyOf(b.ip));
}

function leadsOut(link: Link, links: readonly Link[]): boolean {
  if (!link.running || link.loopback || link.group === OUR_MARK || VIRTUAL.has(link.kind ?? "")) return false;
  if (link.kind !== "bridge") return true;
  // The bridge of a LAN has a port that is hardware; one of containers or virtual machines has only their ends.
  const ports = links.filter((port) => port.master === link.index);
  return ports.some((port) => port.kind !== "veth" && port.kind !== "tun" && port.kind !== "macvtap");
}
