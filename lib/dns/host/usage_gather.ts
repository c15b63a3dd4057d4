/**
 * Which resolvers are in use on this machine right now: this host's own, and those of everything that runs in another
 * network namespace (pods, containers), read from /proc. For `edgemesh check`.
 */
import type { MetaReader } from "../../meta/model.ts";
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

/** This host first, then the pods in the order of their names. */
export function gatherUsage(proc: ProcReader, meta: MetaReader, facts: UsageFacts): readonly FoundUsage[] {
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
    if (text === undefined || ips.length === 0) return [];
    const known = ips.flatMap((ip) => meta.podsByIp(ip)).at(0);
    const who = known ? `pod ${known.namespace}/${known.name}` : `container at ${ips[0]}`;
    return [{ who, ...judgeUsage(who, text, facts) }];
  });
  pods.sort((a, b) => a.who < b.who ? -1 : a.who > b.who ? 1 : 0);
  const who = "this host";
  return [{ who, ...judgeUsage(who, proc.text("/etc/resolv.conf"), facts) }, ...pods];
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
