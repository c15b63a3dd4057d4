/**
 * UDP Services that the kernel cannot bring to their endpoints. One socket per Service port on the mesh address: the
 * kernel's rule leads there, and an answer sent from it leaves with the source the client expects. A client's flow
 * keeps its endpoint until it is idle or the endpoint goes.
 */
import type { ReasonCode } from "../errors.ts";
import type { IpPort, UdpSocket } from "../net.ts";
import { isOurs } from "./facts.ts";
import { needsAgent, type Plan, type PlannedPort, type Slot } from "./plan_model.ts";
import { bindNear } from "./port_listeners.ts";
import { agentSlots } from "./tcp.ts";
import { type UdpDeps, UdpFlow } from "./udp_flow.ts";

export class UdpForwarder {
  readonly #deps: UdpDeps;
  readonly #listeners = new Map<string, UdpListener>();

  constructor(deps: UdpDeps) {
    this.#deps = deps;
  }

  /** Opens what the plan needs and moves flows off endpoints that are gone; to be called before rules point here. */
  prepare(plan: Plan): void {
    const { mesh4, mesh6 } = plan.facts;
    for (const service of plan.services.values()) {
      for (const port of service.ports) {
        if (port.protocol !== "UDP") continue;
        const known = this.#listeners.get(port.id);
        if (known) known.update(port);
        const mesh = port.family === 4 ? mesh4 : mesh6;
        if (!known && mesh !== undefined && needsAgent(port)) this.#open(port, mesh);
      }
    }
  }

  /** Closes what the plan does not need any more; to be called when no rule points here any more. */
  retire(plan: Plan): void {
    const needed = new Set<string>();
    for (const service of plan.services.values()) {
      for (const port of service.ports) if (port.protocol === "UDP" && needsAgent(port)) needed.add(port.id);
    }
    for (const [id, listener] of this.#listeners) {
      if (needed.has(id)) continue;
      listener.close("ENDPOINT_REMOVED");
      this.#listeners.delete(id);
    }
  }

  /** Where rules send each port's datagrams. */
  get addresses(): ReadonlyMap<string, IpPort> {
    return new Map([...this.#listeners].map(([id, listener]) => [id, listener.local]));
  }

  close(): void {
    for (const listener of this.#listeners.values()) listener.close("SHUTDOWN");
    this.#listeners.clear();
  }

  #open(port: PlannedPort, mesh: string): void {
    try {
      this.#listeners.set(port.id, new UdpListener(this.#deps, port, mesh));
    } catch (error) {
      this.#deps.log.error("A UDP Service port cannot be served", { service: port.id, error: String(error) });
    }
  }
}

/** One Service port: its socket and the flows of its clients. */
export class UdpListener {
  readonly local: IpPort;
  readonly #deps: UdpDeps;
  readonly #socket: UdpSocket;
  /** Client port → client address → flow: two plain look-ups, no key is built per datagram. */
  readonly #flows = new Map<number, Map<string, UdpFlow>>();
  #port: PlannedPort;
  #slots: readonly Slot[];
  /** Reachable from outside this node: then clients may be anybody. */
  #open: boolean;

  /** Throws MeshError KERNEL. */
  constructor(deps: UdpDeps, port: PlannedPort, mesh: string) {
    this.#deps = deps;
    this.#port = port;
    this.#slots = slotsOf(port);
    this.#open = isOpen(port);
    this.#socket = bindNear(
      port.id,
      (at) =>
        deps.loop.bindUdp({ ip: mesh, port: at }, (bytes, length, from) => this.#onDatagram(bytes, length, from), {
          freeBind: true,
        }),
    );
    this.local = this.#socket.local;
  }

  update(port: PlannedPort): void {
    if (port === this.#port) return;
    this.#port = port;
    this.#slots = slotsOf(port);
    this.#open = isOpen(port);
    const alive = new Set(this.#slots.map((slot) => slot.key));
    for (const flow of this.#all()) if (!alive.has(flow.slot.key)) flow.reset("ENDPOINT_REMOVED");
  }

  close(code: ReasonCode): void {
    for (const flow of this.#all()) flow.reset(code);
    this.#socket.close();
  }

  #all(): UdpFlow[] {
    return [...this.#flows.values()].flatMap((byIp) => [...byIp.values()]);
  }

  #onDatagram(bytes: Uint8Array, length: number, from: IpPort): void {
    const flow = this.#flows.get(from.port)?.get(from.ip) ?? this.#begin(from);
    flow?.send(bytes, length);
  }

  #begin(from: IpPort): UdpFlow | undefined {
    const { connections, counters, picker, clock } = this.#deps;
    if (this.#slots.length === 0 || (!this.#open && !isOurs(from.ip, this.#deps.facts()))) return undefined;
    if (connections.full) {
      counters.refused.set("LIMIT", (counters.refused.get("LIMIT") ?? 0) + 1);
      return undefined;
    }
    const slot = picker.pick(this.#port, this.#slots, { ip: from.ip, now: clock.now() });
    try {
      const flow = new UdpFlow(this.#deps, { port: this.#port, slot, client: from, socket: this.#socket }, () => {
        const byIp = this.#flows.get(from.port);
        byIp?.delete(from.ip);
        if (byIp?.size === 0) this.#flows.delete(from.port);
      });
      let byIp = this.#flows.get(from.port);
      if (!byIp) this.#flows.set(from.port, byIp = new Map());
      byIp.set(from.ip, flow);
      return flow;
    } catch (error) {
      this.#deps.log.debug("A UDP flow cannot begin", { service: this.#port.id, error: String(error) });
      return undefined;
    }
  }
}

function slotsOf(port: PlannedPort): readonly Slot[] {
  const slots = agentSlots(port.internal);
  return slots.length > 0 ? slots : agentSlots(port.external);
}

function isOpen(port: PlannedPort): boolean {
  return port.frontends.some((f) => f.kind !== "cluster-ip");
}
