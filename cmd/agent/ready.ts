/**
 * When an agent is ready: what its modules promise, they do. A module that is switched off blocks nothing, and none waits
 * for the cloud: with a snapshot on disk an agent without any server is ready.
 */
import type { RunningAgent } from "./running.ts";

/** Adds the conditions of each module. They are asked again for as long as the agent runs. */
export function addAgentChecks(agent: RunningAgent): void {
  const { readiness } = agent;
  readiness.check("metadata", () => agent.config.metadata.enabled ? noMetadata(agent) : undefined);
  readiness.check("mesh link", () => {
    const { dns, forward } = agent.config;
    return dns.enabled || forward.enabled ? agent.link.problem?.text : undefined;
  });
  // Without the link neither could be: one reason is enough.
  readiness.check(
    "kernel rules",
    () => agent.config.forward.enabled && !agent.link.problem ? noRules(agent) : undefined,
  );
  readiness.check("dns", () => agent.config.dns.enabled && !agent.link.problem ? noDns(agent) : undefined);
}

function noMetadata({ store, explicit, source }: RunningAgent): string | undefined {
  if (store.snapshot.synced) return undefined;
  return (explicit ?? source).status().lastError ?? "none is known yet, and none is on disk";
}

/** Before there is metadata the rules of an earlier start stay as they are: it is the metadata that is waited for. */
function noRules({ store, forwarder }: RunningAgent): string | undefined {
  if (!store.snapshot.synced) return undefined;
  const { problem, sync } = forwarder?.status() ?? {};
  if (problem !== undefined) return problem;
  return sync?.done ? undefined : "they are being written";
}

function noDns({ dns }: RunningAgent): string | undefined {
  return dns?.problem ?? (dns?.server ? undefined : "it is starting");
}
