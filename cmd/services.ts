/** `edgemesh services`, `endpoints` and `connections`: parts of what the agent knows, as tables. */
import { type AgentStatus, type ServiceStatus, STATUS_VERSION } from "../lib/status.ts";
import { adminCall } from "./admin_client.ts";
import type { ConnectionsSeen } from "./agent/netcheck.ts";
import { bytes, duration, type Format, printDocument, table } from "./output.ts";
import { fetchStatus } from "./status.ts";

export interface TableFlags {
  readonly runDir: string;
  readonly output: Format;
  readonly namespace?: string;
}

/** All Services, a line per port. */
export async function servicesCommand(flags: TableFlags): Promise<number> {
  const { services } = await agentStatus(flags);
  const wanted = services.filter((s) => flags.namespace === undefined || s.service.startsWith(`${flags.namespace}/`));
  await printDocument({ apiVersion: STATUS_VERSION, services: wanted }, flags.output, () => servicesTable(wanted));
  return 0;
}

/** The endpoints of one Service with way and reason; 1 when it has none. */
export async function endpointsCommand(name: string, flags: TableFlags): Promise<number> {
  const found = await adminCall(
    { role: "agent", runDir: flags.runDir },
    "GET",
    `/v1/service?${new URLSearchParams({ name })}`,
  ) as readonly ServiceStatus[];
  await printDocument({ apiVersion: STATUS_VERSION, services: found }, flags.output, () => endpointsTable(found));
  return found.some((s) => s.endpoints.length > 0) ? 0 : 1;
}

/** What the agent carries now, and has carried. */
export async function connectionsCommand(flags: TableFlags): Promise<number> {
  const seen = await adminCall({ role: "agent", runDir: flags.runDir }, "GET", "/v1/connections") as ConnectionsSeen;
  await printDocument({ apiVersion: STATUS_VERSION, ...seen }, flags.output, () => connectionsTable(seen));
  return 0;
}

export function servicesTable(services: readonly ServiceStatus[]): string {
  if (services.length === 0) return "no services";
  return table([
    ["NAMESPACE", "NAME", "ADDRESS", "PORT", "ENDPOINTS", "WAYS"],
    ...services.map((s) => {
      const [namespace, name] = s.service.split("/");
      const ways = new Map<string, number>();
      for (const { way } of s.endpoints) ways.set(way, (ways.get(way) ?? 0) + 1);
      const text = [...ways].map(([way, n]) => `${n} ${way}`).join(", ");
      return [
        namespace!,
        name!,
        s.address,
        `${s.port}/${s.protocol}`,
        String(s.endpoints.length),
        text || s.verdict || "-",
      ];
    }),
  ]);
}

export function endpointsTable(services: readonly ServiceStatus[]): string {
  const rows = services.flatMap((s) => {
    const port = `${s.port}/${s.protocol}`;
    if (s.endpoints.length === 0) return [[port, "-", "-", "-", s.verdict ?? "no endpoint"]];
    return s.endpoints.map((e) => [port, e.endpoint, e.node ?? "-", e.way, e.why]);
  });
  return table([["PORT", "ENDPOINT", "NODE", "WAY", "WHY"], ...rows]);
}

export function connectionsTable(seen: ConnectionsSeen): string {
  const { traffic, inbound, refused } = seen;
  const line = (name: string, way: string, c: ConnectionsSeen["traffic"][number] | ConnectionsSeen["inbound"]) => [
    name,
    way,
    String(c.active),
    String(c.opened),
    String(c.dialFailures),
    bytes(c.bytesIn),
    bytes(c.bytesOut),
  ];
  const open = seen.open.map((c) => [
    c.client,
    `${c.service}/${c.protocol}`,
    c.endpoint,
    c.node ?? "-",
    c.way,
    duration(c.ageSeconds),
    bytes(c.bytesOut),
    bytes(c.bytesIn),
  ]);
  const out = [
    ...(open.length === 0
      ? []
      : [table([["CLIENT", "SERVICE", "ENDPOINT", "NODE", "WAY", "AGE", "OUT", "IN"], ...open]), ""]),
    `${seen.connections} of at most ${seen.max} connections; the kernel way is carried and counted by the kernel alone`,
    table([
      ["SERVICE", "WAY", "ACTIVE", "OPENED", "FAILED", "IN", "OUT"],
      ...traffic.map((t) => line(t.port, t.way, t)),
      line("(from other nodes)", "tunnel", inbound),
    ]),
  ];
  for (const [reason, n] of Object.entries(refused)) out.push(`refused here: ${n} × ${reason}`);
  for (const [reason, n] of Object.entries(inbound.refused)) out.push(`refused to other nodes: ${n} × ${reason}`);
  return out.join("\n");
}

async function agentStatus(flags: TableFlags): Promise<AgentStatus> {
  return await fetchStatus({ runDir: flags.runDir, role: "agent" }) as AgentStatus;
}
