/**
 * A node that runs nothing but the DNS server: metadata from a JSON file, sockets from the kernel. Tests and benches
 * start it inside a namespace; it prints one line when it listens, one JSON line of statistics per line on stdin.
 *
 *     deno run -A tests/lab/dns_node.ts config.json
 */
import { parseCidr } from "../../lib/addr.ts";
import { systemClock } from "../../lib/clock.ts";
import { DEFAULT_DNS_CONFIG, type DnsConfig } from "../../lib/dns/config.ts";
import { DnsServer } from "../../lib/dns/server.ts";
import { MemoryMeta, type MemoryMetaInput } from "../../lib/dns/testing_meta.ts";
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
}

function readText(path: string): string | undefined {
  try {
    return Deno.readTextFileSync(path);
  } catch {
    return undefined;
  }
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
  });
  const say = (value: unknown) => Deno.stdout.writeSync(new TextEncoder().encode(JSON.stringify(value) + "\n"));
  say({ listening: server.addresses });
  for await (const _line of Deno.stdin.readable) {
    say({ stats: server.stats(), memory: Deno.memoryUsage() });
  }
  await server.close();
  loop.close();
  await loop.finished;
}
