/**
 * A node that runs nothing but the DNS server: metadata from a JSON file, sockets from the kernel. Tests and benches
 * start it inside a namespace. It prints one line when it listens and its statistics on SIGUSR2, finds its upstreams
 * anew on SIGHUP, and ends on SIGTERM.
 *
 *     deno run -A tests/lab/dns_node.ts config.json
 */
import { parseCidr } from "../../lib/addr.ts";
import { systemClock } from "../../lib/clock.ts";
import { DEFAULT_DNS_CONFIG, type DnsConfig } from "../../lib/dns/config.ts";
import type { CacheStore } from "../../lib/dns/cache/persist.ts";
import { DnsServer } from "../../lib/dns/server.ts";
import { MemoryMeta, type MemoryMetaInput } from "../../lib/dns/testing_meta.ts";
import { writeAtomic } from "../../lib/linux/files.ts";
import { EpollLoop } from "../../lib/linux/loop.ts";
import { createLogger, stderrSink } from "../../lib/log.ts";
import type { IpPort } from "../../lib/net.ts";

/** The file's shape. */
export interface DnsNodeConfig {
  readonly listen: readonly IpPort[];
  readonly dns: Partial<DnsConfig>;
  readonly meta: MemoryMetaInput;
  readonly hostIps?: readonly string[];
  readonly networks?: readonly string[];
  /** File that keeps foreign answers across restarts. */
  readonly cacheFile?: string;
}

function readText(path: string): string | undefined {
  try {
    return Deno.readTextFileSync(path);
  } catch {
    return undefined;
  }
}

function fileStore(path: string): CacheStore {
  return {
    load: () => {
      try {
        return Deno.readFileSync(path);
      } catch {
        return undefined;
      }
    },
    save: (bytes) => writeAtomic(path, bytes),
  };
}

if (import.meta.main) {
  const given = JSON.parse(Deno.readTextFileSync(Deno.args[0]!)) as DnsNodeConfig;
  const log = createLogger(stderrSink("info", "text"), "dns");
  const loop = EpollLoop.open({ clock: systemClock, log });
  const meta = new MemoryMeta(given.meta);
  const sources = {
    hostIps: given.hostIps ?? [],
    networks: (given.networks ?? []).map((text) => parseCidr(text)!),
  };
  const server = DnsServer.start({
    loop,
    clock: systemClock,
    log,
    listen: given.listen,
    meta: () => meta,
    config: { ...DEFAULT_DNS_CONFIG, ...given.dns },
    sources: () => sources,
    readText,
    ...(given.cacheFile === undefined ? {} : { store: fileStore(given.cacheFile) }),
  });
  const say = (value: unknown) => Deno.stdout.writeSync(new TextEncoder().encode(JSON.stringify(value) + "\n"));
  say({ listening: server.addresses });
  const stop = async () => {
    await server.close();
    loop.close();
    await loop.finished;
    Deno.exit(0);
  };
  Deno.addSignalListener("SIGTERM", stop);
  Deno.addSignalListener("SIGHUP", () => server.reloadUpstreams());
  Deno.addSignalListener("SIGUSR2", () => say({ stats: server.stats(), memory: Deno.memoryUsage() }));
}
