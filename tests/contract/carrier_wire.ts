/** A wire between two sockets, where a test can reach the bytes. */
import type { Socket } from "node:net";
import type { Wire } from "./carrier_bench.ts";

/** Joins `near`, the other end of the client's leg, with `far`, that of the server's. `legs` are cut with them. */
export function forwarder(near: Socket, far: Socket, legs: readonly Socket[] = []): Wire {
  let stalled = false;
  const wire = {
    tamper: undefined as Wire["tamper"],
    get stalled() {
      return stalled;
    },
    set stalled(on: boolean) {
      stalled = on;
      if (on) near.pause();
      else near.resume();
    },
    cut() {
      for (const socket of [...legs, near, far]) socket.resetAndDestroy();
    },
  };
  const forward = (from: Socket, to: Socket, fromClient: boolean) => {
    from.on("data", (chunk: Uint8Array) => {
      const bytes = wire.tamper?.(chunk, fromClient) ?? chunk;
      if (bytes.length > 0 && !to.write(bytes)) {
        from.pause();
        to.once("drain", () => {
          if (!(fromClient && stalled)) from.resume();
        });
      }
    });
    from.on("end", () => to.end());
    from.on("close", () => to.destroy());
    from.on("error", () => {});
  };
  forward(near, far, true);
  forward(far, near, false);
  return wire;
}
