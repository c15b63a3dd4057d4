/**
 * The rules of one Service. Pure.
 *
 * A Service port with one endpoint is a single map element; with several, chains of its own spread connections. A port
 * with any agent-bound slot stands, with *all* its slots, in the agent's table, which is asked first; the persistent
 * table holds only its kernel-way slots. When the agent's table goes, the kernel-way slots take over, and where there
 * are none connections are refused: never a black hole.
 */
import type { IpPort } from "../../net.ts";
import { type Frontend, type PlannedPort, type PlannedService, type Slot, slotsOf } from "../plan_model.ts";
import { isLearned, stickyElement } from "./affinity.ts";
import {
  type Action,
  AGENT_TABLE,
  type Atom,
  type Chain,
  type Element,
  type Match,
  type Rule,
  TABLE,
  type TableFragment,
} from "./ruleset.ts";
import { spread, type Target } from "./spread.ts";

/** What the rules of a Service are, in each table. `listeners` belong to its ports, by index. */
export function serviceTables(
  service: PlannedService,
  listeners: readonly (IpPort | undefined)[],
  shards: number,
): readonly TableFragment[] {
  const persistent = new Part(TABLE, shards);
  const agent = new Part(AGENT_TABLE, shards);
  service.ports.forEach((port, i) => {
    for (const frontend of port.frontends) {
      // Every address of the Service is ours: what no rule takes is refused.
      if (frontend.kind === "cluster-ip") persistent.once(`vips${port.family}`, [frontend.ip]);
      addFrontend({ port, frontend, persistent, agent }, listeners[i]);
      if (!isLearned(port, shards)) continue;
      const { set, element } = stickyElement(port, frontend);
      persistent.element(set, element);
    }
  });
  return [persistent.done(), agent.done()].filter((part) => part !== undefined);
}

interface Place {
  readonly port: PlannedPort;
  readonly frontend: Frontend;
  readonly persistent: Part;
  readonly agent: Part;
}

function addFrontend(place: Place, listener: IpPort | undefined): void {
  const { port, frontend, persistent, agent } = place;
  if (frontend.kind !== "cluster-ip" && port.externalFromHere !== port.external) return addTwoSided(place, listener);
  const verdict = frontend.kind === "cluster-ip" ? port.internal : port.external;
  if (verdict.verdict === "drop") return persistent.verdict(port, frontend, "drop");
  const slots = slotsOf(verdict);
  const kernel = kernelTargets(slots);
  if (kernel.length > 0) bring(place, persistent, kernel);
  // Other ports of these addresses are not ours to refuse, so this one is refused by name.
  else if (frontend.kind !== "cluster-ip") persistent.verdict(port, frontend, { goto: "refuse" });
  if (listener && kernel.length < slots.length) bring(place, agent, targetsWithAgent(slots, listener));
}

/** externalTrafficPolicy Local: clients outside get endpoints of this node, our own get all. */
function addTwoSided(place: Place, listener: IpPort | undefined): void {
  const { port, frontend, persistent, agent } = place;
  const name = `${chainName(place)}`;
  const sides = [["here", port.externalFromHere], ["out", port.external]] as const;
  const persistentRules: Rule[] = [];
  const agentRules: Rule[] = [];
  for (const [side, verdict] of sides) {
    const slots = slotsOf(verdict);
    const kernel = kernelTargets(slots);
    const inKernel: Action = verdict.verdict === "drop"
      ? "drop"
      : kernel.length === 0
      ? { goto: "refuse" }
      : persistent.towards(`${name}/${side}`, port, kernel);
    persistentRules.push(...forSide(port, side, inKernel));
    if (!listener || kernel.length === slots.length) continue;
    agentRules.push(...forSide(port, side, agent.towards(`${name}/${side}`, port, targetsWithAgent(slots, listener))));
  }
  persistent.chain({ name, rules: persistentRules });
  persistent.verdict(port, frontend, { goto: name });
  // A side that is missing here goes on to the persistent table.
  if (agentRules.length === 0) return;
  agent.chain({ name, rules: agentRules });
  agent.verdict(port, frontend, { goto: name });
}

function forSide(port: PlannedPort, side: "here" | "out", action: Action): Rule[] {
  const within = { family: port.family, protocol: port.protocol === "TCP" ? "tcp" : "udp" } as const;
  const fromPods: Match = { fields: ["saddr"], in: `pods${port.family}` };
  const fromHost: Match = { state: "from-host" };
  if (side === "here") return [fromPods, fromHost].map((match) => ({ within, match: [match], action }));
  return [{ within, match: [{ fields: ["saddr"], notIn: `pods${port.family}` }, { state: "from-elsewhere" }], action }];
}

/** Kernel-way slots go to their endpoint; all others are one target that gets their share. */
function targetsWithAgent(slots: readonly Slot[], listener: IpPort): readonly Target[] {
  const rest = slots.filter((slot) => slot.way !== "kernel");
  return [
    ...kernelTargets(slots),
    { to: listener, keys: rest.map((slot) => slot.key) },
  ];
}

function kernelTargets(slots: readonly Slot[]): readonly Target[] {
  return slots.filter((slot) => slot.way === "kernel").map((slot) => ({ to: slot.endpoint, keys: [slot.key] }));
}

function bring(place: Place, part: Part, targets: readonly Target[]): void {
  const { port, frontend } = place;
  const only = targets.length === 1 ? targets[0] : undefined;
  if (!only) {
    const name = chainName(place);
    part.spread(name, port, targets);
    return part.verdict(port, frontend, { goto: name });
  }
  const set = `${frontend.kind === "node-port" ? "nodeport-" : ""}single${port.family}`;
  part.element(set, { key: frontendAtoms(port, frontend), value: [only.to.ip, only.to.port] });
}

function chainName({ port, frontend }: Place): string {
  const scope = frontend.kind === "cluster-ip" ? "in" : "ex";
  return `svc-${port.namespace}/${port.service}/${port.protocol.toLowerCase()}/${port.port}/v${port.family}/${scope}`;
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

  chain(chain: Chain): void {
    this.#chains.set(chain.name, chain);
  }

  /** What a rule does to bring connections to one of these targets. */
  towards(name: string, port: PlannedPort, targets: readonly Target[]): Action {
    if (targets.length === 1) return { to: targets[0]!.to };
    this.spread(name, port, targets);
    return { goto: name };
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
