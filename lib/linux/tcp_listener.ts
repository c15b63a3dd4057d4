/** A TCP listener of the loop. */
import { hostPort } from "../addr.ts";
import type { Logger } from "../log.ts";
import type { Accepted, IpPort, Listener, ListenOptions } from "../net.ts";
import type { Timed } from "./deadlines.ts";
import { EAGAIN, EMFILE, ENFILE, ENOBUFS, ENOMEM, sysError } from "./errno.ts";
import { errno, type Fd } from "./ffi.ts";
import type { Pollable } from "./poller.ts";
import { EPOLLIN, SO_REUSEADDR, SOCK_STREAM, SOL_SOCKET } from "./structs.ts";
import { setKeepalive, setNoDelay } from "./tcp_options.ts";
import { STREAM_EVENTS, type StreamKit, TcpStream } from "./tcp_stream.ts";

/** The kernel lowers it to net.core.somaxconn. */
const BACKLOG = 4096;
/** Accepted per turn: other connections must not wait behind a storm of new ones. */
const ACCEPTS_PER_TURN = 64;
/** Out of descriptors, new connections wait in the backlog; accepting is tried again this often. */
const RETRY_MS = 250;

export class TcpListener implements Listener, Pollable, Timed {
  readonly local: IpPort;
  readonly #kit: StreamKit;
  readonly #log: Logger;
  readonly #onAccept: (accepted: Accepted) => void;
  readonly #anyAddress: boolean;
  #fd: Fd;
  /** By its owner. */
  #held = false;
  /** By want of descriptors. */
  #paused = false;
  #complained = false;

  /** Throws MeshError KERNEL. */
  constructor(
    kit: StreamKit,
    at: IpPort,
    onAccept: (accepted: Accepted) => void,
    options: ListenOptions & { readonly log: Logger },
  ) {
    this.#kit = kit;
    this.#log = options.log;
    this.#onAccept = onAccept;
    this.#fd = kit.ops.openBound({
      type: SOCK_STREAM,
      at,
      what: "TCP listener",
      options,
      prepare: (fd) => {
        kit.ops.setInt(fd, SOL_SOCKET, SO_REUSEADDR, 1);
        setNoDelay(kit.ops, fd);
        setKeepalive(kit.ops, fd);
      },
    });
    try {
      if (kit.ops.c.listen(this.#fd, options.backlog ?? BACKLOG) < 0) {
        throw sysError(`listen on ${hostPort(at)}`, errno());
      }
      this.local = kit.ops.localOf(this.#fd);
      kit.poller.add(this.#fd, EPOLLIN, this);
    } catch (error) {
      kit.ops.c.close(this.#fd);
      throw error;
    }
    this.#anyAddress = at.ip === "0.0.0.0" || at.ip === "::";
  }

  onEvents(): void {
    for (let i = 0; i < ACCEPTS_PER_TURN && this.#fd >= 0 && !this.#held; i++) {
      const fd = this.#kit.ops.accept(this.#fd);
      if (fd >= 0) this.#accepted(fd);
      else if (fd === -EAGAIN) break;
      else if (isExhausted(-fd)) return this.#pause(-fd);
      // Anything else concerns one connection that is gone already (accept(2)): on to the next.
    }
    this.#complained = false;
  }

  onDeadline(): void {
    this.#resume();
  }

  onFault(): void {
    // One connection's owner failed; the listener serves all others.
  }

  pause(): void {
    if (this.#held || this.#fd < 0) return;
    this.#held = true;
    this.#kit.poller.modify(this.#fd, 0);
  }

  resume(): void {
    if (!this.#held || this.#fd < 0) return;
    this.#held = false;
    if (!this.#paused) this.#kit.poller.modify(this.#fd, EPOLLIN);
  }

  close(): void {
    this.abandon();
  }

  abandon(): void {
    if (this.#fd < 0) return;
    this.#kit.deadlines.delete(this);
    this.#kit.poller.closeFd(this.#fd);
    this.#fd = -1;
  }

  #accepted(fd: Fd): void {
    const { ops, poller } = this.#kit;
    const remote = ops.acceptedPeer();
    // A socket bound to one address accepts connections to that address only: no need to ask.
    const local = this.#anyAddress ? ops.localOf(fd) : this.local;
    const original = ops.originalOf(fd, local.ip) ?? local;
    const stream = new TcpStream(this.#kit, fd, "open");
    poller.add(fd, STREAM_EVENTS, stream);
    try {
      this.#onAccept({ stream, remote, local, original });
      stream.announce();
    } catch (error) {
      poller.report(error);
      stream.onFault();
    }
  }

  #pause(e: number): void {
    this.#paused = true;
    this.#kit.poller.modify(this.#fd, 0);
    this.#kit.deadlines.set(this, RETRY_MS);
    if (this.#complained) return;
    this.#complained = true;
    const error = sysError(`accept on ${hostPort(this.local)}`, e);
    this.#log.warn("New connections wait: no descriptor is free", { error: error.message, hint: error.hint });
  }

  #resume(): void {
    if (!this.#paused || this.#fd < 0) return;
    this.#paused = false;
    if (!this.#held) this.#kit.poller.modify(this.#fd, EPOLLIN);
  }
}

function isExhausted(e: number): boolean {
  return e === EMFILE || e === ENFILE || e === ENOBUFS || e === ENOMEM;
}
