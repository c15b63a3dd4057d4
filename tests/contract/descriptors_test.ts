/**
 * Descriptors of the whole process: how many there are, and what happens when none is left. Not beside the code, because
 * unit tests run in parallel threads of one process and would disturb each other.
 */
import "../../lib/linux/preload.ts";
import { strict as assert } from "node:assert";
import { setImmediate } from "node:timers";
import { FakeClock, systemClock } from "../../lib/clock.ts";
import { libc } from "../../lib/linux/ffi.ts";
import { EpollLoop } from "../../lib/linux/loop.ts";
import { Memory } from "../../lib/linux/memory.ts";
import { Recorder } from "../../lib/linux/testing.ts";
import { createLogger, memorySink, nullLogger } from "../../lib/log.ts";
import type { IpPort, MeshStream } from "../../lib/net.ts";

const LOCAL: IpPort = { ip: "127.0.0.1", port: 0 };
const DIAL = { timeoutMs: 10_000 };
const openDescriptors = () => [...Deno.readDirSync("/proc/self/fd")].length;

Deno.test("a closed loop gives back every descriptor, whatever it was doing", async () => {
  const before = openDescriptors();
  const loop = EpollLoop.open({ clock: systemClock, log: nullLogger });
  const listener = loop.listenTcp(LOCAL, () => {});
  loop.bindUdp(LOCAL, () => {});
  const handler = new Recorder();
  loop.dialTcp(listener.local, handler, DIAL);
  await handler.opened.promise;
  loop.dialTcp(listener.local, new Recorder(), DIAL);
  assert(openDescriptors() >= before + 7);
  loop.close();
  await loop.finished;
  assert.equal(openDescriptors(), before);
});

Deno.test("without a free descriptor connections wait, with one line in the log, and are accepted when there is one", async () => {
  const clock = new FakeClock();
  const sink = memorySink();
  await using loop = EpollLoop.open({ clock, log: createLogger(sink) });
  await using clients = EpollLoop.open({ clock: systemClock, log: nullLogger });
  const accepted: MeshStream[] = [];
  let wake = () => {};
  const listener = loop.listenTcp(LOCAL, ({ stream }) => {
    accepted.push(stream);
    wake();
  });
  const limit = Memory.allocate(16);
  const RLIMIT_NOFILE = 7;
  assert.equal(libc().prlimit(0, RLIMIT_NOFILE, null, limit.pointer), 0);
  const soft = limit.view.getBigUint64(0, true);
  const handlers = Array.from({ length: 6 }, () => new Recorder());
  const setLimit = (n: bigint) => {
    limit.view.setBigUint64(0, n, true);
    assert.equal(libc().prlimit(0, RLIMIT_NOFILE, limit.pointer, null), 0);
  };
  /** In one piece: nothing is accepted before the limit is set. */
  const dialWithoutDescriptors = () => {
    for (const handler of handlers) clients.dialTcp(listener.local, handler, DIAL);
    // The kernel gives the lowest free number: two more fit below this limit.
    const spare = [Deno.openSync("/dev/null"), Deno.openSync("/dev/null")];
    setLimit(BigInt(openDescriptors()));
    for (const file of spare) file.close();
  };
  try {
    dialWithoutDescriptors();
    await Promise.all(handlers.map((h) => h.opened.promise));
    while (!sink.lines.some((l) => /no descriptor is free/.test(l))) {
      {
        await new Promise<void>((resolve) => void setImmediate(resolve));
      }
    }
    assert(accepted.length < 6, `${accepted.length} were accepted`);
    // Tried again, it fails again, and says nothing more.
    for (let i = 0; i < 3; i++) {
      clock.advance(260);
      for (let k = 0; k < 50; k++) await new Promise<void>((resolve) => void setImmediate(resolve));
    }
    assert.equal(sink.lines.length, 1, sink.lines.join("\n"));
  } finally {
    setLimit(soft);
    limit.free();
  }
  clock.advance(260);
  while (accepted.length < 6) await new Promise<void>((resolve) => wake = resolve);
  assert.match(sink.lines[0]!, /Cannot accept on 127\.0\.0\.1:\d+: too many open files in this process \(EMFILE\)/);
  assert.match(sink.lines[0]!, /LimitNOFILE/);
});
