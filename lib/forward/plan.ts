/**
 * Metadata → plan: for every Service port, which connections are forwarded to which endpoints, and which *way* each
 * endpoint is reached (`kernel | proxy | tunnel`) with the reason. Pure. What did not change keeps its identity from
 * the previous plan, so that rules, listeners and flows are updated by comparing references.
 */
import type { EndpointSlice, MetaReader, ServiceKey } from "../meta/model.ts";
import { serviceKey } from "../meta/model.ts";
import type { ForwardConfig, NodeFacts } from "./facts.ts";
import { type Frontend, frontendKey, type Plan, type PlannedPort, type PlannedService } from "./plan_model.ts";
import { handlesService, planService } from "./plan_service.ts";
import { policiesOf } from "./policies.ts";

/** The plan before anything is known: no rule at all. */
export function emptyPlan(facts: NodeFacts, config: ForwardConfig): Plan {
  return { facts, config, services: new Map() };
}

/** Decides for every Service. `previous` saves work and keeps identities; it never changes the result. */
export function planForwarding(meta: MetaReader, facts: NodeFacts, config: ForwardConfig, previous?: Plan): Plan {
  const reusable = previous && previous.facts === facts && previous.config === config ? previous.services : undefined;
  const policies = policiesOf(meta);
  const services = new Map<ServiceKey, PlannedService>();
  for (const service of meta.services()) {
    const key = serviceKey(service.namespace, service.name);
    if (!handlesService(service, config)) continue;
    const slices = meta.slicesOf(service.namespace, service.name);
    const before = reusable?.get(key);
    const policy = policies.get(key);
    services.set(
      key,
      before?.complete && before.from === service && before.policy === policy && sameSlices(before.slices, slices)
        ? before
        : planService({ service, slices, policy }, facts, config),
    );
  }
  resolveClaims(meta, services, reusable);
  return { facts, config, services };
}

function sameSlices(a: readonly EndpointSlice[], b: readonly EndpointSlice[]): boolean {
  return a === b || (a.length === b.length && a.every((slice, i) => slice === b[i]));
}

/**
 * Two Services that claim the same address and port: the snapshot says whose it is, so that names and traffic agree.
 * Node ports, of which it says nothing, go to the Service whose key sorts first: on every node the same.
 */
function resolveClaims(
  meta: MetaReader,
  services: Map<ServiceKey, PlannedService>,
  reusable: ReadonlyMap<ServiceKey, PlannedService> | undefined,
): void {
  const owners = new Map<string, ServiceKey>();
  let contested = false;
  for (const [key, planned] of services) {
    for (const { claim, port, frontend } of allClaims(planned)) {
      const other = owners.get(claim);
      if (other === key) continue;
      if (other === undefined) owners.set(claim, key);
      else {
        contested = true;
        owners.set(claim, ownerAmong(meta, [other, key], port, frontend));
      }
    }
  }
  if (!contested) return;
  for (const [key, planned] of services) {
    const next = withoutLost(planned, owners);
    if (next === planned) continue;
    const before = reusable?.get(key);
    services.set(key, before && samePlanned(before, next) ? before : next);
  }
}

function ownerAmong(
  meta: MetaReader,
  claimants: readonly ServiceKey[],
  port: PlannedPort,
  frontend: Frontend,
): ServiceKey {
  const owner = frontend.ip === "" ? undefined : meta.ownerOf(frontend.ip, port.protocol, frontend.port);
  const key = owner && serviceKey(owner.namespace, owner.name);
  return claimants.find((claimant) => claimant === key) ?? [...claimants].sort()[0]!;
}

/** A planned Service without the addresses that another one owns; itself when it lost none. */
function withoutLost(planned: PlannedService, owners: ReadonlyMap<string, ServiceKey>): PlannedService {
  const notes = [...planned.notes];
  const ports = planned.ports.map((port) => ({
    ...port,
    frontends: port.frontends.filter((frontend) => {
      const owner = claimsOf(port, frontend).map((claim) => owners.get(claim)!).find((o) => o !== planned.key);
      if (owner === undefined) return true;
      notes.push(`${frontendKey(port.protocol, frontend.ip, frontend.port)} is claimed by ${owner}, which keeps it`);
      return false;
    }),
  }));
  return notes.length === planned.notes.length ? planned : { ...planned, ports, notes, complete: false };
}

interface Claim {
  readonly claim: string;
  readonly port: PlannedPort;
  readonly frontend: Frontend;
}

/** Most Services are the same as in the plan before, and thousands of them are asked for each change of one. */
const claimsCache = new WeakMap<PlannedService, readonly Claim[]>();

function allClaims(planned: PlannedService): readonly Claim[] {
  let claims = claimsCache.get(planned);
  if (!claims) {
    claims = planned.ports.flatMap((port) =>
      port.frontends.flatMap((frontend) => claimsOf(port, frontend).map((claim) => ({ claim, port, frontend })))
    );
    claimsCache.set(planned, claims);
  }
  return claims;
}

/** A cluster IP belongs to one Service as a whole, as in Kubernetes; other addresses are shared by port. */
function claimsOf(port: PlannedPort, frontend: Frontend): string[] {
  // The two families of a dual-stack Service share the node port; they are one Service's and never at odds.
  const one = frontendKey(port.protocol, frontend.ip, frontend.port);
  return frontend.kind === "cluster-ip" ? [frontend.ip, one] : [one];
}

function samePlanned(a: PlannedService, b: PlannedService): boolean {
  return a.from === b.from && a.policy === b.policy && sameSlices(a.slices, b.slices) &&
    JSON.stringify(a.ports) === JSON.stringify(b.ports);
}
