/**
 * Metadata on a control connection: messages of any size up to a cap, cut into META frames so that pings and channels
 * get between them, put together again at the other end. What is inside is lib/meta's business.
 */
import { MeshError } from "../../errors.ts";
import { encodeControl, META_CHUNK } from "./message.ts";

/** Largest metadata message: a slim snapshot of 20 000 services is about 8 MB. */
export const MAX_META = 32 * 1024 * 1024;
/** The same from an agent, which only asks and acknowledges: what one agent can make a server hold. */
export const MAX_META_FROM_AGENT = 64 * 1024;
/** Frames sent in one turn: as much as a relay channel may send in one frame. */
const TURN = 4;

export class MetaSender {
  readonly #send: (frame: Uint8Array) => boolean;
  readonly #queue: Uint8Array[] = [];
  #at = 0;
  #queued = 0;

  /** `send` puts one frame on the connection; false = congested. */
  constructor(send: (frame: Uint8Array) => boolean) {
    this.#send = send;
  }

  /** Bytes that wait. */
  get queued(): number {
    return this.#queued;
  }

  /** Whether no message waits. */
  get empty(): boolean {
    return this.#queue.length === 0;
  }

  /**
   * Queues one message; its bytes must not change afterwards. Throws MeshError LIMIT when it is above
   * {@link MAX_META}, or when so much waits already that the other side clearly does not keep up.
   */
  push(message: Uint8Array): void {
    if (message.length > MAX_META || this.#queued > MAX_META) {
      throw new MeshError("LIMIT", `Metadata of ${message.length} bytes cannot be queued behind ${this.#queued}`);
    }
    this.#queue.push(message);
    this.#queued += message.length;
  }

  /** Sends one turn's frames while the way is free; true when nothing waits any more. */
  pump(): boolean {
    for (let i = 0; i < TURN; i++) {
      const message = this.#queue[0];
      if (message === undefined) return true;
      const bytes = message.subarray(this.#at, this.#at + META_CHUNK);
      const last = this.#at + bytes.length >= message.length;
      this.#at = last ? 0 : this.#at + bytes.length;
      this.#queued -= bytes.length;
      if (last) this.#queue.shift();
      if (!this.#send(encodeControl({ type: "meta", last, bytes }))) break;
    }
    return this.#queue.length === 0;
  }
}

export class MetaReceiver {
  #parts: Uint8Array[] = [];
  #length = 0;
  readonly #max: number;

  constructor(max: number = MAX_META) {
    this.#max = max;
  }

  /** Takes one frame; returns the message it completes. Throws MeshError LIMIT above the cap. */
  push(bytes: Uint8Array, last: boolean): Uint8Array | undefined {
    this.#length += bytes.length;
    if (this.#length > this.#max) throw new MeshError("LIMIT", `Metadata message is longer than ${this.#max} bytes`);
    if (last && this.#parts.length === 0) {
      this.#length = 0;
      return bytes;
    }
    // A copy: frames are views of larger read buffers, and this one may wait for its successors.
    this.#parts.push(bytes.slice());
    if (!last) return undefined;
    const message = new Uint8Array(this.#length);
    let at = 0;
    for (const part of this.#parts) {
      message.set(part, at);
      at += part.length;
    }
    this.#parts = [];
    this.#length = 0;
    return message;
  }
}
