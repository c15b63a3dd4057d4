/**
 * A relay channel as a Duplex: what carriers/tls.ts runs the inner mutual TLS on. Bytes written before the other agent
 * has answered travel right behind the OPEN, so a relayed carrier costs no handshake of its own.
 */
import { Buffer } from "node:buffer";
import { Duplex } from "node:stream";
import { MeshError, type ReasonCode } from "../../errors.ts";

/** What a channel's duplex asks of the connection it lives on. */
export interface ChannelPort {
  /** Sends `chunk` as credit and the connection allow; `done` is called once when all of it was taken. */
  write(chunk: Uint8Array, done: () => void): void;
  /** The reader took so many bytes: the other side may send as many more. */
  consumed(bytes: number): void;
  /** The channel ends. Nothing is called after that. */
  close(reason: ReasonCode | undefined): void;
}

/**
 * Bytes after which a channel counts as busy, both directions together: a handshake and a few requests do not, a second
 * of anything that would profit from a leg of its own does.
 */
export const BUSY_BYTES = 262_144;

export class ChannelDuplex extends Duplex {
  /** The node at the other end, as the server says; only the inner TLS proves it. */
  readonly node: string;
  readonly #port: ChannelPort;
  #waiting = 0;
  #ended: { readonly error: MeshError | undefined } | undefined;
  #closedByPeer = false;
  #carried = 0;
  #onBusy: (() => void) | undefined;

  constructor(node: string, port: ChannelPort) {
    // The credit window bounds what waits here; a second bound would only stop the reader earlier.
    super({ readableHighWaterMark: 65536, writableHighWaterMark: 65536, autoDestroy: true, emitClose: true });
    this.node = node;
    this.#port = port;
  }

  /** Called once, when the channel has carried {@link BUSY_BYTES}; not from inside the setter. */
  set onBusy(listener: () => void) {
    if (this.#carried < BUSY_BYTES) this.#onBusy = listener;
    else queueMicrotask(listener);
  }

  /** Bytes from the other agent; the duplex owns them from now on. */
  deliver(bytes: Uint8Array): void {
    if (this.destroyed) return;
    this.#count(bytes.length);
    const more = this.push(Buffer.from(bytes.buffer, bytes.byteOffset, bytes.byteLength));
    if (more) this.#port.consumed(bytes.length);
    else this.#waiting += bytes.length;
  }

  /** The channel is over at the other side; what was delivered is still read. */
  ended(reason: ReasonCode | undefined): void {
    this.#closedByPeer = true;
    const error = reason === undefined
      ? undefined
      : new MeshError(reason, `The channel to ${this.node} was closed: ${reason}`);
    if (this.readableLength === 0) return void this.destroy(error);
    this.#ended = { error };
    this.push(null);
    this.once("end", () => this.destroy(error));
  }

  override _read(): void {
    if (this.#waiting === 0 || this.#ended !== undefined) return;
    const bytes = this.#waiting;
    this.#waiting = 0;
    this.#port.consumed(bytes);
  }

  override _write(chunk: Uint8Array, _encoding: string, done: (error?: Error | null) => void): void {
    if (this.#closedByPeer) return done(new MeshError("PEER_GONE", `The channel to ${this.node} is closed`));
    this.#count(chunk.length);
    this.#port.write(chunk, () => done());
  }

  #count(bytes: number): void {
    this.#carried += bytes;
    if (this.#onBusy === undefined || this.#carried < BUSY_BYTES) return;
    queueMicrotask(this.#onBusy);
    this.#onBusy = undefined;
  }

  override _final(done: (error?: Error | null) => void): void {
    // A channel has no half-close, and TLS needs none: its own close_notify went before.
    done();
  }

  override _destroy(error: Error | null, done: (error: Error | null) => void): void {
    if (!this.#closedByPeer) this.#port.close(error instanceof MeshError ? error.code : undefined);
    this.#closedByPeer = true;
    done(error);
  }
}
