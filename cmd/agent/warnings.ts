/** What an operator should look at, from what the parts of a running agent say: `warnings` of the status document. */
import type { ForwardStatus } from "../../lib/forward/status.ts";
import type { ServerLinkStatus, Warning } from "../../lib/status.ts";
import type { RunningAgent } from "./running.ts";
import { duration } from "../output.ts";
import { rulesHint } from "../rules_hint.ts";
import { serverHint } from "../server_hint.ts";
import { FFI_HINT, WITHOUT_FFI } from "../without_ffi.ts";

/** Beyond it, times in certificates and logs of two machines stop making sense together. */
const CLOCK_TOLERANCE_MS = 5 * 60_000;

export interface WarningFacts {
  readonly servers: readonly ServerLinkStatus[];
  readonly forward?: ForwardStatus;
}

export function agentWarnings(agent: RunningAgent, facts: WarningFacts): Warning[] {
  return [
    ...serverWarnings(agent, facts.servers),
    ...sourceWarnings(agent),
    ...moduleWarnings(agent, facts.forward),
    ...diskWarnings(agent),
    ...identityWarnings(agent),
  ];
}

function serverWarnings({ config }: RunningAgent, servers: readonly ServerLinkStatus[]): Warning[] {
  if (!config.tunnel.enabled || servers.some((s) => s.state === "connected")) return [];
  const why = servers.find((s) => s.detail !== undefined)?.detail ?? "not connected yet";
  const text =
    `no server is connected (${why}); Services on this node and over existing direct paths go on, others do not`;
  return [{ code: /connected again from/.test(why) ? "REPLACED" : "SERVER_UNREACHABLE", text, hint: serverHint(why) }];
}

/** An API that somebody named and that is not followed: what it would say is not known, however current the rest looks. */
function sourceWarnings({ explicit }: RunningAgent): Warning[] {
  const status = explicit?.status();
  if (status?.lastError === undefined) return [];
  const text = `the ${status.kind} source that is configured is not followed: ${status.lastError}`;
  return [{ code: "NOT_SYNCED", text, hint: "edgemesh config show" }];
}

function moduleWarnings({ dns, config, link, sockets }: RunningAgent, forward: ForwardStatus | undefined): Warning[] {
  if (link.problem) {
    const { text, hint } = link.problem;
    const what = `there is no mesh link, so this host has neither names nor Services of the mesh: ${text}`;
    return [{ code: "KERNEL", text: what, ...(hint === undefined ? {} : { hint }) }];
  }
  const out: Warning[] = [];
  const { without } = sockets;
  if (without && !without.chosen) {
    out.push({ code: "KERNEL", text: `FFI is refused (${without.why}): ${WITHOUT_FFI}`, hint: FFI_HINT });
  }
  if (forward?.problem !== undefined) {
    out.push({
      code: "KERNEL",
      text: `kernel rules are not current: ${forward.problem}`,
      hint: rulesHint(forward.problem),
    });
  }
  if (dns?.problem !== undefined) {
    out.push({
      code: "KERNEL",
      text: `DNS does not answer: ${dns.problem}`,
      ...(dns.hint === undefined ? {} : { hint: dns.hint }),
    });
  }
  const stats = dns?.stats();
  if (stats && stats.leftOut.length > 0 && !stats.upstreams.some((u) => u.zone === ".")) {
    out.push({
      code: "DNS_LOOP",
      text: `names outside the cluster cannot be resolved: ${stats.leftOut.join("; ")}`,
      hint:
        `name another resolver: dns.upstreams in the configuration, or a second nameserver in ${config.dns.resolvConf}`,
    });
  }
  return out;
}

function diskWarnings({ disk, config }: RunningAgent): Warning[] {
  const { lastError, loadError } = disk.status();
  const out: Warning[] = [];
  if (lastError !== undefined) {
    out.push({
      code: "STATE_INVALID",
      text: `the snapshot for starts without the cloud cannot be saved: ${lastError}`,
      hint: `df ${config.stateDir}; what runs goes on`,
    });
  }
  if (loadError !== undefined) {
    out.push({
      code: "SNAPSHOT_INVALID",
      text: `a copy of the metadata on disk could not be used at the start: ${loadError}`,
      hint: "wait: it is written anew from what the server says; if it happens again, check the disk",
    });
  }
  return out;
}

function identityWarnings({ identity }: RunningAgent): Warning[] {
  const out: Warning[] = [];
  const { revoked } = identity;
  if (revoked) {
    out.push({
      code: "REVOKED",
      text: `this node was revoked on ${new Date(revoked.at).toISOString()}: ${revoked.reason}`,
      hint: `on the server: edgemesh node reset ${identity.node}; then join again`,
    });
  }
  const skew = identity.time.skew();
  if (skew !== undefined && Math.abs(skew) > CLOCK_TOLERANCE_MS) {
    out.push({
      code: "CLOCK_SKEW",
      text: `this machine's clock is ${duration(Math.abs(skew) / 1000)} ${
        skew > 0 ? "ahead of" : "behind"
      } the server's, whose time is used`,
      hint: "set the clock, or run an NTP client",
    });
  }
  const { expired, lastError } = identity.renewal;
  if (expired) {
    out.push({
      code: "CERT_EXPIRED",
      text: `this node's certificate has expired${
        lastError ? `: ${lastError.text}` : ""
      }; peers still accept it for a while`,
      hint: "it is renewed once a server with the right time is connected: edgemesh netcheck",
    });
  }
  return out;
}
