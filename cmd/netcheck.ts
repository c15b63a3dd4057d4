/** `edgemesh netcheck`: what the network between this host and its servers is like, with or without a running agent. */
import { hostPort } from "../lib/addr.ts";
import { STATUS_VERSION } from "../lib/status.ts";
import { adminCall, NotRunningError } from "./admin_client.ts";
import type { NetworkSeen } from "./agent/netcheck.ts";
import type { ReachFact } from "./check/facts.ts";
import { gatherHost, identityOf, proxyOf, reachAll } from "./check/gather_host.ts";
import { readConfig } from "./daemon/daemon.ts";
import { judgeNat, type NatFinding, type Sighting } from "./netcheck_judge.ts";
import { type Format, printDocument, table } from "./output.ts";

export interface NetcheckFlags {
  readonly runDir: string;
  readonly output: Format;
  readonly config?: string;
  readonly set?: readonly string[];
}

export interface Netcheck {
  readonly apiVersion: string;
  readonly proxies: readonly string[];
  readonly reach: readonly ReachFact[];
  readonly nat: NatFinding;
  /** Undefined while no agent runs here. */
  readonly agent?: NetworkSeen;
}

/** 0 = a server can be reached; 1 = none. */
export async function netcheckCommand(flags: NetcheckFlags): Promise<number> {
  const result = await netcheck(flags);
  await printDocument(result, flags.output, () => netcheckText(result));
  return result.reach.some((r) => r.failed === undefined) ? 0 : 1;
}

export async function netcheck(flags: Pick<NetcheckFlags, "runDir" | "config" | "set">): Promise<Netcheck> {
  const agent = await running(flags.runDir);
  const { config, set } = flags;
  const read = await readConfig("agent", {
    ...(config === undefined ? {} : { config }),
    ...(set === undefined ? {} : { set }),
  });
  const { pin, servers } = await identityOf(read);
  const urls = agent ? agent.servers.map((s) => s.url) : servers;
  const [{ proxies }, reach] = await Promise.all([gatherHost([]), reachAll(urls, { pin, proxyFor: proxyOf(read) })]);
  const sightings = (agent?.servers ?? []).flatMap(({ url, local, observed, remote }): Sighting[] =>
    local && observed && remote ? [{ url, local, observed, remote }] : []
  );
  return { apiVersion: STATUS_VERSION, proxies, reach, nat: judgeNat(sightings), ...(agent ? { agent } : {}) };
}

export function netcheckText({ proxies, reach, nat, agent }: Netcheck): string {
  const seen = new Map((agent?.servers ?? []).map((s) => [s.url, s]));
  const rows = reach.map((r) => {
    const s = seen.get(r.url);
    return [
      r.url,
      time(r.tcpMs),
      time(r.tlsMs),
      s ? s.state : "-",
      s?.observed && s.local ? `${hostPort(s.local)} → ${hostPort(s.observed)}` : "-",
      s?.clockOffsetMs === undefined ? "-" : `${Math.round(s.clockOffsetMs)} ms`,
      r.failed
        ? `${r.failed.step} failed: ${r.failed.text}`
        : r.pinned
        ? "authority is the pinned one"
        : "authority not checked",
    ];
  });
  const out = [
    rows.length === 0
      ? "no server is configured: --set server=wss://HOST, or join first"
      : table([["SERVER", "TCP", "TLS", "CONTROL", "WE ARE SEEN AS", "CLOCK", "DETAIL"], ...rows]),
    "",
    agent ? nat.text : "no agent runs here: addresses and NAT are known once it is connected",
  ];
  if (proxies.length > 0) {
    out.push(
      `${
        proxies.join(", ")
      } set: servers are reached as it says, unless \`proxy\` is set; paths between agents never use it`,
    );
  }
  if (agent) {
    const { lan, direct, relay, none } = agent.peers;
    out.push(
      agent.listener === 0 ? "no listener for other agents" : `other agents may connect to port ${agent.listener}`,
      `peers: ${lan} by LAN, ${direct} direct, ${relay} by relay, ${none} without a path`,
    );
  }
  return out.join("\n");
}

async function running(runDir: string): Promise<NetworkSeen | undefined> {
  try {
    return await adminCall({ role: "agent", runDir }, "GET", "/v1/netcheck") as NetworkSeen;
  } catch (error) {
    if (error instanceof NotRunningError) return undefined;
    throw error;
  }
}

function time(ms: number | undefined): string {
  return ms === undefined ? "-" : `${ms < 10 ? ms.toFixed(1) : Math.round(ms)} ms`;
}
