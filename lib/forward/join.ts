/** Two streams made one connection: by splice(2) inside the kernel where both are its sockets, else by {@link Pipe}. */
import type { ReasonCode } from "../errors.ts";
import type { Loop, MeshStream } from "../net.ts";
import { type Ahead, Pipe, type PipeKit, type PipeOwner } from "./pipe.ts";

/** A running connection. */
export interface Joined {
  /** Bytes that went from the first stream to the second, and back. */
  readonly aToB: number;
  readonly bToA: number;
  /** One direction has ended, the other has not; false where that is not known. */
  readonly halfClosed: boolean;
  /** Ends both streams; the owner, who wants it, is not told. */
  reset(code: ReasonCode): void;
}

/** What a loop over real sockets can do beside {@link Loop}; see lib/linux/loop.ts. */
export interface Splicing {
  /** Undefined when one of the streams is not a socket of this loop. */
  splice(a: MeshStream, b: MeshStream, owner: PipeOwner, ahead?: Ahead): Joined | undefined;
}

export type SocketLoop = Loop & Partial<Splicing>;

/** Joins two open streams and takes over their handlers. `ahead`: what was read from `a` before, for `b`. */
export function join(
  by: { readonly loop: SocketLoop; readonly kit: PipeKit },
  [a, b]: readonly [MeshStream, MeshStream],
  owner: PipeOwner,
  ahead?: Ahead,
): Joined {
  return by.loop.splice?.(a, b, owner, ahead) ?? new Pipe(by.kit, a, b, owner, ahead);
}
