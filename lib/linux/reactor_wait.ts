/**
 * Waiting for an epoll instance inside the epoll_wait that Deno's event loop is in anyway.
 *
 * Deno's reactor (tokio) knows a descriptor by its entry in the reactor's epoll instance. A socket pair is given to
 * node:net, and its entry then points at our epoll instance instead: what makes ours readable wakes the reactor, which
 * reads the socket, finds a byte that was put there before the wait, and calls us. The kernel allows an epoll instance
 * in another one; the reactor only ever learns that its socket became readable, and that is true. One thread wakes,
 * 10 µs after the packet, where a helper thread takes two wake-ups and ten times as long.
 *
 * The entry is one-shot: it costs nothing while the poller is busy, and arming it looks whether something is there
 * already, so that no event falls between the last question and the wait. Before the socket is closed, the reactor gets
 * its entry back as it was. All of this is found out from /proc: where anything is not as described, nothing is changed.
 */
import { Socket } from "node:net";
import { type Fd, type Libc, libc } from "./ffi.ts";
import type { IdleWait } from "./idle_wait.ts";
import { Memory } from "./memory.ts";
import {
  AF_UNIX,
  EPOLL_CTL_ADD,
  EPOLL_CTL_DEL,
  EPOLL_CTL_MOD,
  EPOLLIN,
  EPOLLONESHOT,
  SOCK_CLOEXEC,
  SOCK_NONBLOCK,
  SOCK_STREAM,
  STRUCT,
} from "./structs.ts";

/** The reactor's entry for a descriptor, as /proc/self/fdinfo shows it. */
export interface ReactorEntry {
  readonly events: number;
  /** What the reactor finds the owner by. */
  readonly low: number;
  readonly high: number;
}

const DATA = STRUCT.epoll_event.at.data >>> 2;
/**
 * A read that fills its buffer is followed by another, which finds the socket empty: the reactor then waits again,
 * where it would otherwise come back to the socket in its next turn and take the next wait's byte.
 */
const READ_BYTES = 1;

/** The reactor of this thread; descriptor numbers of epoll instances that it owns do not change. */
let knownReactor: Fd | undefined;

/** See the file's comment. */
export class ReactorWait implements IdleWait {
  readonly prompt = true;
  readonly reactor: Fd;
  readonly #c: Libc = libc();
  readonly #epoll: Fd;
  readonly #entry: ReactorEntry;
  readonly #socket: Socket;
  readonly #inner: Fd;
  readonly #outer: Fd;
  readonly #event = Memory.allocate(STRUCT.epoll_event.size);
  readonly #byte = Memory.allocate(8);
  #keepsAlive = true;

  /** Undefined where Deno's reactor cannot be found or does not take the entry. */
  static open(epoll: Fd, onWake: () => void): ReactorWait | undefined {
    const pair = Memory.allocate(8);
    const made = libc().socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0, pair.pointer);
    const [inner, outer] = [pair.i32[0]!, pair.i32[1]!];
    pair.free();
    if (made < 0) return undefined;
    const socket = new Socket({
      fd: inner,
      readable: true,
      writable: false,
      onread: {
        buffer: new Uint8Array(new ArrayBuffer(READ_BYTES)),
        callback() {
          onWake();
          return true;
        },
      },
    });
    const found = findReactor(inner);
    const wait = found && new ReactorWait({ epoll, ...found, socket, inner, outer });
    if (wait && wait.#replace(inner, epoll, 0)) return wait;
    if (wait) wait.#free();
    libc().close(outer);
    socket.destroy();
    return undefined;
  }

  private constructor(of: {
    readonly epoll: Fd;
    readonly reactor: Fd;
    readonly entry: ReactorEntry;
    readonly socket: Socket;
    readonly inner: Fd;
    readonly outer: Fd;
  }) {
    this.#epoll = of.epoll;
    this.reactor = of.reactor;
    this.#entry = of.entry;
    this.#socket = of.socket;
    this.#inner = of.inner;
    this.#outer = of.outer;
  }

  arm(): void {
    if (!this.#keepsAlive) {
      this.#keepsAlive = true;
      this.#socket.ref();
    }
    this.#c.write(this.#outer, this.#byte.pointer, 1);
    this.#control(EPOLL_CTL_MOD, this.#epoll, EPOLLIN | EPOLLONESHOT);
  }

  rest(): void {
    if (!this.#keepsAlive) return;
    this.#keepsAlive = false;
    this.#socket.unref();
  }

  async close(): Promise<void> {
    this.#replace(this.#epoll, this.#inner, this.#entry.events);
    this.#free();
    const closed = new Promise<void>((resolve) => this.#socket.once("close", () => resolve()));
    this.#socket.destroy();
    this.#c.close(this.#outer);
    await closed;
  }

  /** Puts one descriptor in the place of another in the reactor; leaves things as they were where that fails. */
  #replace(old: Fd, fresh: Fd, events: number): boolean {
    if (this.#control(EPOLL_CTL_DEL, old, 0) < 0) return false;
    if (this.#control(EPOLL_CTL_ADD, fresh, events) === 0) return true;
    this.#control(EPOLL_CTL_ADD, old, this.#entry.events);
    return false;
  }

  #control(op: number, fd: Fd, events: number): number {
    const words = this.#event.u32;
    words[0] = events >>> 0;
    words[DATA] = this.#entry.low;
    words[DATA + 1] = this.#entry.high;
    return this.#c.epoll_ctl(this.reactor, op, fd, this.#event.pointer);
  }

  #free(): void {
    this.#event.free();
    this.#byte.free();
  }
}

/** The epoll instance that watches a descriptor, and its entry there. */
function findReactor(fd: Fd): { readonly reactor: Fd; readonly entry: ReactorEntry } | undefined {
  try {
    for (const candidate of knownReactor === undefined ? epollInstances() : [knownReactor]) {
      const entry = reactorEntry(Deno.readTextFileSync(`/proc/self/fdinfo/${candidate}`), fd);
      if (entry) return { reactor: knownReactor = candidate, entry };
    }
  } catch {
    // No /proc, or no permission to read it.
  }
  return undefined;
}

function* epollInstances(): Generator<Fd> {
  for (const { name } of Deno.readDirSync("/proc/self/fd")) {
    try {
      if (Deno.readLinkSync(`/proc/self/fd/${name}`) === "anon_inode:[eventpoll]") yield Number(name);
    } catch {
      // The descriptor of the folder itself, or one that another thread closed meanwhile.
    }
  }
}

/** The entry of a descriptor in the text of an epoll instance's fdinfo (proc(5)). */
export function reactorEntry(fdinfo: string, fd: Fd): ReactorEntry | undefined {
  for (const line of fdinfo.split("\n")) {
    const fields = /^tfd:\s*(\d+) events:\s*([0-9a-f]+) data:\s*([0-9a-f]+)/.exec(line);
    if (!fields || Number(fields[1]) !== fd) continue;
    const data = fields[3]!.padStart(16, "0");
    return {
      events: parseInt(fields[2]!, 16),
      low: parseInt(data.slice(-8), 16),
      high: parseInt(data.slice(0, -8), 16),
    };
  }
  return undefined;
}
