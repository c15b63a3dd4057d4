import "./preload.ts";
import { strict as assert } from "node:assert";
import { FakeClock, systemClock } from "../clock.ts";
import { MeshError } from "../errors.ts";
import { createLogger, memorySink, nullLogger } from "../log.ts";
import { type Accepted, type IpPort, type MeshStream, WOULD_BLOCK } from "../net.ts";
import { EpollLoop } from "./loop.ts";
import { memoryHeld } from "./memory.ts";
import { Recorder } from "./testing.ts";

const LOCAL: IpPort = { ip: "127.0.0.1", port: 0 };

function openLoop(): EpollLoop {
  return EpollLoop.open({ clock: systemClock, log: nullLogger });
}

/** Echoes until the other side ends, then ends too. */
function echo({ stream }: Accepted): void {
  const buffer = new Uint8Array(4096);
  stream.handler = {
    onOpen() {},
    onReadable() {
      for (;;) {
        const n = stream.read(buffer);
        if (n === WOULD_BLOCK) return;
        if (n === 0) return stream.closeWrite();
        assert.equal(stream.write(buffer, 0, n), n);
      }
    },
    onWritable() {},
    onClose() {},
  };
}

Deno.test("a connection echoes, half-closes and ends cleanly on both address families", async () => {
  for (const ip of ["127.0.0.1", "::1"]) {
    await using loop = openLoop();
    const listener = loop.listenTcp({ ip, port: 0 }, (accepted) => {
      assert.equal(accepted.local.ip, ip);
      assert.deepEqual(accepted.original, accepted.local);
      assert.equal(accepted.remote.ip, ip);
      echo(accepted);
    });
    const handler = new Recorder();
    const stream = loop.dialTcp(listener.local, handler, { timeoutMs: 1000 });
    assert.equal(stream.write(new Uint8Array(3), 0, 3), 0);
    await handler.opened.promise;
    let got = "";
    const buffer = new Uint8Array(100);
    handler.onReadableDo = () => {
      for (;;) {
        const n = stream.read(buffer);
        if (n <= 0) return;
        got += new TextDecoder().decode(buffer.subarray(0, n));
      }
    };
    const text = new TextEncoder().encode("xxhello mesh");
    assert.equal(stream.write(text, 2, 10), 10);
    stream.closeWrite();
    assert.equal(stream.write(text, 0, 2), 0);
    assert.equal(await handler.over.promise, undefined);
    assert.equal(got, "hello mesh");
    assert.equal(handler.calls[0], "open");
    assert.equal(handler.calls.at(-1), "close undefined");
    assert.equal(stream.read(buffer), 0);
  }
});

Deno.test("a refused dial says DIAL_REFUSED before onOpen", async () => {
  await using loop = openLoop();
  const listener = loop.listenTcp(LOCAL, () => {});
  listener.close();
  const handler = new Recorder();
  loop.dialTcp(listener.local, handler, { timeoutMs: 1000 });
  assert.deepEqual(handler.calls, []);
  assert.equal(await handler.over.promise, "DIAL_REFUSED");
  assert.deepEqual(handler.calls, ["close DIAL_REFUSED"]);
  assert.equal(loop.size, 0);
});

Deno.test("a dial to nowhere ends at its deadline", async () => {
  const clock = new FakeClock();
  await using loop = EpollLoop.open({ clock, log: nullLogger });
  // A full backlog makes the kernel drop SYNs: the dial hangs as one to a silent host would.
  const listener = loop.listenTcp(LOCAL, () => {}, { backlog: 0 });
  const address = listener.local;
  const handlers: Recorder[] = [];
  const streams: MeshStream[] = [];
  // The loop accepts only when it runs; these fill the backlog before it does.
  for (let i = 0; i < 4; i++) {
    const handler = new Recorder();
    handlers.push(handler);
    streams.push(loop.dialTcp(address, handler, { timeoutMs: 700 + i }));
  }
  clock.advance(699);
  assert.deepEqual(handlers[3]!.calls, []);
  clock.advance(20);
  assert.deepEqual(handlers[3]!.calls, ["close DIAL_TIMEOUT"]);
  for (const stream of streams) stream.reset("SHUTDOWN");
});

