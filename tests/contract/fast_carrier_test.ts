/** The fast engine over TCP of the loop: the contract, both engines mixed, and what only TLS itself can go wrong in. */
import "../../lib/linux/preload.ts";
import assert from "node:assert/strict";
import net from "node:net";
import { connect } from "node:tls";
import { FakeClock, pause, systemClock } from "../../lib/clock.ts";
import { nullLogger } from "../../lib/log.ts";
import { EpollLoop } from "../../lib/linux/loop.ts";
import { openTlsLibrary } from "../../lib/linux/openssl.ts";
import { idleHandler, type MeshStream } from "../../lib/net.ts";
import type { TlsLibrary } from "../../lib/tls.ts";
import type { TlsCredentials } from "../../lib/tunnel/carriers/engine.ts";
import { FastEngine } from "../../lib/tunnel/carriers/fast.ts";
import { StreamLeg } from "../../lib/tunnel/carriers/stream_leg.ts";
import { PortableEngine } from "../../lib/tunnel/carriers/tls.ts";
import type { Wire } from "./carrier_bench.ts";
import { carrierContract } from "./carrier_contract.ts";
import { carrierPeerContract } from "./carrier_peer_contract.ts";
import { forwarder } from "./carrier_wire.ts";
import { TEST_NOW, TestPki } from "./tunnel_pki.ts";

let tls: TlsLibrary;
let loop: EpollLoop;

function setUp(): void {
  tls = openTlsLibrary();
  loop = EpollLoop.open({ clock: systemClock, log: nullLogger });
}

/** Whatever a test did, every connection of the library was given back. */
async function tearDown(): Promise<void> {
  for (let waited = 0; tls.live > 0 && waited < 2_000; waited += 5) await pause(5);
  assert.equal(tls.live, 0, "TLS connections were not freed");
  loop.close();
  await loop.finished;
  tls.close();
}

carrierContract<StreamLeg>({
  name: "TCP of the loop, fast",
  engine: (options) => new FastEngine({ ...options, tls, defer: (work) => loop.defer(work) }),
  legs: streamLegs,
  slack: 40 * 1024 * 1024,
  setUp,
  tearDown,
});

carrierPeerContract<StreamLeg>({
  name: "TCP of the loop, fast",
  engine: (options) => new FastEngine({ ...options, tls, defer: (work) => loop.defer(work) }),
  leg: rawLeg,
  setUp,
  tearDown,
});

/** Two connections of the loop with a forwarder between them, where a test can reach the bytes. */
async function streamLegs(): Promise<readonly [StreamLeg, StreamLeg, Wire]> {
  const [client, near] = await joined("loop dials");
  const [server, far] = await joined("loop listens");
  return [new StreamLeg(client), new StreamLeg(server), forwarder(near, far)];
}

/** A stream of the loop and the socket at its other end. */
async function joined(how: "loop dials" | "loop listens"): Promise<readonly [MeshStream, net.Socket]> {
  if (how === "loop listens") {
    const accepted = Promise.withResolvers<MeshStream>();
    const listener = loop.listenTcp({ ip: "127.0.0.1", port: 0 }, ({ stream }) => accepted.resolve(stream));
    const socket = net.connect({ host: "127.0.0.1", port: listener.local.port, noDelay: true });
    await new Promise<void>((resolve) => socket.once("connect", () => resolve()));
    const stream = await accepted.promise;
    listener.close();
    return [stream, socket];
  }
  const listener = net.createServer({ noDelay: true });
  await new Promise<void>((resolve) => listener.listen(0, "127.0.0.1", () => resolve()));
  const accepted = new Promise<net.Socket>((resolve) => listener.once("connection", resolve));
  const opened = Promise.withResolvers<void>();
  const { port } = listener.address() as net.AddressInfo;
  const stream = loop.dialTcp({ ip: "127.0.0.1", port }, { ...idleHandler, onOpen: opened.resolve }, {
    timeoutMs: 5_000,
  });
  await opened.promise;
  const socket = await accepted;
  listener.close();
  return [stream, socket];
}

