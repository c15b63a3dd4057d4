/** What every engine must withstand of peers that are no engine at all: other TLS, broken frames, ends of every kind. */
import assert from "node:assert/strict";
import type { Socket } from "node:net";
import type { Duplex } from "node:stream";
import { connect, type ConnectionOptions, type TLSSocket } from "node:tls";
import { FakeClock } from "../../lib/clock.ts";
import type { MeshError } from "../../lib/errors.ts";
import type { Carrier } from "../../lib/tunnel/carrier.ts";
import { CARRIER_ALPN } from "../../lib/tunnel/carriers/engine.ts";
import { type CarrierRig, constant, nothing } from "./carrier_bench.ts";
import { TEST_NOW, TestPki } from "./tunnel_pki.ts";

/** An engine over one kind of leg, of which a test has the other end in its hands. */
export interface PeerRig<Leg> extends Pick<CarrierRig<Leg>, "name" | "engine" | "setUp" | "tearDown"> {
  leg(): Promise<readonly [Leg, Duplex]>;
}

/** A carrier of edge-b, and edge-a as plain TLS on a plain connection. */
interface RawPeer {
  readonly carrier: Carrier;
  readonly socket: TLSSocket;
  readonly raw: Duplex;
}

export function carrierPeerContract<Leg>(rig: PeerRig<Leg>): void {
  const test = (name: string, run: (t: PeerBench<Leg>) => Promise<void>) => {
    Deno.test(`peers over ${rig.name}: ${name}`, async () => {
      rig.setUp?.();
      const t = new PeerBench(rig, await TestPki.create());
      await run(t);
      t.finish();
      await rig.tearDown?.();
    });
  };

  test("a client without certificate, with TLS 1.2 or with another protocol gets nothing", async (t) => {
    const theirs = await t.pki.issue("edge-a");
    const cases: Record<string, [ConnectionOptions, string[]]> = {
      "no certificate": [{ ALPNProtocols: [CARRIER_ALPN] }, ["CERT_UNTRUSTED"]],
      "TLS 1.2": [{ ...theirs, ALPNProtocols: [CARRIER_ALPN], maxVersion: "TLSv1.2" }, ["PROTOCOL", "PEER_GONE"]],
      "other ALPN": [{ ...theirs, ALPNProtocols: ["h2"] }, ["PROTOCOL", "PEER_GONE"]],
      "no ALPN": [{ ...theirs }, ["PROTOCOL"]],
    };
    for (const [name, [options, codes]] of Object.entries(cases)) {
      const { accepted, socket, raw } = await t.dial(options);
      const received: Uint8Array[] = [];
      socket.on("data", (chunk: Uint8Array) => received.push(chunk));
      socket.on("secureConnect", () => socket.write("\x82\x05hello"));
      const code = await accepted.then(() => undefined, (error: MeshError) => error.code);
      assert.ok(codes.includes(String(code)), `${name}: ${code}`);
      t.clock.advance(5_000);
      raw.destroy();
      // A refusal of the certificate is said inside TLS; nothing else ever is.
      assert.ok(received.every((chunk) => chunk[0] === 0x88), name);
    }
  });

  test("a proven peer that breaks the framing is told PROTOCOL and cut", async (t) => {
    const bad: Record<string, Uint8Array> = {
      "masked frame": Uint8Array.of(0x82, 0x85, 1, 2, 3, 4, 5, 5, 5, 5, 5),
      "text frame": Uint8Array.of(0x81, 1, 65),
      "2 GiB": Uint8Array.of(0x82, 127, 0, 0, 0, 0, 0x80, 0, 0, 0),
      "HTTP": new TextEncoder().encode("GET / HTTP/1.1\r\n\r\n"),
    };
    for (const [name, bytes] of Object.entries(bad)) {
      const { carrier, socket } = await t.peer();
      const closed = new Promise((resolve) => {
        carrier.handler = { ...nothing, onBatch: () => assert.fail("no batch"), onClose: resolve };
      });
      const told = new Promise<Uint8Array>((resolve) => socket.once("data", resolve));
      socket.write(bytes);
      assert.equal(await closed, "PROTOCOL", name);
      assert.deepEqual([...await told], [0x88, 2, 0x0f, 0xa2], "4000 + 2");
    }
  });

  test("an end without close frame is PEER_GONE, with and without TLS's own end", async (t) => {
    for (const how of ["close_notify", "end of the connection"] as const) {
      const { carrier, socket, raw } = await t.peer();
      const got: number[] = [];
      const first = Promise.withResolvers<void>();
      const closed = new Promise((resolve) => {
        carrier.handler = {
          ...nothing,
          onBatch: (batch) => {
            got.push(...batch);
            first.resolve();
          },
          onClose: resolve,
        };
      });
      // A whole batch, and half of the next one: what is cut off is never delivered.
      socket.write(Uint8Array.of(0x82, 2, 7, 8, 0x82, 9, 1));
      await first.promise;
      if (how === "close_notify") socket.end();
      else raw.destroy();
      assert.equal(await closed, "PEER_GONE", how);
      assert.deepEqual(got, [7, 8]);
    }
  });

  test("a peer's request for another handshake ends at most its own carrier", async (t) => {
    const { carrier, socket } = await t.peer();
    const closed = new Promise((resolve) => carrier.handler = { ...nothing, onClose: resolve });
    // TLS 1.3 has no renegotiation (RFC 8446 §4.1.2): the library of the peer refuses to ask, and what comes instead is data.
    assert.equal(socket.renegotiate({}, () => {}) ?? false, false);
    socket.write(Uint8Array.of(0x16, 0x03, 0x01));
    assert.equal(await closed, "PROTOCOL");
  });

  test("an owner that throws while it reads loses its carrier, not the process", async (t) => {
    const { carrier, socket } = await t.peer();
    const closed = new Promise((resolve) => {
      carrier.handler = {
        ...nothing,
        onBatch: () => {
          throw new Error("a bug");
        },
        onClose: resolve,
      };
    });
    socket.write(Uint8Array.of(0x82, 1, 1));
    assert.equal(await closed, "INTERNAL");
  });
}

class PeerBench<Leg> {
  readonly clock = new FakeClock(0, TEST_NOW);
  readonly #raws: Duplex[] = [];

  constructor(readonly rig: PeerRig<Leg>, readonly pki: TestPki) {}

  /** Connects to edge-b's engine with TLS of the test's own making. */
  async dial(options: ConnectionOptions) {
    const credentials = constant(await this.pki.issue("edge-b"));
    const [leg, raw] = await this.rig.leg();
    raw.on("error", () => {});
    this.#raws.push(raw);
    const engine = this.rig.engine({ clock: this.clock, credentials, verify: this.pki.verifyNode });
    const accepted = engine.accept(leg, { path: "lan" });
    const socket = connect({ socket: raw as Socket, rejectUnauthorized: false, ...options });
    socket.on("error", () => {});
    return { accepted, socket, raw };
  }

  async peer(): Promise<RawPeer> {
    const { accepted, socket, raw } = await this.dial({
      ...await this.pki.issue("edge-a"),
      ALPNProtocols: [CARRIER_ALPN],
    });
    return { carrier: await accepted, socket, raw };
  }

  /** Ends what is left, and checks that no timer is armed any more. */
  finish(): void {
    for (const raw of this.#raws) raw.destroy();
    this.clock.advance(5_000);
    assert.equal(this.clock.pending, 0, "timers were left");
  }
}
