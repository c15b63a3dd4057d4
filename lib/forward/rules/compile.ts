/**
 * Plan → ruleset. Pure.
 *
 * A Service port with one endpoint is a single map element; with several, chains of its own spread connections. A port
 * with any agent-bound slot stands, with *all* its slots, in the agent's table, which is asked first; the persistent
 * table holds only its kernel-way slots. When the agent's table goes, the kernel-way slots take over, and where there
 * are none connections are refused: never a black hole.
 */
import { type Cidr, cidrContains, cidrText, familyOf } from "../../addr.ts";
import type { IpPort } from "../../net.ts";
import type { Frontend, Plan, PlannedPort, PlannedService, Slot, Verdict } from "../plan_model.ts";
import { stickyChain, stickyElement } from "./affinity.ts";
import { staticTables } from "./base.ts";
import {
  AGENT_TABLE,
  type Atom,
  type Chain,
  type Element,
  type Fragment,
  type Grammar,
  type Ruleset,
  TABLE,
  type TableFragment,
} from "./ruleset.ts";
import { shardsFor, spread, type Target } from "./spread.ts";

/** Where the agent takes the connections that the kernel cannot bring to their endpoint. */
export interface AgentListeners {
  readonly tcp4?: IpPort;
  readonly tcp6?: IpPort;
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
  const here = new Set<string>();
  for (const service of plan.services.values()) {
    const bound = service.ports.map((port) => listenerOf(port, listeners));
    const before = reusable?.get(service.key) as ServiceFragment | undefined;
    const same = before?.from === service && bound.every((at, i) => sameIpPort(at, before.listeners[i]));
    fragments.set(service.key, same ? before : serviceFragment(service, bound, shards));
    for (const port of service.ports) collectLocal(port, here);
  }
  fragments.set(SHARED, sharedFragment(plan, shards, here, previous?.fragments.get(SHARED)));
  const made = previous && { from: previous.tablesFrom, tables: previous.tables };
  const { from, tables } = staticTables(plan.facts, shards, made);
  return { shards, tables, tablesFrom: from, fragments };
}

/** Every target that the rules may send a frontend's connections to. */
export function targetsOf(port: PlannedPort, frontend: Frontend, listeners: AgentListeners): readonly IpPort[] {
  const verdict = frontend.kind === "cluster-ip" ? port.internal : port.external;
  if (verdict.verdict !== "forward") return [];
  const kernel = verdict.slots.filter((slot) => slot.way === "kernel").map((slot) => slot.endpoint);
  const listener = listenerOf(port, listeners);
  return listener && kernel.length < verdict.slots.length ? [...kernel, listener] : kernel;
}

function portsToSpread(plan: Plan): number {
  let count = 0;
  for (const service of plan.services.values()) {
    for (const { internal, external } of service.ports) {
      if ([internal, external].some((v) => v.verdict === "forward" && v.slots.length > 1)) count++;
    }
  }
  return count;
}

function listenerOf(port: PlannedPort, listeners: AgentListeners): IpPort | undefined {
  if (port.protocol === "UDP") return listeners.udp.get(port.id);
  return port.family === 4 ? listeners.tcp4 : listeners.tcp6;
}

function sameIpPort(a: IpPort | undefined, b: IpPort | undefined): boolean {
  return a === b || (a !== undefined && b !== undefined && a.ip === b.ip && a.port === b.port);
}

function serviceFragment(
  service: PlannedService,
  listeners: readonly (IpPort | undefined)[],
  shards: number,
): ServiceFragment {
  const persistent = new Part(TABLE, shards);
  const agent = new Part(AGENT_TABLE, shards);
  service.ports.forEach((port, i) => {
    for (const frontend of port.frontends) {
      // Every address of the Service is ours: what no rule takes is refused.
      if (frontend.kind === "cluster-ip") persistent.once(`vips${port.family}`, [frontend.ip]);
      const internal = frontend.kind === "cluster-ip";
      const verdict = internal ? port.internal : port.external;
      addFrontend({ port, frontend, scope: internal ? "in" : "ex", persistent, agent }, verdict, listeners[i]);
      if (!isLearned(port, shards)) continue;
      const { set, element } = stickyElement(port, frontend);
      persistent.element(set, element);
    }
  });
  return { from: service, listeners, tables: [persistent.done(), agent.done()].filter((p) => p !== undefined) };
}

