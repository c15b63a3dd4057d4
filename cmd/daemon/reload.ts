/**
 * SIGHUP: reads the configuration anew. Checked first as a whole; with one problem the old one stays. What can change
 * while running does; what needs a new start is said by name and waits for it.
 */
import { type AgentConfig, configPaths, type Role, type ServerConfig } from "../../lib/config.ts";
import { describe } from "../../lib/errors.ts";
import type { Logger, LogSink } from "../../lib/log.ts";
import { type DaemonFlags, readConfig } from "./daemon.ts";

/** Paths that take effect without a new start. */
export const LIVE: Readonly<Record<Role, ReadonlySet<string>>> = {
  agent: new Set([
    "log.level",
    "server",
    "metadata.enabled",
    "dns.enabled",
    "dns.upstreams",
    "dns.forwards",
    "dns.hosts",
    "dns.searchNamespaces",
    "dns.rebindProtection",
    "dns.rebindAllow",
    "dns.allowFrom",
    "dns.maxQueriesPerSecond",
    "dns.maxPendingPerSource",
    "dns.maxTtlSeconds",
    "dns.maxNegativeTtlSeconds",
    "dns.serveStaleSeconds",
    "dns.ttlSeconds",
    "dns.namespaces",
    "forward.enabled",
    "tunnel.enabled",
    "forward.accessLog",
    "forward.serviceFilterMode",
    "forward.namespaces",
    "forward.excludeNamespaces",
    "forward.nativeProxy",
    "forward.balance",
    "forward.prefer",
    "forward.externalIPs",
    "forward.hostPorts",
    "forward.allowPrivateExternalEndpoints",
  ]),
  server: new Set(["log.level"]),
};

export interface ReloadPlan<C> {
  /** The old configuration with the changes that can be made now. */
  readonly next: C;
  /** Changed paths that take effect, and those that wait for a new start. */
  readonly applied: readonly string[];
  readonly waiting: readonly string[];
}

/** What of `wanted` can be had now. Pure. */
export function planReload<C extends AgentConfig | ServerConfig>(role: Role, before: C, wanted: C): ReloadPlan<C> {
  const next = structuredClone(before) as unknown as Tree;
  const applied: string[] = [];
  const waiting: string[] = [];
  for (const path of configPaths(role)) {
    const value = at(wanted as unknown as Tree, path);
    if (JSON.stringify(value) === JSON.stringify(at(next, path))) continue;
    if (!LIVE[role].has(path)) {
      waiting.push(path);
      continue;
    }
    applied.push(path);
    const keys = path.split(".");
    const last = keys.pop()!;
    (keys.length === 0 ? next : at(next, keys.join(".")) as Tree)[last] = value;
  }
  return { next: next as unknown as C, applied, waiting };
}

interface Tree {
  [key: string]: unknown;
}

export interface ReloadOptions<C> {
  readonly role: Role;
  readonly flags: DaemonFlags;
  readonly log: Logger;
  readonly sink: LogSink;
  /** The configuration in force. */
  config(): C;
  apply(next: C): Promise<void>;
}

/** Reloads on every SIGHUP, one after the other, for the rest of the process's life. */
export function reloadOnHangup(options: ReloadOptions<AgentConfig> & { readonly role: "agent" }): void;
export function reloadOnHangup(options: ReloadOptions<ServerConfig> & { readonly role: "server" }): void;
export function reloadOnHangup<C extends AgentConfig | ServerConfig>(options: ReloadOptions<C>): void {
  let last = Promise.resolve();
  let level: C["log"]["level"] | undefined;
  Deno.addSignalListener("SIGHUP", () => {
    last = last.then(async () => {
      const { role, log, sink, flags } = options;
      try {
        const wanted = await (role === "agent" ? readConfig("agent", flags) : readConfig("server", flags)) as C;
        const before = options.config();
        const known = level === undefined ? before : { ...before, log: { ...before.log, level: level } };
        const { next, applied, waiting } = planReload(role, known, wanted);
        await options.apply(next);
        sink.level = wanted.log.level;
        level = wanted.log.level;
        log.info("configuration reloaded", { changed: applied.join(", ") || "nothing" });
        if (waiting.length > 0) log.warn("changes that need a restart were not made", { paths: waiting.join(", ") });
      } catch (error) {
        log.error("configuration not reloaded; the old one stays in force", { error: describe(error) });
      }
    });
  });
}

function at(tree: Tree, path: string): unknown {
  return path.split(".").reduce<unknown>((value, key) => (value as Tree | undefined)?.[key], tree);
}