Deno.test("what cannot be bound is refused with address, errno and hint", async () => {
  await using loop = openLoop();
  const listener = loop.listenTcp(LOCAL, () => {});
  assert.throws(() => loop.listenTcp(listener.local, () => {}), (e) => {
    assert(e instanceof MeshError);
    assert.equal(e.code, "KERNEL");
    assert.equal(
      e.message,
      `Cannot bind TCP listener 127.0.0.1:${listener.local.port}: address already in use (EADDRINUSE)`,
    );
    assert.match(e.hint!, /ss -lntup/);
    return true;
  });
  assert.throws(() => loop.bindUdp({ ip: "192.0.2.1", port: 0 }, () => {}), /EADDRNOTAVAIL/);
  const free = loop.bindUdp({ ip: "192.0.2.1", port: 0 }, () => {}, { freeBind: true });
  assert.equal(free.local.ip, "192.0.2.1");
  assert.equal(loop.size, 2);
});

Deno.test("a closed loop gives back all memory, says nothing and refuses everything", async () => {
  const held = memoryHeld();
  const loop = openLoop();
  const listener = loop.listenTcp(LOCAL, () => {});
  loop.bindUdp(LOCAL, () => {});
  const handler = new Recorder();
  loop.dialTcp(listener.local, handler, { timeoutMs: 1000 });
  await handler.opened.promise;
  loop.close();
  await loop.finished;
  assert.equal(memoryHeld(), held);
  assert.deepEqual(handler.calls, ["open"]);
  assert.equal(loop.size, 0);
  assert.throws(() => loop.listenTcp(LOCAL, () => {}), /loop is closed/);
  loop.close();
});

Deno.test("a throwing owner loses its connection, nobody else's", async () => {
  const sink = memorySink();
  await using loop = EpollLoop.open({ clock: systemClock, log: createLogger(sink) });
  let first = true;
  const listener = loop.listenTcp(LOCAL, (accepted) => {
    if (first) {
      first = false;
      throw new Error("bug of the owner");
    }
    echo(accepted);
  });
  const broken = new Recorder();
  const stream = loop.dialTcp(listener.local, broken, { timeoutMs: 1000 });
  broken.onReadableDo = () => stream.read(new Uint8Array(10));
  assert.equal(await broken.over.promise, "RESET");
  const fine = new Recorder();
  const second = loop.dialTcp(listener.local, fine, { timeoutMs: 1000 });
  await fine.opened.promise;
  second.closeWrite();
  fine.onReadableDo = () => second.read(new Uint8Array(10));
  assert.equal(await fine.over.promise, undefined);
  assert.match(sink.lines.join("\n"), /bug of the owner/);
});

Deno.test("datagrams keep their boundaries up to 65 507 bytes, on both families", async () => {
  for (const ip of ["127.0.0.1", "::1"]) {
    await using loop = openLoop();
    const got: { length: number; first: number; from: IpPort }[] = [];
    const done = Promise.withResolvers<void>();
    const sizes = [0, 1, 200, 1472, 2048, 2049, 9000, 65_507];
    const server = loop.bindUdp({ ip, port: 0 }, (bytes, length, from) => {
      server.send(bytes, length, from);
    });
    const client = loop.bindUdp({ ip, port: 0 }, (bytes, length, from) => {
      got.push({ length, first: bytes[0]!, from });
      if (got.length === sizes.length) done.resolve();
    });
    sizes.forEach((size, i) => {
      const bytes = new Uint8Array(65_507).fill(i);
      assert(client.send(bytes, size, server.local));
    });
    await done.promise;
    assert.deepEqual(got.map((g) => g.length).sort((a, b) => a - b), sizes);
    for (const g of got) {
      assert.deepEqual({ ip: g.from.ip, port: g.from.port }, server.local);
      if (g.length > 0) assert.equal(g.first, sizes.indexOf(g.length));
    }
  }
});
