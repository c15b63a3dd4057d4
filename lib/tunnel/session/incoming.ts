/**
 * The batch that is being received, and which pieces of it belong to which stream. A reader that takes its bytes
 * before the batch is over copies them straight out of the carrier's buffer; what is left is moved to the stream's
 * own memory at the end.
 */
import { copy } from "./send_log.ts";

/** Who owns pieces of a batch. The fields belong to {@link Incoming}. */
export interface PieceOwner {
  /** First and last of its pieces, -1 for none. */
  firstPiece: number;
  lastPiece: number;
  /** Takes over what was not read in time. */
  keep(from: Uint8Array, offset: number, length: number): void;
}

const NOTHING = new Uint8Array(0);

export class Incoming {
  #batch: Uint8Array = NOTHING;
  #offset = new Int32Array(64);
  #length = new Int32Array(64);
  #next = new Int32Array(64);
  #count = 0;
  readonly #owners: PieceOwner[] = [];

  begin(batch: Uint8Array): void {
    this.#batch = batch;
  }

  /** Notes that batch bytes `[offset, offset + length)` are the owner's. */
  add(owner: PieceOwner, offset: number, length: number): void {
    const i = this.#count++;
    if (i === this.#offset.length) this.#enlarge();
    this.#offset[i] = offset;
    this.#length[i] = length;
    this.#next[i] = -1;
    if (owner.firstPiece < 0) {
      owner.firstPiece = i;
      this.#owners.push(owner);
    } else this.#next[owner.lastPiece] = i;
    owner.lastPiece = i;
  }

  /** Moves the owner's bytes into `into` from `at` on; returns how many. */
  read(owner: PieceOwner, into: Uint8Array, at: number): number {
    let done = 0;
    let i = owner.firstPiece;
    while (i >= 0 && at + done < into.length) {
      const length = this.#length[i]!;
      const n = Math.min(length, into.length - at - done);
      copy(into, at + done, this.#batch, this.#offset[i]!, n);
      done += n;
      if (n < length) {
        this.#offset[i]! += n;
        this.#length[i]! -= n;
      } else i = this.#next[i]!;
    }
    owner.firstPiece = i;
    return done;
  }

  /** The batch's bytes go away: owners keep what they did not read. */
  end(): void {
    for (let k = 0; k < this.#owners.length; k++) {
      const owner = this.#owners[k]!;
      for (let i = owner.firstPiece; i >= 0; i = this.#next[i]!) {
        owner.keep(this.#batch, this.#offset[i]!, this.#length[i]!);
      }
      owner.firstPiece = -1;
    }
    this.#owners.length = 0;
    this.#count = 0;
    this.#batch = NOTHING;
  }

  #enlarge(): void {
    this.#offset = enlarged(this.#offset);
    this.#length = enlarged(this.#length);
    this.#next = enlarged(this.#next);
  }
}

function enlarged(array: Int32Array<ArrayBuffer>): Int32Array<ArrayBuffer> {
  const twice = new Int32Array(array.length * 2);
  twice.set(array);
  return twice;
}
