/** A carrier of the fast engine: batches in WebSocket frames inside TLS, on a stream of the loop. */
import type { Clock } from "../../clock.ts";
import { codeOf, type ReasonCode } from "../../errors.ts";
import { type StreamHandler, WOULD_BLOCK } from "../../net.ts";
import { TLS_SLICE, type TlsMachine } from "../../tls.ts";
import type { PathKind, PeerIdentity } from "../carrier.ts";
import { CarrierBase } from "./base.ts";
import type { DeferredWork, FastEngineOptions } from "./fast.ts";
import type { FastWriter } from "./fast_writer.ts";
import { BATCH_BUFFER } from "./pool.ts";
import type { StreamLeg } from "./stream_leg.ts";
import { encodeClose, encodeHeader, type FrameSink } from "./ws_frame.ts";

/** Reads of the whole input before other connections get their turn. */
const ROUNDS_PER_TURN = 4;
/** How long a closed carrier waits for the other side to read our reason before the leg is cut. */
const LINGER_MS = 1000;

/** A batch behind its header, to be sealed as one. Shared: it never outlives a call. */
const stage = new Uint8Array(BATCH_BUFFER);

export interface FastCarrierParts {
  readonly leg: StreamLeg;
  readonly machine: TlsMachine;
  readonly writer: FastWriter;
  readonly peer: PeerIdentity;
  readonly path: PathKind;
  readonly engine: Pick<FastEngineOptions, "clock" | "tls" | "defer">;
}

export class FastCarrier extends CarrierBase implements StreamHandler, DeferredWork {
  readonly #leg: StreamLeg;
  readonly #machine: TlsMachine;
  readonly #writer: FastWriter;
  readonly #engine: FastCarrierParts["engine"];
  readonly #sink: FrameSink = {
    onMessage: (message) => this.inbox.batch(message),
    onClose: (reason) => this.closedByPeer(reason),
  };

  constructor(parts: FastCarrierParts) {
    super(parts);
    this.#leg = parts.leg;
    this.#machine = parts.machine;
    this.#writer = parts.writer;
    this.#engine = parts.engine;
    parts.leg.stream.handler = this;
    // Bytes that came with the end of the handshake are in the library or announced already: nothing announces them
    // again. Later, because whoever makes carriers is in the middle of something.
    parts.engine.defer(this);
  }

  send(batch: Uint8Array): boolean {
    if (this.over) return false;
    const header = encodeHeader(stage, batch.length);
    stage.set(batch, header);
    try {
      this.#machine.seal(stage, header + batch.length);
    } catch (error) {
      this.fault(codeOf(error));
      return false;
    }
    if (this.#writer.flush()) return !this.blocked;
    this.blocked = true;
    return false;
  }

  // ── from the stream ──

  onOpen(): void {}

  onReadable(): void {
    this.#read();
  }

  onWritable(): void {
    if (this.over || !this.#writer.flush() || !this.blocked) return;
    this.blocked = false;
    this.inbox.handler.onDrain();
  }

  onClose(reason: ReasonCode | undefined): void {
    this.lost(reason === undefined || reason === "RESET" ? "PEER_GONE" : reason);
  }

  /** The rest of what was there to read, after others had their turn. */
  run(): void {
    if (!this.over) this.#read();
  }

  // ── inside ──

  #read(): void {
    const { input } = this.#engine.tls;
    for (let round = 0; round < ROUNDS_PER_TURN && !this.over; round++) {
      if (!this.#deliver()) return;
      const n = this.#leg.stream.read(input);
      if (n === WOULD_BLOCK) return;
      if (n === 0) return this.lost("PEER_GONE");
      for (let at = 0; at < n; at += TLS_SLICE) {
        this.#machine.push(at, Math.min(n, at + TLS_SLICE));
        if (!this.#deliver()) return;
      }
    }
    if (!this.over) this.#engine.defer(this);
  }

  /** Hands on what can be decrypted now; false when the carrier has ended. */
  #deliver(): boolean {
    try {
      for (;;) {
        const plain = this.#machine.pull();
        if (plain === undefined) break;
        this.reader.push(plain, this.#sink);
        if (this.over) return false;
      }
      // An answer to a new key of the other side.
      if (this.#machine.waiting && !this.#writer.flush()) this.blocked = true;
      if (!this.#machine.ended) return true;
      this.lost("PEER_GONE");
    } catch (error) {
      this.fault(codeOf(error));
    }
    return false;
  }

  protected override lastWords(reason: ReasonCode): void {
    lastWords({ leg: this.#leg, machine: this.#machine, writer: this.#writer, clock: this.#engine.clock }, reason);
  }

  /** A carrier that broke is cut with RST: a FIN would hold its ports for a later attempt. */
  protected override abort(): void {
    this.#leg.stream.reset("PEER_GONE");
    this.#writer.drop();
    this.#machine.free();
    this.#leg.over();
  }
}

export interface LastWords {
  readonly leg: StreamLeg;
  readonly machine: TlsMachine;
  readonly writer: FastWriter;
  readonly clock: Clock;
}

/** Tells the other side why, then ends the leg: at once when it is dead anyway, else after a moment to be read. */
export function lastWords(parts: LastWords, reason: ReasonCode): void {
  const { leg, machine, writer, clock } = parts;
  const cut = () => {
    cancel();
    leg.stream.reset("PEER_GONE");
    writer.drop();
    machine.free();
    leg.over();
  };
  let cancel = () => {};
  if (leg.destroyed || reason === "PEER_GONE" || reason === "TIMEOUT") return cut();
  try {
    const frame = encodeClose(reason);
    machine.seal(frame, frame.length);
    machine.finish();
  } catch {
    // TLS itself broke: what waits is its alert.
  }
  cancel = clock.timer(LINGER_MS, cut);
  const flush = () => {
    if (!writer.flush()) return;
    leg.stream.closeWrite();
    sent = true;
  };
  let sent = false;
  leg.stream.handler = {
    onOpen() {},
    // Nothing is read any more; bytes that stay unread would turn our end into a reset before it was read.
    onReadable: () => {
      for (let n = 1; n > 0;) n = leg.stream.read(discarded);
    },
    onWritable: () => sent || flush(),
    onClose: cut,
  };
  flush();
  leg.stream.handler.onReadable();
}

/** Bytes nobody wants. */
const discarded = new Uint8Array(65_536);
