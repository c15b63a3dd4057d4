import "../../lib/linux/preload.ts";
import { setImmediate } from "node:timers";
import { systemClock } from "../../lib/clock.ts";
import { EpollLoop } from "../../lib/linux/loop.ts";
import { PortableLoop } from "../../lib/linux/portable_loop.ts";
import { nullLogger } from "../../lib/log.ts";
import type { DatagramFlow, FlowHandler, IpPort, UdpSocket } from "../../lib/net.ts";
import { memoryFlowPair, MemoryScheduler } from "../../lib/net_memory.ts";
import { datagramContract, type FlowFactory } from "./datagram_contract.ts";
import { until } from "./harness.ts";

const turn = () => new Promise<void>((resolve) => void setImmediate(resolve));

datagramContract("memory flows", () => {
  const scheduler = new MemoryScheduler();
  const factory: FlowFactory = {
    pair: (near, far) => Promise.resolve(memoryFlowPair(scheduler, near, far)),
    turn: () => scheduler.run(),
    quiet: () => Promise.resolve(scheduler.run()),
    capacity: 256 * 1024,
    closeIsTold: true,
    close: () => Promise.resolve(),
  };
  return Promise.resolve(factory);
});

const LOOPS = {
  "loop datagrams": () => EpollLoop.open({ clock: systemClock, log: nullLogger }),
  "datagrams without FFI": () => new PortableLoop({ clock: systemClock, log: nullLogger }),
};

for (const [name, ip] of Object.keys(LOOPS).flatMap((name) => ["127.0.0.1", "::1"].map((ip) => [name, ip] as const))) {
  datagramContract(`${name} ${ip}`, () => {
    const loop = LOOPS[name as keyof typeof LOOPS]();
    /** Two sockets that send to each other: a flow in the simplest form. */
    const end = (handler: FlowHandler, peer: () => IpPort) => {
      const socket: UdpSocket = loop.bindUdp({ ip, port: 0 }, (bytes, length) => handler.onDatagram(bytes, length));
      const flow: DatagramFlow = {
        send: (bytes, length) => socket.send(bytes, length, peer()),
        close: () => socket.close(),
      };
      return { socket, flow };
    };
    const factory: FlowFactory = {
      pair(near, far) {
        const a = end(near, () => b.socket.local);
        const b = end(far, () => a.socket.local);
        return Promise.resolve([a.flow, b.flow]);
      },
      turn,
      /** A round trip of its own: loopback delivers at once, and the loop reads every socket that has something. */
      async quiet() {
        for (let i = 0; i < 10; i++) {
          let back = false;
          const probe = loop.bindUdp({ ip, port: 0 }, () => back = true);
          probe.send(new Uint8Array(1), 1, probe.local);
          await until(turn, () => back, "the probe is back");
          probe.close();
        }
      },
      // A socket buffer of 4 MiB is doubled by the kernel, which counts each datagram with its overhead.
      capacity: 8 * 1024 * 1024,
      closeIsTold: false,
      async close() {
        loop.close();
        await loop.finished;
      },
    };
    return Promise.resolve(factory);
  });
}
