/** A TCP connection of the loop as a {@link MeshStream}. */
import type { ReasonCode } from "../errors.ts";
import { MeshError } from "../errors.ts";
import { idleHandler, type IpPort, type MeshStream, type StreamHandler, WOULD_BLOCK } from "../net.ts";
import type { Deadlines, Timed } from "./deadlines.ts";
import { EAGAIN, ECONNRESET, EINTR, EPIPE } from "./errno.ts";
import { errno, type Fd } from "./ffi.ts";
import { addressOf, Memory } from "./memory.ts";
import type { Deferred, Pollable, Poller } from "./poller.ts";
import type { SocketOps } from "./socket_ops.ts";
import { dialReason, KEEPALIVE_AFTER_MS, setKeepalive } from "./tcp_options.ts";
import {
  EPOLLERR,
  EPOLLET,
  EPOLLHUP,
  EPOLLIN,
  EPOLLOUT,
  EPOLLPRI,
  EPOLLRDHUP,
  MSG_MORE,
  MSG_NOSIGNAL,
  MSG_PEEK,
  SHUT_WR,
  SPLICE_F_MOVE,
  SPLICE_F_NONBLOCK,
  STRUCT,
} from "./structs.ts";

/** What a stream watches for; one registration for its whole life. */
export const STREAM_EVENTS = EPOLLIN | EPOLLOUT | EPOLLRDHUP | EPOLLPRI | EPOLLET;

/** Events after which a short read no longer means "nothing is left": their edge will not come again. */
const LAST_EDGE = EPOLLERR | EPOLLHUP | EPOLLRDHUP | EPOLLPRI;

/**
 * How long an owner that is slowed down may still read what came before a reset, until the stream is closed over its
 * head. Without an end, a client that is gone would hold its connection for as long as the other side does not read.
 */
export const RESET_GRACE_MS = 5_000;

/** What the streams of one loop share. */
export class StreamKit implements Timed {
  readonly poller: Poller;
  readonly ops: SocketOps;
  readonly deadlines: Deadlines;
  readonly #message = Memory.allocate(STRUCT.msghdr.size);
  readonly #vector = Memory.allocate(STRUCT.iovec.size);
  #willKeepAlive = false;

  constructor(poller: Poller, ops: SocketOps, deadlines: Deadlines) {
    this.poller = poller;
    this.ops = ops;
    this.deadlines = deadlines;
    this.#message.putAddress(STRUCT.msghdr.at.iov, this.#vector);
    this.#message.u32[STRUCT.msghdr.at.iovlen >> 2] = 1;
  }

