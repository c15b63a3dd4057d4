/**
 * `edgemesh service-hook`: what the agent's unit has root do around an agent that is not root. The settings are read from
 * root's own files, so that nothing the agent says decides what becomes of the host.
 */
import type { AgentConfig } from "../lib/config.ts";
import { MeshError } from "../lib/errors.ts";
import { openLinks } from "../lib/linux/link_table.ts";
import { removeLeft } from "./cleanup.ts";
import { openLog, readConfig } from "./daemon/daemon.ts";
import { HostResolver } from "./agent/host_resolver.ts";
import { resolverWish } from "./root_helps.ts";

/** An exit code that the unit does not start again from (RestartPreventExitStatus). */
const EXIT_NO_RESTART = "2";

/** One of the unit's hooks: `started`, `reloaded` or `stopped`. */
export async function serviceHookCommand(when: string): Promise<number> {
  if (!["started", "reloaded", "stopped"].includes(when)) {
    throw new MeshError("CONFIG_INVALID", `There is no hook ${when}`, { hint: "started, reloaded or stopped" });
  }
  const config = await readConfig("agent", {}).catch(async (error) => {
    // Settings that cannot be used are why the agent has stopped: what it did by those of before is undone by the defaults.
    if (when !== "stopped") throw error;
    return (await import("../lib/config_load.ts")).loadConfig("agent", { flags: {}, env: {} }).config;
  });
  const { log } = openLog(config.log);
  const host = new HostResolver(config, log);
  if (when === "stopped") {
    await host.undo();
    await Deno.remove(resolverWish(config.runDir)).catch(() => {});
    if (!startsAgain(Deno.env.toObject())) await removeLeft(config);
  } else if (config.dns.enabled) await host.apply(meshAddresses(config));
  else await host.undo();
  return 0;
}

/**
 * Whether systemd starts the agent again, by what it tells of how it ended (systemd.exec(5), $SERVICE_RESULT). One that
 * is started again keeps its rules meanwhile: Services on the node itself go on by them.
 */
export function startsAgain({ SERVICE_RESULT, EXIT_STATUS }: Readonly<Record<string, string>>): boolean {
  // It did not stop in time when it was told to, and was killed.
  if (SERVICE_RESULT === "timeout") return false;
  return SERVICE_RESULT !== "success" && !(SERVICE_RESULT === "exit-code" && EXIT_STATUS === EXIT_NO_RESTART);
}

/** Those of the agent's own addresses that the host has. */
function meshAddresses({ mesh }: AgentConfig): string[] {
  const links = openLinks();
  try {
    const there = new Set(links.addresses().map((a) => a.ip));
    return [mesh.address, mesh.address6].filter((ip) => there.has(ip));
  } finally {
    links.close();
  }
}
