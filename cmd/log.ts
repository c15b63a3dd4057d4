/** `edgemesh log level`: changes how much a running process says, until it is started again or told to reload. */
import { adminCall, NotRunningError } from "./admin_client.ts";
import { print } from "./output.ts";

/** Tells the wanted role, or every role that runs here. */
export async function logLevelCommand(
  level: string,
  flags: { readonly runDir: string; readonly role?: "agent" | "server" },
): Promise<number> {
  const roles = flags.role ? [flags.role] : ["agent", "server"] as const;
  let missing: unknown;
  let told = 0;
  for (const role of roles) {
    try {
      await adminCall({ role, runDir: flags.runDir }, "PUT", "/v1/log-level", { level });
      print(`the ${role} logs at level ${level}`);
      told++;
    } catch (error) {
      if (!(error instanceof NotRunningError)) throw error;
      missing ??= error;
    }
  }
  if (told === 0) throw missing;
  return 0;
}
