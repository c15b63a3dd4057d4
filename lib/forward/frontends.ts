/** Finds the Service port behind an address that a client used. Follows the plan by comparing references. */
import type { IpPort } from "../net.ts";
import type { Protocol } from "../meta/model.ts";
import {
  type Frontend,
  frontendKey,
  type Plan,
  type PlannedPort,
  type PlannedService,
  type Verdict,
} from "./plan_model.ts";

export interface Found {
  readonly port: PlannedPort;
  readonly frontend: Frontend;
}

export class FrontendIndex {
  readonly #byKey = new Map<string, Found>();
  #services: ReadonlyMap<string, PlannedService> = new Map();
  /** What was found for TCP since the last change, by the asker's own object: the loop gives one per address. */
  #recent = new WeakMap<IpPort, Found>();
  #hostAddresses: readonly string[] = [];

  /** Takes over a new plan; costs what changed. */
  update(plan: Plan): void {
    for (const [key, before] of this.#services) {
      if (plan.services.get(key) !== before) this.#each(before, (id) => this.#byKey.delete(id));
    }
    for (const [key, next] of plan.services) {
      if (this.#services.get(key) !== next) this.#each(next, (id, found) => this.#byKey.set(id, found));
    }
    this.#services = plan.services;
    this.#recent = new WeakMap();
  }

  /** The TCP port that answers at `at`; `hostAddresses` says where node ports do. */
  find(at: IpPort, hostAddresses: readonly string[]): Found | undefined {
    if (hostAddresses !== this.#hostAddresses) {
      this.#hostAddresses = hostAddresses;
      this.#recent = new WeakMap();
    }
    let found = this.#recent.get(at);
    if (found) return found;
    found = this.#byKey.get(frontendKey("TCP", at.ip, at.port));
    if (!found && hostAddresses.includes(at.ip)) {
      found = this.#byKey.get(nodePortKey("TCP", at.ip.includes(":") ? 6 : 4, at.port));
    }
    if (found) this.#recent.set(at, found);
    return found;
  }

  #each(service: PlannedService, visit: (key: string, found: Found) => void): void {
    for (const port of service.ports) {
      for (const frontend of port.frontends) {
        const key = frontend.kind === "node-port"
          ? nodePortKey(port.protocol, port.family, frontend.port)
          : frontendKey(port.protocol, frontend.ip, frontend.port);
        visit(key, { port, frontend });
      }
    }
  }
}

/** What happens to connections that come in through this frontend; `fromHere`: of this host or one of its pods. */
export function verdictFor({ frontend, port }: Found, fromHere: boolean): Verdict {
  if (frontend.kind === "cluster-ip") return port.internal;
  return fromHere ? port.externalFromHere : port.external;
}

function nodePortKey(protocol: Protocol, family: 4 | 6, port: number): string {
  return `${protocol} node${family}:${port}`;
}
