/**
 * What must be forgotten after rules have changed, because it outlives them: UDP flows in connection tracking, whose
 * rewriting was chosen with their first datagram, and clients remembered for session affinity. TCP connections drain.
 */
import type { Family } from "../addr.ts";
import { describe } from "../errors.ts";
import type { Logger } from "../log.ts";
import type { IpPort } from "../net.ts";
import type { Frontend, Plan, PlannedPort, PlannedService } from "./plan_model.ts";
import { affinityMap, staleAffinity } from "./rules/affinity.ts";
import { type AgentListeners, targetsOf } from "./rules/compile.ts";
import type { Conntrack, TrackedFlow } from "./rules/kernel.ts";
import { TABLE } from "./rules/ruleset.ts";
import type { RuleWriter } from "./rules/writer.ts";

/** Above so many addresses one walk through all flows is cheaper than one per address. */
const SINGLE_MAX = 16;

export interface UpkeepDeps {
  readonly rules: RuleWriter;
  /** Without it UDP flows to a removed endpoint end when their client pauses. */
  readonly conntrack: Conntrack | undefined;
  readonly log: Logger;
}

export class Upkeep {
  readonly #deps: UpkeepDeps;
  #before: Plan | undefined;
  #conntrackWorks = true;

  constructor(deps: UpkeepDeps) {
    this.#deps = deps;
  }

  /** To be called when the kernel holds the rules of `plan`. Never throws: what is left over ends by itself later. */
  async after(plan: Plan, listeners: AgentListeners): Promise<void> {
    const before = this.#before;
    this.#before = plan;
    const changed = changedServices(before, plan);
    this.#forgetFlows(changed, plan, listeners, before === undefined);
    if (changed.some((service) => service.ports.some((port) => port.affinitySeconds !== undefined))) {
      await this.#forgetClients(staleAffinity(plan, (port, frontend) => texts(targetsOf(port, frontend, listeners))));
    }
  }

  /** The agent stops and its rules stay: clients remembered as the agent's would be refused until their time is over. */
  async stopping(listeners: AgentListeners): Promise<void> {
    const { tcp4, tcp6, tcp, udp } = listeners;
    const own = new Set(texts([tcp4, tcp6, ...tcp?.values() ?? [], ...udp.values()].filter((l) => l !== undefined)));
    await this.#forgetClients((_, value) => own.has(value));
  }

  async #forgetClients(stale: (key: string, value: string) => boolean): Promise<void> {
    try {
      for (const family of [4, 6] as const) await this.#deps.rules.forget(TABLE, affinityMap(family), stale);
    } catch (error) {
      this.#deps.log.warn("Remembered clients of removed endpoints stay until their time is over", {
        error: describe(error),
      });
    }
  }

  #forgetFlows(changed: readonly PlannedService[], plan: Plan, listeners: AgentListeners, first: boolean): void {
    const { conntrack, log } = this.#deps;
    if (!conntrack || !this.#conntrackWorks) return;
    const wanted = udpTargets(changed, plan, listeners);
    try {
      for (const family of [4, 6] as const) {
        const mine = [...wanted.values()].filter((w) => w.family === family);
        if (mine.length === 0) continue;
        const stale = (flow: TrackedFlow) => isStale(flow, wanted, plan);
        if (first || mine.length > SINGLE_MAX) conntrack.forgetUdp({ family }, stale);
        else {
          for (const { frontend } of mine) {
            const { ip, port } = frontend;
            conntrack.forgetUdp(ip === "" ? { family, port } : { family, ip, port }, stale);
          }
        }
      }
    } catch (error) {
      this.#conntrackWorks = false;
      log.warn("UDP flows to removed endpoints cannot be ended", { error: describe(error) });
    }
  }
}

interface Wanted {
  readonly family: Family;
  readonly frontend: Frontend;
  /** `ip . port` of every target that rules allow now. */
  readonly targets: ReadonlySet<string>;
}

/** Services that are new, different or gone; each in the form it had before and in the one it has. */
function changedServices(before: Plan | undefined, plan: Plan): PlannedService[] {
  const out: PlannedService[] = [];
  for (const [key, service] of plan.services) {
    const old = before?.services.get(key);
    if (old === service) continue;
    if (old) out.push(old);
    out.push(service);
  }
  for (const [key, old] of before?.services ?? []) if (!plan.services.has(key)) out.push(old);
  return out;
}

/** What now is allowed behind each UDP address of the changed Services; nothing behind one that is gone. */
function udpTargets(changed: readonly PlannedService[], plan: Plan, listeners: AgentListeners): Map<string, Wanted> {
  const out = new Map<string, Wanted>();
  const add = (port: PlannedPort, targets: (frontend: Frontend) => readonly IpPort[]) => {
    if (port.protocol !== "UDP") return;
    for (const frontend of port.frontends) {
      const { family } = port;
      out.set(keyOf(family, frontend), { family, frontend, targets: new Set(texts(targets(frontend))) });
    }
  };
  for (const service of changed) for (const port of service.ports) add(port, () => []);
  for (const { key } of changed) {
    for (const port of plan.services.get(key)?.ports ?? []) add(port, (f) => targetsOf(port, f, listeners));
  }
  return out;
}

function isStale({ to, target }: TrackedFlow, wanted: ReadonlyMap<string, Wanted>, plan: Plan): boolean {
  const family = to.ip.includes(":") ? 6 : 4;
  const exact = wanted.get(`${family} ${to.ip}:${to.port}`);
  const node = plan.facts.addresses.includes(to.ip) ? wanted.get(`${family} :${to.port}`) : undefined;
  const found = exact ?? node;
  return found !== undefined && !found.targets.has(`${target.ip} . ${target.port}`);
}

function keyOf(family: Family, frontend: Frontend): string {
  return `${family} ${frontend.ip}:${frontend.port}`;
}

function texts(targets: readonly IpPort[]): string[] {
  return targets.map((target) => `${target.ip} . ${target.port}`);
}
