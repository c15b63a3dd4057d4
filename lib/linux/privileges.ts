/** What this process may do: capabilities, open files, kernel settings. Reading only, except for the file limit. */
import { sysError } from "./errno.ts";
import { errno, ffiProblem, libc } from "./ffi.ts";
import { Memory } from "./memory.ts";

/** The capabilities the product knows, by their bit (<linux/capability.h>). */
const CAPABILITIES = { CAP_NET_BIND_SERVICE: 10, CAP_NET_ADMIN: 12, CAP_NET_RAW: 13, CAP_SYS_ADMIN: 21 } as const;
export type Capability = keyof typeof CAPABILITIES;

const RLIMIT_NOFILE = 7;

/** Whether this process has a capability now. */
export function hasCapability(name: Capability): boolean {
  const hex = /^CapEff:\s+([0-9a-f]+)/m.exec(Deno.readTextFileSync("/proc/self/status"))?.[1] ?? "0";
  return ((BigInt(`0x${hex}`) >> BigInt(CAPABILITIES[name])) & 1n) === 1n;
}

/** Those of `needed` that are missing. */
export function missingCapabilities(needed: readonly Capability[]): Capability[] {
  return needed.filter((name) => !hasCapability(name));
}

/** A kernel setting, `net/ipv4/ip_forward`; undefined when the kernel has none of that name. */
export function readSysctl(path: string): string | undefined {
  try {
    return Deno.readTextFileSync(`/proc/sys/${path}`).trim();
  } catch (error) {
    const { NotFound, PermissionDenied, NotCapable } = Deno.errors;
    if ([NotFound, PermissionDenied, NotCapable].some((kind) => error instanceof kind)) return undefined;
    throw error;
  }
}

export interface FileLimit {
  /** Descriptors this process may have open. */
  readonly soft: number;
  /** What it may raise that to. */
  readonly hard: number;
}

/**
 * Raises the limit of open files to what the process is allowed, as Go programs do: shells give 1024 for the sake of
 * select(2), and each proxied connection takes two. Returns the limit in force.
 */
export function raiseFileLimit(): FileLimit {
  if (ffiProblem() !== undefined) return readFileLimit();
  const limit = Memory.allocate(16);
  try {
    const c = libc();
    if (c.prlimit(0, RLIMIT_NOFILE, null, limit.pointer) < 0) throw sysError("read the limit of open files", errno());
    const soft = Number(limit.view.getBigUint64(0, true));
    const hard = Number(limit.view.getBigUint64(8, true));
    if (soft >= hard) return { soft, hard };
    limit.view.setBigUint64(0, limit.view.getBigUint64(8, true), true);
    // A refusal leaves what is in force: enough to work, and accept(2) waits when it is used up.
    return { soft: c.prlimit(0, RLIMIT_NOFILE, limit.pointer, null) < 0 ? soft : hard, hard };
  } finally {
    limit.free();
  }
}

/** What shells and service managers give, where nothing can be read. */
const USUAL_FILES = 1024;

/** Without FFI it stays as it is. A runtime that is denied FFI may not read /proc/self either: then a child says it. */
function readFileLimit(): FileLimit {
  try {
    const { stdout } = new Deno.Command("sh", { args: ["-c", "ulimit -Sn; ulimit -Hn"], stderr: "null" }).outputSync();
    const [soft, hard] = new TextDecoder().decode(stdout).split("\n").map((n) =>
      n === "unlimited" ? Infinity : Number(n)
    );
    return { soft: soft || USUAL_FILES, hard: hard || USUAL_FILES };
  } catch {
    return { soft: USUAL_FILES, hard: USUAL_FILES };
  }
}