interface Place {
  readonly port: PlannedPort;
  readonly frontend: Frontend;
  readonly scope: "in" | "ex";
  readonly persistent: Part;
  readonly agent: Part;
}

function addFrontend(place: Place, verdict: Verdict, listener: IpPort | undefined): void {
  const { port, frontend, persistent, agent } = place;
  if (verdict.verdict === "drop") return persistent.verdict(port, frontend, "drop");
  const slots = verdict.verdict === "forward" ? verdict.slots : [];
  const kernel = slots.filter((slot) => slot.way === "kernel");
  if (kernel.length > 0) bring(place, persistent, kernelTargets(kernel));
  // Other ports of these addresses are not ours to refuse, so this one is refused by name.
  else if (frontend.kind !== "cluster-ip") persistent.verdict(port, frontend, { goto: "refuse" });
  if (kernel.length === slots.length || !listener) return;
  bring(place, agent, targetsWithAgent(slots, listener));
}

/** Kernel-way slots go to their endpoint; all others are one target that gets their share. */
function targetsWithAgent(slots: readonly Slot[], listener: IpPort): readonly Target[] {
  const rest = slots.filter((slot) => slot.way !== "kernel");
  return [
    ...kernelTargets(slots.filter((slot) => slot.way === "kernel")),
    { to: listener, keys: rest.map((slot) => slot.key) },
  ];
}

function kernelTargets(slots: readonly Slot[]): readonly Target[] {
  return slots.map((slot) => ({ to: slot.endpoint, keys: [slot.key] }));
}

function bring(place: Place, part: Part, targets: readonly Target[]): void {
  const { port, frontend, scope } = place;
  if (targets.length === 1) {
    const { to } = targets[0]!;
    const set = `${frontend.kind === "node-port" ? "nodeport-" : ""}single${port.family}`;
    return part.element(set, { key: frontendAtoms(port, frontend), value: [to.ip, to.port] });
  }
  const name =
    `svc-${port.namespace}/${port.service}/${port.protocol.toLowerCase()}/${port.port}/v${port.family}/${scope}`;
  part.spread(name, port, targets);
  part.verdict(port, frontend, { goto: name });
}

function frontendAtoms(port: PlannedPort, frontend: Frontend): Atom[] {
  const tail = [port.protocol.toLowerCase(), frontend.port];
  return frontend.kind === "node-port" ? tail : [frontend.ip, ...tail];
}

/** Collects what a fragment adds to one table. */
class Part {
  readonly #table: string;
  readonly #shards: number;
  readonly #chains = new Map<string, Chain>();
  readonly #sets = new Map<string, Element[]>();
  readonly #once = new Set<string>();

  constructor(table: string, shards: number) {
    this.#table = table;
    this.#shards = shards;
  }

  element(set: string, element: Element): void {
    const list = this.#sets.get(set);
    if (list) list.push(element);
    else this.#sets.set(set, [element]);
  }

