/** What a run of `edgemesh ping` has seen: its lines, its numbers, when it ends. Pure. */
import type { ReasonCode } from "../lib/errors.ts";
import type { PathKind } from "../lib/tunnel/carrier.ts";
import { fixFor } from "./reason_help.ts";

export interface PingReply {
  readonly node: string;
  readonly rttMs: number;
  readonly path: PathKind;
  /** The relaying server. */
  readonly server?: string;
}

export interface PingFailure {
  readonly node: string;
  readonly code: ReasonCode;
  readonly message: string;
}

export type PingResult = PingReply | PingFailure;

export interface PingSummary {
  readonly node: string;
  readonly sent: number;
  readonly received: number;
  readonly lossPercent: number;
  /** Milliseconds; missing without any reply. */
  readonly minMs?: number;
  readonly avgMs?: number;
  readonly p95Ms?: number;
  readonly maxMs?: number;
  /** How the last reply came. */
  readonly path?: PathKind;
}

export interface PingPlan {
  /** Pings per node; 0 = until interrupted. */
  readonly count: number;
  /** Stop as soon as the path is direct. */
  readonly untilDirect: boolean;
}

/** Whether one more ping makes sense. */
export function goesOn(results: readonly PingResult[], plan: PingPlan): boolean {
  const last = results.at(-1);
  if (plan.untilDirect && last && "rttMs" in last && last.path !== "relay") return false;
  return plan.count === 0 || results.length < plan.count;
}

/** One line per result. */
export function pingLine(result: PingResult): string {
  if ("rttMs" in result) {
    const via = result.path === "relay" && result.server !== undefined ? `relay(${result.server})` : result.path;
    return `pong from ${result.node} via ${via} in ${milliseconds(result.rttMs)}`;
  }
  const fix = fixFor(result.code, result.node);
  // The other side's hint may already stand in the message.
  return `no reply from ${result.node}: ${result.code}: ${result.message}` +
    (fix === undefined || result.message.includes("; try: ") ? "" : `; try: ${fix}`);
}

/** The numbers of one node's results. */
export function summarize(node: string, results: readonly PingResult[]): PingSummary {
  const replies = results.filter((r) => "rttMs" in r);
  const times = replies.map((r) => r.rttMs).sort((a, b) => a - b);
  const base = {
    node,
    sent: results.length,
    received: times.length,
    lossPercent: results.length === 0 ? 0 : Math.round(1000 * (1 - times.length / results.length)) / 10,
  };
  if (times.length === 0) return base;
  return {
    ...base,
    minMs: round(times[0]!),
    avgMs: round(times.reduce((sum, t) => sum + t, 0) / times.length),
    p95Ms: round(times[Math.ceil(times.length * 0.95) - 1]!),
    maxMs: round(times.at(-1)!),
    path: replies.at(-1)!.path,
  };
}

export function summaryText(s: PingSummary): string {
  const head = `${s.node}: ${s.sent} sent, ${s.received} received, ${s.lossPercent} % loss`;
  return s.minMs === undefined ? head : `${head}, min/avg/p95 ${s.minMs}/${s.avgMs}/${s.p95Ms} ms`;
}

function milliseconds(ms: number): string {
  return `${ms < 10 ? ms.toFixed(1) : Math.round(ms)} ms`;
}

function round(ms: number): number {
  return Math.round(ms * 10) / 10;
}
