/** Pipes for splice(2), used again and again. */
import { errno, type Fd, type Libc } from "./ffi.ts";
import { Memory } from "./memory.ts";
import { F_SETPIPE_SZ, SOCK_CLOEXEC, SOCK_NONBLOCK } from "./structs.ts";

/** Bytes a pipe is asked to hold; the kernel may give less. Larger pipes only lengthen the queue in front of the reader. */
export const PIPE_BYTES = 256 * 1024;
/** Empty pipes kept for the next bulk transfer; beyond it they are closed. */
const SPARE_PIPES = 64;

export interface Pipe {
  readonly read: Fd;
  readonly write: Fd;
}

export class PipePool {
  readonly #c: Libc;
  readonly #pair = Memory.allocate(8);
  readonly #spare: Pipe[] = [];
  readonly #taken = new Set<Pipe>();
  /** Why the last pipe could not be made; 0 if it could. */
  lastError = 0;

  constructor(c: Libc) {
    this.#c = c;
  }

  /** An empty pipe; undefined when no descriptor is free. */
  take(): Pipe | undefined {
    const pipe = this.#spare.pop() ?? this.#make();
    if (pipe) this.#taken.add(pipe);
    return pipe;
  }

  /** Takes a pipe back. One with bytes in it is closed: they belong to one connection. */
  give(pipe: Pipe, empty: boolean): void {
    // After the pool was closed there is nothing to take back.
    if (!this.#taken.delete(pipe)) return;
    if (empty && this.#spare.length < SPARE_PIPES) this.#spare.push(pipe);
    else this.#close(pipe);
  }

  /** Closes the pipes that nobody uses. */
  trim(): void {
    for (const pipe of this.#spare.splice(0)) this.#close(pipe);
  }

  /** Closes all pipes, those in use, too. */
  close(): void {
    this.trim();
    for (const pipe of this.#taken) this.#close(pipe);
    this.#taken.clear();
    this.#pair.free();
  }

  #make(): Pipe | undefined {
    if (this.#c.pipe2(this.#pair.pointer, SOCK_NONBLOCK | SOCK_CLOEXEC) < 0) {
      this.lastError = errno();
      return undefined;
    }
    this.lastError = 0;
    const pipe = { read: this.#pair.i32[0]!, write: this.#pair.i32[1]! };
    this.#c.fcntl(pipe.write, F_SETPIPE_SZ, PIPE_BYTES);
    return pipe;
  }

  #close(pipe: Pipe): void {
    this.#c.close(pipe.read);
    this.#c.close(pipe.write);
  }
}
