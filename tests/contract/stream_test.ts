import "../../lib/linux/preload.ts";
import { setImmediate } from "node:timers";
import { systemClock } from "../../lib/clock.ts";
import { EpollLoop } from "../../lib/linux/loop.ts";
import { PortableLoop } from "../../lib/linux/portable_loop.ts";
import { nullLogger } from "../../lib/log.ts";
import type { MeshStream, StreamHandler } from "../../lib/net.ts";
import { memoryPair, MemoryScheduler, refusedStream } from "../../lib/net_memory.ts";
import { End, until } from "./harness.ts";
import { streamContract, type StreamFactory } from "./stream_contract.ts";

const turnOfDeno = () => new Promise<void>((resolve) => void setImmediate(resolve));

streamContract("memory pair", () => {
  const scheduler = new MemoryScheduler();
  const capacity = 65_536;
  const live = new Set<MeshStream>();
  /** Counts a stream until it is over, in the owner's name: the pair itself has no registry. */
  const counted = (stream: MeshStream, handler: StreamHandler) => {
    live.add(stream);
    const reset = stream.reset.bind(stream);
    stream.reset = (code) => {
      live.delete(stream);
      reset(code);
    };
    const onClose = handler.onClose.bind(handler);
    handler.onClose = (reason) => {
      live.delete(stream);
      onClose(reason);
    };
    stream.handler = handler;
    return stream;
  };
  const factory: StreamFactory = {
    pair(near, far) {
      const [a, b] = memoryPair(scheduler, capacity);
      return Promise.resolve([counted(a, near), counted(b, far)]);
    },
    failingDial: (handler) => refusedStream(scheduler, handler, "DIAL_REFUSED"),
    turn: () => scheduler.run(),
    quiet: () => Promise.resolve(scheduler.run()),
    capacity,
    get size() {
      return live.size;
    },
    close: () => Promise.resolve(),
  };
  return Promise.resolve(factory);
});

const LOOPS = {
  "loop sockets": () => EpollLoop.open({ clock: systemClock, log: nullLogger }),
  "sockets without FFI": () => new PortableLoop({ clock: systemClock, log: nullLogger }),
};

for (const [name, ip] of Object.keys(LOOPS).flatMap((name) => ["127.0.0.1", "::1"].map((ip) => [name, ip] as const))) {
  streamContract(`${name} ${ip}`, () => {
    const loop = LOOPS[name as keyof typeof LOOPS]();
    const accepted: { handler: StreamHandler; done: (stream: MeshStream) => void }[] = [];
    // Which accepted connection belongs to which dial is known only if pairs are made one after the other.
    let turnstile: Promise<unknown> = Promise.resolve();
    const listener = loop.listenTcp({ ip, port: 0 }, ({ stream }) => {
      const next = accepted.shift()!;
      stream.handler = next.handler;
      next.done(stream);
    });
    const free = loop.listenTcp({ ip, port: 0 }, () => {});
    free.close();
    const connect = (near: StreamHandler, far: StreamHandler) =>
      new Promise<readonly [MeshStream, MeshStream]>((resolve) => {
        const dialled = loop.dialTcp(listener.local, near, { timeoutMs: 10_000 });
        accepted.push({ handler: far, done: (stream) => resolve([dialled, stream]) });
      });
    const pair = (near: StreamHandler, far: StreamHandler) => {
      const made = turnstile.then(() => connect(near, far));
      turnstile = made;
      return made;
    };
    /** A round trip over a connection of its own: loopback delivers in order, so what was sent before has arrived. */
    const quiet = async () => {
      for (let i = 0; i < 3; i++) {
        const [near, far] = [new End("probe"), new End("probe")];
        const [n, f] = await pair(near, far);
        near.use(n);
        far.use(f);
        await until(turnOfDeno, () => near.opened && far.opened, "the probe is open");
        far.onReadableDo = () => far.reset();
        near.write(new Uint8Array(1), 0, 1);
        near.onReadableDo = () => near.read(new Uint8Array(1));
        await until(turnOfDeno, () => near.closed, "the probe is back");
      }
    };
    const factory: StreamFactory = {
      pair,
      failingDial: (handler) => loop.dialTcp(free.local, handler, { timeoutMs: 10_000 }),
      turn: turnOfDeno,
      quiet,
      // tcp_wmem and tcp_rmem of the kernel: send buffer ≤ 4 MB, receive buffer ≤ 6 MB by default, plus what is between.
      capacity: 16 * 1024 * 1024,
      get size() {
        return loop.size - 1;
      },
      close: async () => {
        loop.close();
        await loop.finished;
      },
    };
    return Promise.resolve(factory);
  });
}
