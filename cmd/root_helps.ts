/** An agent that is not root, and whose unit has root do the rest (`edgemesh service-hook`). */
import type { AgentConfig } from "../lib/config.ts";

/** Environment by which an agent knows that its unit has these hooks. */
const HOOKED = "EDGEMESH_SERVICE_HOOK";

/** Whether the unit does for the agent what only root may. */
export function rootHelps(): boolean {
  return Deno.env.get(HOOKED) !== undefined;
}

/** A file that lets the unit spare itself the hook where there is nothing to do: its being there is all it says. */
export function resolverWish(runDir: string): string {
  return `${runDir}/agent.resolver`;
}

/** Notes for the unit whether the host's resolver is to be changed. */
export async function noteResolver(config: AgentConfig): Promise<void> {
  if (config.dns.integrate !== "off") await Deno.writeTextFile(resolverWish(config.runDir), "", { mode: 0o644 });
  else await Deno.remove(resolverWish(config.runDir)).catch(() => {});
}
