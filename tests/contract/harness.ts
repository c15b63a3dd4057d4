/**
 * What the contract suites share: stream ends that check the callback rules of lib/net.ts while a test uses them, and
 * bytes whose value says where in the stream they belong.
 */
import { strict as assert } from "node:assert";
import { systemClock } from "../../lib/clock.ts";
import type { ReasonCode } from "../../lib/errors.ts";
import { type MeshStream, type StreamHandler, WOULD_BLOCK } from "../../lib/net.ts";

/** A wait of the suite fails after this; nothing in it takes a second on an idle machine. */
const PATIENCE_MS = 30_000;

/** Lets callbacks run, once. Sockets need Deno's loop to turn, memory a queue to be drained. */
export type Turn = () => Promise<void> | void;

/** Runs callbacks until `condition` holds. */
export async function until(turn: Turn, condition: () => boolean, what: string): Promise<void> {
  const deadline = systemClock.now() + PATIENCE_MS;
  while (!condition()) {
    if (systemClock.now() > deadline) assert.fail(`Waited in vain until ${what}`);
    await turn();
  }
}

// A prime, so that no power-of-two buffer size hides a shift by a whole period.
const PERIOD = 65_521;
const pattern = new Uint8Array(PERIOD + 256 * 1024);
for (let i = 0, x = 0x2545f491; i < pattern.length; i++) {
  if (i % PERIOD === 0) x = 0x2545f491;
  x ^= x << 13;
  x ^= x >>> 17;
  x ^= x << 5;
  pattern[i] = x;
}

/** The bytes that belong at stream position `at`; at most 256 KiB. */
export function patternAt(at: number, length: number): Uint8Array {
  const start = at % PERIOD;
  return pattern.subarray(start, start + length);
}

/** Whether `bytes` are what belongs at position `at`. */
export function matchesPattern(at: number, bytes: Uint8Array): boolean {
  for (let i = 0, from = at % PERIOD; i < bytes.length; i++) if (bytes[i] !== pattern[from + i]) return false;
  return true;
}

/** A small deterministic generator, so that a failure can be repeated: xorshift32. */
export function randomFrom(seed: number): (below: number) => number {
  let x = seed | 1;
  return (below) => {
    x ^= x << 13;
    x ^= x >>> 17;
    x ^= x << 5;
    return (x >>> 0) % below;
  };
}

/**
 * One end of a stream under test. It is the stream's handler and the only one who calls the stream; every broken
 * rule is kept in `violations`, which each test asserts to be empty.
 */
export class End implements StreamHandler {
  readonly name: string;
  readonly calls: string[] = [];
  readonly violations: string[] = [];
  opened = false;
  closed = false;
  reason: ReasonCode | undefined;
  readable = false;
  writable = false;
  /** Replaced by tests that act inside a callback. */
  onReadableDo: () => void = () => {};
  onOpenDo: () => void = () => {};
  onWritableDo: () => void = () => {};
  #stream: MeshStream | undefined;
  #inCall = false;
  #gaveUp = false;
  #mayHearReadable = true;
  #mayHearWritable = false;

  constructor(name: string) {
    this.name = name;
  }

  /** Ties the end to its stream. The stream's handler must be this end from the start. */
  use(stream: MeshStream): this {
    assert.equal(stream.handler, this, "the factory must set the handler it was given");
    this.#stream = stream;
    return this;
  }

  read(into: Uint8Array): number {
    const n = this.#call(() => this.#stream!.read(into));
    if (n === WOULD_BLOCK) {
      this.#mayHearReadable = true;
      this.readable = false;
    }
    return n;
  }

  write(from: Uint8Array, offset: number, length: number): number {
    // The rule is about what the owner knows: from the call on, it may be told.
    const n = this.#call(() => this.#stream!.write(from, offset, length));
    if (n < length) {
      this.#mayHearWritable = true;
      this.writable = false;
    }
    if (n < 0 || n > length) this.violations.push(`write of ${length} returned ${n}`);
    return n;
  }

  closeWrite(): void {
    this.#call(() => this.#stream!.closeWrite());
  }

  reset(): void {
    this.#gaveUp = true;
    this.#call(() => this.#stream!.reset("RESET"));
  }

  onOpen(): void {
    this.#note("open");
    if (this.calls.length > 1) this.violations.push("onOpen was not the first callback, or came twice");
    this.opened = true;
    this.onOpenDo();
  }

  onReadable(): void {
    this.#note("readable");
    if (!this.opened) this.violations.push("onReadable before onOpen");
    if (!this.#mayHearReadable) this.violations.push("onReadable without a read that returned WOULD_BLOCK");
    this.#mayHearReadable = false;
    this.readable = true;
    this.onReadableDo();
  }

  onWritable(): void {
    this.#note("writable");
    if (!this.opened) this.violations.push("onWritable before onOpen");
    if (!this.#mayHearWritable) this.violations.push("onWritable without a write that was cut short");
    this.#mayHearWritable = false;
    this.writable = true;
    this.onWritableDo();
  }

  onClose(reason: ReasonCode | undefined): void {
    this.#note(`close ${reason}`);
    this.closed = true;
    this.reason = reason;
  }

  /** Fails the test if a rule was broken. */
  check(): void {
    assert.deepEqual(this.violations, [], `${this.name} after ${this.calls.join(", ")}`);
  }

  #call<T>(call: () => T): T {
    this.#inCall = true;
    try {
      return call();
    } finally {
      this.#inCall = false;
    }
  }

  #note(what: string): void {
    if (this.#inCall) this.violations.push(`${what} from inside a call on the same stream`);
    if (this.closed) this.violations.push(`${what} after onClose`);
    if (this.#gaveUp) this.violations.push(`${what} after reset`);
    this.calls.push(what);
  }
}

/** Sends `total` bytes of the pattern as fast as they are taken, in pieces of up to `most` bytes, then closes. */
export class Source {
  sent = 0;
  readonly end: End;
  readonly #total: number;
  readonly #size: () => number;

  constructor(end: End, total: number, size: () => number) {
    this.end = end;
    this.#total = total;
    this.#size = size;
    end.onOpenDo = () => this.push();
    end.onWritableDo = () => this.push();
  }

  /** Goes on; needed once where the stream was open before. */
  push(): void {
    while (this.sent < this.#total) {
      const want = Math.min(this.#size(), this.#total - this.sent);
      // An offset into a larger buffer: implementations must not look at the bytes around it.
      const n = this.end.write(patternAt(this.sent & ~7, (this.sent & 7) + want), this.sent & 7, want);
      this.sent += n;
      if (n < want) return;
    }
    this.end.closeWrite();
  }
}

/** Reads everything and checks it against the pattern. */
export class Sink {
  got = 0;
  ended = false;
  correct = true;
  readonly end: End;
  readonly #buffer = new Uint8Array(256 * 1024);
  readonly #size: () => number;

  constructor(end: End, size: () => number = () => 64 * 1024) {
    this.end = end;
    this.#size = size;
    end.onReadableDo = () => this.pull();
  }

  /** Reads until nothing is there or `most` bytes were read. */
  pull(most = Infinity): void {
    for (let read = 0; read < most;) {
      const into = this.#buffer.subarray(0, Math.min(this.#size(), most - read));
      const n = this.end.read(into);
      if (n === WOULD_BLOCK) return;
      if (n === 0) {
        this.ended = true;
        return;
      }
      if (!matchesPattern(this.got, into.subarray(0, n))) this.correct = false;
      this.got += n;
      read += n;
    }
  }
}
