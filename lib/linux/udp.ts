/** Datagram sockets of the loop: read and sent in batches (recvmmsg, sendmmsg), nothing allocated per datagram. */
import type { IpPort, ListenOptions, OnDatagram, UdpSocket } from "../net.ts";
import { EAGAIN, ENOBUFS } from "./errno.ts";
import { errno, type Fd } from "./ffi.ts";
import { Memory } from "./memory.ts";
import type { Deferred, Pollable, Poller } from "./poller.ts";
import type { SocketOps } from "./socket_ops.ts";
import {
  EPOLLERR,
  EPOLLIN,
  EPOLLOUT,
  MSG_DONTWAIT,
  MSG_NOSIGNAL,
  SO_RCVBUF,
  SO_RCVBUFFORCE,
  SO_SNDBUF,
  SO_SNDBUFFORCE,
  SOCK_DGRAM,
  SOL_SOCKET,
  STRUCT,
} from "./structs.ts";
import { ADDRESS_WORDS, addressFor, AddressTable, type SocketAddress } from "./address.ts";

/** Datagrams per system call. */
const BATCH = 64;
/** Batches of one socket before others get their turn. */
const BATCHES_PER_TURN = 4;
/** The largest UDP payload over IPv6 (65 535 − 8); over IPv4 the kernel refuses beyond 65 507. */
export const MAX_DATAGRAM = 65_527;
// 128 bytes beyond a power of two: with a stride of 64 KiB all 64 buffers would compete for the same few cache lines.
const RECEIVE_STRIDE = 65_536 + 128;
/** Larger datagrams are sent one by one: they fill a batch's worth of bytes alone. */
const QUEUED_MAX = 2_048;
/** Room for bursts: the kernel's default of 212 KiB holds 90 small datagrams (each is counted with its overhead). */
const SOCKET_BUFFER = 4 << 20;

const HDR_WORDS = STRUCT.mmsghdr.size >>> 2;
const IOV_WORDS = STRUCT.iovec.size >>> 2;
const NAME_WORDS = 8;
const AT_NAMELEN = STRUCT.msghdr.at.namelen >>> 2;
const AT_LEN = STRUCT.mmsghdr.at.len >>> 2;
const AT_IOV_LEN = STRUCT.iovec.at.len >>> 2;

/** Headers, vectors and names of one batch, tied together once. */
class MessageBatch {
  readonly headers = Memory.allocate(BATCH * STRUCT.mmsghdr.size);
  readonly vectors = Memory.allocate(BATCH * STRUCT.iovec.size);
  readonly names = Memory.allocate(BATCH * NAME_WORDS * 4);
  readonly data: Memory;
  /** A pointer to each header, to start in the middle of the batch. */
  readonly pointers: readonly Deno.PointerObject[];

  constructor(stride: number) {
    this.data = Memory.allocate(BATCH * stride);
    const pointers: Deno.PointerObject[] = [];
    for (let i = 0; i < BATCH; i++) {
      this.vectors.putAddress(i * STRUCT.iovec.size + STRUCT.iovec.at.base, this.data, i * stride);
      const at = i * STRUCT.mmsghdr.size;
      this.headers.putAddress(at + STRUCT.msghdr.at.name, this.names, i * NAME_WORDS * 4);
      this.headers.putAddress(at + STRUCT.msghdr.at.iov, this.vectors, i * STRUCT.iovec.size);
      this.headers.u32[(at + STRUCT.msghdr.at.iovlen) >>> 2] = 1;
      pointers.push(this.headers.pointerAt(at));
    }
    this.pointers = pointers;
  }

  free(): void {
    for (const memory of [this.headers, this.vectors, this.names, this.data]) memory.free();
  }
}

