/** Runs a program to its end, with a deadline. */
import { pause, systemClock } from "../clock.ts";
import { MeshError } from "../errors.ts";

export interface ExecResult {
  /** Exit code; 128 + signal when killed, as a shell gives it; {@link TIMED_OUT} at the deadline. */
  readonly code: number;
  readonly stdout: string;
  readonly stderr: string;
  /** Wall-clock duration, start and end of the process included. */
  readonly ms: number;
}

export interface ExecOptions {
  /** Deadline after which the program and its children are killed. Default 30 s. */
  readonly timeoutMs?: number;
  readonly stdin?: string;
  /** Added to the environment, or the whole of it with `clearEnv`. */
  readonly env?: Readonly<Record<string, string>>;
  readonly clearEnv?: boolean;
  readonly cwd?: string;
}

/** `code` of a program that was killed at its deadline, as coreutils' timeout(1) has it. */
export const TIMED_OUT = 124;

const DEFAULT_TIMEOUT_MS = 30_000;
const LONGEST_PAUSE_MS = 20;

/** Runs `argv` and collects its output. Throws only when the program cannot be started. */
export async function exec(argv: readonly string[], options: ExecOptions = {}): Promise<ExecResult> {
  const started = systemClock.now();
  const child = spawnChild(argv, options);
  let timedOut = false;
  const cancel = systemClock.timer(options.timeoutMs ?? DEFAULT_TIMEOUT_MS, () => {
    timedOut = true;
    signalGroup(child.pid, "SIGKILL");
  });
  try {
    const writer = child.stdin.getWriter();
    // A program that ends without reading its input is no failure of ours.
    const written = writer.write(new TextEncoder().encode(options.stdin ?? "")).then(() => writer.close()).catch(
      () => {},
    );
    const [output] = await Promise.all([child.output(), written]);
    const decoder = new TextDecoder();
    return {
      code: timedOut ? TIMED_OUT : output.code,
      stdout: decoder.decode(output.stdout),
      stderr: decoder.decode(output.stderr),
      ms: systemClock.now() - started,
    };
  } finally {
    cancel();
  }
}

/** Like {@link exec}, but an exit code other than 0 is an error that shows what the program said. */
export async function execOk(argv: readonly string[], options: ExecOptions = {}): Promise<ExecResult> {
  const result = await exec(argv, options);
  if (result.code !== 0) {
    const said = (result.stderr.trim() || result.stdout.trim()).slice(0, 2000);
    const end = result.code === TIMED_OUT ? "did not end in time" : `failed with exit code ${result.code}`;
    throw new MeshError("KERNEL", `${argv.join(" ").slice(0, 200)} ${end}${said ? `: ${said}` : ""}`);
  }
  return result;
}

/** Sends a signal to a process and its descendants (its process group); false when they are gone. */
export function signalGroup(leader: number, signal: Deno.Signal): boolean {
  try {
    Deno.kill(-leader, signal);
    return true;
  } catch (error) {
    if (error instanceof Deno.errors.NotFound) return false;
    throw error;
  }
}

/** Asks again every few milliseconds until `probe` gives something other than undefined, or fails at the deadline. */
export async function until<T>(
  what: string,
  probe: () => Promise<T | undefined> | T | undefined,
  timeoutMs = 10_000,
): Promise<T> {
  const deadline = systemClock.now() + timeoutMs;
  for (let ms = 1;; ms = Math.min(LONGEST_PAUSE_MS, ms * 2)) {
    const found = await probe();
    if (found !== undefined) return found;
    if (systemClock.now() >= deadline) throw new MeshError("TIMEOUT", `Waited ${timeoutMs} ms in vain for ${what}`);
    await pause(ms);
  }
}

function spawnChild(argv: readonly string[], options: ExecOptions): Deno.ChildProcess {
  const [program, ...args] = argv;
  try {
    return new Deno.Command(program!, {
      args,
      stdin: "piped",
      stdout: "piped",
      stderr: "piped",
      detached: true,
      ...(options.env ? { env: { ...options.env } } : {}),
      ...(options.clearEnv ? { clearEnv: true } : {}),
      ...(options.cwd ? { cwd: options.cwd } : {}),
    }).spawn();
  } catch (cause) {
    throw new MeshError("KERNEL", `Cannot run ${program}`, { cause });
  }
}
