/** A long-running program on a lab host: started until ready, watched, stopped, frozen, killed, measured. */
import { pause, systemClock } from "../clock.ts";
import { MeshError } from "../errors.ts";
import { signalGroup } from "./exec.ts";
import type { Host } from "./host.ts";
import { processesInGroup, stat } from "./proc.ts";
import { findFaketime } from "./tools.ts";

/** What shows that a program is ready. */
export type Ready =
  /** A match in what it has printed since this start. */
  | { readonly log: RegExp }
  /** A file or socket exists, named as the program sees it. */
  | { readonly file: string }
  /** A socket of the machine listens (TCP) or is bound (UDP) on the port. */
  | { readonly port: number; readonly protocol?: "tcp" | "udp" }
  /** Anything else. */
  | { readonly probe: () => Promise<boolean> };

/** A wrong clock on the machine: only the time of day, never the clocks that timers run on. */
export type FakeTime =
  /** So many seconds ahead of the real time, negative for behind. */
  | { readonly offsetSeconds: number }
  /** This time at the start, running on from there. */
  | { readonly startAt: Date }
  /** Always this time. */
  | { readonly frozenAt: Date };

export interface StartOptions {
  readonly env?: Readonly<Record<string, string>>;
  readonly cwd?: string;
  /** All of these must hold. Default: ready as soon as it is started. */
  readonly ready?: Ready | readonly Ready[];
  /** Default 15 s. */
  readonly readyTimeoutMs?: number;
  readonly clock?: FakeTime;
}

/** Memory of a program and its descendants, in bytes. */
export interface Memory {
  readonly rss: number;
  /** Pages no other process has: what would be free if it ended. */
  readonly private: number;
  /** Shared pages counted by share. */
  readonly pss: number;
}

interface Start extends StartOptions {
  readonly name: string;
  readonly argv: readonly string[];
  readonly logPath: string;
}

const READY_TIMEOUT_MS = 15_000;
const STOP_TIMEOUT_MS = 10_000;
const LONGEST_PAUSE_MS = 10;
/** USER_HZ. */
const TICKS_PER_SECOND = 100;
/** How much of the log an error shows. */
const LOG_TAIL = 2_000;

/** A running program. It leads a process group of its own, and signals go to the whole group. */
export class HostProcess {
  readonly host: Host;
  readonly name: string;
  readonly argv: readonly string[];
  readonly pid: number;
  /** File with everything it prints, on the real machine. */
  readonly logPath: string;
  /** Resolves when it has ended. */
  readonly ended: Promise<Deno.CommandStatus>;
  #status: Deno.CommandStatus | undefined;

