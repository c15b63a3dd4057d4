/**
 * The portable engine: a carrier over mutual TLS by node:tls with WebSocket framing directly after the handshake.
 * Works on every leg that is a Duplex: a TCP socket or a channel through the server.
 */
import type { Duplex } from "node:stream";
import type { TLSSocket } from "node:tls";
import type { Clock } from "../../clock.ts";
import { codeOf, MeshError, type ReasonCode } from "../../errors.ts";
import { type Carrier, MAX_BATCH, type PathKind, type PeerIdentity } from "../carrier.ts";
import { CarrierBase } from "./base.ts";
import { CARRIER_ALPN, type CarrierEngine, type EngineOptions, HANDSHAKE_MS, provenPeer } from "./engine.ts";
import { batchPool } from "./pool.ts";
import { secureClient, type SecureLeg, secureServer } from "./tls_handshake.ts";
import { encodeClose, encodeHeader, type FrameSink } from "./ws_frame.ts";

/** Bytes given to the TLS layer and not yet taken by the leg, above which {@link Carrier.send} says stop. */
const HIGH_WATER = 2 * MAX_BATCH;
/** Bytes left when it says go on: one batch, so that the leg never runs dry meanwhile. */
const LOW_WATER = MAX_BATCH;
/** A pooled buffer for less would waste more than it saves. */
const SMALL = 4096;
/** How long a closed carrier waits for the other side to read our reason before the leg is cut. */
const LINGER_MS = 1000;

export interface PortableEngineOptions extends EngineOptions {
  readonly clock: Clock;
  /** See {@link HANDSHAKE_MS}. */
  readonly handshakeMs?: number;
}

export class PortableEngine implements CarrierEngine<Duplex> {
  readonly name = "portable";
  readonly #options: PortableEngineOptions;

  constructor(options: PortableEngineOptions) {
    this.#options = options;
  }

  async connect(leg: Duplex, options: { readonly peer: string; readonly path: PathKind }): Promise<Carrier> {
    const secure = await secureClient(leg, this.#handshake());
    return this.#verified(leg, secure, options.path, options.peer);
  }

  async accept(leg: Duplex, options: { readonly path: PathKind }): Promise<Carrier> {
    const secure = await secureServer(leg, this.#handshake());
    return this.#verified(leg, secure, options.path, undefined);
  }

  #handshake() {
    const { clock, handshakeMs, credentials } = this.#options;
    return { credentials: credentials(), alpn: CARRIER_ALPN, clock, timeoutMs: handshakeMs ?? HANDSHAKE_MS };
  }

  #verified(leg: Duplex, secure: SecureLeg, path: PathKind, expected: string | undefined): Carrier {
    const { socket, chain } = secure;
    try {
      const peer = provenPeer(this.#options, chain, expected);
      if (socket.destroyed) throw new MeshError("PEER_GONE", `Node ${peer.node} went away during verification`);
      return new TlsCarrier({ leg, socket, peer, path, clock: this.#options.clock });
    } catch (error) {
      // The other side learns why, inside TLS: nobody else can read or forge it.
      shut(this.#options.clock, leg, socket, codeOf(error));
      throw error;
    }
  }
}

interface TlsCarrierParts {
  readonly leg: Duplex;
  readonly socket: TLSSocket;
  readonly peer: PeerIdentity;
  readonly path: PathKind;
  readonly clock: Clock;
}

class TlsCarrier extends CarrierBase implements FrameSink {
  readonly #leg: Duplex;
  readonly #socket: TLSSocket;
  readonly #clock: Clock;
  /** Written and not yet taken by the leg, oldest first; node:tls may read them until their callback. */
  readonly #inFlight: Uint8Array[] = [];

  constructor(parts: TlsCarrierParts) {
    super(parts);
    this.#leg = parts.leg;
    this.#socket = parts.socket;
    this.#clock = parts.clock;
    const socket = parts.socket;
    // Read from the start: a paused TLS socket of Deno goes on decrypting into a buffer without bound.
    socket.on("data", (chunk: Uint8Array) => this.#received(chunk));
    socket.on("error", (error: Error) => this.lost(error instanceof MeshError ? error.code : "PEER_GONE"));
    parts.leg.on("error", (error: Error) => this.lost(error instanceof MeshError ? error.code : "PEER_GONE"));
    socket.once("end", () => this.lost("PEER_GONE"));
    socket.once("close", () => this.lost("PEER_GONE"));
  }

  send(batch: Uint8Array): boolean {
    if (this.over) return false;
    const buffer = batch.length > SMALL ? batchPool.take() : new Uint8Array(batch.length + 4);
    const header = encodeHeader(buffer, batch.length);
    buffer.set(batch, header);
    const size = header + batch.length;
    this.#inFlight.push(buffer);
    this.#socket.write(size === buffer.length ? buffer : buffer.subarray(0, size), this.#written);
    if (this.#socket.writableLength < HIGH_WATER) return true;
    this.blocked = true;
    return false;
  }

  onMessage(message: Uint8Array): void {
    this.inbox.batch(message);
  }

  onClose(reason: ReasonCode | undefined): void {
    this.closedByPeer(reason);
  }

  readonly #written = (error?: Error | null): void => {
    const buffer = this.#inFlight.shift();
    if (error || buffer === undefined) return;
    if (buffer.length > SMALL + 4) batchPool.give(buffer);
    if (!this.blocked || this.over || this.#socket.writableLength > LOW_WATER) return;
    this.blocked = false;
    this.inbox.handler.onDrain();
  };

  #received(chunk: Uint8Array): void {
    if (this.over) return;
    try {
      // Not as a Buffer: its slice() is a view, and who is handed these bytes expects a copy of it.
      this.reader.push(new Uint8Array(chunk.buffer, chunk.byteOffset, chunk.byteLength), this);
    } catch (error) {
      this.fault(codeOf(error));
    }
  }

  protected override lastWords(reason: ReasonCode): void {
    shut(this.#clock, this.#leg, this.#socket, reason);
  }

  /** A carrier that broke is cut with RST where the leg can: a FIN would hold its ports for a later attempt. */
  protected override abort(): void {
    abort(this.#leg, this.#socket);
  }
}

/** Tells the other side why, then ends the leg: at once when it is dead anyway, else after a moment to be read. */
function shut(clock: Clock, leg: Duplex, socket: TLSSocket, reason: ReasonCode): void {
  if (socket.destroyed || reason === "PEER_GONE" || reason === "TIMEOUT") return abort(leg, socket);
  const cancel = clock.timer(LINGER_MS, () => abort(leg, socket));
  socket.once("close", cancel);
  socket.on("error", () => abort(leg, socket));
  socket.resume();
  socket.end(encodeClose(reason));
}

function abort(leg: Duplex, socket: TLSSocket): void {
  socket.destroy();
  const reset = (leg as { resetAndDestroy?: () => void }).resetAndDestroy;
  if (reset && !leg.destroyed) reset.call(leg);
  else leg.destroy();
}