/** A leg whose other end is in the test's hands. */
async function rawLeg(): Promise<readonly [StreamLeg, net.Socket]> {
  const [stream, socket] = await joined("loop listens");
  socket.on("error", () => {});
  return [new StreamLeg(stream), socket];
}

function fastEngine(pki: TestPki, identity: TlsCredentials, clock: FakeClock): FastEngine {
  return new FastEngine({
    clock,
    tls,
    defer: (work) => loop.defer(work),
    credentials: () => identity,
    verify: pki.verifyNode,
  });
}

async function settled(clock: FakeClock): Promise<void> {
  clock.advance(5_000);
  await tearDown();
  assert.equal(clock.pending, 0, "timers were left");
}

Deno.test("fast: a leg that is taken away is PEER_GONE, in the handshake and later", async () => {
  setUp();
  const pki = await TestPki.create();
  const clock = new FakeClock(0, TEST_NOW);
  const [leg, raw] = await rawLeg();
  const accepted = fastEngine(pki, await pki.issue("edge-b"), clock).accept(leg, { path: "lan" });
  leg.abort();
  await assert.rejects(accepted, { code: "PEER_GONE" });
  raw.destroy();
  const peer = await rawPeer(pki, [await pki.issue("edge-b"), await pki.issue("edge-a")], clock);
  let over = 0;
  peer.leg.onOver(() => over++);
  const closed = new Promise((resolve) => {
    peer.carrier.handler = { onBatch() {}, onDrain() {}, onClose: resolve };
  });
  peer.leg.abort();
  peer.leg.abort();
  assert.equal(await closed, "PEER_GONE");
  assert.equal(over, 1);
  peer.socket.destroy();
  await settled(clock);
});

Deno.test("both engines speak to each other, whoever dials", async () => {
  setUp();
  const pki = await TestPki.create();
  const [a, b] = [await pki.issue("edge-a"), await pki.issue("edge-b")];
  const clock = new FakeClock(0, TEST_NOW);
  const portable = (identity: TlsCredentials) =>
    new PortableEngine({ clock, credentials: () => identity, verify: pki.verifyNode });
  for (const dials of ["fast", "portable"] as const) {
    const [leg, raw] = await rawLeg();
    const [client, server] = await Promise.all(
      dials === "fast"
        ? [
          fastEngine(pki, a, clock).connect(leg, { peer: "edge-b", path: "lan" }),
          portable(b).accept(raw, { path: "lan" }),
        ]
        : [
          portable(a).connect(raw, { peer: "edge-b", path: "lan" }),
          fastEngine(pki, b, clock).accept(leg, { path: "lan" }),
        ],
    );
    const batch = Uint8Array.from({ length: 65_536 }, (_, i) => i * 13);
    for (const [from, to] of [[client, server], [server, client]] as const) {
      const got = new Promise<number>((resolve) => {
        let bytes = 0;
        to.handler = {
          onBatch: (message) => {
            assert.deepEqual(message, batch.subarray(0, message.length));
            bytes += message.length;
            if (bytes === 20 * batch.length) resolve(bytes);
          },
          onDrain() {},
          onClose() {},
        };
      });
      for (let i = 0; i < 20; i++) from.send(batch);
      await got;
    }
    const closed = new Promise((resolve) => {
      server.handler = { onBatch() {}, onDrain() {}, onClose: resolve };
    });
    client.close("LIMIT");
    assert.equal(await closed, "LIMIT");
    raw.destroy();
  }
  await settled(clock);
});

async function rawPeer(pki: TestPki, [ours, theirs]: readonly [TlsCredentials, TlsCredentials], clock: FakeClock) {
  const [leg, raw] = await rawLeg();
  const accepted = fastEngine(pki, ours, clock).accept(leg, { path: "lan" });
  const socket = connect({ socket: raw, ...theirs, ALPNProtocols: ["edgemesh/1"], rejectUnauthorized: false });
  socket.on("error", () => {});
  return { carrier: await accepted, socket, raw, leg };
}
