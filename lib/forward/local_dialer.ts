/** Streams to endpoints that this host reaches by itself. */
import type { Dialer, Loop, MeshStream, ServiceTarget, StreamHandler } from "../net.ts";

export interface LocalDialerOptions {
  readonly loop: Loop;
  /** Milliseconds until a connection attempt is given up. */
  readonly timeoutMs: number;
}

export class LocalDialer implements Dialer {
  readonly #options: LocalDialerOptions;

  constructor(options: LocalDialerOptions) {
    this.#options = options;
  }

  dial(target: ServiceTarget, first: Uint8Array | undefined, handler: StreamHandler): MeshStream {
    const { loop, timeoutMs } = this.#options;
    if (first === undefined || first.length === 0) return loop.dialTcp(target.endpoint, handler, { timeoutMs });
    const early = new EarlyBytes(first.slice(), handler);
    const stream = loop.dialTcp(target.endpoint, early, { timeoutMs });
    early.stream = stream;
    return stream;
  }
}

/** Sends the first bytes as soon as the connection is there, before its owner hears of it. */
class EarlyBytes implements StreamHandler {
  stream!: MeshStream;
  #sent = 0;

  constructor(readonly first: Uint8Array, readonly owner: StreamHandler) {}

  onOpen(): void {
    // A fresh socket takes far more than first bytes ever are; the rest would come with onWritable.
    this.#sent = this.stream.write(this.first, 0, this.first.length);
    if (this.#sent === this.first.length) this.#handOver();
  }

  onReadable(): void {
    if (this.#done) this.owner.onReadable();
  }

  onWritable(): void {
    this.#sent += this.stream.write(this.first, this.#sent, this.first.length - this.#sent);
    if (this.#done) this.#handOver();
  }

  onClose(reason: Parameters<StreamHandler["onClose"]>[0]): void {
    this.owner.onClose(reason);
  }

  get #done(): boolean {
    return this.#sent === this.first.length;
  }

  #handOver(): void {
    this.stream.handler = this.owner;
    this.owner.onOpen();
  }
}
