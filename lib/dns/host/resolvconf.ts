/** Which upstreams this machine already uses: resolv.conf, and systemd-resolved's own list where that is a stub. */
import { familyOf, hostPort, parseHostPort, parseIp } from "../../addr.ts";
import type { IpPort } from "../../net.ts";
import type { UpstreamSpec } from "../upstream/server_state.ts";
import { labelsOf, lowerLabels } from "../wire/labels.ts";

export interface ResolvConf {
  readonly nameservers: readonly IpPort[];
  /** Lower case, without final dots. */
  readonly search: readonly string[];
  readonly ndots: number;
}

/** What resolv.conf points at on machines with systemd-resolved. */
export const RESOLVED_STUBS = ["127.0.0.53", "127.0.0.54"];
/** Where systemd-resolved writes the upstreams it uses itself. */
export const RESOLVED_UPSTREAMS = "/run/systemd/resolve/resolv.conf";
export const DNS_PORT = 53;
/** glibc: more are ignored; three silent ones would take too long anyway. Ours is larger, because the dead are skipped. */
const MAX_NAMESERVERS = 6;

/** Parses resolv.conf(5). Lines and addresses that are none are skipped; a later `search` replaces an earlier one. */
export function parseResolvConf(text: string): ResolvConf {
  const nameservers: IpPort[] = [];
  let search: string[] = [];
  let ndots = 1;
  for (const line of text.split("\n")) {
    const [keyword, ...values] = line.replace(/[#;].*$/, "").trim().split(/\s+/);
    if (keyword === "nameserver") {
      // `fe80::1%eth0`: a link-local server is only reachable with its interface, which our sockets cannot name.
      const ip = parseIp(values[0] ?? "");
      if (ip !== undefined && nameservers.length < MAX_NAMESERVERS) nameservers.push({ ip, port: DNS_PORT });
    } else if (keyword === "search" || keyword === "domain") {
      search = values.flatMap((name) => {
        const labels = labelsOf(name);
        return labels && labels.length > 0 ? [lowerLabels(labels).join(".")] : [];
      });
    } else if (keyword === "options") {
      for (const option of values) {
        const m = /^ndots:(\d+)$/.exec(option);
        if (m) ndots = Math.min(15, Number(m[1]));
      }
    }
  }
  return { nameservers, search, ndots };
}

export interface FoundUpstreams {
  readonly upstreams: readonly UpstreamSpec[];
  /** Sentences about what was left out, to be logged. */
  readonly refused: readonly string[];
}

/** Reads a file; undefined when it is not there. */
export type ReadText = (path: string) => string | undefined;

/**
 * The upstreams of this machine: those of `path`, or of systemd-resolved where `path` only names its stub. Servers
 * that are ourselves are refused, because a query would come back to us for ever.
 */
export function findUpstreams(path: string, read: ReadText, ourselves: readonly IpPort[]): FoundUpstreams {
  const text = read(path);
  if (text === undefined) return { upstreams: [], refused: [`${path} cannot be read`] };
  let { nameservers } = parseResolvConf(text);
  let from = path;
  const refused: string[] = [];
  if (nameservers.length > 0 && nameservers.every((n) => RESOLVED_STUBS.includes(n.ip) || isOurs(n, ourselves))) {
    const behind = read(RESOLVED_UPSTREAMS);
    if (behind !== undefined) {
      nameservers = parseResolvConf(behind).nameservers;
      from = RESOLVED_UPSTREAMS;
    }
  }
  const upstreams = nameservers.filter((n) => {
    if (!isOurs(n, ourselves)) return true;
    refused.push(`${from} names ${hostPort(n)}, which is this resolver itself`);
    return false;
  });
  return { upstreams: upstreams.map((at) => ({ at })), refused };
}

/** Whether an address is where we listen. A listener on the unspecified address has every address of its family. */
export function isOurs(at: IpPort, ourselves: readonly IpPort[]): boolean {
  return ourselves.some((o) =>
    o.port === at.port &&
    (o.ip === at.ip || ((o.ip === "0.0.0.0" || o.ip === "::") && familyOf(o.ip) === familyOf(at.ip)))
  );
}

/** `1.1.1.1`, `1.1.1.1:5353`, `fd00::1`, `[fd00::1]:5353`, each also with `tcp://` in front; undefined if none. */
export function parseUpstream(text: string): UpstreamSpec | undefined {
  const tcp = text.startsWith("tcp://");
  const address = text.replace(/^(tcp|udp):\/\//, "");
  const ip = parseIp(address);
  const at = ip === undefined ? parseHostPort(address) : { ip, port: DNS_PORT };
  return at === undefined || at.port === 0 ? undefined : tcp ? { at, tcp } : { at };
}