  once(set: string, key: readonly Atom[]): void {
    const id = `${set} ${key.join(" ")}`;
    if (this.#once.has(id)) return;
    this.#once.add(id);
    this.element(set, { key });
  }

  verdict(port: PlannedPort, frontend: Frontend, value: Element["value"] & (object | string)): void {
    const node = frontend.kind === "node-port" ? "nodeport-" : "";
    this.element(`${node}services${port.family}`, { key: frontendAtoms(port, frontend), value });
  }

  /** The chains that spread connections over targets; one tree serves all addresses of a scope. */
  spread(name: string, port: PlannedPort, targets: readonly Target[]): void {
    if (this.#chains.has(name)) return;
    const { chains, slots } = spread(name, port, targets, this.#shards);
    for (const chain of chains) this.#chains.set(chain.name, chain);
    for (const element of slots?.elements ?? []) this.element(slots!.set, element);
  }

  done(): TableFragment | undefined {
    if (this.#sets.size === 0) return undefined;
    return {
      table: this.#table,
      chains: [...this.#chains.values()],
      sets: [...this.#sets].map(([set, elements]) => ({ set, elements })),
    };
  }
}

/** Endpoints of this node that the kernel forwards to: their pods may be their own clients. */
function collectLocal(port: PlannedPort, into: Set<string>): void {
  for (const verdict of [port.internal, port.external]) {
    if (verdict.verdict !== "forward") continue;
    for (const slot of verdict.slots) if (slot.reason === "own-node") into.add(slot.endpoint.ip);
  }
}

/** Whether packets teach where clients went. Without slot maps (nft) IPv6 clients are kept by their hash instead. */
function isLearned(port: PlannedPort, shards: number): boolean {
  return port.affinitySeconds !== undefined && (port.family === 4 || shards > 0);
}

/** Sets without values, in the same order, and chains that are known by their names. */
function sameShared(a: TableFragment, b: TableFragment): boolean {
  return a.chains.length === b.chains.length && a.chains.every((chain, i) => chain.name === b.chains[i]!.name) &&
    a.sets.length === b.sets.length && a.sets.every(({ set, elements }, i) => {
      const other = b.sets[i]!;
      return set === other.set && elements.length === other.elements.length &&
        elements.every(({ key }, j) => key.every((atom, k) => atom === other.elements[j]!.key[k]));
    });
}

/** Interval sets refuse networks that overlap; the larger one says it all. */
function withoutOverlaps(cidrs: readonly Cidr[]): Cidr[] {
  const sorted = [...cidrs].sort((a, b) => a.bits - b.bits);
  const out: Cidr[] = [];
  for (const cidr of sorted) if (!out.some((larger) => cidrContains(larger, cidr.ip))) out.push(cidr);
  return out;
}

function addOnce(chains: Map<string, Chain>, chain: Chain): void {
  if (!chains.has(chain.name)) chains.set(chain.name, chain);
}

function sharedFragment(
  plan: Plan,
  shards: number,
  here: ReadonlySet<string>,
  previous: Fragment | undefined,
): Fragment {
  const sets = new Map<string, Element[]>();
  const put = (set: string, key: readonly Atom[]) => {
    const list = sets.get(set);
    if (list) list.push({ key });
    else sets.set(set, [{ key }]);
  };
  for (const ip of [...here].sort()) put(`hairpin${familyOf(ip)}`, [ip, ip]);
  for (const link of plan.facts.hairpinLinks) put("hairpin-links", [link, link]);
  const puts = (set: string, cidrs: readonly Cidr[]) => {
    for (const cidr of withoutOverlaps(cidrs)) put(`${set}${familyOf(cidr.ip)}`, [cidrText(cidr)]);
  };
  puts("refused", plan.config.refuseCidrs);
  puts("pods", plan.facts.podCidrs);
  puts("remote", plan.facts.routable.map((subnet) => subnet.cidr));
  const chains = new Map<string, Chain>();
  for (const service of plan.services.values()) {
    for (const port of service.ports) if (isLearned(port, shards)) addOnce(chains, stickyChain(port));
  }
  const next: TableFragment = {
    table: TABLE,
    chains: [...chains.values()],
    sets: [...sets].map(([set, elements]) => ({ set, elements })),
  };
  return previous && sameShared(previous.tables[0]!, next) ? previous : { tables: [next] };
}