/** What the datagram sockets of one loop share. Made with the first of them. */
export class UdpKit implements Deferred {
  readonly poller: Poller;
  readonly ops: SocketOps;
  readonly addresses = new AddressTable();
  readonly #in = new MessageBatch(RECEIVE_STRIDE);
  readonly #out = new MessageBatch(QUEUED_MAX);
  readonly #views: readonly Uint8Array[];
  readonly #slots: readonly Deno.PointerObject[];
  readonly #name = Memory.allocate(NAME_WORDS * 4);
  readonly #owners: (LoopUdpSocket | undefined)[] = new Array(BATCH).fill(undefined);
  #queued = 0;

  constructor(poller: Poller, ops: SocketOps) {
    this.poller = poller;
    this.ops = ops;
    const views: Uint8Array[] = [];
    const slots: Deno.PointerObject[] = [];
    for (let i = 0; i < BATCH; i++) {
      views.push(this.#in.data.bytes.subarray(i * RECEIVE_STRIDE, i * RECEIVE_STRIDE + 65_536));
      this.#in.vectors.u32[i * IOV_WORDS + AT_IOV_LEN] = 65_536;
      this.#in.headers.u32[i * HDR_WORDS + AT_NAMELEN] = ADDRESS_WORDS * 4;
      slots.push(this.#out.data.pointerAt(i * QUEUED_MAX));
    }
    this.#views = views;
    this.#slots = slots;
  }

  /** Reads one batch and delivers it; returns whether there may be more. */
  receive(socket: LoopUdpSocket, onDatagram: OnDatagram): boolean {
    const batch = this.#in;
    const headers = batch.headers.u32;
    const n = this.ops.c.recvmmsg(socket.fd, batch.headers.pointer, BATCH, MSG_DONTWAIT, null);
    for (let i = 0; i < n; i++) {
      const header = i * HDR_WORDS;
      headers[header + AT_NAMELEN] = ADDRESS_WORDS * 4;
      if (socket.fd < 0) continue;
      const from = this.addresses.find(batch.names.u32, i * NAME_WORDS);
      try {
        onDatagram(this.#views[i]!, headers[header + AT_LEN]!, from);
      } catch (error) {
        this.poller.report(error);
      }
    }
    return n === BATCH && socket.fd >= 0;
  }

  /** Puts a datagram into the batch that leaves at the end of the turn. */
  queue(socket: LoopUdpSocket, bytes: Uint8Array, length: number, to: SocketAddress): void {
    if (this.#queued === BATCH) this.flush();
    const i = this.#queued++;
    this.ops.c.copyFrom(this.#slots[i]!, bytes, length);
    this.#out.vectors.u32[i * IOV_WORDS + AT_IOV_LEN] = length;
    this.#out.headers.u32[i * HDR_WORDS + AT_NAMELEN] = to.length;
    to.put(this.#out.names.u32, i * NAME_WORDS);
    this.#owners[i] = socket;
    if (i === 0) this.poller.defer(this);
  }

  /** Sends one datagram now. Returns 0 or the errno. */
  sendNow(fd: Fd, bytes: Uint8Array, length: number, to: SocketAddress): number {
    // What was sent before must not be overtaken by this one.
    if (this.#queued > 0) this.flush();
    to.put(this.#name.u32, 0);
    const flags = MSG_DONTWAIT | MSG_NOSIGNAL;
    return this.ops.c.sendtoFrom(fd, bytes, length, flags, this.#name.pointer, to.length) < 0 ? errno() : 0;
  }

  run(): void {
    this.flush();
  }

  /** Sends what is queued: one call per run of datagrams of one socket. */
  flush(): void {
    const count = this.#queued;
    this.#queued = 0;
    for (let i = 0; i < count;) {
      const socket = this.#owners[i]!;
      let end = i + 1;
      while (end < count && this.#owners[end] === socket) end++;
      this.#send(socket, i, end);
      i = end;
    }
    this.#owners.fill(undefined, 0, count);
  }

  /** Gives memory back that is not in use: what large datagrams have filled, and addresses of clients that are gone. */
  trim(): void {
    this.#in.data.discard();
    this.addresses.forget();
  }

  free(): void {
    this.#queued = 0;
    this.#in.free();
    this.#out.free();
    this.#name.free();
  }

  #send(socket: LoopUdpSocket, start: number, end: number): void {
    for (let i = start; i < end;) {
      const n = this.ops.c.sendmmsg(socket.fd, this.#out.pointers[i]!, end - i, MSG_DONTWAIT | MSG_NOSIGNAL);
      if (n > 0) i += n;
      else if (isFull(errno())) return socket.onFull(end - i);
      // Any other error concerns the one datagram at the front (too long, refused by a rule, no route).
      else {
        socket.dropped++;
        i++;
      }
    }
  }
}

export class LoopUdpSocket implements UdpSocket, Pollable {
  readonly local: IpPort;
  /** Negative once closed. */
  fd: Fd;
  /** Datagrams that were taken by {@link send} and did not leave. */
  dropped = 0;
  readonly #kit: UdpKit;
  readonly #onDatagram: OnDatagram;
  #full = false;

  /** Throws MeshError KERNEL. */
  constructor(kit: UdpKit, at: IpPort, onDatagram: OnDatagram, options: ListenOptions = {}) {
    this.#kit = kit;
    this.#onDatagram = onDatagram;
    const { ops } = kit;
    this.fd = ops.openBound({ type: SOCK_DGRAM, at, what: "UDP socket", options });
    try {
      // The FORCE form needs CAP_NET_ADMIN and ignores net.core.rmem_max.
      for (const [force, plain] of [[SO_RCVBUFFORCE, SO_RCVBUF], [SO_SNDBUFFORCE, SO_SNDBUF]] as const) {
        if (ops.setInt(this.fd, SOL_SOCKET, force, SOCKET_BUFFER) !== 0) {
          ops.setInt(this.fd, SOL_SOCKET, plain, SOCKET_BUFFER);
        }
      }
      this.local = ops.localOf(this.fd);
      kit.poller.add(this.fd, EPOLLIN, this);
    } catch (error) {
      ops.c.close(this.fd);
      throw error;
    }
  }

  send(bytes: Uint8Array, length: number, to: IpPort): boolean {
    if (this.fd < 0 || this.#full || length > MAX_DATAGRAM || length > bytes.length) return false;
    const address = addressFor(to);
    if (length <= QUEUED_MAX && this.#kit.poller.inTurn) {
      this.#kit.queue(this, bytes, length, address);
      return true;
    }
    const e = this.#kit.sendNow(this.fd, bytes, length, address);
    if (isFull(e)) this.onFull(1);
    else if (e !== 0) this.dropped++;
    return e === 0;
  }

  close(): void {
    if (this.fd >= 0) this.#kit.flush();
    this.abandon();
  }

  /** The kernel's buffer is full: datagrams are refused until it says that there is room. */
  onFull(dropped: number): void {
    this.dropped += dropped;
    if (this.#full || this.fd < 0) return;
    this.#full = true;
    this.#kit.poller.modify(this.fd, EPOLLIN | EPOLLOUT);
  }

  onEvents(events: number): void {
    if (this.#full && events & EPOLLOUT) {
      this.#full = false;
      this.#kit.poller.modify(this.fd, EPOLLIN);
    }
    if (!(events & (EPOLLIN | EPOLLERR))) return;
    for (let i = 0; i < BATCHES_PER_TURN; i++) if (!this.#kit.receive(this, this.#onDatagram)) return;
  }

  onFault(): void {
    // Faults of the owner are caught per datagram; the socket serves all others.
  }

  abandon(): void {
    if (this.fd < 0) return;
    this.#kit.poller.closeFd(this.fd);
    this.fd = -1;
  }
}

function isFull(e: number): boolean {
  return e === EAGAIN || e === ENOBUFS;
}
