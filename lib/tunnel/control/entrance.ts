/**
 * The server's port as a listener of the loop: the first bytes of a connection tell relay legs, whose bytes the kernel
 * is to move, from TLS, which goes on as a socket of node:net. Without this the front door listens by itself and there
 * are no legs.
 */
import type { Socket } from "node:net";
import type { CancelTimer, Clock } from "../../clock.ts";
import { describe } from "../../errors.ts";
import type { Logger } from "../../log.ts";
import { idleHandler, type IpPort, type Listener, type Loop, type MeshStream, WOULD_BLOCK } from "../../net.ts";
import { LEG_MAGIC } from "./leg_message.ts";

/** What the entrance needs of the kernel. */
export interface EntranceSockets {
  readonly loop: Loop;
  /** Looks at the first bytes without taking them; results as those of `read`. */
  peek(stream: MeshStream, into: Uint8Array): number;
  /** Takes an open connection out of the loop. Throws MeshError if it just broke. */
  socket(stream: MeshStream): Socket;
}

export interface EntranceLimits {
  /** Milliseconds until a connection has said what it is; for a leg, until its ticket is there. */
  readonly deadlineMs: number;
  /** Connections of one source, and of all, that have not. */
  readonly perSource: number;
  readonly pending: number;
}

export interface EntranceOptions {
  readonly clock: Clock;
  readonly log: Logger;
  readonly sockets: EntranceSockets;
  readonly limits: EntranceLimits;
  /** Anything but a leg. */
  onSocket(socket: Socket, from: IpPort): void;
  /** A leg; `done` once it is nobody's guest any more. */
  onLeg(stream: MeshStream, done: () => void): void;
  onTurnedAway(): void;
}

/** Connections that wait for accept: a fleet that comes back at once. */
const BACKLOG = 1024;

export class Entrance {
  readonly #options: EntranceOptions;
  readonly #listeners: Listener[] = [];
  readonly #guests = new Map<MeshStream, { readonly ip: string; readonly cancel: CancelTimer }>();
  readonly #perSource = new Map<string, number>();

  constructor(options: EntranceOptions) {
    this.#options = options;
  }

  /** Binds the port; `::` means both families. Throws MeshError KERNEL that names the address. */
  listen(at: IpPort): IpPort {
    if (at.ip !== "::") return this.#listen(at);
    const { port } = this.#listen({ ip: "0.0.0.0", port: at.port });
    try {
      this.#listen({ ip: "::", port });
    } catch (error) {
      this.#options.log.info("the server's port has no IPv6", { error: describe(error) });
    }
    return { ip: at.ip, port };
  }

  /** Connections that have not said what they are. */
  get pending(): number {
    return this.#guests.size;
  }

  close(): void {
    for (const listener of this.#listeners.splice(0)) listener.close();
    for (const stream of [...this.#guests.keys()]) {
      this.#left(stream);
      stream.reset("SHUTDOWN");
    }
  }

  #listen(at: IpPort): IpPort {
    const listener = this.#options.sockets.loop.listenTcp(
      at,
      ({ stream, remote }) => this.#arrived(stream, remote),
      { backlog: BACKLOG },
    );
    this.#listeners.push(listener);
    return listener.local;
  }

  #arrived(stream: MeshStream, from: IpPort): void {
    const { clock, limits, onTurnedAway } = this.#options;
    const ofSource = this.#perSource.get(from.ip) ?? 0;
    if (ofSource >= limits.perSource || this.#guests.size >= limits.pending) {
      onTurnedAway();
      return stream.reset("LIMIT");
    }
    const cancel = clock.timer(limits.deadlineMs, () => {
      this.#left(stream);
      stream.reset("TIMEOUT");
    });
    this.#guests.set(stream, { ip: from.ip, cancel });
    this.#perSource.set(from.ip, ofSource + 1);
    stream.handler = {
      ...idleHandler,
      onReadable: () => this.#look(stream, from),
      onClose: () => this.#left(stream),
    };
  }

  #look(stream: MeshStream, from: IpPort): void {
    const { sockets, onSocket, onLeg } = this.#options;
    const first = new Uint8Array(LEG_MAGIC.length);
    const n = sockets.peek(stream, first);
    if (n === WOULD_BLOCK) return;
    if (n === 0) {
      this.#left(stream);
      return stream.reset("PEER_GONE");
    }
    const like = LEG_MAGIC.subarray(0, n).every((byte, i) => byte === first[i]);
    if (like && n < LEG_MAGIC.length) return;
    if (like) return onLeg(stream, () => this.#left(stream));
    this.#left(stream);
    let socket: Socket;
    try {
      socket = sockets.socket(stream);
    } catch {
      return stream.reset("PEER_GONE");
    }
    onSocket(socket, from);
  }

  #left(stream: MeshStream): void {
    const guest = this.#guests.get(stream);
    if (!guest) return;
    this.#guests.delete(stream);
    guest.cancel();
    const left = this.#perSource.get(guest.ip)! - 1;
    if (left === 0) this.#perSource.delete(guest.ip);
    else this.#perSource.set(guest.ip, left);
  }
}
