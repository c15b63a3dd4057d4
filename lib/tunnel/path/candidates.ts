/**
 * Which addresses of a peer may be dialled. Pure. A list of addresses comes from another agent by way of the server, so
 * believing it would make every node a port scanner for whoever runs one: only what the server itself saw of the peer,
 * what lies in a network this host is plugged into, and what local configuration allows is ever dialled.
 */
import { type Cidr, cidrContains, familyOf, hostPort, isPrivate, isUnicastEndpoint } from "../../addr.ts";
import type { IpPort } from "../../net.ts";
import type { PathKind } from "../carrier.ts";

/** An address of this host on a link that leads to other machines (no loopback, mesh, pod or tunnel link). */
export interface HostAddress {
  readonly ip: string;
  /** Length of the network's prefix. */
  readonly bits: number;
  /** Number of the link. */
  readonly link: number;
}

/** Addresses dialled at the same time for one peer. */
export const MAX_DIALS = 8;

/** Better first: a path replaces one of a lower rank. */
export const RANK: Readonly<Record<PathKind, number>> = { relay: 0, direct: 1, lan: 2 };

export interface DialRules {
  /** Our own addresses. */
  readonly host: readonly HostAddress[];
  /** Addresses a server saw the peer come from. */
  readonly observed: readonly string[];
  /** Where a server sees us. */
  readonly self: string | undefined;
  /** Networks allowed by local configuration. */
  readonly allowed: readonly Cidr[];
}

export type Verdict =
  | { readonly path: "lan" | "direct" }
  /** Why not, as the end of "ADDRESS was not dialled: …". */
  | { readonly refused: string };

/** Whether an address that a peer claims may be dialled, and what a connection there would be. */
export function judge(at: IpPort, rules: DialRules): Verdict {
  const { ip } = at;
  if (!isUnicastEndpoint(ip) || at.port === 0) return { refused: "it is no address of a host" };
  if (rules.host.some((own) => own.ip === ip)) return { refused: "it is ours" };
  if (onLink(rules.host, ip)) return { path: "lan" };
  if (rules.allowed.some((cidr) => cidrContains(cidr, ip))) return { path: "direct" };
  const seen = rules.observed.includes(ip);
  // The same private address means another machine on each site, unless the server sees us from such a network, too:
  // then it is an intranet, where the address means to us what it means to the server.
  const meaningful = !isPrivate(ip) || (seen && rules.self !== undefined && isPrivate(rules.self));
  if (!meaningful) return { refused: "it is private and in no network of this host" };
  return seen ? { path: "direct" } : { refused: "no server saw the peer there" };
}

/** What a connection from `ip` to our listener is. */
export function pathFrom(ip: string, host: readonly HostAddress[]): "lan" | "direct" {
  return onLink(host, ip) || host.some((own) => own.ip === ip) ? "lan" : "direct";
}

/** Whether an address is in a network this host is plugged into. */
export function onLink(host: readonly HostAddress[], ip: string): boolean {
  return host.some((own) => linkNetwork(own) !== undefined && cidrContains(linkNetwork(own)!, ip));
}

/** A candidate that may be dialled. */
export interface Dialable {
  readonly at: IpPort;
  readonly path: "lan" | "direct";
}

/** The addresses worth dialling, best first, each once, at most {@link MAX_DIALS}; and why others are not. */
export function dialable(
  addresses: readonly IpPort[],
  rules: DialRules,
): { readonly dial: readonly Dialable[]; readonly refused: readonly string[] } {
  const dial: Dialable[] = [];
  const refused: string[] = [];
  const seen = new Set<string>();
  for (const at of addresses) {
    const text = hostPort(at);
    if (seen.has(text)) continue;
    seen.add(text);
    const verdict = judge(at, rules);
    if ("path" in verdict) dial.push({ at, path: verdict.path });
    else refused.push(`${text}: ${verdict.refused}`);
  }
  // IPv6 first within a rank: no NAT stands in its way.
  dial.sort((a, b) => RANK[b.path] - RANK[a.path] || familyOf(b.at.ip) - familyOf(a.at.ip));
  return { dial: dial.slice(0, MAX_DIALS), refused };
}

/** What we tell others about ourselves: our addresses with the listener's port, then what configuration adds. */
export function ownCandidates(
  host: readonly HostAddress[],
  listening: { readonly port: number; readonly families: readonly (4 | 6)[] } | undefined,
  options: { readonly advertise: readonly IpPort[]; readonly max: number },
): IpPort[] {
  const own = listening === undefined ? [] : host
    .filter((a) => listening.families.includes(familyOf(a.ip)) && isUnicastEndpoint(a.ip))
    // A private address of a network with no other host in it leads nowhere.
    .filter((a) => !isPrivate(a.ip) || linkNetwork(a) !== undefined)
    .map((a) => ({ ip: a.ip, port: listening.port }));
  // Configured ones first: somebody wanted them, and the list has an end.
  return [...options.advertise, ...own].slice(0, options.max);
}

/** The network of an address; undefined for one that stands alone. */
function linkNetwork(own: HostAddress): Cidr | undefined {
  const alone = familyOf(own.ip) === 4 ? own.bits >= 31 : own.bits >= 127;
  return alone ? undefined : { ip: own.ip, bits: own.bits };
}
