/**
 * TCP listeners where accepted connections do not tell where the client meant to go (no original destination without
 * FFI): one per Service port on the mesh address, as UDP has them. Which of the port's addresses was used is not known
 * then, only whether the client is one of ours.
 */
import type { Logger } from "../log.ts";
import type { Accepted, IpPort, Listener, Loop } from "../net.ts";
import { isOurs, type NodeFacts } from "./facts.ts";
import { needsAgent, type Plan, type PlannedPort } from "./plan_model.ts";

/** Ports of the mesh address, as for datagrams: below the punch range, off NodePorts and ephemeral ports. */
export const LISTEN_PORTS = { first: 19001, count: 999 } as const;
/** Ports tried before the kernel chooses one: others may hold a few of ours on the wildcard address. */
export const BIND_TRIES = 16;

export interface PortListenersDeps {
  readonly loop: Loop;
  readonly log: Logger;
  readonly facts: () => NodeFacts;
  /** Takes a connection whose `original` is an address of its Service. */
  accept(accepted: Accepted): void;
}

interface Entry {
  port: PlannedPort;
  readonly listener: Listener;
}

export class PortListeners {
  readonly #deps: PortListenersDeps;
  readonly #entries = new Map<string, Entry>();

  constructor(deps: PortListenersDeps) {
    this.#deps = deps;
  }

  /** Opens what the plan needs; to be called before rules point here. */
  prepare(plan: Plan): void {
    const { mesh4, mesh6 } = plan.facts;
    for (const service of plan.services.values()) {
      for (const port of service.ports) {
        if (port.protocol !== "TCP") continue;
        const known = this.#entries.get(port.id);
        if (known) known.port = port;
        const mesh = port.family === 4 ? mesh4 : mesh6;
        if (!known && mesh !== undefined && needsAgent(port)) this.#open(port, mesh);
      }
    }
  }

  /** Closes what the plan does not need any more; to be called when no rule points here any more. */
  retire(plan: Plan): void {
    const needed = new Set<string>();
    for (const service of plan.services.values()) {
      for (const port of service.ports) if (needsAgent(port)) needed.add(port.id);
    }
    for (const [id, { listener }] of this.#entries) {
      if (needed.has(id)) continue;
      listener.close();
      this.#entries.delete(id);
    }
  }

  get listeners(): Listener[] {
    return [...this.#entries.values()].map(({ listener }) => listener);
  }

  /** Where rules send each port's connections. */
  get addresses(): ReadonlyMap<string, IpPort> {
    return new Map([...this.#entries].map(([id, { listener }]) => [id, listener.local]));
  }

  close(): void {
    for (const { listener } of this.#entries.values()) listener.close();
    this.#entries.clear();
  }

  #open(port: PlannedPort, mesh: string): void {
    try {
      const listener = bindNear(port.id, (at) => {
        return this.#deps.loop.listenTcp({ ip: mesh, port: at }, (accepted) => this.#accept(entry, accepted), {
          freeBind: true,
        });
      });
      const entry: Entry = { port, listener };
      this.#entries.set(port.id, entry);
    } catch (error) {
      this.#deps.log.error("A TCP Service port cannot be served", { service: port.id, error: String(error) });
    }
  }

  #accept({ port }: Entry, accepted: Accepted): void {
    const facts = this.#deps.facts();
    const ours = isOurs(accepted.remote.ip, facts);
    const meant = port.frontends.find((f) => (f.kind === "cluster-ip") === ours) ?? port.frontends[0];
    if (meant === undefined) return accepted.stream.reset("NO_SERVICE");
    const ip = meant.ip === "" ? hostAddress(port, facts) : meant.ip;
    this.#deps.accept({ ...accepted, original: { ip, port: meant.port } });
  }
}

/** Node ports answer on every address of the host: any of the family stands for it. */
function hostAddress({ family }: PlannedPort, { addresses, mesh4, mesh6 }: NodeFacts): string {
  return addresses.find((ip) => ip !== mesh4 && ip !== mesh6 && ip.includes(":") === (family === 6)) ?? "";
}

/**
 * Binds near a port that follows from the Service's name, so that after a restart the kernel's table of old flows
 * mostly still points at the right listener. `bind` gets 0 for any port. Throws what the last attempt throws.
 */
export function bindNear<T>(id: string, bind: (port: number) => T): T {
  let h = 0x811c9dc5;
  for (let i = 0; i < id.length; i++) h = Math.imul(h ^ id.charCodeAt(i), 0x01000193) >>> 0;
  for (let attempt = 0; attempt < BIND_TRIES; attempt++) {
    try {
      return bind(LISTEN_PORTS.first + (h + attempt) % LISTEN_PORTS.count);
    } catch {
      // Taken by somebody; the next one.
    }
  }
  return bind(0);
}
