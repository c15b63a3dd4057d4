/**
 * Two carriers joined in memory: what tests and benches of sessions use in place of a network. Batches are copied as a
 * real carrier copies them, delivered later, and can be held back, lost or cut off.
 */
import type { Clock } from "../clock.ts";
import type { ReasonCode } from "../errors.ts";
import { BufferPool } from "./buffer_pool.ts";
import { type Carrier, type CarrierHandler, MAX_BATCH, type PathKind, type PeerIdentity } from "./carrier.ts";
import { Fifo } from "./session/fair.ts";

export interface MemoryCarrierOptions {
  /** Who is at each end: the first end's peer is `b`. */
  readonly a: PeerIdentity;
  readonly b: PeerIdentity;
  readonly path?: PathKind;
  /** Bytes under way in one direction beyond which `send` says stop; half of it is when it may go on. */
  readonly capacity?: number;
  /** Runs a task soon, after the code that is running now. */
  readonly later: (task: () => void) => void;
  /** Time each batch is under way, by a clock of the test. */
  readonly delay?: { readonly clock: Clock; readonly ms: number };
}

/** Makes a connected pair. */
export function memoryCarriers(options: MemoryCarrierOptions): readonly [MemoryCarrier, MemoryCarrier] {
  const a = new MemoryCarrier(options, options.b);
  const b = new MemoryCarrier(options, options.a);
  a.connect(b);
  b.connect(a);
  return [a, b];
}

const idle: CarrierHandler = { onBatch() {}, onDrain() {}, onClose() {} };
const buffers = new BufferPool(MAX_BATCH, 64);

interface Waiting {
  readonly bytes: Uint8Array<ArrayBuffer>;
  length: number;
  /** When it arrives. */
  at: number;
}

export class MemoryCarrier implements Carrier {
  readonly peer: PeerIdentity;
  readonly path: PathKind;
  readonly #later: (task: () => void) => void;
  readonly #capacity: number;
  readonly #delay: MemoryCarrierOptions["delay"];
  /** Batches on the way to the other end. */
  readonly #way = new Fifo<Waiting>();
  readonly #spare: Waiting[] = [];
  #handler: CarrierHandler = idle;
  #other!: MemoryCarrier;
  #bytes = 0;
  #busy = false;
  #asked = false;
  #held = false;
  #over = false;

  constructor(options: MemoryCarrierOptions, peer: PeerIdentity) {
    this.peer = peer;
    this.path = options.path ?? "direct";
    this.#later = options.later;
    this.#capacity = options.capacity ?? 4 * MAX_BATCH;
    this.#delay = options.delay;
  }

  /** Joins this end to the other one. */
  connect(other: MemoryCarrier): void {
    this.#other = other;
  }

  get handler(): CarrierHandler {
    return this.#handler;
  }

  /** Batches that came before the session was there are delivered now. */
  set handler(handler: CarrierHandler) {
    this.#handler = handler;
    this.#other.#move();
  }

  /** Batches on the way from here to the other end. */
  get inFlight(): number {
    return this.#way.size;
  }

  get closed(): boolean {
    return this.#over;
  }

  send(batch: Uint8Array): boolean {
    if (this.#over) return true;
    if (batch.length === 0 || batch.length > MAX_BATCH) throw new RangeError(`Batch of ${batch.length} bytes`);
    const waiting = this.#spare.pop() ?? { bytes: buffers.take(), length: 0, at: 0 };
    waiting.bytes.set(batch);
    waiting.length = batch.length;
    if (this.#delay !== undefined) waiting.at = this.#delay.clock.now() + this.#delay.ms;
    this.#way.push(waiting);
    this.#bytes += batch.length;
    this.#move();
    if (this.#bytes < this.#capacity) return true;
    this.#busy = true;
    return false;
  }

  close(_reason: ReasonCode): void {
    if (this.#over) return;
    this.#over = true;
    this.#handler = idle;
    // What was sent before still arrives, then the end.
    this.#move();
  }

  /** Test: nothing sent from here arrives until {@link release}. */
  hold(): void {
    this.#held = true;
  }

  release(): void {
    this.#held = false;
    this.#move();
  }

  /** Test: delivers one batch now, even while held. False if none is on the way. */
  step(): boolean {
    const waiting = this.#way.shift();
    if (waiting === undefined) return false;
    this.#deliver(waiting);
    return true;
  }

  /** Test: both ends lose the connection; what is on the way is lost. */
  cut(reason: ReasonCode = "PEER_GONE"): void {
    for (const end of [this, this.#other]) {
      if (end.#over) continue;
      end.#over = true;
      end.#drop();
      const handler = end.#handler;
      end.#handler = idle;
      this.#later(() => handler.onClose(reason));
    }
  }

  #move(): void {
    if (this.#asked || this.#held || this.#other.#handler === idle) return;
    this.#asked = true;
    this.#later(this.#run);
  }

  readonly #run = (): void => {
    this.#asked = false;
    // As many as there are now: what is sent meanwhile waits for the next turn, as on a real loop.
    for (let n = this.#way.size; n > 0 && !this.#held && this.#other.#handler !== idle; n--) {
      const next = this.#way.peek();
      if (next === undefined) break;
      const early = this.#delay === undefined ? 0 : next.at - this.#delay.clock.now();
      if (early > 0) return this.#moveIn(early);
      this.#way.shift();
      this.#deliver(next);
    }
    if (this.#way.size > 0) this.#move();
    else if (this.#over) this.#other.#hangUp();
  };

  #moveIn(ms: number): void {
    this.#asked = true;
    this.#delay!.clock.timer(ms, this.#run);
  }

  #deliver(waiting: Waiting): void {
    this.#bytes -= waiting.length;
    const other = this.#other;
    if (!other.#over) other.#handler.onBatch(waiting.bytes.subarray(0, waiting.length));
    this.#spare.push(waiting);
    if (this.#busy && this.#bytes <= this.#capacity / 2) {
      this.#busy = false;
      this.#handler.onDrain();
    }
  }

  #hangUp(): void {
    if (this.#over) return;
    this.#over = true;
    const handler = this.#handler;
    this.#handler = idle;
    this.#drop();
    handler.onClose(undefined);
  }

  #drop(): void {
    for (let waiting = this.#way.shift(); waiting !== undefined; waiting = this.#way.shift()) this.#spare.push(waiting);
    this.#bytes = 0;
  }
}
