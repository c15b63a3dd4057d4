/** Whom this host and its pods ask for names, as the user who checks may see: an agent that is not root may not. */
import { findResolvers, type FoundUsage, judgeResolvers, type ProcReader } from "../../lib/dns/host/usage_gather.ts";
import { adminCall } from "../admin_client.ts";
import type { AgentAnswer } from "./facts.ts";

/** Addresses in one question to the agent: a request's first line has a limit. */
const ASK_AT_ONCE = 200;

/** Looks, has the agent name the pods, and judges. Rejects with MeshError when the agent does not answer. */
export async function gatherResolvers(runDir: string, usage: AgentAnswer["usage"]): Promise<readonly FoundUsage[]> {
  const found = findResolvers(procReader);
  const ips = found.flatMap((one) => one.ips);
  const names = new Map<string, string>();
  for (let i = 0; i < ips.length; i += ASK_AT_ONCE) {
    const query = ips.slice(i, i + ASK_AT_ONCE).map((ip) => `ip=${ip}`).join("&");
    const answer = await adminCall({ role: "agent", runDir }, "GET", `/v1/pods?${query}`) as Record<string, string>;
    for (const [ip, name] of Object.entries(answer)) names.set(ip, name);
  }
  return judgeResolvers(found, (ip) => names.get(ip), usage);
}

const procReader: ProcReader = {
  pids: () => quiet(() => [...Deno.readDirSync("/proc")].map((e) => Number(e.name)).filter((pid) => pid > 0)) ?? [],
  link: (path) => quiet(() => Deno.readLinkSync(path)),
  text: (path) => quiet(() => Deno.readTextFileSync(path)),
};

function quiet<T>(read: () => T): T | undefined {
  try {
    return read();
  } catch {
    return undefined;
  }
}
