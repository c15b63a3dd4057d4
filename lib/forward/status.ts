/** What forwarding says about itself: the ways of each Service and why, counters, and the state of the rules. */
import { hostPort } from "../addr.ts";
import { filterReason, filterText } from "../meta/filters.ts";
import type { MetaReader } from "../meta/model.ts";
import { serviceKey } from "../meta/model.ts";
import type { LeftAlone, ServiceStatus } from "../status.ts";
import type { Counters, WayCounters } from "./counters.ts";
import type { Plan, PlannedPort, Slot, Verdict } from "./plan_model.ts";
import { hasVirtualAddress } from "./plan_service.ts";
import type { RuleWriter } from "./rules/writer.ts";

export interface ForwardStatus {
  readonly backend: RuleWriter["kind"];
  /** Agent-bound rules end with the process, not only with an orderly stop. */
  readonly ownsTables: boolean;
  readonly synced: boolean;
  /** Times that foreign changes to our tables were undone. */
  readonly repairs: number;
  /** Why rules are not at the newest snapshot; undefined: they are. */
  readonly problem?: string;
  readonly connections: number;
  readonly services: readonly ServiceStatus[];
  /** Services with a virtual address that this node does not forward. */
  readonly leftAlone: readonly LeftAlone[];
  /** Per Service port and way; the kernel way is not counted by the agent. */
  readonly traffic: readonly (WayCounters & { readonly port: string; readonly way: "proxy" | "tunnel" })[];
  /** Connections given up after all attempts, per Service port and by the last reason. */
  readonly failed: readonly { readonly port: string; readonly reason: string; readonly count: number }[];
  readonly sync: SyncStatus;
  readonly refused: Readonly<Record<string, number>>;
  readonly inbound: WayCounters & { readonly refused: Readonly<Record<string, number>> };
  /** Addresses and endpoints that were left out, with the reason. */
  readonly notes: readonly string[];
}

/** Writing rules to the kernel. */
export interface SyncStatus {
  readonly done: number;
  readonly failed: number;
  /** All of them together, and the last one. */
  readonly seconds: number;
  readonly lastSeconds: number;
}

export interface StatusInput {
  readonly meta: MetaReader | undefined;
  readonly plan: Plan;
  readonly counters: Counters;
  readonly connections: number;
  readonly rules: RuleWriter;
  readonly synced: boolean;
  readonly repairs: number;
  readonly problem: string | undefined;
  readonly sync: SyncStatus;
}

export function forwardStatus(input: StatusInput): ForwardStatus {
  const { plan, counters } = input;
  const services: ServiceStatus[] = [];
  const notes: string[] = [];
  for (const service of [...plan.services.values()].sort(by((s) => s.key))) {
    for (const port of service.ports) services.push(portStatus(service.key, port));
    for (const note of service.notes) notes.push(`${service.key}: ${note}`);
  }
  const traffic = [...counters.ports].flatMap(([port, { ways }]) =>
    (["proxy", "tunnel"] as const).filter((way) => ways[way].opened + ways[way].dialFailures > 0)
      .map((way) => ({ port, way, ...ways[way] }))
  );
  return {
    backend: input.rules.kind,
    ownsTables: input.rules.ownsTables,
    synced: input.synced,
    repairs: input.repairs,
    ...(input.problem === undefined ? {} : { problem: input.problem }),
    connections: input.connections,
    services,
    leftAlone: leftAlone(input),
    traffic,
    failed: [...counters.ports].flatMap(([port, { failed }]) =>
      [...failed].map(([reason, count]) => ({ port, reason, count }))
    ),
    sync: input.sync,
    refused: Object.fromEntries(counters.refused),
    inbound: { ...counters.inbound, refused: Object.fromEntries(counters.inboundRefused) },
    notes,
  };
}

function leftAlone({ meta, plan }: StatusInput): LeftAlone[] {
  const out: LeftAlone[] = [];
  for (const service of meta?.services() ?? []) {
    if (!hasVirtualAddress(service)) continue;
    const reason = filterReason(service, plan.config.filter);
    if (!reason) continue;
    out.push({ service: serviceKey(service.namespace, service.name), reason, why: filterText(reason) });
  }
  return out.sort(by((s) => s.service));
}

/** Orders by a name, so that two looks at the same thing can be compared. */
function by<T>(name: (item: T) => string): (a: T, b: T) => number {
  return (a, b) => name(a) < name(b) ? -1 : name(a) > name(b) ? 1 : 0;
}

/** One sentence for a slot's way. */
export function whyOf(slot: Slot): string {
  switch (slot.reason) {
    case "own-node":
      return "the endpoint runs on this node";
    case "routable-subnet":
      return `the pod network of ${slot.node} is reachable from here`;
    case "other-node":
      return `the endpoint runs on ${slot.node}, whose pods are not reachable from here`;
    case "no-node":
      return "the endpoint belongs to no node and is dialled from here";
    case "balance":
      return "the kernel cannot do this Service's balancing";
  }
}

function portStatus(service: string, port: PlannedPort): ServiceStatus {
  const address = port.frontends.find((f) => f.kind === "cluster-ip")?.ip ?? "";
  const slots = port.internal.verdict === "forward" ? port.internal.slots : [];
  const verdict = verdictText(port.internal);
  return {
    service,
    address,
    port: port.port,
    protocol: port.protocol,
    endpoints: slots.map((slot) => ({
      endpoint: hostPort(slot.endpoint),
      ...(slot.node === undefined ? {} : { node: slot.node }),
      way: slot.way,
      why: whyOf(slot),
    })),
    ...(verdict === undefined ? {} : { verdict }),
  };
}

function verdictText(verdict: Verdict): string | undefined {
  switch (verdict.verdict) {
    case "forward":
      return undefined;
    case "drop":
      return "dropped: only endpoints of this node may serve (traffic policy Local), and there are none";
    case "reject":
      return verdict.reason === "no-endpoints"
        ? "refused: no ready endpoint"
        : "refused: every endpoint was left out, see notes";
  }
}
