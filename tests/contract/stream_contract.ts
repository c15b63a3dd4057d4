/**
 * The contract of MeshStream (lib/net.ts) as tests. Each implementation runs the same suite: sockets of the loop, the
 * in-memory pair, streams of a tunnel session. To run it on another one, write a {@link StreamFactory} and call
 * {@link streamContract} at the top level of a test file.
 */
import { strict as assert } from "node:assert";
import { type MeshStream, type StreamHandler, WOULD_BLOCK } from "../../lib/net.ts";
import { End, patternAt, randomFrom, Sink, Source, type Turn, until } from "./harness.ts";

/** Connected streams of one implementation. */
export interface StreamFactory {
  /**
   * Starts a connection. `near` is the end that dials, `far` the end that is dialled; each handler must be set before
   * its first callback. Resolves when both streams exist; they need not be open yet.
   */
  pair(near: StreamHandler, far: StreamHandler): Promise<readonly [near: MeshStream, far: MeshStream]>;
  /** Starts a connection that is going to fail before it opens. */
  failingDial(handler: StreamHandler): MeshStream;
  /** Lets callbacks run; called in a loop until something happened. */
  readonly turn: Turn;
  /** Returns when everything that is on its way has arrived and its callbacks have run. */
  quiet(): Promise<void>;
  /** More bytes than one direction may ever take from a writer while the reader does not read. */
  readonly capacity: number;
  /** Streams that exist on both sides now: 0 when all are over. */
  readonly size: number;
  close(): Promise<void>;
}

const MB = 1024 * 1024;
const BULK_BYTES = 64 * MB;
const SHORT_STREAMS = 1000;
const SHORT_AT_ONCE = 50;

type Case = (factory: StreamFactory) => Promise<void>;

