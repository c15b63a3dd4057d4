/** What this process is to the machine: its memory, and its service manager. */
import { ffiProblem, libc } from "./ffi.ts";
import { Memory } from "./memory.ts";
import { AF_UNIX, MSG_NOSIGNAL, SOCK_CLOEXEC, SOCK_DGRAM, SOCK_NONBLOCK, STRUCT } from "./structs.ts";

export interface MemoryUse {
  /** Memory that only this process has (private clean and dirty), in 10⁶ bytes. */
  readonly privateMb: number;
  /** Resident set, shared pages of the runtime's binary included. */
  readonly rssMb: number;
}

/** Memory of a process from /proc/PID/smaps_rollup; zeros where the kernel does not tell. */
export function memoryUse(pid: number | "self" = "self"): MemoryUse {
  try {
    const text = Deno.readTextFileSync(`/proc/${pid}/smaps_rollup`);
    const kb = (field: string) => Number(new RegExp(`^${field}:\\s+(\\d+) kB`, "m").exec(text)?.[1] ?? 0);
    return {
      privateMb: (kb("Private_Clean") + kb("Private_Dirty")) * 1024 / 1e6,
      rssMb: kb("Rss") * 1024 / 1e6,
    };
  } catch {
    return { privateMb: 0, rssMb: 0 };
  }
}

export interface ProcessUse {
  /** Processor time, user and system together. */
  readonly cpuSeconds: number;
  /** Seconds since 1970. */
  readonly startedAt: number;
  readonly descriptors: number;
}

/** USER_HZ, which Linux gives to programs on every architecture that Deno runs on. */
const TICKS_PER_SECOND = 100;

/** What this process uses, from /proc/self and /proc/stat (proc(5)); zeros where the kernel does not tell. */
export function processUse(): ProcessUse {
  try {
    // The program's name, in parentheses, may hold blanks.
    const stat = Deno.readTextFileSync("/proc/self/stat");
    const fields = stat.slice(stat.lastIndexOf(")") + 2).split(" ").map(Number);
    const boot = Number(/^btime (\d+)/m.exec(Deno.readTextFileSync("/proc/stat"))?.[1] ?? 0);
    return {
      cpuSeconds: (fields[11]! + fields[12]!) / TICKS_PER_SECOND,
      startedAt: boot + fields[19]! / TICKS_PER_SECOND,
      descriptors: [...Deno.readDirSync("/proc/self/fd")].length,
    };
  } catch {
    return { cpuSeconds: 0, startedAt: 0, descriptors: 0 };
  }
}

/** Where the service manager listens; undefined without one. */
const managerSocket = () => Deno.env.get("NOTIFY_SOCKET");

/** Tells systemd (Type=notify) that the service is ready. Without a service manager nothing happens. */
export function notifyReady(status: string, socket = managerSocket()): void {
  notify(socket, `READY=1\nSTATUS=${status}`);
}

/** One line for `systemctl status` while the service is not ready. */
export function notifyStatus(status: string, socket = managerSocket()): void {
  notify(socket, `STATUS=${status.replaceAll("\n", " ")}`);
}

/** Tells systemd that the service began to stop. */
export function notifyStopping(socket = managerSocket()): void {
  notify(socket, "STOPPING=1");
}

/** Tells systemd that the service is alive (WatchdogSec). */
export function notifyWatchdog(socket = managerSocket()): void {
  notify(socket, "WATCHDOG=1");
}

/** sd_notify(3): one datagram to a socket, which may be in the abstract name space (`@`). */
function notify(path: string | undefined, message: string): void {
  if (!path || (path[0] !== "/" && path[0] !== "@")) return;
  if (ffiProblem() !== undefined) return notifyByProgram(message);
  const c = libc();
  const name = new TextEncoder().encode(path);
  const address = Memory.allocate(STRUCT.sockaddr_un.size);
  const body = Memory.text(message);
  const fd = c.socket(AF_UNIX, SOCK_DGRAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
  try {
    if (fd < 0 || name.length >= STRUCT.sockaddr_un.size - STRUCT.sockaddr_un.at.path) return;
    // struct sockaddr_un: family in host order, then the path; an abstract name begins with NUL and is not terminated.
    address.view.setUint16(0, AF_UNIX, true);
    address.bytes.set(name, STRUCT.sockaddr_un.at.path);
    if (path[0] === "@") address.bytes[STRUCT.sockaddr_un.at.path] = 0;
    const length = STRUCT.sockaddr_un.at.path + name.length + (path[0] === "@" ? 0 : 1);
    c.sendto(fd, body.pointer, body.bytes.length - 1, MSG_NOSIGNAL, address.pointer, length);
  } finally {
    if (fd >= 0) c.close(fd);
    address.free();
    body.free();
  }
}

/** systemd-notify(1) speaks for the process that runs it, which is us. Where it is missing, nobody is told. */
function notifyByProgram(message: string): void {
  try {
    const args = message.split("\n");
    new Deno.Command("systemd-notify", { args, stdin: "null", stdout: "null", stderr: "null" }).spawn().unref();
  } catch {
    // See above.
  }
}
