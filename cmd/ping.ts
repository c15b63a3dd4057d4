/** `edgemesh ping`: measures the way to a node, or to the nodes behind a Service, and says by which path each reply came. */
import { pause } from "../lib/clock.ts";
import { codeOf, MeshError } from "../lib/errors.ts";
import { type AgentStatus, STATUS_VERSION } from "../lib/status.ts";
import { adminCall, NotRunningError } from "./admin_client.ts";
import { type Format, print, printDocument } from "./output.ts";
import { goesOn, pingLine, type PingReply, type PingResult, summarize, summaryText } from "./ping_report.ts";
import { parsePeriod } from "./period.ts";
import type { PingTarget } from "./target.ts";

export interface PingFlags {
  readonly runDir: string;
  readonly output: Format;
  readonly count: string;
  readonly timeout: string;
  readonly interval: string;
  readonly untilDirect: boolean;
}

/** 0 = somebody answered (or nothing needs asking: the endpoints are here), 1 = nobody did. */
export async function pingCommand(name: string, flags: PingFlags): Promise<number> {
  const plan = { count: wholeNumber("--count", flags.count), untilDirect: flags.untilDirect };
  const timeoutMs = parsePeriod("--timeout", flags.timeout);
  const intervalMs = parsePeriod("--interval", flags.interval);
  const agent = { role: "agent", runDir: flags.runDir } as const;
  const say = (line: string) => flags.output === "text" && print(line);
  const target = await adminCall(agent, "GET", `/v1/target?${new URLSearchParams({ name })}`) as PingTarget;
  const nodes = introduce(target, say);

  const stop = interruption();
  const all: PingResult[] = [];
  const summaries = [];
  for (const node of nodes) {
    const results: PingResult[] = [];
    while (!stop.signal.aborted && goesOn(results, plan)) {
      if (results.length > 0) await pause(intervalMs);
      if (stop.signal.aborted) break;
      const result = await ping(agent, node, timeoutMs);
      results.push(result);
      say(pingLine(result));
    }
    all.push(...results);
    if (results.length > 0) summaries.push(summarize(node, results));
  }
  stop.close();
  for (const summary of summaries) say(summaryText(summary));
  if (flags.untilDirect && flags.output === "text") await explainRelay(agent, summaries);
  if (flags.output !== "text") {
    await printDocument({ apiVersion: STATUS_VERSION, target, replies: all, summaries }, flags.output, () => "");
  }
  return nodes.length === 0
    ? (target.kind === "service" && target.endpoints.length === 0 ? 1 : 0)
    : Number(!all.some((r) => "rttMs" in r));
}

/** Says what will be asked, and what needs no asking. */
function introduce(target: PingTarget, say: (line: string) => void): readonly string[] {
  if (target.kind === "node") {
    if (!target.self) return [target.node];
    say(`${target.node} is this node: nothing lies between`);
    return [];
  }
  if (target.endpoints.length === 0) {
    say(`${target.service} has no usable endpoint: edgemesh endpoints ${target.service}`);
  }
  for (const e of target.endpoints) say(`${target.service} ${e.endpoint}: way ${e.way}, ${e.why}`);
  return target.nodes;
}

async function ping(agent: { role: "agent"; runDir: string }, node: string, timeoutMs: number): Promise<PingResult> {
  try {
    const query = new URLSearchParams({ node, timeoutMs: String(timeoutMs) });
    return await adminCall(agent, "GET", `/v1/ping?${query}`) as PingReply;
  } catch (error) {
    if (error instanceof NotRunningError || !(error instanceof MeshError)) throw error;
    return { node, code: codeOf(error), message: error.message };
  }
}

/** Why there is no direct path, where the run ended without one. */
async function explainRelay(
  agent: { role: "agent"; runDir: string },
  summaries: readonly { readonly node: string; readonly path?: string }[],
): Promise<void> {
  const relayed = summaries.filter((s) => s.path === "relay");
  if (relayed.length === 0) return;
  const status = await adminCall(agent, "GET", "/v1/status") as AgentStatus;
  for (const { node } of relayed) {
    const detail = status.peers.find((p) => p.node === node)?.detail;
    if (detail !== undefined) print(detail);
  }
}

/** Ctrl-C ends the run with its summary instead of without. */
function interruption(): { readonly signal: AbortSignal; close(): void } {
  const controller = new AbortController();
  const onSignal = () => {
    if (controller.signal.aborted) Deno.exit(130);
    controller.abort();
  };
  Deno.addSignalListener("SIGINT", onSignal);
  return { signal: controller.signal, close: () => Deno.removeSignalListener("SIGINT", onSignal) };
}

function wholeNumber(flag: string, text: string): number {
  if (/^\d{1,6}$/.test(text)) return Number(text);
  throw new MeshError("CONFIG_INVALID", `${flag} ${text} is not a whole number`, { hint: `${flag} 10` });
}
