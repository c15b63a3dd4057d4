/**
 * The contract of DatagramFlow (lib/net.ts) as tests. To run it on another implementation, write a {@link FlowFactory}
 * and call {@link datagramContract} at the top level of a test file.
 */
import { strict as assert } from "node:assert";
import type { ReasonCode } from "../../lib/errors.ts";
import type { DatagramFlow, FlowHandler } from "../../lib/net.ts";
import { matchesPattern, patternAt, type Turn, until } from "./harness.ts";

/** Connected flows of one implementation. */
export interface FlowFactory {
  /** Starts a flow from `near` to `far`. Resolves when both ends can send. */
  pair(near: FlowHandler, far: FlowHandler): Promise<readonly [near: DatagramFlow, far: DatagramFlow]>;
  readonly turn: Turn;
  /** Returns when everything that is on its way has arrived, or was dropped, and its callbacks have run. */
  quiet(): Promise<void>;
  /** More bytes than may ever wait in one direction. */
  readonly capacity: number;
  /** Whether the other end hears of a close; plain UDP has no such message. */
  readonly closeIsTold: boolean;
  close(): Promise<void>;
}

/** The largest payload of UDP over IPv4: 65 535 − 20 − 8. */
const MAX_DATAGRAM = 65_507;
const SIZES = [0, 1, 2, 100, 1200, 1472, 1473, 2047, 2048, 2049, 9000, 16_384, 16_385, 40_000, 65_506, MAX_DATAGRAM];

/** One end: keeps copies of what came and notes broken rules. */
class FlowEnd implements FlowHandler {
  readonly got: Uint8Array[] = [];
  readonly violations: string[] = [];
  closes: (ReasonCode | undefined)[] = [];
  onDatagramDo: () => void = () => {};
  #flow: DatagramFlow | undefined;
  #inCall = false;
  #gaveUp = false;

  use(flow: DatagramFlow): void {
    this.#flow = flow;
  }

  send(bytes: Uint8Array, length = bytes.length): boolean {
    return this.#call(() => this.#flow!.send(bytes, length));
  }

  close(): void {
    this.#gaveUp = true;
    this.#call(() => this.#flow!.close("SHUTDOWN"));
  }

  onDatagram(bytes: Uint8Array, length: number): void {
    this.#note("a datagram");
    if (length > bytes.length) this.violations.push(`a datagram of ${length} bytes in a buffer of ${bytes.length}`);
    this.got.push(bytes.slice(0, length));
    this.onDatagramDo();
  }

