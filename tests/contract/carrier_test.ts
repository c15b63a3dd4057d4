/** The portable engine over memory and over TCP, and what only it must withstand: peers that are no engine at all. */
import assert from "node:assert/strict";
import net from "node:net";
import { Duplex } from "node:stream";
import tls from "node:tls";
import { FakeClock } from "../../lib/clock.ts";
import { MeshError } from "../../lib/errors.ts";
import type { Carrier } from "../../lib/tunnel/carrier.ts";
import { PortableEngine } from "../../lib/tunnel/carriers/tls.ts";
import { carrierContract, type Wire } from "./carrier_contract.ts";
import { TEST_NOW, TestPki } from "./tunnel_pki.ts";

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

Deno.test("a client without certificate, with TLS 1.2 or with another protocol gets nothing", async () => {
  const pki = await TestPki.create();
  const credentials = await pki.issue("edge-b");
  const client = await pki.issue("edge-a");
  const cases: Record<string, [tls.ConnectionOptions, string[]]> = {
    "no certificate": [{ ALPNProtocols: ["edgemesh/1"] }, ["CERT_UNTRUSTED"]],
    "TLS 1.2": [{ ...client, ALPNProtocols: ["edgemesh/1"], maxVersion: "TLSv1.2" }, ["PROTOCOL", "PEER_GONE"]],
    "other ALPN": [{ ...client, ALPNProtocols: ["h2"] }, ["PROTOCOL", "PEER_GONE"]],
    "no ALPN": [{ ...client }, ["PROTOCOL"]],
  };
  for (const [name, [options, codes]] of Object.entries(cases)) {
    const clock = new FakeClock(0, TEST_NOW);
    const engine = new PortableEngine({ clock, credentials: () => credentials, verify: pki.verifyNode });
    const [x, y, wire] = memoryLegs();
    const accepted = engine.accept(y, { path: "lan" }).then(() => undefined, (error: MeshError) => error.code);
    const socket = tls.connect({ socket: x as net.Socket, ca: credentials.ca, rejectUnauthorized: false, ...options });
    const received: Uint8Array[] = [];
    socket.on("data", (chunk: Uint8Array) => received.push(chunk));
    socket.on("error", () => {});
    socket.on("secureConnect", () => socket.write("\x82\x05hello"));
    const code = await accepted;
    assert.ok(codes.includes(String(code)), `${name}: ${code}`);
    clock.advance(5_000);
    wire.cut();
    assert.equal(clock.pending, 0);
  }
});

Deno.test("a proven peer that breaks the framing is told PROTOCOL and cut", async () => {
  const pki = await TestPki.create();
  const [ours, theirs] = [await pki.issue("edge-b"), await pki.issue("edge-a")];
  const bad: Record<string, Uint8Array> = {
    "masked frame": Uint8Array.of(0x82, 0x85, 1, 2, 3, 4, 5, 5, 5, 5, 5),
    "text frame": Uint8Array.of(0x81, 1, 65),
    "2 GiB": Uint8Array.of(0x82, 127, 0, 0, 0, 0, 0x80, 0, 0, 0),
    "HTTP": new TextEncoder().encode("GET / HTTP/1.1\r\n\r\n"),
  };
  for (const [name, bytes] of Object.entries(bad)) {
    const { carrier, socket, clock, wire } = await rawPeer(pki, ours, theirs);
    const closed = new Promise((resolve) => {
      carrier.handler = { onBatch: () => assert.fail("no batch"), onDrain() {}, onClose: resolve };
    });
    const told = new Promise<Uint8Array>((resolve) => socket.once("data", (chunk: Uint8Array) => resolve(chunk)));
    socket.write(bytes);
    assert.equal(await closed, "PROTOCOL", name);
    assert.deepEqual([...await told], [0x88, 2, 0x0f, 0xa2], "4000 + 2");
    clock.advance(5_000);
    wire.cut();
    assert.equal(clock.pending, 0);
  }
});

Deno.test("an owner that throws while it reads loses its carrier, not the process", async () => {
  const pki = await TestPki.create();
  const { carrier, socket, clock, wire } = await rawPeer(pki, await pki.issue("edge-b"), await pki.issue("edge-a"));
  const closed = new Promise((resolve) => {
    carrier.handler = {
      onBatch: () => {
        throw new Error("a bug");
      },
      onDrain() {},
      onClose: resolve,
    };
  });
  socket.write(Uint8Array.of(0x82, 1, 1));
  assert.equal(await closed, "INTERNAL");
  clock.advance(5_000);
  wire.cut();
});

async function rawPeer(pki: TestPki, ours: Awaited<ReturnType<TestPki["issue"]>>, theirs: typeof ours) {
  const clock = new FakeClock(0, TEST_NOW);
  const engine = new PortableEngine({ clock, credentials: () => ours, verify: pki.verifyNode });
  const [x, y, wire] = memoryLegs();
  const accepted = engine.accept(y, { path: "lan" });
  const socket = tls.connect({
    socket: x as net.Socket,
    ...theirs,
    ALPNProtocols: ["edgemesh/1"],
    rejectUnauthorized: false,
  });
  socket.on("error", () => {});
  const carrier: Carrier = await accepted;
  return { carrier, socket, clock, wire };
}

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
      for (const socket of [client, near, far, server]) socket.resetAndDestroy();
    },
  };
  const forward = (from: net.Socket, to: net.Socket, fromClient: boolean) => {
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
  return [client, server, wire];
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
