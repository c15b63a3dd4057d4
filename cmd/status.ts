/** `edgemesh status`: renders the status document of the agent or server on this host. */
import { authorityText } from "./authority.ts";
import { inStep } from "./servers.ts";
import { type AgentStatus, type ServerStatus, type Status, STATUS_VERSION } from "../lib/status.ts";
import { adminCall, NotRunningError } from "./admin_client.ts";
import { pause } from "../lib/clock.ts";
import { describe } from "../lib/errors.ts";
import { missingText } from "../lib/readiness.ts";
import { bytes, duration, type Format, print, printDocument, printError, table } from "./output.ts";
import { parsePeriod } from "./period.ts";

export interface StatusFlags {
  readonly runDir: string;
  readonly role?: "agent" | "server";
  readonly output: Format;
  readonly services?: boolean;
  readonly peers?: boolean;
  /** Seconds between two looks as typed; true: the default. */
  readonly watch?: string | true;
}

const WATCH_DEFAULT = "2s";
/** Clears the screen and goes to its top (ECMA-48 ED, CUP). */
const CLEAR = "\x1b[2J\x1b[H";

/** 0 = fine, 1 = degraded (something is not ready or warned of), 3 = nothing is running. */
export async function statusCommand(flags: StatusFlags): Promise<number> {
  if (flags.watch === undefined) return await showStatus(flags);
  const every = parsePeriod("--watch", flags.watch === true ? WATCH_DEFAULT : flags.watch);
  for (;;) {
    if (Deno.stdout.isTerminal() && flags.output === "text") print(CLEAR);
    // An agent that is being restarted is worth waiting for.
    await showStatus(flags).catch((error) => {
      if (!(error instanceof NotRunningError)) throw error;
      printError(describe(error));
    });
    await pause(every);
  }
}

async function showStatus(flags: StatusFlags): Promise<number> {
  const status = await fetchStatus(flags);
  const view = flags.services && status.role === "agent"
    ? {
      value: { apiVersion: STATUS_VERSION, services: status.services },
      text: () => part(servicesText(status), status),
    }
    : flags.peers && status.role === "agent"
    ? { value: { apiVersion: STATUS_VERSION, peers: status.peers }, text: () => part(peersText(status), status) }
    : { value: status, text: () => status.role === "agent" ? agentText(status) : serverText(status) };
  await printDocument(view.value, flags.output, view.text);
  return status.ready && status.warnings.length === 0 ? 0 : 1;
}

/** One part of the picture, with what explains an exit code of 1. */
function part(text: string, s: AgentStatus): string {
  return [...s.ready ? [] : [readiness(s)], text, ...warningLines(s)].join("\n");
}

/** The document of the wanted role, or of whichever runs here (the agent first). */
export async function fetchStatus(flags: Pick<StatusFlags, "runDir" | "role">): Promise<Status> {
  const roles = flags.role ? [flags.role] : ["agent", "server"] as const;
  let last: unknown;
  for (const role of roles) {
    try {
      return await adminCall({ role, runDir: flags.runDir }, "GET", "/v1/status") as Status;
    } catch (e) {
      if (!(e instanceof NotRunningError)) throw e;
      last ??= e;
    }
  }
  throw last;
}

/** What a process that is not ready waits for. */
export function waitingText({ waitingFor, missing }: Status): string {
  return (missing?.map(missingText) ?? waitingFor).join("; ");
}

