/** `edgemesh check`: gathers, judges, prints one line per finding, and ends with what it all means. */
import { pause, systemClock } from "../../lib/clock.ts";
import { describe } from "../../lib/errors.ts";
import { type Status, STATUS_VERSION } from "../../lib/status.ts";
import { adminCall, NotRunningError } from "../admin_client.ts";
import { configSources } from "../daemon/daemon.ts";
import { checkConfig, problemLine } from "../../lib/config_load.ts";
import type { AgentConfig } from "../../lib/config.ts";
import { parsePeriod } from "../period.ts";
import { type Format, paint, printDocument } from "../output.ts";
import { fetchStatus } from "../status.ts";
import { within } from "../within.ts";
import type { AgentAnswer, AgentFacts, Check, CheckState, RunningFacts } from "./facts.ts";
import { gatherHost, gatherStart } from "./gather_host.ts";
import { withHolder } from "./holders.ts";
import { judgeRunning } from "./judge_agent.ts";
import { gatherResolvers } from "./resolvers.ts";
import { fail, judgeHost, judgeStart } from "./judge_host.ts";

export interface CheckFlags {
  readonly runDir: string;
  readonly role?: "agent" | "server";
  readonly output: Format;
  readonly pre?: boolean;
  readonly strict?: boolean;
  readonly category?: readonly string[];
  /** How long as typed; true: the default. */
  readonly wait?: string | true;
  readonly config?: string;
  readonly set?: readonly string[];
}

/** One DNS question; a resolver of this host answers in microseconds. */
const DNS_MS = 2_000;
const WAIT_DEFAULT = "60s";
const WAIT_STEP_MS = 500;

/** 0 = nothing failed; 1 = something did, or with --strict was warned of. */
export async function checkCommand(flags: CheckFlags): Promise<number> {
  const checks = await lookUntilGood(flags);
  const worst: CheckState = checks.some((c) => c.state === "fail")
    ? "fail"
    : checks.some((c) => c.state === "warn")
    ? "warn"
    : "ok";
  await printDocument(
    { apiVersion: STATUS_VERSION, result: worst, checks },
    flags.output,
    () => checkText(checks, worst),
  );
  return worst === "fail" || (worst === "warn" && flags.strict) ? 1 : 0;
}

/** One look, or with --wait as many as it takes. */
async function lookUntilGood(flags: CheckFlags): Promise<readonly Check[]> {
  const wanted = (check: Check) => flags.category === undefined || flags.category.includes(check.category);
  const look = async () => (flags.pre ? await preChecks(flags) : await runningChecks(flags)).filter(wanted);
  if (flags.wait === undefined) return await look();
  const deadline = systemClock.now() + parsePeriod("--wait", flags.wait === true ? WAIT_DEFAULT : flags.wait);
  for (;;) {
    const checks = await look();
    if (checks.every((c) => c.state !== "fail") || systemClock.now() + WAIT_STEP_MS > deadline) return checks;
    await pause(WAIT_STEP_MS);
  }
}

/** Lines by category, as people read them. */
export function checkText(checks: readonly Check[], worst: CheckState): string {
  const out: string[] = [];
  for (const category of new Set(checks.map((c) => c.category))) {
    if (out.length > 0) out.push("");
    out.push(category, "-".repeat(category.length));
    for (const c of checks) {
      if (c.category !== category) continue;
      out.push(`${MARKS[c.state]} ${c.text}`);
      if (c.hint !== undefined) out.push(`    try: ${c.hint}`);
    }
  }
  return [...out, "", `Status check results are ${MARKS[worst]}`].join("\n");
}

const MARKS: Readonly<Record<CheckState, string>> = {
  get ok() {
    return paint("green", "√");
  },
  get warn() {
    return paint("yellow", "‼");
  },
  get fail() {
    return paint("red", "×");
  },
};

async function preChecks(flags: CheckFlags): Promise<Check[]> {
  const host = judgeHost(await gatherHost([]));
  const { config, problems } = checkConfig("agent", await configSources("agent", daemonFlags(flags)));
  if (config === undefined) return [...host, ...problems.map((p) => badConfig(problemLine(p)))];
  return [...host, ...judgeStart(await gatherStart(config as AgentConfig))];
}

async function runningChecks(flags: CheckFlags): Promise<Check[]> {
  let status: Status;
  try {
    status = await fetchStatus(flags);
  } catch (error) {
    if (!(error instanceof NotRunningError)) throw error;
    return [fail("agent", "answers", error.message, error.hint ?? "start it"), ...await preChecks(flags)];
  }
  const running: RunningFacts = { status, ...await openFilesOf(status.pid) };
  if (status.role === "server") {
    return [...judgeHost(await gatherHost([])), ...judgeRunning(running, systemClock.wall())];
  }
  const answer = await adminCall({ role: "agent", runDir: flags.runDir }, "GET", "/v1/check") as AnyAnswer;
  const agent = await completed(answer, flags.runDir);
  const facts = { ...running, agent, ...await askSample(agent) };
  return [...judgeHost(await gatherHost(agent.podBridges)), ...judgeRunning(facts, systemClock.wall())];
}

/** What an agent may answer: before there was `usage` it looked itself, and sent what it found. */
type AnyAnswer = Omit<AgentAnswer, "usage"> & Partial<Pick<AgentFacts, "resolvers"> & Pick<AgentAnswer, "usage">>;

/** With what the agent could not see of other programs, and we can. Rejects with MeshError when it no longer answers. */
export async function completed({ usage, ...agent }: AnyAnswer, runDir: string): Promise<AgentFacts> {
  const { dns } = agent;
  const resolvers = dns && usage ? await gatherResolvers(runDir, usage) : agent.resolvers ?? [];
  const hidden = usage === undefined ? "other version" : Deno.uid() === 0 ? undefined : "not root";
  const facts = { ...agent, resolvers, ...(hidden ? { podsHidden: hidden } as const : {}) };
  if (dns?.problem === undefined) return facts;
  const problem = await withHolder(dns.problem, dns.listen);
  const hint = dns.hint === undefined ? {} : { hint: await withHolder(dns.hint, dns.listen) };
  return { ...facts, dns: { ...dns, problem, ...hint } };
}

/** Asks the mesh address as any program of this host would. */
async function askSample({ dns, sample }: AgentFacts): Promise<Pick<RunningFacts, "answer">> {
  const listen = dns?.listen[0];
  if (listen === undefined || sample === undefined || dns?.problem !== undefined) return {};
  const port = Number(listen.slice(listen.lastIndexOf(":") + 1));
  const ipAddr = listen.slice(0, listen.lastIndexOf(":"));
  const started = systemClock.now();
  try {
    const asked = Deno.resolveDns(`${sample.name}.`, "A", { nameServer: { ipAddr, port } });
    const addresses = await within(DNS_MS, `nothing within ${DNS_MS / 1000} s`, asked);
    return { answer: { addresses, ms: Math.round((systemClock.now() - started) * 10) / 10 } };
  } catch (error) {
    return { answer: { problem: describe(error) } };
  }
}

async function openFilesOf(pid: number): Promise<Pick<RunningFacts, "openFiles">> {
  const text = await Deno.readTextFile(`/proc/${pid}/limits`).catch(() => "");
  const limit = /^Max open files\s+(\d+)/m.exec(text)?.[1];
  return limit === undefined ? {} : { openFiles: Number(limit) };
}

function badConfig(text: string): Check {
  return fail("agent", "config", text, "edgemesh config schema agent");
}

function daemonFlags({ config, set }: CheckFlags) {
  return { ...(config === undefined ? {} : { config }), ...(set === undefined ? {} : { set }) };
}
