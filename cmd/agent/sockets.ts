/** The agent's sockets: the loop over epoll, or the runtime's own where FFI is refused. */
import { systemClock } from "../../lib/clock.ts";
import type { AgentConfig } from "../../lib/config.ts";
import { ffiProblem, refuseFfi } from "../../lib/linux/ffi.ts";
import { EpollLoop } from "../../lib/linux/loop.ts";
import { PortableLoop } from "../../lib/linux/portable_loop.ts";
import type { Logger } from "../../lib/log.ts";
import { WITHOUT_FFI } from "../without_ffi.ts";

export interface AgentSockets {
  readonly loop: EpollLoop | PortableLoop;
  /** The same loop where it is the one over epoll: what direct paths and the fast TLS need. */
  readonly epoll: EpollLoop | undefined;
  /** Why sockets are the runtime's own; `chosen`: by the configuration. */
  readonly without: { readonly why: string; readonly chosen: boolean } | undefined;
}

/** To be called before anything else touches the kernel: `sockets: portable` switches FFI off. */
export function applySocketChoice({ sockets }: Pick<AgentConfig, "sockets">): void {
  if (sockets === "portable") refuseFfi("sockets is portable in the configuration");
}

export function openSockets(config: AgentConfig, log: Logger): AgentSockets {
  const why = ffiProblem();
  if (why === undefined) {
    const loop = EpollLoop.open({ clock: systemClock, log: log.child("loop"), alone: true });
    return { loop, epoll: loop, without: undefined };
  }
  log.warn(`Sockets are the runtime's own: ${WITHOUT_FFI}`, { why });
  return {
    loop: new PortableLoop({ clock: systemClock, log: log.child("loop") }),
    epoll: undefined,
    without: { why, chosen: config.sockets === "portable" },
  };
}
