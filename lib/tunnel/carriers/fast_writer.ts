/** Ciphertext on its way from a TLS connection to its stream. What the stream does not take waits in one buffer. */
import type { MeshStream } from "../../net.ts";
import type { TlsMachine } from "../../tls.ts";
import { BATCH_BUFFER, batchPool } from "./pool.ts";

/** Where ciphertext stands between the library and the stream. Shared: it never outlives a call. */
const out = new Uint8Array(BATCH_BUFFER);

export class FastWriter {
  readonly #stream: MeshStream;
  readonly #machine: TlsMachine;
  /** Bytes `[#at, #end)` that the stream did not take yet. */
  #rest: Uint8Array | undefined;
  #at = 0;
  #end = 0;

  constructor(stream: MeshStream, machine: TlsMachine) {
    this.#stream = stream;
    this.#machine = machine;
  }

  /**
   * Sends what the library has; true when nothing waits any more. While something waits here the library keeps the rest,
   * which is bounded by who seals: it stops when this says false.
   */
  flush(): boolean {
    if (this.#rest !== undefined) {
      this.#at += this.#stream.write(this.#rest, this.#at, this.#end - this.#at);
      if (this.#at < this.#end) return false;
      this.#giveBack();
    }
    for (;;) {
      const n = this.#machine.take(out);
      if (n === 0) return true;
      const taken = this.#stream.write(out, 0, n);
      if (taken < n) return this.#keep(taken, n);
      if (n < out.length) return true;
    }
  }

  /** Gives the buffer back; nothing is sent any more. */
  drop(): void {
    if (this.#rest !== undefined) this.#giveBack();
  }

  #keep(taken: number, n: number): false {
    this.#rest = batchPool.take();
    this.#rest.set(taken === 0 && n === out.length ? out : out.subarray(taken, n));
    this.#at = 0;
    this.#end = n - taken;
    return false;
  }

  #giveBack(): void {
    batchPool.give(this.#rest!);
    this.#rest = undefined;
  }
}
