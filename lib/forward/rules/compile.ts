/** Plan → ruleset. Pure. What did not change keeps its identity from the ruleset before. */
import type { IpPort } from "../../net.ts";
import { type Frontend, type Plan, type PlannedPort, type PlannedService, slotsOf } from "../plan_model.ts";
import { staticTables } from "./base.ts";
import type { Fragment, Grammar, Ruleset } from "./ruleset.ts";
import { serviceTables } from "./service_rules.ts";
import { sharedFragment } from "./shared_rules.ts";
import { shardsFor } from "./spread.ts";

/** Where the agent takes the connections that the kernel cannot bring to their endpoint. */
export interface AgentListeners {
  readonly tcp4?: IpPort;
  readonly tcp6?: IpPort;
  /** {@link PlannedPort.id} → the listener of that port, where there is one for each instead of one for all. */
  readonly tcp?: ReadonlyMap<string, IpPort>;
  /** {@link PlannedPort.id} → the datagram socket of that port. */
  readonly udp: ReadonlyMap<string, IpPort>;
}

/** A fragment with what it was made from, so that the next compilation can tell that nothing changed. */
interface ServiceFragment extends Fragment {
  readonly from: PlannedService;
  readonly listeners: readonly (IpPort | undefined)[];
}

/** Name of the fragment that holds elements shared by Services. */
const SHARED = "";

export interface CompileOptions {
  /** The ruleset made before; saves work and keeps identities, and never changes what the rules mean. */
  readonly previous?: Ruleset | undefined;
  /** What the writer can do; "full" unless said otherwise. */
  readonly grammar?: Grammar;
}

/** Makes the rules of a plan. */
export function compileRules(plan: Plan, listeners: AgentListeners, options: CompileOptions = {}): Ruleset {
  const { previous } = options;
  const shards = options.grammar === "nft" ? 0 : shardsFor(portsToSpread(plan), previous?.shards ?? 0);
  const reusable = previous?.shards === shards ? previous.fragments : undefined;
  const fragments = new Map<string, Fragment>();
  for (const service of plan.services.values()) {
    const bound = service.ports.map((port) => listenerOf(port, listeners));
    const before = reusable?.get(service.key) as ServiceFragment | undefined;
    const same = before?.from === service && bound.every((at, i) => sameIpPort(at, before.listeners[i]));
    fragments.set(service.key, same ? before : fragmentOf(service, bound, shards));
  }
  fragments.set(SHARED, sharedFragment(plan, shards, previous?.fragments.get(SHARED)));
  const made = previous && { from: previous.tablesFrom, tables: previous.tables };
  const { from, tables } = staticTables(plan.facts, shards, made);
  return { shards, tables, tablesFrom: from, fragments };
}

function fragmentOf(
  service: PlannedService,
  listeners: readonly (IpPort | undefined)[],
  shards: number,
): ServiceFragment {
  return { from: service, listeners, tables: serviceTables(service, listeners, shards) };
}

/** Every target that the rules may send a frontend's connections to. */
export function targetsOf(port: PlannedPort, frontend: Frontend, listeners: AgentListeners): readonly IpPort[] {
  const verdicts = frontend.kind === "cluster-ip" ? [port.internal] : [port.external, port.externalFromHere];
  const slots = verdicts.flatMap(slotsOf);
  const kernel = slots.filter((slot) => slot.way === "kernel").map((slot) => slot.endpoint);
  const listener = listenerOf(port, listeners);
  return listener && kernel.length < slots.length ? [...kernel, listener] : kernel;
}

function portsToSpread(plan: Plan): number {
  let count = 0;
  for (const service of plan.services.values()) {
    for (const { internal, external, externalFromHere } of service.ports) {
      if ([internal, external, externalFromHere].some((verdict) => slotsOf(verdict).length > 1)) count++;
    }
  }
  return count;
}

function listenerOf(port: PlannedPort, listeners: AgentListeners): IpPort | undefined {
  if (port.protocol === "UDP") return listeners.udp.get(port.id);
  if (listeners.tcp) return listeners.tcp.get(port.id);
  return port.family === 4 ? listeners.tcp4 : listeners.tcp6;
}

function sameIpPort(a: IpPort | undefined, b: IpPort | undefined): boolean {
  return a === b || (a !== undefined && b !== undefined && a.ip === b.ip && a.port === b.port);
}
