/**
 * A socket of one IPv4 multicast group on chosen links: what finding other agents of a LAN uses. It is bound to the
 * group's address, so nothing sent to an address of this host ever gets in; datagrams leave with a TTL of 1.
 */
import { ipBytes } from "../addr.ts";
import type { IpPort, OnDatagram } from "../net.ts";
import { EADDRINUSE, EADDRNOTAVAIL, ENODEV, sysError } from "./errno.ts";
import { errno } from "./ffi.ts";
import type { EpollLoop } from "./loop.ts";
import { Memory } from "./memory.ts";
import { putSockaddr, SOCKADDR_MAX } from "./sockaddr.ts";
import { SocketOps } from "./socket_ops.ts";
import {
  IP_ADD_MEMBERSHIP,
  IP_DROP_MEMBERSHIP,
  IP_MULTICAST_ALL,
  IP_MULTICAST_IF,
  MSG_DONTWAIT,
  MSG_NOSIGNAL,
  SOL_IP,
  STRUCT,
} from "./structs.ts";
import type { LoopUdpSocket } from "./udp.ts";

const MREQ = STRUCT.ip_mreqn;

export class MulticastSocket {
  readonly #ops = new SocketOps();
  readonly #request = Memory.allocate(MREQ.size);
  readonly #name = Memory.allocate(SOCKADDR_MAX);
  readonly #nameLength: number;
  readonly #socket: LoopUdpSocket;
  readonly #links = new Set<number>();

  /** Throws MeshError KERNEL. Nothing is heard before {@link join}. */
  constructor(loop: EpollLoop, group: IpPort, onDatagram: OnDatagram) {
    try {
      // Several agents of one host (other network namespaces aside) may share the group's port.
      this.#socket = loop.bindUdp(group, onDatagram, { reusePort: true }) as LoopUdpSocket;
    } catch (error) {
      this.#free();
      throw error;
    }
    this.#ops.setInt(this.#socket.fd, SOL_IP, IP_MULTICAST_ALL, 0);
    this.#request.bytes.set(ipBytes(group.ip), MREQ.at.group);
    this.#nameLength = putSockaddr(this.#name.bytes, 0, group);
  }

  /** Links the group was joined on. */
  get links(): ReadonlySet<number> {
    return this.#links;
  }

  /** Joins on exactly these links; those joined before are joined anew, which tells switches that we are still here. */
  join(links: readonly number[]): void {
    for (const link of [...this.#links]) {
      this.#membership(IP_DROP_MEMBERSHIP, link, [EADDRNOTAVAIL, ENODEV]);
      this.#links.delete(link);
    }
    for (const link of links) {
      if (this.#links.has(link)) continue;
      // A link may go between being listed and being joined.
      if (this.#membership(IP_ADD_MEMBERSHIP, link, [EADDRINUSE, ENODEV])) this.#links.add(link);
    }
  }

  /** Sends one datagram to the group on one link; false when the kernel does not take it. */
  send(bytes: Uint8Array, link: number): boolean {
    this.#request.i32[MREQ.at.ifindex >> 2] = link;
    const { c } = this.#ops;
    const { fd } = this.#socket;
    if (fd < 0 || c.setsockopt(fd, SOL_IP, IP_MULTICAST_IF, this.#request.pointer, MREQ.size) < 0) return false;
    const flags = MSG_DONTWAIT | MSG_NOSIGNAL;
    return c.sendtoFrom(fd, bytes, bytes.length, flags, this.#name.pointer, this.#nameLength) === bytes.length;
  }

  close(): void {
    if (this.#socket.fd < 0) return;
    this.#socket.close();
    this.#free();
  }

  #membership(option: number, link: number, fine: readonly number[]): boolean {
    this.#request.i32[MREQ.at.ifindex >> 2] = link;
    if (this.#ops.c.setsockopt(this.#socket.fd, SOL_IP, option, this.#request.pointer, MREQ.size) === 0) return true;
    const e = errno();
    if (fine.includes(e)) return false;
    throw sysError(`join a multicast group on link ${link}`, e);
  }

  #free(): void {
    this.#ops.free();
    this.#request.free();
    this.#name.free();
  }
}
