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

  /** Takes over a new plan; costs what changed. */
  update(plan: Plan): void {
    for (const [key, before] of this.#services) {
      if (plan.services.get(key) !== before) this.#each(before, (id) => this.#byKey.delete(id));
    }
    for (const [key, next] of plan.services) {
      if (this.#services.get(key) !== next) this.#each(next, (id, found) => this.#byKey.set(id, found));
    }
    this.#services = plan.services;
  }

  /** `hostAddresses` says which addresses node ports answer on. */
  find(protocol: Protocol, at: IpPort, hostAddresses: readonly string[]): Found | undefined {
    const found = this.#byKey.get(frontendKey(protocol, at.ip, at.port));
    if (found || !hostAddresses.includes(at.ip)) return found;
    return this.#byKey.get(nodePortKey(protocol, at.ip.includes(":") ? 6 : 4, at.port));
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