/** Registers the suite under `name`. `open` makes a fresh factory for each case. */
export function streamContract(name: string, open: () => Promise<StreamFactory>): void {
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
  "64 MB of random sizes arrive in order and unchanged, both ways at once": async (f) => {
    const { near, far } = await connect(f);
    const random = randomFrom(1);
    const sinks = [new Sink(near, () => 1 + random(64 * 1024)), new Sink(far, () => 1 + random(64 * 1024))];
    const sources = [near, far].map((end) => new Source(end, BULK_BYTES, () => 1 + random(100_000)));
    for (const source of sources) source.push();
    await until(f.turn, () => near.closed && far.closed, "both ends are over");
    for (const sink of sinks) {
      assert.equal(sink.got, BULK_BYTES);
      assert(sink.correct, "bytes differ from what was sent");
    }
    cleanlyOver(near, far);
  },

  "a reader that does not read stops the writer, and memory stays bounded": async (f) => {
    const { near, far } = await connect(f);
    const sink = new Sink(far);
    far.onReadableDo = () => {};
    const source = new Source(near, f.capacity * 3, () => 32 * 1024);
    source.push();
    await f.quiet();
    const stopped = source.sent;
    assert(stopped > 0, "nothing was taken");
    assert(stopped <= f.capacity, `${stopped} bytes were taken without a reader, more than ${f.capacity}`);
    await f.quiet();
    assert.equal(source.sent, stopped, "the writer went on although nobody read");
    assert(!near.writable);
    far.onReadableDo = () => sink.pull();
    sink.pull();
    await until(f.turn, () => sink.ended, "the reader saw the end");
    assert.equal(sink.got, f.capacity * 3);
    assert(sink.correct);
    far.closeWrite();
    await readToEnd(f, near);
    cleanlyOver(near, far);
  },

  "a reader that takes a little at a time gets everything": async (f) => {
    const { near, far } = await connect(f);
    const sink = new Sink(far, () => 1000);
    far.onReadableDo = () => {};
    const total = Math.min(f.capacity * 2, 4 * MB);
    const source = new Source(near, total, () => 10_000);
    source.push();
    while (!sink.ended) {
      await until(f.turn, () => far.readable || sink.ended, "something can be read");
      sink.pull(100_000);
    }
    assert.equal(sink.got, total);
    assert(sink.correct);
  },

  "the dialling side closes first: the other direction goes on": async (f) => {
    const { near, far } = await connect(f);
    await halfClose(f, near, far);
  },

  "the dialled side closes first: the other direction goes on": async (f) => {
    const { near, far } = await connect(f);
    await halfClose(f, far, near);
  },

  "both sides close at once": async (f) => {
    const { near, far } = await connect(f);
    near.closeWrite();
    far.closeWrite();
    await Promise.all([readToEnd(f, near), readToEnd(f, far)]);
    await until(f.turn, () => near.closed && far.closed, "both are over");
    cleanlyOver(near, far);
  },

  "a reset without data in flight reaches the other side as a reason, from each side": async (f) => {
    for (const swap of [false, true]) {
      const { near, far } = await connect(f);
      const [who, other] = swap ? [far, near] : [near, far];
      drainAlways(other);
      other.onReadableDo();
      who.reset();
      await until(f.turn, () => other.closed, "the other side heard of the reset");
      assert.notEqual(other.reason, undefined);
      await f.quiet();
      for (const end of [near, far]) end.check();
      assert.equal(who.closed, false);
    }
    assert.equal(f.size, 0);
  },

  "a reset with data in flight both ways: what arrives is a beginning of what was sent": async (f) => {
    for (const swap of [false, true]) {
      const { near, far } = await connect(f);
      const [who, other] = swap ? [far, near] : [near, far];
      // The reader stops after the first bytes, so that both directions are full when the reset comes.
      const sink = new Sink(other);
      other.onReadableDo = () => sink.pull(1000 - sink.got);
      for (const end of [who, other]) new Source(end, f.capacity * 4, () => 16 * 1024).push();
      await until(f.turn, () => sink.got === 1000, "some bytes arrived");
      await f.quiet();
      who.reset();
      await f.quiet();
      if (!other.closed) sink.pull();
      other.onReadableDo = () => sink.pull();
      await until(f.turn, () => other.closed, "the other side heard of the reset");
      assert.notEqual(other.reason, undefined);
      assert(sink.correct);
      assert(!sink.ended, "a reset looked like a clean end");
      assert(sink.got < f.capacity * 4);
      await f.quiet();
      for (const end of [near, far]) end.check();
    }
    assert.equal(f.size, 0);
  },

  "nothing is heard after a reset inside a callback, and calls after it are harmless": async (f) => {
    const { near, far } = await connect(f);
    far.onReadableDo = () => {
      far.reset();
      far.reset();
    };
    drainAlways(near);
    near.onReadableDo();
    near.write(patternAt(0, 100), 0, 100);
    await until(f.turn, () => near.closed, "the near side is over");
    assert.equal(far.write(patternAt(0, 10), 0, 10), 0);
    far.closeWrite();
    assert.equal(far.read(new Uint8Array(10)), 0);
    near.reset();
    assert.equal(near.write(patternAt(0, 10), 0, 10), 0);
    await f.quiet();
    far.check();
    assert.equal(f.size, 0);
  },

  "a reset before the stream is open leaves silence": async (f) => {
    const near = new End("near");
    const far = new End("far");
    drainAlways(far);
    const [n, o] = await f.pair(near, far);
    near.use(n);
    far.use(o);
    if (near.opened) near.calls.length = 0;
    near.reset();
    await until(f.turn, () => far.closed || f.size === 0, "the far side is over");
    await f.quiet();
    assert.deepEqual(near.calls, []);
    far.check();
  },

  "a write after closeWrite takes nothing, and onWritable never follows": async (f) => {
    const { near, far } = await connect(f);
    new Sink(far);
    near.closeWrite();
    assert.equal(near.write(patternAt(0, 100), 0, 100), 0);
    near.closeWrite();
    await f.quiet();
    assert(!near.calls.includes("writable"));
    assert.equal((far.onReadableDo(), far.closed), false);
    far.closeWrite();
    await readToEnd(f, near);
    cleanlyOver(near, far);
  },

  "a read after the end returns 0 again and again": async (f) => {
    const { near, far } = await connect(f);
    near.write(patternAt(0, 10), 0, 10);
    near.closeWrite();
    await readToEnd(f, far);
    const buffer = new Uint8Array(10);
    for (let i = 0; i < 3; i++) assert.equal(far.read(buffer), 0);
    await f.quiet();
    assert.equal(far.read(buffer), 0);
    assert.equal(far.closed, false);
    far.check();
    far.closeWrite();
    await readToEnd(f, near);
    cleanlyOver(near, far);
    assert.equal(far.read(buffer), 0);
  },

  "onReadable comes once, and again only after a read that found nothing": async (f) => {
    const { near, far } = await connect(f);
    const buffer = new Uint8Array(1000);
    assert.equal(near.write(patternAt(0, 500), 0, 500), 500);
    await until(f.turn, () => far.readable, "the first bytes are announced");
    near.write(patternAt(500, 500), 0, 500);
    await f.quiet();
    assert.equal(count(far, "readable"), 1);
    let got = 0;
    while (got < 999) {
      const n = far.read(buffer.subarray(0, 999 - got));
      assert(n > 0, `read returned ${n} although ${1000 - got} bytes were there`);
      got += n;
    }
    near.write(patternAt(1000, 1), 0, 1);
    await f.quiet();
    assert.equal(count(far, "readable"), 1);
    while (far.read(buffer) !== WOULD_BLOCK);
    near.closeWrite();
    await until(f.turn, () => count(far, "readable") === 2, "the end is announced");
    assert.equal(far.read(buffer), 0);
    far.check();
    near.reset();
  },

  "writes of nothing take nothing, send nothing and announce nothing": async (f) => {
    const { near, far } = await connect(f);
    assert.equal(near.write(patternAt(0, 10), 0, 0), 0);
    assert.equal(near.write(new Uint8Array(0), 0, 0), 0);
    await f.quiet();
    assert.deepEqual(near.calls.filter((c) => c !== "open"), []);
    assert.deepEqual(far.calls.filter((c) => c !== "open"), []);
    near.reset();
  },

  "a read into nothing is refused": async (f) => {
    const { near } = await connect(f);
    assert.throws(() => near.read(new Uint8Array(0)), /empty buffer/);
    near.reset();
  },

  "a dial that fails says why before onOpen, and nothing else": async (f) => {
    const end = new End("near");
    const stream = f.failingDial(end);
    end.use(stream);
    assert.deepEqual(end.calls, [], "the fate came from inside the dial");
    end.write(patternAt(0, 10), 0, 10);
    await until(f.turn, () => end.closed, "the dial failed");
    assert.equal(end.calls.length, 1);
    assert.notEqual(end.reason, undefined);
    await f.quiet();
    end.check();
    assert.equal(f.size, 0);
  },

  "a writer that was cut short before the end can close, and all it was told is delivered": async (f) => {
    const { near, far } = await connect(f);
    const sink = new Sink(far);
    far.onReadableDo = () => {};
    let sent = 0;
    for (;;) {
      const n = near.write(patternAt(sent, 10_000), 0, 10_000);
      sent += n;
      if (n < 10_000) break;
    }
    near.closeWrite();
    await f.quiet();
    far.onReadableDo = () => sink.pull();
    sink.pull();
    await until(f.turn, () => sink.ended, "the end arrived");
    assert.equal(sink.got, sent);
    assert(sink.correct);
    assert(!near.calls.includes("writable"), "onWritable after closeWrite");
    far.closeWrite();
    await readToEnd(f, near);
    cleanlyOver(near, far);
  },

  "1000 short streams, 50 at a time, end cleanly and leave nothing": async (f) => {
    for (let done = 0; done < SHORT_STREAMS; done += SHORT_AT_ONCE) {
      const batch = await Promise.all(Array.from({ length: SHORT_AT_ONCE }, () => requestReply(f)));
      await until(f.turn, () => batch.every((b) => b.near.closed && b.far.closed), "all streams are over");
      for (const { near, far, request, reply } of batch) {
        assert.equal(request.got, 300);
        assert.equal(reply.got, 3000);
        assert(request.correct && reply.correct);
        cleanlyOver(near, far);
      }
    }
    await f.quiet();
    assert.equal(f.size, 0);
  },
};

