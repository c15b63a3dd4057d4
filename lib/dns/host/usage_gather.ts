/**
 * Which resolvers are in use on this machine right now: this host's own, and those of everything that runs in another
 * network namespace (pods, containers), read from /proc. For `edgemesh check`.
 */
import { judgeUsage, type ResolverUsage, type UsageFacts } from "./usage.ts";

/** What is read of /proc; undefined or empty where a process is gone or not ours to look at. */
export interface ProcReader {
  /** All process ids. */
  pids(): readonly number[];
  /** Target of a symbolic link: `net:[4026531840]`. */
  link(path: string): string | undefined;
  text(path: string): string | undefined;
}

export interface FoundUsage extends ResolverUsage {
  /** `this host`, `pod shop/web-1`, or `container at 172.17.0.2` for what no metadata knows. */
  readonly who: string;
}

/** Network namespaces looked at: more than any node has pods. */
const MAX_NAMESPACES = 1024;

/** What one network namespace asks. */
export interface FoundResolvers {
  /** Its IPv4 addresses; empty: this host's own namespace. */
  readonly ips: readonly string[];
  /** Its resolv.conf; undefined: there is none. */
  readonly text: string | undefined;
}

/** This host first, then every pod and container whose processes may be looked at: all of them for root alone. */
export function findResolvers(proc: ProcReader): readonly FoundResolvers[] {
  const host = proc.link("/proc/self/ns/net");
  const seen = new Map<string, number>();
  for (const pid of proc.pids()) {
    const ns = proc.link(`/proc/${pid}/ns/net`);
    // The process that was there first is a pod's own; what is started in it later may come and go.
    if (ns !== undefined && ns !== host && !seen.has(ns) && seen.size < MAX_NAMESPACES) seen.set(ns, pid);
  }
  const pods = [...seen.values()].flatMap((pid) => {
    const text = proc.text(`/proc/${pid}/root/etc/resolv.conf`);
    const ips = localAddresses(proc.text(`/proc/${pid}/net/fib_trie`) ?? "");
    // Without an address of its own it is no pod: a sandbox of a browser, a service with PrivateNetwork.
    return text === undefined || ips.length === 0 ? [] : [{ ips, text }];
  });
  return [{ ips: [], text: proc.text("/etc/resolv.conf") }, ...pods];
}

/** This host first, then the pods in the order of their names. `podOf`: `shop/web-1` of a pod's address. */
export function judgeResolvers(
  found: readonly FoundResolvers[],
  podOf: (ip: string) => string | undefined,
  facts: UsageFacts,
): readonly FoundUsage[] {
  const judged = found.map(({ ips, text }) => {
    const pod = ips.map(podOf).find((name) => name !== undefined);
    const who = ips.length === 0 ? "this host" : pod === undefined ? `container at ${ips[0]}` : `pod ${pod}`;
    return { who, ...judgeUsage(who, text, facts) };
  });
  const order = ({ who }: FoundUsage) => who === "this host" ? "" : who;
  return judged.sort((a, b) => order(a) < order(b) ? -1 : order(a) > order(b) ? 1 : 0);
}

/** IPv4 addresses of a namespace without loopback: leaves of the routing trie marked `host LOCAL` (proc_net(5)). */
export function localAddresses(fibTrie: string): readonly string[] {
  const found = new Set<string>();
  let address = "";
  for (const line of fibTrie.split("\n")) {
    const leaf = /^\s*\|--\s+([\d.]+)$/.exec(line);
    if (leaf) address = leaf[1]!;
    else if (line.includes("/32 host LOCAL") && !address.startsWith("127.")) found.add(address);
  }
  return [...found];
}
