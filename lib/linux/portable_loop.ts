/**
 * {@link Loop} over the runtime's own sockets, for hosts that refuse FFI. It is what an agent falls back to: every byte
 * is copied by the runtime, accepted connections do not tell where the client meant to go, a listener's address must
 * exist, and sockets have no mark.
 */
import { connect, createServer, type Server, type Socket } from "node:net";
import { hostPort, parseIp } from "../addr.ts";
import type { Clock } from "../clock.ts";
import { describe, MeshError } from "../errors.ts";
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
import { PortableStream } from "./portable_stream.ts";
import { PortableUdpSocket } from "./portable_udp.ts";

/** As the loop over epoll (tcp_listener.ts, tcp_options.ts). */
const BACKLOG = 4096;
const KEEPALIVE_MS = 60_000;
/** The runtime cannot leave connections in the kernel's queue: a paused listener holds so many and resets the rest. */
const HELD = 128;

export interface PortableLoopOptions {
  readonly clock: Clock;
  readonly log: Logger;
}

export class PortableLoop implements Loop {
  readonly #options: PortableLoopOptions;
  /** Everything open, by what ends it without a word. */
  readonly #open = new Map<object, () => void>();
  readonly #finished = Promise.withResolvers<void>();
  #closed = false;

  constructor(options: PortableLoopOptions) {
    this.#options = options;
  }

  get size(): number {
    return this.#open.size;
  }

  /** Resolves after {@link close}, once every descriptor is given back. */
  get finished(): Promise<void> {
    return this.#finished.promise;
  }

  listenTcp(at: IpPort, onAccept: (accepted: Accepted) => void, options: ListenOptions = {}): Listener {
    this.#check();
    const listener = new PortableListener(at, options, {
      log: this.#options.log,
      onClosed: () => this.#gone(listener),
      onSocket: (socket, local) => this.#accepted(socket, local, onAccept),
    });
    this.#open.set(listener, () => listener.close());
    return listener;
  }

  dialTcp(to: IpPort, handler: StreamHandler, options: DialOptions): MeshStream {
    this.#check();
    const socket = connect({
      host: to.ip,
      port: to.port,
      allowHalfOpen: true,
      family: to.ip.includes(":") ? 6 : 4,
      ...(options.from ? { localAddress: options.from.ip, localPort: options.from.port } : {}),
    });
    const stream = this.#stream(socket, false);
    stream.handler = handler;
    stream.deadline(options.timeoutMs);
    socket.once("connect", () => stream.open());
    return stream;
  }

  bindUdp(at: IpPort, onDatagram: OnDatagram, options: ListenOptions = {}): UdpSocket {
    this.#check();
    const socket: UdpSocket = new PortableUdpSocket(at, onDatagram, {
      ...options,
      onClosed: () => this.#gone(socket),
    });
    this.#open.set(socket, () => socket.close());
    return socket;
  }

  close(): void {
    if (this.#closed) return;
    this.#closed = true;
    for (const end of this.#open.values()) end();
    if (this.#open.size === 0) this.#finished.resolve();
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.close();
    await this.finished;
  }

  #accepted(socket: Socket, local: IpPort, onAccept: (accepted: Accepted) => void): void {
    const stream = this.#stream(socket, true);
    const remote = { ip: canonical(socket.remoteAddress), port: socket.remotePort ?? 0 };
    const at = { ip: canonical(socket.localAddress) || local.ip, port: local.port };
    try {
      onAccept({ stream, remote, local: at, original: at });
    } catch (error) {
      this.#options.log.error("An accepted connection could not be taken", { error: describe(error) });
      return stream.reset("INTERNAL");
    }
    stream.open();
    socket.resume();
  }

  #stream(socket: Socket, opened: boolean): PortableStream {
    socket.setNoDelay(true);
    socket.setKeepAlive(true, KEEPALIVE_MS);
    const stream = new PortableStream(socket, { clock: this.#options.clock, opened });
    this.#open.set(socket, () => stream.abandon());
    socket.once("close", () => this.#gone(socket));
    return stream;
  }

  #gone(what: object): void {
    this.#open.delete(what);
    if (this.#closed && this.#open.size === 0) this.#finished.resolve();
  }

  #check(): void {
    if (this.#closed) throw new MeshError("SHUTDOWN", "The loop is closed");
  }
}

interface ListenerParts {
  readonly log: Logger;
  onClosed(): void;
  onSocket(socket: Socket, local: IpPort): void;
}

class PortableListener implements Listener {
  readonly local: IpPort;
  readonly #server: Server;
  readonly #parts: ListenerParts;
  readonly #held: Socket[] = [];
  #paused = false;
  #closed = false;

  /** Throws MeshError KERNEL. */
  constructor(at: IpPort, options: ListenOptions, parts: ListenerParts) {
    this.#parts = parts;
    this.local = freeAddress(at, options);
    this.#server = createServer({ allowHalfOpen: true, pauseOnConnect: true }, (socket) => this.#onSocket(socket));
    this.#server.on("error", (error) => {
      parts.log.error("A listener cannot be opened", { at: hostPort(this.local), error: describe(error) });
    });
    this.#server.on("close", () => parts.onClosed());
    this.#server.listen({
      host: this.local.ip,
      port: this.local.port,
      ipv6Only: at.ip.includes(":"),
      reusePort: options.reusePort ?? false,
      backlog: options.backlog ?? BACKLOG,
    });
  }

  pause(): void {
    this.#paused = true;
  }

  resume(): void {
    this.#paused = false;
    while (!this.#paused && !this.#closed && this.#held.length > 0) {
      const socket = this.#held.shift()!;
      if (!socket.destroyed) this.#parts.onSocket(socket, this.local);
    }
  }

  close(): void {
    if (this.#closed) return;
    this.#closed = true;
    for (const socket of this.#held.splice(0)) socket.resetAndDestroy();
    this.#server.close();
  }

  #onSocket(socket: Socket): void {
    if (!this.#paused && !this.#closed) return this.#parts.onSocket(socket, this.local);
    socket.on("error", () => {});
    if (this.#closed || this.#held.length >= HELD) socket.resetAndDestroy();
    else this.#held.push(socket);
  }
}

/**
 * The address with a port. The runtime's listener for half-open connections tells only later whether it could be
 * opened; this one tells at once, and gives the address back.
 */
function freeAddress(at: IpPort, options: ListenOptions): IpPort {
  try {
    const probe = Deno.listen({ hostname: at.ip, port: at.port, reusePort: options.reusePort ?? false });
    const { port } = probe.addr;
    probe.close();
    return { ip: at.ip, port };
  } catch (cause) {
    throw new MeshError("KERNEL", `Cannot bind the TCP listener ${hostPort(at)}: ${describe(cause)}`, { cause });
  }
}

/** Without the name of the link that addresses for local use carry; empty where the connection is gone already. */
function canonical(address: string | undefined): string {
  return address === undefined ? "" : parseIp(address.replace(/%.*$/, "")) ?? address;
}