  private constructor(host: Host, start: Start, child: Deno.ChildProcess) {
    this.host = host;
    this.name = start.name;
    this.argv = start.argv;
    this.logPath = start.logPath;
    this.pid = child.pid;
    this.ended = child.status;
    this.ended.then((status) => this.#status = status);
  }

  /** Use {@link Host.start}. */
  static async start(host: Host, start: Start): Promise<HostProcess> {
    const clock = start.clock ? await fakeTimeEnv(start.clock) : [];
    const inside = [...clock, ...start.argv];
    const [program, ...args] = [
      "sh",
      "-c",
      'exec >"$0" 2>&1; exec "$@"',
      start.logPath,
      ...host.command(inside, start.cwd === undefined ? {} : { cwd: start.cwd }),
    ];
    const child = new Deno.Command(program!, {
      args,
      stdin: "null",
      stdout: "null",
      stderr: "null",
      detached: true,
      clearEnv: true,
      env: { ...start.env },
    }).spawn();
    host.ns.lab.adopt(child);
    const process = new HostProcess(host, start, child);
    const ready = start.ready === undefined ? [] : "length" in start.ready ? start.ready : [start.ready];
    try {
      for (const condition of ready) await process.waitFor(condition, start.readyTimeoutMs);
    } catch (error) {
      await process.kill();
      throw error;
    }
    return process;
  }

  get running(): boolean {
    return this.#status === undefined;
  }

  /** Everything it has printed since this start. */
  log(): Promise<string> {
    return Deno.readTextFile(this.logPath);
  }

  /**
   * Waits for a condition.
   * @throws MeshError TIMEOUT at the deadline, PEER_GONE when the program ends before; both show the end of its log
   */
  async waitFor(condition: Ready, timeoutMs = READY_TIMEOUT_MS): Promise<void> {
    const deadline = systemClock.now() + timeoutMs;
    for (let ms = 1;; ms = Math.min(LONGEST_PAUSE_MS, ms * 2)) {
      // Asked before the condition: what it printed with its last breath still counts.
      const status = this.#status;
      if (await this.#holds(condition)) return;
      const wanted = "log" in condition ? `log ${condition.log}` : JSON.stringify(condition);
      if (status) throw await this.#failure("PEER_GONE", `ended with ${describeStatus(status)} before ${wanted}`);
      if (systemClock.now() >= deadline) {
        throw await this.#failure("TIMEOUT", `after ${timeoutMs} ms still no ${wanted}`);
      }
      await pause(ms);
    }
  }

  /** Sends a signal to the program and its descendants. Does nothing once it has ended. */
  signal(signal: Deno.Signal): void {
    if (this.running) signalGroup(this.pid, signal);
  }

  /** Freezes it: it stays connected and says nothing, like a hung machine. */
  freeze(): void {
    this.signal("SIGSTOP");
  }

  thaw(): void {
    this.signal("SIGCONT");
  }

  /** Asks it to end (SIGTERM); throws MeshError TIMEOUT, and kills it, when it does not. */
  async stop(timeoutMs = STOP_TIMEOUT_MS): Promise<Deno.CommandStatus> {
    this.signal("SIGTERM");
    let late = false;
    const cancel = systemClock.timer(timeoutMs, () => {
      late = true;
      this.signal("SIGKILL");
    });
    const status = await this.ended;
    cancel();
    if (late) throw await this.#failure("TIMEOUT", `did not end within ${timeoutMs} ms of SIGTERM`);
    return status;
  }

  /** Kills it (SIGKILL), as a power cut would. */
  async kill(): Promise<Deno.CommandStatus> {
    this.signal("SIGKILL");
    return await this.ended;
  }

  /** Memory now, from /proc/PID/smaps_rollup of each process of the group. */
  async memory(): Promise<Memory> {
    let [rss, own, pss] = [0, 0, 0];
    for (const pid of processesInGroup(this.pid)) {
      const text = await Deno.readTextFile(`/proc/${pid}/smaps_rollup`).catch(() => "");
      const kib = (field: string) => Number(new RegExp(`^${field}:\\s+(\\d+) kB`, "m").exec(text)?.[1] ?? 0);
      rss += kib("Rss");
      own += kib("Private_Clean") + kib("Private_Dirty");
      pss += kib("Pss");
    }
    return { rss: rss * 1024, private: own * 1024, pss: pss * 1024 };
  }

  /** Processor time used so far by the group, in seconds: user and system. */
  cpuSeconds(): number {
    return processesInGroup(this.pid).reduce((sum, pid) => sum + (stat(pid)?.ticks ?? 0), 0) / TICKS_PER_SECOND;
  }

  async #holds(condition: Ready): Promise<boolean> {
    if ("log" in condition) {
      return condition.log.test(await Deno.readTextFile(this.logPath).catch(() => ""));
    }
    if ("file" in condition) {
      return await Deno.lstat(this.host.path(condition.file)).then(() => true, () => false);
    }
    if ("port" in condition) return await listens(this.pid, condition.port, condition.protocol ?? "tcp");
    return await condition.probe();
  }

  async #failure(code: "TIMEOUT" | "PEER_GONE", what: string): Promise<MeshError> {
    const log = await this.log().catch(() => "");
    const tail = log.trim().slice(-LOG_TAIL);
    return new MeshError(
      code,
      `${this.name} on ${this.host.name}: ${what}${tail ? `; its log ends with:\n${tail}` : ""}`,
    );
  }
}

/** From /proc/PID/net (proc(5)): state 0A is LISTEN; an unconnected UDP socket is in state 07. */
async function listens(pid: number, port: number, protocol: "tcp" | "udp"): Promise<boolean> {
  const wanted = `:${port.toString(16).toUpperCase().padStart(4, "0")}`;
  const state = protocol === "tcp" ? "0A" : "07";
  for (const table of [protocol, `${protocol}6`]) {
    const text = await Deno.readTextFile(`/proc/${pid}/net/${table}`).catch(() => "");
    for (const line of text.split("\n").slice(1)) {
      const fields = line.trim().split(/\s+/);
      if (fields[1]?.endsWith(wanted) && fields[3] === state) return true;
    }
  }
  return false;
}

/**
 * libfaketime by LD_PRELOAD: the kernel has no other way, as time namespaces do not cover CLOCK_REALTIME. The
 * assignments stand before the program only, so that neither `nsenter` nor the lab sees the fake time.
 */
async function fakeTimeEnv(fake: FakeTime): Promise<string[]> {
  const library = await findFaketime();
  if (library === undefined) {
    throw new MeshError("TOOL_MISSING", "A wrong clock needs libfaketime", {
      hint: "scripts/fetch_backends.sh, or apt-get install libfaketime",
    });
  }
  const stamp = (date: Date) => date.toISOString().slice(0, 19).replace("T", " ");
  const time = "offsetSeconds" in fake
    ? `${fake.offsetSeconds < 0 ? "" : "+"}${fake.offsetSeconds}`
    : "startAt" in fake
    ? `@${stamp(fake.startAt)}`
    : stamp(fake.frozenAt);
  // File times stay real: a file written a moment ago must not look a month old to its writer alone.
  return [
    "env",
    `LD_PRELOAD=${library}`,
    `FAKETIME=${time}`,
    "FAKETIME_DONT_FAKE_MONOTONIC=1",
    "NO_FAKE_STAT=1",
    "TZ=UTC",
  ];
}

function describeStatus(status: Deno.CommandStatus): string {
  return status.signal ? `signal ${status.signal}` : `exit code ${status.code}`;
}