/** The whole picture of an agent for a person. */
export function agentText(s: AgentStatus): string {
  const out = [head(s, `node ${s.node}, ${s.mode} since ${s.modeSince}`)];
  const m = s.metadata;
  out.push(
    `services  ${m.services} with ${m.endpoints} endpoints, on ${m.nodes} nodes, from ${m.source || "nowhere yet"}` +
      (m.source ? `, ${m.follows.state === "synced" ? "current" : `${duration(m.ageSeconds)} old`}` : ""),
  );
  if (m.local) out.push(`          ${m.local.from} wins over it: ${m.local.detail ?? m.local.state}`);
  out.push(`paths     ${s.tlsEngine} TLS engine (${s.tlsDetail})`);
  for (const module of s.modules) out.push(`${module.name.padEnd(9)} ${module.state}: ${module.detail}`);
  out.push("");
  out.push(table([
    ["SERVER", "STATE", "RTT", "WE ARE", "DETAIL"],
    ...s.servers.map((v) => [v.url, v.state, ms(v.rttMs), v.observed ?? "-", v.detail ?? ""]),
  ]));
  out.push("", peersText(s), "", servicesText(s));
  for (const problem of [...m.follows.problems, ...m.local?.problems ?? []]) out.push(`problem: ${problem}`);
  for (const refused of m.refused) out.push(`refused: ${refused}`);
  return out.concat(warningLines(s)).join("\n");
}

function peersText(s: AgentStatus): string {
  if (s.peers.length === 0) return "no peers yet: the first connection to a node makes one";
  return table([
    ["PEER", "PATH", "RTT", "STREAMS", "IN", "OUT", "DETAIL"],
    ...s.peers.map((
      p,
    ) => [p.node, p.path, ms(p.rttMs), String(p.streams), bytes(p.bytesIn), bytes(p.bytesOut), p.detail ?? ""]),
  ]);
}

function servicesText(s: AgentStatus): string {
  const leftAlone = s.leftAlone.map(({ service, why }) => `left alone: ${service}: ${why}`);
  if (s.services.length === 0) return ["no services", ...leftAlone].join("\n");
  const rows = [["SERVICE", "ADDRESS", "ENDPOINT", "NODE", "WAY", "WHY"]];
  for (const service of s.services) {
    const at = `${service.address}:${service.port}/${service.protocol}`;
    if (service.endpoints.length === 0) rows.push([service.service, at, "-", "-", "-", service.verdict ?? ""]);
    service.endpoints.forEach((e, i) =>
      rows.push([i === 0 ? service.service : "", i === 0 ? at : "", e.endpoint, e.node ?? "-", e.way, e.why])
    );
  }
  return [table(rows), ...leftAlone].join("\n");
}

/** The whole picture of a server for a person. */
export function serverText(s: ServerStatus): string {
  const out = [head(s, `server ${s.name}, ${s.url}`), `authority ${s.pin}, trust domain ${s.trustDomain}`];
  if (s.rotation) out.push(...authorityText(s.rotation).split("\n").slice(1));
  out.push(
    `metadata  ${s.metadata.services} services from ${s.metadata.source || "nowhere"}, version ${s.metadata.number}`,
  );
  for (const problem of s.metadata.problems) out.push(`problem: ${problem}`);
  for (const other of s.servers) {
    if (!other.self) out.push(`server    ${other.name} ${other.url}, in step ${inStep(other)}`);
  }
  out.push("");
  out.push(
    s.agents.length === 0 ? "no agents connected: `edgemesh token create` prints the join command" : table([
      ["AGENT", "ADDRESS", "SINCE", "VERSION", "CHANNELS", "RELAYED"],
      ...s.agents.map((a) => [a.node, a.address, a.since, a.version, String(a.channels), bytes(a.relayedBytes)]),
    ]),
  );
  return out.concat(warningLines(s)).join("\n");
}

function head(s: Status, who: string): string {
  return `edgemesh ${s.version} (${s.form}), ${who}\n` +
    `${readiness(s)}; up ${duration(s.uptimeSeconds)}, ${s.memory.privateMb.toFixed(1)} MB private, ${
      s.memory.rssMb.toFixed(1)
    } MB RSS`;
}

function readiness(s: Status): string {
  return s.ready ? "ready" : `not ready: waiting for ${waitingText(s)}`;
}

function warningLines(s: Status): string[] {
  return s.warnings.map((w) => `warning: ${w.text}${w.hint ? `; try: ${w.hint}` : ""}`);
}

function ms(value: number | undefined): string {
  return value === undefined ? "-" : `${value < 10 ? value.toFixed(1) : Math.round(value)} ms`;
}
