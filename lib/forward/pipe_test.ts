import assert from "node:assert/strict";
import fc from "fast-check";
import type { ReasonCode } from "../errors.ts";
import { memoryPair, MemoryScheduler, type MemoryStream } from "../net_memory.ts";
import { WOULD_BLOCK } from "../net.ts";
import { Pipe, PipeKit } from "./pipe.ts";

/** An application at one end: sends its bytes in chunks, reads in chunks, closes or resets when told to. */
class App {
  readonly received: number[] = [];
  sawEnd = false;
  closed: ReasonCode | undefined | "no" = "no";
  #sent = 0;
  #shut = false;
  readonly #into: Uint8Array;

  constructor(readonly stream: MemoryStream, readonly data: Uint8Array, readonly chunk: number, readonly read: number) {
    this.#into = new Uint8Array(read);
    stream.handler = {
      onOpen: () => {},
      onReadable: () => this.drain(),
      onWritable: () => this.push(),
      onClose: (reason) => this.closed = reason,
    };
  }

  push(): void {
    while (this.#sent < this.data.length) {
      const n = Math.min(this.chunk, this.data.length - this.#sent);
      const taken = this.stream.write(this.data, this.#sent, n);
      this.#sent += taken;
      if (taken < n) return;
    }
    if (!this.#shut) {
      this.#shut = true;
      this.stream.closeWrite();
    }
  }

  drain(): void {
    for (;;) {
      const n = this.stream.read(this.#into);
      if (n === WOULD_BLOCK) return;
      if (n === 0) {
        this.sawEnd = true;
        return;
      }
      for (let i = 0; i < n; i++) this.received.push(this.#into[i]!);
    }
  }
}

function bytes(length: number, seed: number): Uint8Array {
  return Uint8Array.from({ length }, (_, i) => (i * 31 + seed) & 0xff);
}

Deno.test("pipe: every chunking arrives whole and in order, both ways, with both ends passed on", () => {
  const size = fc.integer({ min: 1, max: 300 });
  fc.assert(fc.property(
    fc.record({
      left: fc.nat(5000),
      right: fc.nat(5000),
      capacity: size,
      chunk: size,
      read: size,
      yields: fc.boolean(),
    }),
    ({ left, right, capacity, chunk, read, yields }) => {
      const scheduler = new MemoryScheduler();
      const [clientEnd, a] = memoryPair(scheduler, capacity);
      const [b, serverEnd] = memoryPair(scheduler, capacity);
      const client = new App(clientEnd, bytes(left, 1), chunk, read);
      const server = new App(serverEnd, bytes(right, 2), chunk, read);
      let ended: ReasonCode | undefined | "no" = "no";
      const kit = new PipeKit(yields ? (task) => scheduler.later(task) : undefined);
      const pipe = new Pipe(kit, a, b, { onEnd: (reason) => void (ended = reason) });
      client.push();
      server.push();
      scheduler.run();
      assert.deepEqual(Uint8Array.from(server.received), client.data);
      assert.deepEqual(Uint8Array.from(client.received), server.data);
      assert.ok(client.sawEnd && server.sawEnd);
      assert.equal(ended, undefined);
      assert.deepEqual([client.closed, server.closed], [undefined, undefined]);
      assert.deepEqual([pipe.aToB, pipe.bToA], [left, right]);
    },
  ));
});

Deno.test("a kit keeps buffers for reuse until it is trimmed", () => {
  const kit = new PipeKit();
  const buffer = kit.take();
  kit.give(buffer);
  assert.equal(kit.take(), buffer);
  kit.give(buffer);
  kit.trim();
  assert.notEqual(kit.take(), buffer);
});

Deno.test("pipe: half-close reaches the other end while its answer still flows", () => {
  const scheduler = new MemoryScheduler();
  const [client, a] = memoryPair(scheduler);
  const [b, server] = memoryPair(scheduler);
  const pipe = new Pipe(new PipeKit(), a, b, { onEnd() {} });
  client.write(Uint8Array.of(1, 2, 3), 0, 3);
  client.closeWrite();
  scheduler.run();
  const into = new Uint8Array(10);
  assert.equal(server.read(into), 3);
  assert.equal(server.read(into), 0);
  assert.ok(pipe.halfClosed);
  server.write(Uint8Array.of(9), 0, 1);
  scheduler.run();
  assert.equal(client.read(into), 1);
  assert.equal(client.read(into), WOULD_BLOCK);
  server.closeWrite();
  scheduler.run();
  assert.equal(client.read(into), 0);
});

for (const from of ["client", "server"] as const) {
  Deno.test(`pipe: a reset by the ${from} resets the other end with the same reason`, () => {
    const scheduler = new MemoryScheduler();
    const [client, a] = memoryPair(scheduler);
    const [b, server] = memoryPair(scheduler);
    const ends: (ReasonCode | undefined)[] = [];
    new Pipe(new PipeKit(), a, b, { onEnd: (reason) => void ends.push(reason) });
    const seen: (ReasonCode | undefined)[] = [];
    const [broken, other] = from === "client" ? [client, server] : [server, client];
    other.handler = { ...other.handler, onClose: (reason) => seen.push(reason) };
    scheduler.run();
    broken.reset("RESET");
    scheduler.run();
    assert.deepEqual(seen, ["RESET"]);
    assert.deepEqual(ends, ["RESET"]);
  });
}

Deno.test("pipe: reset from outside ends both streams; who asked for it is not told", () => {
  const scheduler = new MemoryScheduler();
  const [client, a] = memoryPair(scheduler);
  const [b, server] = memoryPair(scheduler);
  const seen: (ReasonCode | undefined)[] = [];
  for (const end of [client, server]) end.handler = { ...end.handler, onClose: (reason) => seen.push(reason) };
  const ends: (ReasonCode | undefined)[] = [];
  const pipe = new Pipe(new PipeKit(), a, b, { onEnd: (reason) => void ends.push(reason) });
  pipe.reset("SHUTDOWN");
  pipe.reset("TIMEOUT");
  scheduler.run();
  assert.deepEqual(ends, []);
  assert.deepEqual(seen, ["SHUTDOWN", "SHUTDOWN"]);
});

Deno.test("pipe: a receiver that does not read stops the sender within the buffers", () => {
  const scheduler = new MemoryScheduler();
  const capacity = 1000;
  const [client, a] = memoryPair(scheduler, capacity);
  const [b, server] = memoryPair(scheduler, capacity);
  new Pipe(new PipeKit(), a, b, { onEnd() {} });
  let sent = 0;
  const block = new Uint8Array(100);
  for (;;) {
    const n = client.write(block, 0, block.length);
    sent += n;
    scheduler.run();
    if (n < block.length) break;
  }
  // Two stream buffers and at most one set-aside piece of what one read returned.
  assert.ok(sent <= 3 * capacity, `${sent} bytes were taken`);
  const into = new Uint8Array(64);
  let got = 0;
  for (let n = server.read(into); n !== WOULD_BLOCK; n = server.read(into)) {
    got += n;
    scheduler.run();
  }
  assert.equal(got, sent);
});
