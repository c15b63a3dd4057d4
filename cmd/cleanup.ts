/** `edgemesh cleanup`: removes what an agent left in the kernel, and with `--state` its identity. */
import type { AgentConfig } from "../lib/config.ts";
import { MeshError } from "../lib/errors.ts";
import { lockFile } from "../lib/linux/lock.ts";
import { nullLogger } from "../lib/log.ts";
import { openRules } from "./agent/rules.ts";
import { readConfig } from "./daemon/daemon.ts";
import { HostResolver } from "./agent/host_resolver.ts";
import { print } from "./output.ts";
import { removeLeftMeshLink } from "./agent/link.ts";

export async function cleanupCommand(flags: { config?: string; state?: boolean }): Promise<number> {
  const config = await readConfig("agent", flags.config === undefined ? {} : { config: flags.config });
  await refuseBesideAgent(config.stateDir);
  await removeLeft(config);
  await new HostResolver(config, nullLogger).undo();
  print(`removed kernel rules and the link ${config.mesh.interface}`);
  if (flags.state) {
    await Deno.remove(config.stateDir, { recursive: true }).catch((e) => {
      if (!(e instanceof Deno.errors.NotFound)) throw e;
    });
    print(`removed ${config.stateDir}: this machine must join again`);
  }
  return 0;
}

/** Removes the rules, link and routes of an agent that does not run. */
export async function removeLeft(config: AgentConfig): Promise<void> {
  const rules = openRules(config.forward.backend, nullLogger);
  await rules.remove("all");
  rules.close();
  removeLeftMeshLink(config);
}

/** A running agent would go on without its rules, and put back what it notices. Throws KERNEL. */
async function refuseBesideAgent(stateDir: string): Promise<void> {
  const there = await Deno.stat(stateDir).then(() => true, () => false);
  const lock = there ? lockFile(`${stateDir}/lock`) : undefined;
  if (there && !lock) {
    throw new MeshError("KERNEL", "The agent of this host is running, and cleans up itself when it stops", {
      hint: "systemctl stop edgemesh-agent",
    });
  }
  lock?.close();
}
