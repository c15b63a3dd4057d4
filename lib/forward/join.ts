/** Two streams made one connection: by splice(2) inside the kernel where both are its sockets, else by {@link Pipe}. */
import type { ReasonCode } from "../errors.ts";
import type { Loop, MeshStream } from "../net.ts";
import { type Ahead, type OnPipeEnd, Pipe, type PipeKit } from "./pipe.ts";

/** A running connection. */
export interface Joined {
  /** Bytes that went from the first stream to the second, and back. */
  readonly forward: number;
  readonly backward: number;
  /** One direction has ended, the other has not; false where that is not known. */
  readonly halfClosed: boolean;
  /** Ends both streams; the end is told once, before this returns. */
  reset(code: ReasonCode): void;
}

/** What a loop over real sockets can do beside {@link Loop}; see lib/linux/loop.ts. */
export interface Splicing {
  /** Undefined when one of the streams is not a socket of this loop. */
  splice(
    a: MeshStream,
    b: MeshStream,
    options: { readonly onEnd: (reason: ReasonCode | undefined, aToB: number, bToA: number) => void },
  ): Spliced | undefined;
}

export interface Spliced {
  readonly aToB: number;
  readonly bToA: number;
  /** Ends both without a callback. */
  reset(code: ReasonCode): void;
}

export type SocketLoop = Loop & Partial<Splicing>;

/** Joins two open streams and takes over their handlers. `ahead`: what was read from `a` before, for `b`. */
export function join(
  by: { readonly loop: SocketLoop; readonly kit: PipeKit },
  a: MeshStream,
  b: MeshStream,
  onEnd: OnPipeEnd,
  ahead?: Ahead,
): Joined {
  const spliced = ahead?.rest ? undefined : by.loop.splice?.(a, b, { onEnd });
  return spliced ? new SplicedConnection(spliced, ahead?.sent ?? 0, onEnd) : new Pipe(by.kit, a, b, onEnd, ahead);
}

class SplicedConnection implements Joined {
  /** The kernel moves the bytes; who has ended its direction is its business. */
  readonly halfClosed = false;
  readonly #spliced: Spliced;
  readonly #ahead: number;
  readonly #onEnd: OnPipeEnd;

  constructor(spliced: Spliced, ahead: number, onEnd: OnPipeEnd) {
    this.#spliced = spliced;
    this.#ahead = ahead;
    this.#onEnd = onEnd;
  }

  get forward(): number {
    return this.#ahead + this.#spliced.aToB;
  }

  get backward(): number {
    return this.#spliced.bToA;
  }

  reset(code: ReasonCode): void {
    this.#spliced.reset(code);
    this.#onEnd(code);
  }
}
