/** What every TCP socket of ours is set to, and what a failed connect(2) means. */
import type { ReasonCode } from "../errors.ts";
import {
  EACCES,
  EADDRNOTAVAIL,
  ECONNREFUSED,
  ECONNRESET,
  EHOSTDOWN,
  EHOSTUNREACH,
  EMFILE,
  ENETDOWN,
  ENETUNREACH,
  ENFILE,
  ENOBUFS,
  ENOMEM,
  EPERM,
  ETIMEDOUT,
} from "./errno.ts";
import type { Fd } from "./ffi.ts";
import type { SocketOps } from "./socket_ops.ts";
import { SO_KEEPALIVE, SOL_SOCKET, SOL_TCP, TCP_KEEPCNT, TCP_KEEPIDLE, TCP_KEEPINTVL, TCP_NODELAY } from "./structs.ts";

// A peer that vanished without a word (cable, power, NAT entry) is noticed after 60 + 4 × 15 = 120 seconds of silence.
const KEEPALIVE = [[SOL_SOCKET, SO_KEEPALIVE, 1], [SOL_TCP, TCP_KEEPIDLE, 60], [SOL_TCP, TCP_KEEPINTVL, 15], [
  SOL_TCP,
  TCP_KEEPCNT,
  4,
]] as const;

/** Options every TCP socket of ours has; accepted sockets inherit those of their listener. */
export function setStreamOptions(ops: SocketOps, fd: Fd): void {
  ops.setInt(fd, SOL_TCP, TCP_NODELAY, 1);
  for (const [level, name, value] of KEEPALIVE) ops.setInt(fd, level, name, value);
}

/** Why a connection could not be made. */
export function dialReason(e: number): ReasonCode {
  switch (e) {
    case ECONNREFUSED:
    case ECONNRESET:
      return "DIAL_REFUSED";
    case ETIMEDOUT:
      return "DIAL_TIMEOUT";
    case ENETUNREACH:
    case EHOSTUNREACH:
    case EHOSTDOWN:
    case ENETDOWN:
    // A rule of a firewall on this host answers a connect with these.
    case EPERM:
    case EACCES:
      return "DIAL_UNREACHABLE";
    case EMFILE:
    case ENFILE:
    case ENOBUFS:
    case ENOMEM:
    // Without a bind before it: no local port is left for this destination.
    case EADDRNOTAVAIL:
      return "LIMIT";
    default:
      return "KERNEL";
  }
}
