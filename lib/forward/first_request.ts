/** Reads the beginning of a connection until it says which endpoint its client belongs to, or will not say. */
import type { CancelTimer, Clock } from "../clock.ts";
import type { ReasonCode } from "../errors.ts";
import { type MeshStream, type StreamHandler, WOULD_BLOCK } from "../net.ts";
import { type HashOn, requestKey } from "./request_key.ts";

/** Longest head that is looked through; servers refuse longer ones themselves (nginx: 8 KiB a line, 32 KiB in all). */
const HEAD_MAX = 16_384;
const HEAD_FIRST = 2_048;
/** How long a client may think before it sends: protocols in which the server speaks first begin after this. */
export const HEAD_WAIT_MS = 1_000;

export interface FirstRequestOptions {
  readonly client: MeshStream;
  readonly on: HashOn;
  readonly clock: Clock;
  /** Called once unless `onGone` is: the key, and what was read; the stream's next bytes come after these. */
  onKnown(key: string | undefined, head: Uint8Array): void;
  /** The client left before. */
  onGone(reason: ReasonCode): void;
}

export class FirstRequest implements StreamHandler {
  readonly #options: FirstRequestOptions;
  readonly #deadline: CancelTimer;
  #head = new Uint8Array(HEAD_FIRST);
  #length = 0;
  #over = false;

  /** Takes over the stream's handler; {@link start} begins. */
  constructor(options: FirstRequestOptions) {
    this.#options = options;
    options.client.handler = this;
    this.#deadline = options.clock.timer(HEAD_WAIT_MS, () => this.#known(undefined));
  }

  /** Bytes may be there already, and their edge may have passed. */
  start(): void {
    this.onReadable();
  }

  /** Nobody is told any more. */
  cancel(): void {
    this.#over = true;
    this.#deadline();
  }

  onOpen(): void {}

  onReadable(): void {
    while (!this.#over) {
      const n = this.#options.client.read(this.#head.subarray(this.#length));
      if (n === WOULD_BLOCK) return;
      if (n === 0) return this.#known(undefined);
      this.#length += n;
      const found = requestKey(this.#head.subarray(0, this.#length), this.#options.on);
      if (found.state === "known") return this.#known(found.key);
      if (this.#length === HEAD_MAX) return this.#known(undefined);
      if (this.#length === this.#head.length) this.#grow();
    }
  }

  onWritable(): void {}

  onClose(reason: ReasonCode | undefined): void {
    if (this.#over) return;
    this.cancel();
    this.#options.onGone(reason ?? "RESET");
  }

  #known(key: string | undefined): void {
    if (this.#over) return;
    this.cancel();
    this.#options.onKnown(key, this.#head.subarray(0, this.#length));
  }

  #grow(): void {
    const larger = new Uint8Array(Math.min(HEAD_MAX, this.#head.length * 2));
    larger.set(this.#head);
    this.#head = larger;
  }
}
