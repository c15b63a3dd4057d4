/**
 * The fast engine: the same carrier as the portable one on the wire, by the system's TLS library on streams of the
 * loop. Nothing between a batch and the socket waits for a turn of the event loop, and nothing is allocated per record.
 */
import type { CancelTimer, Clock } from "../../clock.ts";
import { codeOf, MeshError, type ReasonCode } from "../../errors.ts";
import type { StreamHandler } from "../../net.ts";
import { WOULD_BLOCK } from "../../net.ts";
import { TLS_SLICE, type TlsLibrary, type TlsMachine } from "../../tls.ts";
import type { Carrier, PathKind } from "../carrier.ts";
import { CARRIER_ALPN, type CarrierEngine, type EngineOptions, HANDSHAKE_MS, provenPeer } from "./engine.ts";
import { FastCarrier, lastWords } from "./fast_carrier.ts";
import { FastWriter } from "./fast_writer.ts";
import type { StreamLeg } from "./stream_leg.ts";

/** Work for the end of the loop's turn. */
export interface DeferredWork {
  run(): void;
}

export interface FastEngineOptions extends EngineOptions {
  readonly clock: Clock;
  readonly tls: TlsLibrary;
  /** Runs `work` after the other sockets had their turn. */
  defer(work: DeferredWork): void;
  /** See {@link HANDSHAKE_MS}. */
  readonly handshakeMs?: number;
}

export class FastEngine implements CarrierEngine<StreamLeg> {
  readonly name = "fast";
  readonly #options: FastEngineOptions;

  constructor(options: FastEngineOptions) {
    this.#options = options;
  }

  async connect(leg: StreamLeg, options: { readonly peer: string; readonly path: PathKind }): Promise<Carrier> {
    return this.#verified(leg, await this.#handshake(leg, "client"), options.path, options.peer);
  }

  async accept(leg: StreamLeg, options: { readonly path: PathKind }): Promise<Carrier> {
    return this.#verified(leg, await this.#handshake(leg, "server"), options.path, undefined);
  }

  #handshake(leg: StreamLeg, role: "client" | "server"): Promise<Secured> {
    const { tls, credentials } = this.#options;
    return new Promise((resolve, reject) => {
      let machine: TlsMachine;
      try {
        const { cert, key } = credentials();
        machine = tls.open({ role, identity: { cert, key }, alpn: CARRIER_ALPN });
      } catch (error) {
        leg.abort();
        return reject(error);
      }
      new Handshake(leg, machine, this.#options, { resolve, reject }).start();
    });
  }

  #verified(leg: StreamLeg, secured: Secured, path: PathKind, expected: string | undefined): Carrier {
    const { machine, writer } = secured;
    try {
      if (secured.failed) throw secured.failed;
      const peer = provenPeer(this.#options, machine.chain(), expected);
      if (leg.destroyed) throw new MeshError("PEER_GONE", `Node ${peer.node} went away during verification`);
      return new FastCarrier({ leg, machine, writer, peer, path, engine: this.#options });
    } catch (error) {
      // The other side learns why, inside TLS: nobody else can read or forge it.
      lastWords({ leg, machine, writer, clock: this.#options.clock }, codeOf(error));
      throw error;
    }
  }
}

/** A finished handshake. The peer's certificate is not verified yet, and no byte of the peer has been used. */
interface Secured {
  readonly machine: TlsMachine;
  readonly writer: FastWriter;
  /** It broke between the end of the handshake and the verification. */
  readonly failed: MeshError | undefined;
}

interface Settle {
  resolve(secured: Secured): void;
  reject(error: MeshError): void;
}

/** One handshake: ends exactly once, by success, failure or deadline. */
class Handshake implements StreamHandler {
  readonly #leg: StreamLeg;
  readonly #machine: TlsMachine;
  readonly #writer: FastWriter;
  readonly #options: FastEngineOptions;
  readonly #settle: Settle;
  #cancel: CancelTimer = () => {};
  #done = false;
  /** After the end of the handshake, until the carrier takes the stream over: in the same turn of microtasks. */
  #late: { failed: MeshError | undefined } | undefined;

  constructor(leg: StreamLeg, machine: TlsMachine, options: FastEngineOptions, settle: Settle) {
    this.#leg = leg;
    this.#machine = machine;
    this.#writer = new FastWriter(leg.stream, machine);
    this.#options = options;
    this.#settle = settle;
  }

  start(): void {
    const { clock, handshakeMs = HANDSHAKE_MS } = this.#options;
    if (this.#leg.destroyed) return this.#failed(new MeshError("PEER_GONE", "The connection ended before TLS"));
    this.#leg.stream.handler = this;
    this.#cancel = clock.timer(handshakeMs, () => {
      this.#failed(new MeshError("TIMEOUT", `TLS handshake did not finish within ${handshakeMs} ms`));
    });
    this.#step();
    // What came before we were asked is not announced again.
    this.onReadable();
  }

  onOpen(): void {}

  onReadable(): void {
    const { tls } = this.#options;
    while (!this.#done) {
      // A slice at most: what follows the handshake is the carrier's to read.
      const n = this.#leg.stream.read(tls.input.subarray(0, TLS_SLICE));
      if (n === WOULD_BLOCK) return;
      if (n === 0) return this.onClose("PEER_GONE");
      try {
        this.#machine.push(0, n);
      } catch (error) {
        return this.#failed(asMeshError(error));
      }
      this.#step();
    }
  }

  onWritable(): void {
    this.#writer.flush();
  }

  onClose(reason: ReasonCode | undefined): void {
    // A channel's own reason says more than that it ended (an offline peer, say); a socket's does not.
    const code = reason === undefined || reason === "RESET" ? "PEER_GONE" : reason;
    const error = new MeshError(code, "The connection ended during the TLS handshake");
    if (this.#late) this.#late.failed ??= error;
    this.#failed(error);
  }

  #step(): void {
    if (this.#done) return;
    try {
      const finished = this.#machine.handshake();
      this.#writer.flush();
      if (!finished) return;
    } catch (error) {
      // The alert tells the other side at once.
      this.#writer.flush();
      return this.#failed(asMeshError(error));
    }
    if (this.#machine.alpn !== CARRIER_ALPN) {
      return this.#failed(new MeshError("PROTOCOL", `The other side does not speak ${CARRIER_ALPN}`));
    }
    this.#done = true;
    this.#cancel();
    const late = this.#late = { failed: undefined as MeshError | undefined };
    this.#settle.resolve({
      machine: this.#machine,
      writer: this.#writer,
      get failed() {
        return late.failed;
      },
    });
  }

  #failed(error: MeshError): void {
    if (this.#done) return;
    this.#done = true;
    this.#cancel();
    this.#leg.stream.reset(error.code);
    this.#machine.free();
    this.#leg.over();
    this.#settle.reject(error);
  }
}

function asMeshError(error: unknown): MeshError {
  return error instanceof MeshError ? error : new MeshError("INTERNAL", "TLS handshake failed", { cause: error });
}