  onClose(reason: ReasonCode | undefined): void {
    this.#note("onClose");
    this.closes.push(reason);
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
    if (this.#inCall) this.violations.push(`${what} from inside a call on the same flow`);
    if (this.#gaveUp) this.violations.push(`${what} after close`);
    if (this.closes.length > 0) this.violations.push(`${what} after onClose`);
  }
}

type Case = (f: FlowFactory) => Promise<void>;

/** Registers the suite under `name`. `open` makes a fresh factory for each case. */
export function datagramContract(name: string, open: () => Promise<FlowFactory>): void {
  for (const [title, run] of Object.entries(CASES)) {
    Deno.test(`${name}: ${title}`, async () => {
      const factory = await open();
      try {
        await run(factory);
      } finally {
        await factory.close();
      }
    });
  }
}

const CASES: Readonly<Record<string, Case>> = {
  "datagrams of every size keep their boundaries and bytes, both ways": async (f) => {
    const { near, far } = await connect(f);
    for (const [from, to] of [[near, far], [far, near]] as const) {
      for (const [i, size] of SIZES.entries()) {
        assert(from.send(patternAt(i, size)), `a datagram of ${size} bytes was refused`);
        await until(f.turn, () => to.got.length === i + 1, `${size} bytes arrived`);
        assert.equal(to.got[i]!.length, size);
        assert(matchesPattern(i, to.got[i]!), `${size} bytes arrived changed`);
      }
    }
    check(near, far);
  },

  "only the first `length` bytes of the buffer are sent, and the buffer may be reused at once": async (f) => {
    const { near, far } = await connect(f);
    const buffer = new Uint8Array(4096);
    for (let i = 0; i < 40; i++) {
      buffer.fill(i);
      assert(near.send(buffer.subarray(i), 100 + i * 90));
    }
    buffer.fill(255);
    await until(f.turn, () => far.got.length === 40, "all arrived");
    for (const bytes of far.got) {
      const i = bytes[0]!;
      assert.equal(bytes.length, 100 + i * 90);
      assert(bytes.every((b) => b === i));
    }
    assert.equal(new Set(far.got.map((bytes) => bytes[0])).size, 40);
    check(near, far);
  },

  "a datagram that is too large is refused and harms nothing": async (f) => {
    const { near, far } = await connect(f);
    assert.equal(near.send(new Uint8Array(70_000)), false);
    assert.equal(near.send(new Uint8Array(MAX_DATAGRAM + 100)), false);
    assert(near.send(patternAt(0, 50)));
    await until(f.turn, () => far.got.length > 0, "the next one arrived");
    await f.quiet();
    assert.deepEqual(far.got.map((bytes) => bytes.length), [50]);
    check(near, far);
  },

  "of a flood, what arrives is whole and arrives once, and what waits is bounded": async (f) => {
    const { near, far } = await connect(f);
    const size = 1200;
    const count = Math.ceil(f.capacity * 2 / size);
    const bytes = new Uint8Array(size);
    const view = new DataView(bytes.buffer);
    for (let i = 0; i < count; i++) {
      bytes.fill(i);
      view.setUint32(0, i);
      near.send(bytes);
    }
    await f.quiet();
    assert(far.got.length > 0);
    assert(far.got.length * size <= f.capacity, `${far.got.length} datagrams waited`);
    const seen = new Set<number>();
    for (const got of far.got) {
      assert.equal(got.length, size);
      const i = new DataView(got.buffer).getUint32(0);
      assert(got.subarray(4).every((b) => b === (i & 255)), "two datagrams were mixed");
      assert(!seen.has(i), "a datagram arrived twice");
      seen.add(i);
    }
    // The way is free again.
    const before = far.got.length;
    assert(near.send(patternAt(0, 10)));
    await until(f.turn, () => far.got.length > before, "the flow goes on");
    check(near, far);
  },

  "after a close nothing is sent and nothing is heard": async (f) => {
    const { near, far } = await connect(f);
    far.send(patternAt(0, 100));
    near.close();
    near.close();
    assert.equal(near.send(patternAt(0, 10)), false);
    await f.quiet();
    assert.deepEqual(near.got, []);
    assert.deepEqual(near.closes, []);
    if (f.closeIsTold) {
      await until(f.turn, () => far.closes.length > 0, "the other end heard of the close");
      assert.equal(far.send(patternAt(0, 10)), false);
      far.close();
      await f.quiet();
      assert.equal(far.closes.length, 1);
    }
    assert.deepEqual(near.violations, []);
  },

  "a close inside a callback is the last thing heard, also when more has arrived": async (f) => {
    const { near, far } = await connect(f);
    far.onDatagramDo = () => far.close();
    for (let i = 0; i < 10; i++) near.send(patternAt(0, 100));
    await until(f.turn, () => far.got.length > 0, "the first arrived");
    await f.quiet();
    assert.equal(far.got.length, 1);
    assert.deepEqual(far.violations, []);
  },

  "an answer sent from inside the callback arrives": async (f) => {
    const { near, far } = await connect(f);
    far.onDatagramDo = () => far.send(far.got.at(-1)!);
    for (let i = 0; i < 20; i++) near.send(patternAt(i, 1000 + i));
    await until(f.turn, () => near.got.length === 20, "all answers arrived");
    for (const bytes of near.got) assert(matchesPattern(bytes.length - 1000, bytes));
    check(near, far);
  },
};

async function connect(f: FlowFactory): Promise<{ near: FlowEnd; far: FlowEnd }> {
  const near = new FlowEnd();
  const far = new FlowEnd();
  const [n, o] = await f.pair(near, far);
  near.use(n);
  far.use(o);
  return { near, far };
}

function check(...ends: FlowEnd[]): void {
  for (const end of ends) {
    assert.deepEqual(end.violations, []);
    assert.deepEqual(end.closes, []);
  }
}