/** A pair of which both ends are open. */
async function connect(f: StreamFactory): Promise<{ near: End; far: End }> {
  const near = new End("near");
  const far = new End("far");
  const [n, o] = await f.pair(near, far);
  near.use(n);
  far.use(o);
  await until(f.turn, () => near.opened && far.opened, "both ends are open");
  return { near, far };
}

async function halfClose(f: StreamFactory, first: End, second: End): Promise<void> {
  const there = new Sink(second);
  const back = new Sink(first);
  new Source(first, 100_000, () => 7000).push();
  await until(f.turn, () => there.ended, "the first end arrived");
  assert.equal(there.got, 100_000);
  await f.quiet();
  assert(!first.closed && !second.closed, "a half-closed stream was over");
  new Source(second, 200_000, () => 9000).push();
  await until(f.turn, () => first.closed && second.closed, "both are over");
  assert.equal(back.got, 200_000);
  assert(there.correct && back.correct && back.ended);
  cleanlyOver(first, second);
}

async function requestReply(f: StreamFactory) {
  const near = new End("near");
  const far = new End("far");
  const [n, o] = await f.pair(near, far);
  near.use(n);
  far.use(o);
  const request = new Sink(far);
  const reply = new Sink(near);
  const answer = new Source(far, 3000, () => 3000);
  far.onReadableDo = () => {
    request.pull();
    if (request.ended && answer.sent === 0) answer.push();
  };
  const ask = new Source(near, 300, () => 300);
  if (near.opened) ask.push();
  return { near, far, request, reply };
}

function cleanlyOver(...ends: End[]): void {
  for (const end of ends) {
    end.check();
    assert(end.closed, `${end.name} is not over: ${end.calls.join(", ")}`);
    assert.equal(end.reason, undefined, `${end.name} broke: ${end.reason}`);
    assert.equal(count(end, "close undefined"), 1);
  }
}

function count(end: End, what: string): number {
  return end.calls.filter((call) => call === what).length;
}

/** Reads whatever comes. */
function drainAlways(end: End): void {
  const buffer = new Uint8Array(4096);
  end.onReadableDo = () => {
    while (end.read(buffer) > 0);
  };
}

async function readToEnd(f: StreamFactory, end: End): Promise<void> {
  const sink = new Sink(end);
  sink.correct = true;
  end.onReadableDo = () => sink.pull();
  sink.pull();
  await until(f.turn, () => sink.ended, `${end.name} saw the end`);
  await f.quiet();
}
