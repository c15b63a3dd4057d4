/** Calls on sockets that are not on the path of each packet: making, options, addresses. */
import { hostPort } from "../addr.ts";
import type { IpPort, ListenOptions } from "../net.ts";
import { addressFor, AddressTable } from "./address.ts";
import { sysError } from "./errno.ts";
import { errno, type Fd, type Libc, libc } from "./ffi.ts";
import { Memory } from "./memory.ts";
import { addressFamily, getSockaddr, putSockaddr, SOCKADDR_MAX } from "./sockaddr.ts";
import {
  AF_INET6,
  IP_FREEBIND,
  IPV6_FREEBIND,
  IPV6_V6ONLY,
  SO_ERROR,
  SO_LINGER,
  SO_ORIGINAL_DST,
  SO_REUSEADDR,
  SO_REUSEPORT,
  SOCK_CLOEXEC,
  SOCK_NONBLOCK,
  SOL_IP,
  SOL_IPV6,
  SOL_SOCKET,
  STRUCT,
} from "./structs.ts";

/** Service ports whose address is kept as an object; a node's clients use few of a cluster's. */
const ORIGINALS = 1024;

/** What {@link SocketOps.openBound} makes. */
export interface BindSpec {
  readonly type: number;
  readonly at: IpPort;
  /** What it is, for the error: `TCP listener`. */
  readonly what: string;
  readonly options?: ListenOptions;
  /** Sets options that must be there before the bind. */
  readonly prepare?: (fd: Fd) => void;
}

/** Wraps the calls with scratch memory of their own, so that none of them allocates any. */
export class SocketOps {
  readonly c: Libc = libc();
  readonly #value = Memory.allocate(8);
  readonly #linger = Memory.allocate(STRUCT.linger.size);
  readonly #length = Memory.allocate(4);
  readonly #name = Memory.allocate(SOCKADDR_MAX);
  readonly #originals = new AddressTable(ORIGINALS);

  constructor() {
    this.#linger.i32[STRUCT.linger.at.onoff >> 2] = 1;
  }

  /** A non-blocking, close-on-exec socket; a negative errno when the kernel refuses. */
  open(family: number, type: number): Fd {
    const fd = this.c.socket(family, type | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    return fd < 0 ? -errno() : fd;
  }

  /** Sets an integer option. Returns 0 or the errno. */
  setInt(fd: Fd, level: number, name: number, value: number): number {
    this.#value.i32[0] = value;
    return this.c.setsockopt(fd, level, name, this.#value.pointer, 4) < 0 ? errno() : 0;
  }

  getInt(fd: Fd, level: number, name: number): number {
    this.#length.u32[0] = 4;
    this.#value.i32[0] = 0;
    this.c.getsockopt(fd, level, name, this.#value.pointer, this.#length.pointer);
    return this.#value.i32[0]!;
  }

  /** The error a socket has pending, 0 if none; asking clears it. */
  takeError(fd: Fd): number {
    return this.getInt(fd, SOL_SOCKET, SO_ERROR);
  }

  /** Makes the next close send RST instead of FIN and drop unsent bytes. */
  lingerZero(fd: Fd): void {
    this.c.setsockopt(fd, SOL_SOCKET, SO_LINGER, this.#linger.pointer, STRUCT.linger.size);
  }

  /** Returns 0 or the errno. */
  bind(fd: Fd, at: IpPort): number {
    const length = putSockaddr(this.#name.bytes, 0, at);
    return this.c.bind(fd, this.#name.pointer, length) < 0 ? errno() : 0;
  }

  /** Starts a connection. Returns 0 or the errno, EINPROGRESS being the usual one. */
  connect(fd: Fd, to: IpPort): number {
    const address = addressFor(to);
    address.put(this.#name.u32, 0);
    return this.c.connect(fd, this.#name.pointer, address.length) < 0 ? errno() : 0;
  }

  /** Accepts a connection; a negative errno if there is none. `peer` of {@link acceptedPeer} is valid until the next call. */
  accept(fd: Fd): Fd {
    this.#length.u32[0] = SOCKADDR_MAX;
    const accepted = this.c.accept4(fd, this.#name.pointer, this.#length.pointer, SOCK_NONBLOCK | SOCK_CLOEXEC);
    return accepted < 0 ? -errno() : accepted;
  }

  /** The other end of the connection that {@link accept} returned last. */
  acceptedPeer(): IpPort {
    return getSockaddr(this.#name.bytes);
  }

  /** The address a socket is bound to. */
  localOf(fd: Fd): IpPort {
    this.#length.u32[0] = SOCKADDR_MAX;
    if (this.c.getsockname(fd, this.#name.pointer, this.#length.pointer) < 0) {
      throw sysError(`read the address of descriptor ${fd}`, errno());
    }
    return getSockaddr(this.#name.bytes);
  }

  /**
   * Where a client meant to go before DNAT: conntrack's original destination, as the same object each time while few are
   * in use. Undefined when the kernel has no conntrack entry for the connection, that is, when nothing was rewritten.
   */
  originalOf(fd: Fd, ip: string): IpPort | undefined {
    this.#length.u32[0] = SOCKADDR_MAX;
    const level = addressFamily(ip) === AF_INET6 ? SOL_IPV6 : SOL_IP;
    const r = this.c.getsockopt(fd, level, SO_ORIGINAL_DST, this.#name.pointer, this.#length.pointer);
    return r < 0 ? undefined : this.#originals.find(this.#name.u32, 0);
  }

  /** A bound socket. Throws MeshError KERNEL with the address and the errno. */
  openBound(spec: BindSpec): Fd {
    const { at, what, options = {} } = spec;
    const family = addressFamily(at.ip);
    const fd = this.open(family, spec.type);
    if (fd < 0) throw sysError(`open a socket for ${what} ${hostPort(at)}`, -fd);
    if (family === AF_INET6) this.setInt(fd, SOL_IPV6, IPV6_V6ONLY, 1);
    if (options.freeBind) {
      this.setInt(fd, family === AF_INET6 ? SOL_IPV6 : SOL_IP, family === AF_INET6 ? IPV6_FREEBIND : IP_FREEBIND, 1);
    }
    if (options.reusePort) this.reusePort(fd);
    spec.prepare?.(fd);
    const e = this.bind(fd, at);
    if (e === 0) return fd;
    this.c.close(fd);
    throw sysError(`bind ${what} ${hostPort(at)}`, e);
  }

  /** Lets several sockets have one local port: a listener and the dials of hole punching. */
  reusePort(fd: Fd): void {
    this.setInt(fd, SOL_SOCKET, SO_REUSEADDR, 1);
    this.setInt(fd, SOL_SOCKET, SO_REUSEPORT, 1);
  }

  /** Frees the scratch memory. */
  free(): void {
    for (const memory of [this.#value, this.#linger, this.#length, this.#name]) memory.free();
  }
}
