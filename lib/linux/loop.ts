/** The epoll loop: what forwarding, DNS and the relay see of the kernel's sockets. */
import { hostPort } from "../addr.ts";
import type { Clock } from "../clock.ts";
import { MeshError } from "../errors.ts";
import type { Logger } from "../log.ts";
import type {
  Accepted,
  DialOptions,
  IpPort,
  Listener,
  ListenOptions,
  Loop,
  MeshStream,
  OnDatagram,
  StreamHandler,
  UdpSocket,
} from "../net.ts";
import { Deadlines } from "./deadlines.ts";
import { EINPROGRESS, errnoText } from "./errno.ts";
import type { Fd } from "./ffi.ts";
import { type Deferred, Poller } from "./poller.ts";
import { addressFamily } from "./sockaddr.ts";
import { SocketOps } from "./socket_ops.ts";
import { Splice, type SpliceAhead, SpliceKit, type SpliceOwner } from "./splice.ts";
import { EPOLLIN, SO_MARK, SOCK_STREAM, SOL_SOCKET, SOL_TCP, TCP_MAXSEG } from "./structs.ts";
import { TcpListener } from "./tcp_listener.ts";
import { dialReason, setNoDelay } from "./tcp_options.ts";
import { STREAM_EVENTS, StreamKit, TcpStream } from "./tcp_stream.ts";
import { LoopUdpSocket, UdpKit } from "./udp.ts";

/** A descriptor of somebody else that the loop watches. */
export interface FdWatch {
  /** Stops watching; the descriptor stays open. */
  close(): void;
}

export interface EpollLoopOptions {
  readonly clock: Clock;
  readonly log: Logger;
  /** No other loop runs in this process: this one may then wait by itself while there is traffic (nap.ts). */
  readonly alone?: boolean;
}

/**
 * Sockets on one epoll instance. It keeps the process alive while a descriptor is open, and needs no start: it runs
 * when there is something to watch. After {@link close} no callback comes; `await loop.finished` where a test (or an
 * orderly stop) must know that nothing uses the descriptors any more.
 */
export class EpollLoop implements Loop {
  readonly #poller: Poller;
  readonly #ops: SocketOps;
  readonly #deadlines: Deadlines;
  readonly #streams: StreamKit;
  readonly #log: Logger;
  #udp: UdpKit | undefined;
  #splices: SpliceKit | undefined;

  private constructor(options: EpollLoopOptions) {
    this.#log = options.log;
    this.#poller = new Poller(options.log, options.clock, options.alone);
    this.#ops = new SocketOps();
    this.#deadlines = new Deadlines(options.clock, (error) => this.#poller.report(error));
    this.#streams = new StreamKit(this.#poller, this.#ops, this.#deadlines);
  }

  /** Throws MeshError KERNEL when FFI or epoll is refused. */
  static open(options: EpollLoopOptions): EpollLoop {
    return new EpollLoop(options);
  }

  /** Sockets that are open: connections, listeners, datagram sockets. */
  get size(): number {
    return this.#poller.size;
  }

  /** Resolves after {@link close}, once everything is given back. */
  get finished(): Promise<void> {
    return this.#poller.finished;
  }

