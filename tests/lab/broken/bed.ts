/**
 * What the tests of broken situations share: one server and one node that has joined, on which an agent is started into
 * each situation by itself; and the sentence that the product says about it.
 */
import assert from "node:assert/strict";
import { until } from "../../../lib/lab/exec.ts";
import type { Mesh } from "../../../lib/lab/mesh.ts";
import type { LabNode } from "../../../lib/lab/node.ts";
import type { HostProcess } from "../../../lib/lab/process.ts";
import type { AgentStatus, Warning } from "../../../lib/status.ts";
import { type MeshOptions, tell, webService, withMesh } from "../fixture.ts";

/** A Service whose only endpoint runs on the node itself: it needs rules and names, but no server. */
export const NEAR = "10.96.0.10";

/** One judged line of `edgemesh check -o json`. */
export interface Line {
  readonly name: string;
  readonly state: "ok" | "warn" | "fail";
  readonly text: string;
  readonly hint?: string;
}

export interface StartFlags {
  readonly flags?: readonly string[];
  /** Stands before the program: what makes the situation for this process alone. */
  readonly under?: readonly string[];
  readonly env?: Readonly<Record<string, string>>;
  /** Until when the start waits. Default: nothing. */
  readonly ready?: RegExp;
}

/** A machine on which an agent has joined and is stopped, and its server. */
export class Bed {
  readonly mesh: Mesh;
  readonly node: LabNode;

  constructor(mesh: Mesh) {
    this.mesh = mesh;
    this.node = mesh.topology.node("edge-1");
  }

  /** Starts the agent in whatever situation the machine is in, runs `test`, and stops it. */
  async agent(options: StartFlags, test: (agent: HostProcess) => Promise<void>): Promise<void> {
    const argv = [...options.under ?? [], ...this.node.command, "agent", ...options.flags ?? []];
    const agent = await this.node.host.start("agent", argv, {
      ...(options.env ? { env: options.env } : {}),
      ...(options.ready ? { ready: { log: options.ready } } : {}),
    });
    try {
      await test(agent);
    } finally {
      await agent.stop();
    }
  }

  /** The judged lines of `edgemesh check` on the node. */
  async check(flags: readonly string[] = [], env: Readonly<Record<string, string>> = {}): Promise<Line[]> {
    const { stdout, stderr } = await this.node.run(["check", "-o", "json", ...flags], { env });
    assert.ok(stdout.startsWith("{"), stderr);
    return (JSON.parse(stdout) as { readonly checks: Line[] }).checks;
  }

  /** Waits until `check` has a line of the name in the state, and gives it. */
  line(name: string, state: Line["state"], flags: readonly string[] = []): Promise<Line> {
    let last: readonly Line[] = [];
    return until(`check to say ${state} about ${name}`, async () => {
      last = await this.check(flags);
      return last.find((line) => line.name === name && line.state === state);
    }).catch((error) => {
      tell(JSON.stringify(last.filter((line) => line.name === name || line.state !== "ok"), null, 1));
      throw error;
    });
  }

  status(): Promise<AgentStatus> {
    return this.mesh.status(this.node);
  }

  /** Waits until `status` warns of the code, and gives the warning. */
  warning(code: string, timeoutMs?: number): Promise<Warning> {
    return until(
      `status to warn of ${code}`,
      async () => (await this.status().catch(() => undefined))?.warnings.find((w) => w.code === code),
      timeoutMs,
    );
  }

  /** Runs a shell line on the node. */
  async sh(script: string): Promise<string> {
    return (await this.node.host.execOk(["sh", "-c", script])).stdout;
  }
}

/** Runs a test on a {@link Bed}: everything stands, the node has joined once, no agent runs. */
export async function onBed(options: MeshOptions, test: (bed: Bed) => Promise<void>): Promise<void> {
  const small = { sites: [{ nat: "cone" }], cloud: "none", oneWayDelayMs: 2, podsPerNode: 1 } as const;
  await withMesh({ ...small, ...options }, async (mesh) => {
    const bed = new Bed(mesh);
    await mesh.writeManifest("near.yaml", webService("near", NEAR, [mesh.topology.pod("edge-1-pod-1")]));
    await mesh.startServer();
    const agent = await mesh.join(bed.node);
    // What it knows is on disk from here on.
    await agent.stop();
    await test(bed);
  });
}

/** A line of the judged ones: what failed, why with values, what to do. */
export function lineSays(line: Line, what: RegExp, hint: RegExp): string {
  assert.match(line.text, what);
  assert.ok(!line.text.endsWith("."), line.text);
  assert.match(line.hint ?? "", hint);
  return `${line.text}; try: ${line.hint}`;
}

/** A warning of `status`. */
export function warningSays(warning: Warning, what: RegExp, hint: RegExp): string {
  assert.match(warning.text, what);
  assert.match(warning.hint ?? "", hint);
  return `${warning.text}; try: ${warning.hint}`;
}

/** The last `error: …; try: …` of what a program printed. */
export function errorSays(printed: string, what: RegExp, hint: RegExp): string {
  const line = printed.trim().split("\n").findLast((l) => l.startsWith("error: ")) ?? printed;
  assert.match(line, /^error: .*; try: /, printed);
  assert.match(line, what);
  assert.match(line.slice(line.indexOf("; try: ")), hint);
  return line;
}

/** Prints a row of the table situation → who says it → sentence. */
export function row(situation: string, who: string, sentence: string): void {
  tell(`| ${situation} | ${who} | ${sentence} |`);
}
