/** The portable engine over memory and over TCP. */
import net from "node:net";
import { Duplex } from "node:stream";
import { PortableEngine } from "../../lib/tunnel/carriers/tls.ts";
import type { Wire } from "./carrier_bench.ts";
import { carrierContract } from "./carrier_contract.ts";
import { carrierPeerContract } from "./carrier_peer_contract.ts";
import { forwarder } from "./carrier_wire.ts";

carrierContract<Duplex>({
  name: "memory",
  engine: (options) => new PortableEngine(options),
  legs: () => Promise.resolve(memoryLegs()),
  slack: 4 * 65536,
});

carrierContract<Duplex>({
  name: "TCP",
  engine: (options) => new PortableEngine(options),
  legs: tcpLegs,
  // Both kernel buffers of two connections on loopback, which grow on their own.
  slack: 40 * 1024 * 1024,
});

carrierPeerContract<Duplex>({
  name: "memory",
  engine: (options) => new PortableEngine(options),
  leg: () => {
    const [x, y] = memoryLegs();
    return Promise.resolve([y, x]);
  },
});

/** Two duplexes joined in memory: a write is done when the other side has room for it. */
function memoryLegs(): readonly [Duplex, Duplex, Wire] {
  const held: (() => void)[] = [];
  const wire = {
    tamper: undefined as Wire["tamper"],
    get stalled() {
      return stalled;
    },
    set stalled(on: boolean) {
      stalled = on;
      if (!on) { for (const go of held.splice(0)) go(); }
    },
    cut() {
      a.destroy();
      b.destroy();
    },
  };
  let stalled = false;
  const end = (isClient: boolean, other: () => Duplex): Duplex => {
    let resume: (() => void) | undefined;
    const duplex = new Duplex({
      read() {
        const go = resume;
        resume = undefined;
        go?.();
      },
      write(chunk: Uint8Array, _encoding, done) {
        const pass = () => {
          const bytes = wire.tamper?.(chunk, isClient) ?? chunk;
          const peer = other();
          if (peer.destroyed || bytes.length === 0) return done();
          if (peer.push(bytes)) done();
          else parked.set(peer, () => done());
        };
        if (isClient && stalled) held.push(pass);
        else pass();
      },
      final(done) {
        const peer = other();
        if (!peer.destroyed) peer.push(null);
        done();
      },
      destroy(_error, done) {
        const peer = other();
        if (!peer.destroyed) queueMicrotask(() => peer.destroy());
        done(null);
      },
    });
    duplex.on("error", () => {});
    resume = undefined;
    const read = duplex._read.bind(duplex);
    duplex._read = (n) => {
      const go = parked.get(duplex);
      parked.delete(duplex);
      go?.();
      read(n);
    };
    return duplex;
  };
  const parked = new Map<Duplex, () => void>();
  const a: Duplex = end(true, () => b);
  const b: Duplex = end(false, () => a);
  return [a, b, wire];
}

/** Two TCP connections on loopback with a forwarder between them, where a test can reach the bytes. */
async function tcpLegs(): Promise<readonly [Duplex, Duplex, Wire]> {
  const [client, near] = await tcpPair();
  const [far, server] = await tcpPair();
  return [client, server, forwarder(near, far, [client, server])];
}
async function tcpPair(): Promise<readonly [net.Socket, net.Socket]> {
  const listener = net.createServer();
  await new Promise<void>((resolve) => listener.listen(0, "127.0.0.1", () => resolve()));
  const accepted = new Promise<net.Socket>((resolve) => listener.once("connection", resolve));
  const { port } = listener.address() as net.AddressInfo;
  const client = net.connect({ host: "127.0.0.1", port });
  await new Promise<void>((resolve) => client.once("connect", () => resolve()));
  const server = await accepted;
  listener.close();
  client.setNoDelay(true);
  server.setNoDelay(true);
  return [client, server];
}
