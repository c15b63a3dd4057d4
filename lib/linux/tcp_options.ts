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

// A peer that vanished without a word (cable, power, NAT entry) is noticed after 60 + 4 × 15 = 120 seconds of silence,
// on a dialled connection up to KEEPALIVE_AFTER_MS later.
const KEEPALIVE = [[SOL_SOCKET, SO_KEEPALIVE, 1], [SOL_TCP, TCP_KEEPIDLE, 60], [SOL_TCP, TCP_KEEPINTVL, 15], [
  SOL_TCP,
  TCP_KEEPCNT,
  4,
]] as const;

/** Dialled connections get their keepalive so late at most: four calls that short ones, which are most, never need. */
export const KEEPALIVE_AFTER_MS = 15_000;

/** Small messages leave at once; accepted sockets inherit it from their listener. */
export function setNoDelay(ops: SocketOps, fd: Fd): void {
  ops.setInt(fd, SOL_TCP, TCP_NODELAY, 1);
}

/** Peers that vanish are noticed; accepted sockets inherit it from their listener. */
export function setKeepalive(ops: SocketOps, fd: Fd): void {
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