  /** send(2) of a part of a buffer without allocating a view of it. */
  sendPart(fd: Fd, from: Uint8Array, offset: number, length: number): number {
    this.#vector.putAddress(STRUCT.iovec.at.base, addressOf(from.buffer), from.byteOffset + offset);
    this.#vector.u32[STRUCT.iovec.at.len >> 2] = length;
    return this.ops.c.sendmsg(fd, this.#message.pointer, MSG_NOSIGNAL);
  }

  /** A dialled connection is open: if it still is in a while, it gets its keepalive. */
  willKeepAlive(): void {
    if (this.#willKeepAlive) return;
    this.#willKeepAlive = true;
    this.deadlines.set(this, KEEPALIVE_AFTER_MS);
  }

  onDeadline(): void {
    this.#willKeepAlive = false;
    for (const target of this.poller.watched()) if (target instanceof TcpStream) target.keepAlive();
  }

  free(): void {
    this.#message.free();
    this.#vector.free();
  }
}

type Stage = "connecting" | "open" | "closing" | "over";

// What a stream knows of itself, as bits: thousands may stand idle, and a field each would double what one takes.
/** The owner wants to hear of the next edge: it has seen "nothing now". */
const WANT_READ = 1;
const WANT_WRITE = 2;
/** A short read emptied the kernel's queue; the next edge will say when there is more. */
const DRAINED = 4;
const LAST_EDGE_SEEN = 8;
const READ_END = 16;
const WROTE_END = 32;
/** It broke before the other side's FIN: the end of the bytes is no clean end. */
const CUT_SHORT = 64;
const KEPT_ALIVE = 128;
/**
 * The other side's FIN is here, behind all its bytes (the kernel queues them in order), and nothing broke or was urgent
 * before it: a short read takes all that is left.
 */
const FIN_SEEN = 256;
/** Such a read was: the next one returns 0 without a call. */
const AT_END = 512;

export class TcpStream implements MeshStream, Pollable, Deferred, Timed {
  handler: StreamHandler = idleHandler;
  readonly #kit: StreamKit;
  #fd: Fd;
  #stage: Stage;
  #flags: number;
  /** The connection is known to be broken, but bytes that came before may still be read. */
  #broken: ReasonCode | undefined;

  /** Over an open or connecting descriptor, which the caller then watches with {@link STREAM_EVENTS}. */
  constructor(kit: StreamKit, fd: Fd, stage: "connecting" | "open") {
    this.#kit = kit;
    this.#fd = fd;
    this.#stage = stage;
    // Accepted connections have their keepalive from the listener.
    this.#flags = stage === "open" ? WANT_READ | KEPT_ALIVE : WANT_READ;
  }

  read(into: Uint8Array): number {
    if (into.length === 0) throw new MeshError("INTERNAL", "Cannot read into an empty buffer");
    if (!this.#mayRead()) return this.#notReading();
    if (this.#is(AT_END)) return this.#end();
    const n = this.#kit.ops.c.recvInto(this.#fd, into, into.length, 0);
    if (n > 0) {
      if (n < into.length) this.#readShort();
      return n;
    }
    return n === 0 ? this.#end() : this.#readFailed(errno());
  }

  /**
   * Looks at the first bytes without taking them. Results as those of {@link read}; after fewer bytes than `into` holds,
   * `onReadable` comes again with the next ones.
   */
  peek(into: Uint8Array): number {
    if (!this.#mayRead()) return this.#notReading();
    const n = this.#kit.ops.c.recvInto(this.#fd, into, into.length, MSG_PEEK);
    if (n < 0) return this.#readFailed(errno());
    if (n < into.length) this.#set(WANT_READ);
    return n;
  }

  write(from: Uint8Array, offset: number, length: number): number {
    if (!this.#mayWrite(length)) return 0;
    const n = offset === 0
      ? this.#kit.ops.c.sendFrom(this.#fd, from, length, MSG_NOSIGNAL)
      : this.#kit.sendPart(this.#fd, from, offset, length);
    return n === length ? n : this.#wroteShort(n);
  }

  /** As {@link write}, for the last bytes where {@link closeWrite} follows at once: they leave in one segment with the FIN. */
  writeLast(from: Uint8Array, length: number): number {
    if (!this.#mayWrite(length)) return 0;
    const n = this.#kit.ops.c.sendFrom(this.#fd, from, length, MSG_NOSIGNAL | MSG_MORE);
    return n === length ? n : this.#wroteShort(n);
  }

  closeWrite(): void {
    if (this.#is(WROTE_END) || this.#stage === "over" || this.#stage === "closing") return;
    this.#set(WROTE_END);
    this.#clear(WANT_WRITE);
    // On a connecting socket shutdown(2) would give up the connection; it follows when the connection is there.
    if (this.#stage === "connecting") return;
    // Where the other direction has ended, too, close(2) says it: one call and, with luck, one segment less.
    if (this.#is(READ_END)) this.#finish();
    else this.#kit.ops.c.shutdown(this.#fd, SHUT_WR);
  }

  reset(_code: ReasonCode): void {
    if (this.#stage === "over") return;
    if (this.#fd >= 0 && this.#stage !== "connecting") this.#kit.ops.lingerZero(this.#fd);
    this.abandon();
  }

  /** Moves at most `max` bytes into an empty pipe. Results as {@link read}. */
  spliceIn(pipe: Fd, max: number): number {
    if (!this.#mayRead()) return this.#notReading();
    const n = this.#kit.ops.c.splice(this.#fd, null, pipe, null, max, SPLICE_F_MOVE | SPLICE_F_NONBLOCK);
    return n > 0 ? n : n === 0 ? this.#end() : this.#readFailed(errno());
  }

  /** Moves at most `length` bytes out of a pipe that holds them. Results as {@link write}. */
  spliceOut(pipe: Fd, length: number): number {
    if (!this.#mayWrite(length)) return 0;
    const n = this.#kit.ops.c.splice(pipe, null, this.#fd, null, length, SPLICE_F_MOVE | SPLICE_F_NONBLOCK);
    return n === length ? n : this.#wroteShort(n);
  }

  /** Hands the descriptor to the caller; the stream is over without a callback. Throws MeshError unless it is open. */
  takeFd(): Fd {
    if (this.#stage !== "open") {
      throw new MeshError("INTERNAL", `Cannot take the descriptor of a stream that is ${this.#stage}`);
    }
    this.keepAlive();
    const fd = this.#fd;
    this.#kit.poller.remove(fd);
    this.#fd = -1;
    this.abandon();
    return fd;
  }

  /** Has the kernel look whether the other end is still there, from now on. */
  keepAlive(): void {
    if (this.#is(KEPT_ALIVE) || this.#stage !== "open") return;
    this.#set(KEPT_ALIVE);
    setKeepalive(this.#kit.ops, this.#fd);
  }

  /** Our own end of an open connection. Throws MeshError unless it is open. */
  get local(): IpPort {
    return this.#kit.ops.localOf(this.#fd);
  }

  /** Whether {@link takeFd} would work. */
  get isOpen(): boolean {
    return this.#stage === "open";
  }

  /** All that the other side sent was read: the next read returns 0. False also where that is not known yet. */
  get isAtEnd(): boolean {
    return this.#is(AT_END | READ_END);
  }

  /** Bytes were announced to an owner who has not yet read until nothing was left: no event will announce them again. */
  get isAnnounced(): boolean {
    return !this.#is(WANT_READ);
  }

  /** Tells the owner of an accepted stream that it is open. */
  announce(): void {
    if (this.#stage === "open") this.handler.onOpen();
  }

  /** The connection cannot even start: told from the loop, as every fate of a dial. */
  failDial(reason: ReasonCode): void {
    this.#broken = reason;
    this.#finish();
  }

  onEvents(events: number): void {
    if (this.#stage === "connecting") this.#onConnected(events);
    if (this.#stage !== "open") return;
    this.#clear(DRAINED);
    if (events & LAST_EDGE) {
      if ((events & LAST_EDGE) === EPOLLRDHUP && !this.#is(LAST_EDGE_SEEN)) this.#set(FIN_SEEN);
      this.#set(LAST_EDGE_SEEN);
    }
    if (events & EPOLLERR) this.#onBroken();
    if (this.#is(WANT_READ) && events & (EPOLLIN | EPOLLRDHUP | EPOLLHUP | EPOLLERR)) {
      this.#clear(WANT_READ);
      this.handler.onReadable();
    }
    if (this.#is(WANT_WRITE) && events & EPOLLOUT && this.#isOpen() && this.#broken === undefined) {
      this.#clear(WANT_WRITE);
      this.handler.onWritable();
    }
  }

  onDeadline(): void {
    if (this.#stage === "connecting") this.#tell("DIAL_TIMEOUT");
    else if (this.#stage === "open") this.#tell(this.#broken);
  }

  /** Delivers the end that {@link #finish} decided. */
  run(): void {
    if (this.#stage === "closing") this.#tell(this.#broken);
  }

  onFault(): void {
    if (this.#stage === "over") return;
    this.reset("INTERNAL");
    this.handler.onClose("INTERNAL");
  }

  abandon(): void {
    this.#stage = "over";
    this.#kit.deadlines.delete(this);
    if (this.#fd >= 0) this.#kit.poller.closeFd(this.#fd);
    this.#fd = -1;
  }

  #isOpen(): boolean {
    return this.#stage === "open";
  }

  #is(flag: number): boolean {
    return (this.#flags & flag) !== 0;
  }

  #set(flag: number): void {
    this.#flags |= flag;
  }

  #clear(flag: number): void {
    this.#flags &= ~flag;
  }

  #mayRead(): boolean {
    return this.#stage === "open" && !this.#is(READ_END) && !this.#is(DRAINED);
  }

  /** Saves the call that would only say EAGAIN, or 0. Wrong after other last edges, and at an urgent mark (EPOLLPRI). */
  #readShort(): void {
    if (this.#is(FIN_SEEN)) this.#set(AT_END);
    else if (!this.#is(LAST_EDGE_SEEN)) this.#set(DRAINED);
  }

  #notReading(): number {
    if (this.#is(READ_END) && !this.#is(CUT_SHORT)) return 0;
    if (this.#stage === "over") return 0;
    this.#set(WANT_READ);
    return WOULD_BLOCK;
  }

  #end(): number {
    this.#set(READ_END);
    if (this.#broken !== undefined || this.#is(WROTE_END)) this.#finish();
    return this.#is(CUT_SHORT) ? WOULD_BLOCK : 0;
  }

  #readFailed(e: number): number {
    if (e === EAGAIN || e === EINTR) {
      this.#set(WANT_READ);
    } else {
      this.#break(e);
      this.#finish();
    }
    return WOULD_BLOCK;
  }

  #mayWrite(length: number): boolean {
    if (length === 0 || this.#is(WROTE_END) || this.#broken !== undefined) return false;
    if (this.#stage === "connecting") this.#set(WANT_WRITE);
    return this.#stage === "open" && !this.#is(WANT_WRITE);
  }

  #wroteShort(n: number): number {
    if (n >= 0) {
      this.#set(WANT_WRITE);
      return n;
    }
    const e = errno();
    this.#set(WANT_WRITE);
    // The kernel reports the break as an event too; reading what came before goes on until then.
    if (e !== EAGAIN && e !== EINTR) this.#break(e);
    return 0;
  }

  #onConnected(events: number): void {
    if (events & (EPOLLERR | EPOLLHUP)) {
      const e = this.#kit.ops.takeError(this.#fd);
      return this.#tell(e === 0 ? "DIAL_REFUSED" : dialReason(e));
    }
    if (!(events & EPOLLOUT)) return;
    this.#stage = "open";
    this.#kit.deadlines.delete(this);
    this.#kit.willKeepAlive();
    const writable = this.#is(WANT_WRITE);
    this.#clear(WANT_WRITE);
    this.handler.onOpen();
    if (!this.#isOpen()) return;
    if (this.#is(WROTE_END)) this.#kit.ops.c.shutdown(this.#fd, SHUT_WR);
    else if (writable && !this.#is(WANT_WRITE)) this.handler.onWritable();
  }

  /** The kernel says the connection broke; it gives out what it received before, and then the error. */
  #onBroken(): void {
    this.#broken ??= "RESET";
    if (this.#is(READ_END)) this.#finish();
    else this.#kit.deadlines.set(this, RESET_GRACE_MS);
  }

  #break(e: number): void {
    // After the other side's FIN the kernel says EPIPE: what it sent is complete, only our direction broke.
    if (e !== EPIPE) this.#set(CUT_SHORT);
    this.#broken ??= e === ECONNRESET || e === EPIPE ? "RESET" : "PEER_GONE";
    this.#clear(DRAINED);
    this.#set(LAST_EDGE_SEEN);
    this.#kit.deadlines.set(this, RESET_GRACE_MS);
  }

  /** The stream is over; the owner hears it from the loop, not from inside its own call. */
  #finish(): void {
    if (this.#stage === "closing" || this.#stage === "over") return;
    this.#stage = "closing";
    this.#kit.poller.defer(this);
  }

  #tell(reason: ReasonCode | undefined): void {
    this.abandon();
    this.handler.onClose(reason);
  }
}
