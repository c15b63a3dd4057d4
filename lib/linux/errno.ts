/** The C library's error numbers: naming them, and turning them into errors for people. */
import { MeshError } from "../errors.ts";

// Numbers of asm-generic/errno.h, which x86-64 and arm64 share.
export const EPERM = 1;
export const ENOENT = 2;
export const ESRCH = 3;
export const EINTR = 4;
export const EIO = 5;
export const EBADF = 9;
export const EAGAIN = 11;
export const ENOMEM = 12;
export const EACCES = 13;
export const EBUSY = 16;
export const EEXIST = 17;
export const ENODEV = 19;
export const EINVAL = 22;
export const ENFILE = 23;
export const EMFILE = 24;
export const EPIPE = 32;
export const EMSGSIZE = 90;
export const ENOPROTOOPT = 92;
export const EOPNOTSUPP = 95;
export const EADDRINUSE = 98;
export const EADDRNOTAVAIL = 99;
export const ENETDOWN = 100;
export const ENETUNREACH = 101;
export const ECONNABORTED = 103;
export const ECONNRESET = 104;
export const ENOBUFS = 105;
export const ETIMEDOUT = 110;
export const ECONNREFUSED = 111;
export const EHOSTDOWN = 112;
export const EHOSTUNREACH = 113;
export const EINPROGRESS = 115;

const NAMES: Readonly<Record<number, readonly [name: string, text: string]>> = {
  [EPERM]: ["EPERM", "operation not permitted"],
  [ENOENT]: ["ENOENT", "no such file or object"],
  [ESRCH]: ["ESRCH", "no such process or entry"],
  [EINTR]: ["EINTR", "interrupted"],
  [EIO]: ["EIO", "input/output error"],
  6: ["ENXIO", "no such device or address"],
  [EBADF]: ["EBADF", "bad file descriptor"],
  [EAGAIN]: ["EAGAIN", "temporarily unavailable"],
  [ENOMEM]: ["ENOMEM", "out of memory"],
  [EACCES]: ["EACCES", "permission denied"],
  14: ["EFAULT", "bad address"],
  [EBUSY]: ["EBUSY", "busy"],
  [EEXIST]: ["EEXIST", "exists already"],
  [ENODEV]: ["ENODEV", "no such device"],
  20: ["ENOTDIR", "not a directory"],
  21: ["EISDIR", "is a directory"],
  [EINVAL]: ["EINVAL", "invalid argument"],
  [ENFILE]: ["ENFILE", "too many open files in the system"],
  [EMFILE]: ["EMFILE", "too many open files in this process"],
  25: ["ENOTTY", "not supported by this device"],
  27: ["EFBIG", "too large"],
  28: ["ENOSPC", "no space left"],
  30: ["EROFS", "read-only file system"],
  [EPIPE]: ["EPIPE", "broken pipe"],
  34: ["ERANGE", "out of range"],
  38: ["ENOSYS", "not implemented by this kernel"],
  61: ["ENODATA", "no data"],
  71: ["EPROTO", "protocol error"],
  74: ["EBADMSG", "bad message"],
  75: ["EOVERFLOW", "value too large"],
  88: ["ENOTSOCK", "not a socket"],
  89: ["EDESTADDRREQ", "destination address required"],
  [EMSGSIZE]: ["EMSGSIZE", "message too long"],
  91: ["EPROTOTYPE", "wrong protocol type"],
  [ENOPROTOOPT]: ["ENOPROTOOPT", "protocol option not available"],
  93: ["EPROTONOSUPPORT", "protocol not supported"],
  [EOPNOTSUPP]: ["EOPNOTSUPP", "operation not supported"],
  97: ["EAFNOSUPPORT", "address family not supported"],
  [EADDRINUSE]: ["EADDRINUSE", "address already in use"],
  [EADDRNOTAVAIL]: ["EADDRNOTAVAIL", "address not available on this host"],
  [ENETDOWN]: ["ENETDOWN", "network is down"],
  [ENETUNREACH]: ["ENETUNREACH", "network is unreachable"],
  102: ["ENETRESET", "connection dropped by the network"],
  [ECONNABORTED]: ["ECONNABORTED", "connection aborted"],
  [ECONNRESET]: ["ECONNRESET", "connection reset by peer"],
  [ENOBUFS]: ["ENOBUFS", "no buffer space"],
  106: ["EISCONN", "already connected"],
  107: ["ENOTCONN", "not connected"],
  [ETIMEDOUT]: ["ETIMEDOUT", "timed out"],
  [ECONNREFUSED]: ["ECONNREFUSED", "connection refused"],
  [EHOSTDOWN]: ["EHOSTDOWN", "host is down"],
  [EHOSTUNREACH]: ["EHOSTUNREACH", "host is unreachable"],
  114: ["EALREADY", "already in progress"],
  [EINPROGRESS]: ["EINPROGRESS", "in progress"],
  125: ["ECANCELED", "cancelled"],
};

const HINTS: Readonly<Record<number, string>> = {
  [EPERM]: "run as root or grant CAP_NET_ADMIN",
  [EACCES]: "run as root or grant CAP_NET_ADMIN and CAP_NET_BIND_SERVICE",
  [EADDRINUSE]: "find the program that has it with: ss -lntup",
  [EADDRNOTAVAIL]: "check the addresses of this host with: ip addr",
  [EMFILE]: "raise the limit of open files (LimitNOFILE= in the unit, ulimit -n in a shell)",
  [ENFILE]: "raise fs.file-max",
};

/** `ECONNREFUSED` for 111; `errno 999` for a number without a name here. */
export function errnoName(n: number): string {
  return NAMES[n]?.[0] ?? `errno ${n}`;
}

/** `connection refused (ECONNREFUSED)`. */
export function errnoText(n: number): string {
  const known = NAMES[n];
  return known ? `${known[1]} (${known[0]})` : `errno ${n}`;
}

/**
 * An error of the kernel. `action` says what was tried, with values: `bind 10.0.0.1:80`. `hint` replaces the general
 * advice for this error number.
 */
export function sysError(action: string, n: number, hint: string | undefined = HINTS[n]): MeshError {
  return new MeshError("KERNEL", `Cannot ${action}: ${errnoText(n)}`, hint === undefined ? {} : { hint });
}
