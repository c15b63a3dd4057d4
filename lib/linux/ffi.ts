/**
 * The only place of the product that opens glibc. Everything else in lib/linux calls through {@link libc}; nothing
 * outside lib/linux uses FFI at all. The library is opened at the first use, so that commands which never touch a
 * socket (`version`, `resolve -f`) need neither the permission nor the time.
 */
import { describe, MeshError } from "../errors.ts";

/** An open file descriptor. */
export type Fd = number;

const I = "i32" as const;
const U = "u32" as const;
const P = "pointer" as const;
/** A typed array passed for the time of one synchronous call: the garbage collector cannot run in between. */
const B = "buffer" as const;

// Lengths are declared u32 although size_t is 64 bits wide: both calling conventions pass them in a register whose upper
// half the callee sees as zero, and a JS number converts without a BigInt (dataplane.md: a `usize` number costs 339 ns).
const SYMBOLS = {
  socket: { parameters: [I, I, I], result: I },
  socketpair: { parameters: [I, I, I, P], result: I },
  bind: { parameters: [I, P, U], result: I },
  listen: { parameters: [I, I], result: I },
  accept4: { parameters: [I, P, P, I], result: I },
  connect: { parameters: [I, P, U], result: I },
  getsockname: { parameters: [I, P, P], result: I },
  getsockopt: { parameters: [I, I, I, P, P], result: I },
  setsockopt: { parameters: [I, I, I, P, U], result: I },
  shutdown: { parameters: [I, I], result: I },
  close: { parameters: [I], result: I },
  recv: { parameters: [I, P, U, I], result: I },
  recvInto: { name: "recv", parameters: [I, B, U, I], result: I },
  send: { parameters: [I, P, U, I], result: I },
  sendFrom: { name: "send", parameters: [I, B, U, I], result: I },
  sendto: { parameters: [I, P, U, I, P, U], result: I },
  sendtoFrom: { name: "sendto", parameters: [I, B, U, I, P, U], result: I },
  sendmsg: { parameters: [I, P, I], result: I },
  recvmmsg: { parameters: [I, P, U, I, P], result: I },
  sendmmsg: { parameters: [I, P, U, I], result: I },
  copyFrom: { name: "memcpy", parameters: [P, B, U], result: "void" },
  read: { parameters: [I, P, U], result: I },
  write: { parameters: [I, P, U], result: I },
  splice: { parameters: [I, P, I, P, U, U], result: I },
  pipe2: { parameters: [P, I], result: I },
  fcntl: { parameters: [I, I, I], result: I },
  ioctl: { parameters: [I, "u64", P], result: I },
  poll: { parameters: [P, U, I], result: I },
  eventfd: { parameters: [U, I], result: I },
  epoll_create1: { parameters: [I], result: I },
  epoll_ctl: { parameters: [I, I, I, P], result: I },
  epoll_wait: { parameters: [I, P, I, I], result: I },
  open: { parameters: [P, I, I], result: I },
  flock: { parameters: [I, I], result: I },
  malloc_trim: { parameters: [U], result: I },
  madvise: { parameters: [P, U, I], result: I },
  prlimit: { parameters: [I, I, P, P], result: I },
  setns: { parameters: [I, I], result: I },
  unshare: { parameters: [I], result: I },
  __errno_location: { parameters: [], result: P },
} as const satisfies Deno.ForeignLibraryInterface;

const WAITING_SYMBOLS = {
  poll: { parameters: [P, U, I], result: I, nonblocking: true },
} as const satisfies Deno.ForeignLibraryInterface;

export type Libc = Deno.DynamicLibrary<typeof SYMBOLS>["symbols"];
export type WaitingLibc = Deno.DynamicLibrary<typeof WAITING_SYMBOLS>["symbols"];

let opened: Libc | undefined;
let refusal: string | undefined;
let openedWaiting: WaitingLibc | undefined;
let errnoCell = new Int32Array(1);

/** The C library's functions. Throws MeshError KERNEL when FFI is refused or the system has no glibc. */
export function libc(): Libc {
  return opened ?? openLibc();
}

/** Switches FFI off for the rest of the process, as on a host that refuses it. What was opened before stays open. */
export function refuseFfi(why: string): void {
  refusal = why;
  opened = undefined;
}

/** Throws MeshError KERNEL when FFI was switched off here. */
export function checkFfi(): void {
  if (refusal !== undefined) throw new MeshError("KERNEL", `FFI is switched off: ${refusal}`);
}

/** Why nothing can go through FFI on this host; undefined when it can. */
export function ffiProblem(): string | undefined {
  try {
    libc();
    return undefined;
  } catch (error) {
    return describe(error);
  }
}

/** The error number of the last failed call of this thread. Read it directly after the call, before anything else. */
export function errno(): number {
  return errnoCell[0]!;
}

/** Functions that block: they run on a helper thread and return a promise. Their `errno` cannot be read. */
export function waitingLibc(): WaitingLibc {
  checkFfi();
  return openedWaiting ??= open(WAITING_SYMBOLS);
}

function openLibc(): Libc {
  checkFfi();
  const symbols = open(SYMBOLS);
  // The location is fixed per thread: mapped here once, so that reading it later is an array access and calls nothing
  // that could overwrite it.
  errnoCell = new Int32Array(Deno.UnsafePointerView.getArrayBuffer(symbols.__errno_location()!, 4));
  return opened = symbols;
}

function open<S extends Deno.ForeignLibraryInterface>(symbols: S): Deno.DynamicLibrary<S>["symbols"] {
  if (Deno.build.os !== "linux") {
    throw new MeshError("KERNEL", `Cannot open glibc on ${Deno.build.os}`, { hint: "run edgemesh on Linux" });
  }
  try {
    return Deno.dlopen("libc.so.6", symbols).symbols;
  } catch (cause) {
    const refused = cause instanceof Deno.errors.NotCapable || cause instanceof Deno.errors.PermissionDenied;
    throw new MeshError("KERNEL", "Cannot open libc.so.6", {
      cause,
      hint: refused
        ? "run with --allow-ffi, which the edgemesh executable has built in"
        : "use a system with glibc (Debian, Ubuntu, RHEL, SUSE); Alpine's musl is not supported",
    });
  }
}