  listenTcp(at: IpPort, onAccept: (accepted: Accepted) => void, options: ListenOptions = {}): Listener {
    this.#check();
    return new TcpListener(this.#streams, at, onAccept, { ...options, log: this.#log });
  }

  dialTcp(to: IpPort, handler: StreamHandler, options: DialOptions): MeshStream {
    this.#check();
    const fd = this.#ops.open(addressFamily(to.ip), SOCK_STREAM);
    const stream = new TcpStream(this.#streams, Math.max(fd, -1), "connecting");
    stream.handler = handler;
    if (fd < 0) this.#failed(stream, to, -fd);
    else this.#connect(stream, fd, to, options);
    return stream;
  }

  bindUdp(at: IpPort, onDatagram: OnDatagram, options: ListenOptions = {}): UdpSocket {
    this.#check();
    this.#udp ??= new UdpKit(this.#poller, this.#ops);
    return new LoopUdpSocket(this.#udp, at, onDatagram, options);
  }

  /**
   * Takes the descriptor of an open connection out of the loop, for node:net to adopt (`new net.Socket({ fd })`).
   * The stream is over without a callback; the caller owns the descriptor. Throws MeshError for any other stream.
   */
  takeFd(stream: MeshStream): Fd {
    if (!(stream instanceof TcpStream)) {
      throw new MeshError("INTERNAL", "Cannot take the descriptor of a foreign stream");
    }
    return stream.takeFd();
  }

  /** Looks at the first bytes of a stream of this loop without taking them. Throws MeshError for any other stream. */
  peek(stream: MeshStream, into: Uint8Array): number {
    if (!(stream instanceof TcpStream)) throw new MeshError("INTERNAL", "Cannot look into a foreign stream");
    return stream.peek(into);
  }

  /** Our own end of an open connection of this loop. Throws MeshError for any other stream. */
  localOf(stream: MeshStream): IpPort {
    if (!(stream instanceof TcpStream)) throw new MeshError("INTERNAL", "A foreign stream has no address of this loop");
    return stream.local;
  }

  /** Runs `work` at the end of the turn, after the other sockets; never from inside this call. */
  defer(work: Deferred): void {
    if (!this.#poller.closed) this.#poller.defer(work);
  }

  /** Runs `task` at the end of the turn that is running, else as soon as the code that runs now is over. */
  soon(task: () => void): void {
    if (this.#poller.inTurn) this.#poller.defer({ run: task });
    else queueMicrotask(task);
  }

  /**
   * Moves all bytes between two streams inside the kernel until both are over. The loop owns them from here on.
   * Undefined, with nothing done, when one of them is no socket of a loop: the caller copies then.
   */
  splice(a: MeshStream, b: MeshStream, owner: SpliceOwner, ahead?: SpliceAhead): Splice | undefined {
    if (!(a instanceof TcpStream) || !(b instanceof TcpStream)) return undefined;
    this.#splices ??= new SpliceKit(this.#ops.c, this.#poller);
    return new Splice(this.#splices, [a, b], owner, ahead);
  }

  /** Calls `onReadable` as long as the descriptor has something to read: netlink, TUN. The caller keeps owning it. */
  watch(fd: Fd, onReadable: () => void): FdWatch {
    this.#check();
    let watching = true;
    const close = () => {
      if (watching) this.#poller.remove(fd);
      watching = false;
    };
    this.#poller.add(fd, EPOLLIN, { onEvents: onReadable, onFault: () => {}, abandon: close });
    return { close };
  }

  /** Gives memory and descriptors back that are kept for the next busy time. */
  trim(): void {
    if (this.#poller.closed) return;
    this.#udp?.trim();
    this.#splices?.pipes.trim();
  }

  close(): void {
    if (this.#poller.closed) return;
    this.#poller.close();
    this.#splices?.close();
    this.#deadlines.close();
    this.#udp?.free();
    this.#streams.free();
    this.#ops.free();
  }

  /** `await using loop = EpollLoop.open(…)`. */
  async [Symbol.asyncDispose](): Promise<void> {
    this.close();
    await this.finished;
  }

  #connect(stream: TcpStream, fd: Fd, to: IpPort, options: DialOptions): void {
    setNoDelay(this.#ops, fd);
    if (options.mark !== undefined) this.#ops.setInt(fd, SOL_SOCKET, SO_MARK, options.mark);
    if (options.maxSegment !== undefined) this.#ops.setInt(fd, SOL_TCP, TCP_MAXSEG, options.maxSegment);
    if (options.reusePort) this.#ops.reusePort(fd);
    if (options.from) {
      const e = this.#ops.bind(fd, options.from);
      if (e !== 0) {
        this.#log.warn("A connection cannot have its local address", {
          from: hostPort(options.from),
          to: hostPort(to),
          error: errnoText(e),
        });
        return stream.failDial("KERNEL");
      }
    }
    const e = this.#ops.connect(fd, to);
    if (e !== 0 && e !== EINPROGRESS) return this.#failed(stream, to, e);
    this.#poller.add(fd, STREAM_EVENTS, stream);
    this.#deadlines.set(stream, options.timeoutMs);
  }

  #failed(stream: TcpStream, to: IpPort, e: number): void {
    this.#log.debug("A connection cannot start", { to: hostPort(to), error: errnoText(e) });
    stream.failDial(dialReason(e));
  }

  #check(): void {
    if (this.#poller.closed) throw new MeshError("SHUTDOWN", "The loop is closed");
  }
}
