/**
 * The stream contract between two ends that have a spliced pair of connections between them: whatever a direct
 * connection promises, a proxied one must keep.
 */
import "../../lib/linux/preload.ts";
import { strict as assert } from "node:assert";
import { setImmediate } from "node:timers";
import { systemClock } from "../../lib/clock.ts";
import { type Fd, libc } from "../../lib/linux/ffi.ts";
import { EpollLoop } from "../../lib/linux/loop.ts";
import { Memory } from "../../lib/linux/memory.ts";
import { SOL_TCP } from "../../lib/linux/structs.ts";
import { nullLogger } from "../../lib/log.ts";
import { idleHandler, type IpPort, type MeshStream, type StreamHandler } from "../../lib/net.ts";
import { End, patternAt, randomFrom, Sink, Source, until } from "./harness.ts";
import { streamContract, type StreamFactory } from "./stream_contract.ts";

const ANY: IpPort = { ip: "127.0.0.1", port: 0 };
const TCP_INFO = 11;
/** Offset of tcpi_segs_in in `struct tcp_info` (linux/tcp.h). */
const TCP_INFO_SEGS_IN = 140;
/** What a client has received before the first byte. */
const SYN_ACK = 1;
const turn = () => new Promise<void>((resolve) => void setImmediate(resolve));

interface Rig {
  readonly loop: EpollLoop;
  readonly ends: { reason: string | undefined; aToB: number; bToA: number }[];
  pair(near: StreamHandler, far: StreamHandler): Promise<readonly [MeshStream, MeshStream]>;
}

/** A listener whose connections are forwarded to another one; `first` is put in front of what the client sends. */
function proxyRig(first?: Uint8Array): Rig {
  const loop = EpollLoop.open({ clock: systemClock, log: nullLogger });
  const ends: Rig["ends"] = [];
  const waiting: { handler: StreamHandler; done: (stream: MeshStream) => void }[] = [];
  const server = loop.listenTcp(ANY, ({ stream }) => {
    const next = waiting.shift()!;
    stream.handler = next.handler;
    next.done(stream);
  });
  const proxy = loop.listenTcp(ANY, ({ stream }) => {
    const onEnd = (reason: string | undefined, aToB: number, bToA: number) => void ends.push({ reason, aToB, bToA });
    const other: MeshStream = loop.dialTcp(server.local, {
      ...idleHandler,
      onOpen: () => void loop.splice(stream, other, { onEnd }, first && { sent: 0, rest: first }),
      onClose: (reason) => stream.reset(reason ?? "RESET"),
    }, { timeoutMs: 10_000 });
  });
  let turnstile: Promise<unknown> = Promise.resolve();
  return {
    loop,
    ends,
    pair(near, far) {
      const made = turnstile.then(() =>
        new Promise<readonly [MeshStream, MeshStream]>((resolve) => {
          const dialled = loop.dialTcp(proxy.local, near, { timeoutMs: 10_000 });
          waiting.push({ handler: far, done: (stream) => resolve([dialled, stream]) });
        })
      );
      turnstile = made;
      return made;
    },
  };
}

streamContract("spliced loop sockets", () => {
  const rig = proxyRig();
  const { loop } = rig;
  const free = loop.listenTcp(ANY, () => {});
  free.close();
  const factory: StreamFactory = {
    pair: rig.pair,
    failingDial: (handler) => loop.dialTcp(free.local, handler, { timeoutMs: 10_000 }),
    turn,
    /** Three round trips through the proxy: what was sent before has passed it in order. */
    quiet: async () => {
      for (let i = 0; i < 3; i++) {
        const [near, far] = [new End("probe"), new End("probe")];
        const [n, f] = await rig.pair(near, far);
        near.use(n);
        far.use(f);
        await until(turn, () => near.opened && far.opened, "the probe is open");
        far.onReadableDo = () => far.reset();
        near.write(new Uint8Array(1), 0, 1);
        near.onReadableDo = () => near.read(new Uint8Array(1));
        await until(turn, () => near.closed, "the probe is back");
      }
    },
    // Twice the kernel's buffers of a connection, and a pipe.
    capacity: 33 * 1024 * 1024,
    get size() {
      return loop.size - 2;
    },
    close: async () => {
      loop.close();
      await loop.finished;
    },
  };
  return Promise.resolve(factory);
});

Deno.test("a splice counts its bytes and says once how it ended", async () => {
  const rig = proxyRig();
  const { near, far } = await connect(rig);
  const [request, reply] = [new Sink(far), new Sink(near)];
  new Source(near, 3_000_000, () => 50_000).push();
  new Source(far, 5_000_000, () => 50_000).push();
  await until(turn, () => rig.ends.length > 0, "the splice ended");
  assert.deepEqual([request.got, reply.got], [3_000_000, 5_000_000]);
  assert.deepEqual(rig.ends, [{ reason: undefined, aToB: 3_000_000, bToA: 5_000_000 }]);
  rig.loop.close();
  await rig.loop.finished;
});

Deno.test("bytes that were read before come first", async () => {
  const rig = proxyRig(patternAt(0, 1000).slice());
  const { near, far } = await connect(rig);
  const sink = new Sink(far);
  // They may have arrived before anybody listened for them.
  sink.pull();
  near.write(patternAt(1000, 500), 0, 500);
  near.closeWrite();
  await until(turn, () => sink.ended, "the end arrived");
  assert.equal(sink.got, 1500);
  assert(sink.correct);
  rig.loop.close();
  await rig.loop.finished;
});

Deno.test("an answer whose end came with it leaves with it: one segment", async () => {
  const rig = proxyRig();
  const answer = new Uint8Array(100);
  let segments = 0;
  // The proxy may have been quick enough to see the bytes without the end: not five times in a row.
  for (let i = 0; i < 5 && segments !== SYN_ACK + 1; i++) {
    const { near, far, client } = await connect(rig);
    const sink = new Sink(near);
    far.write(answer, 0, answer.length);
    far.closeWrite();
    await until(turn, () => sink.ended, "the end arrived");
    assert.equal(sink.got, answer.length);
    const fd = rig.loop.takeFd(client);
    segments = segmentsIn(fd);
    libc().close(fd);
    await until(turn, () => rig.ends.length === i + 1, "the splice ended");
  }
  assert.equal(segments, SYN_ACK + 1);
  rig.loop.close();
  await rig.loop.finished;
});

Deno.test("answers of any size reach a client that reads late, whole and with their end", async () => {
  const rig = proxyRig();
  const random = randomFrom(7);
  const ends = await Promise.all(Array.from({ length: 60 }, () => connect(rig)));
  const totals = ends.map(({ near, far }, i) => {
    near.onReadableDo = () => {};
    // Small ones end with their last bytes; large ones fill all buffers on the way before it comes.
    const total = random(i % 3 === 0 ? 4_000_000 : 70_000) + 1;
    new Source(far, total, () => 1 + random(60_000)).push();
    return total;
  });
  for (let i = 0; i < 20; i++) await turn();
  const sinks = ends.map(({ near }) => new Sink(near));
  for (const sink of sinks) sink.pull();
  await until(turn, () => sinks.every((sink) => sink.ended), "all answers ended");
  assert.deepEqual(sinks.map((sink) => sink.got), totals);
  assert(sinks.every((sink) => sink.correct));
  for (const { near } of ends) near.closeWrite();
  await until(turn, () => rig.ends.length === ends.length, "all splices ended");
  assert.deepEqual(rig.ends.map((end) => end.reason), ends.map(() => undefined));
  assert.deepEqual(rig.ends.map((end) => end.bToA).sort(), [...totals].sort());
  rig.loop.close();
  await rig.loop.finished;
});

Deno.test("splices need no pipe while idle, and give back all descriptors, also when the loop closes under them", async () => {
  const fds = () => [...Deno.readDirSync("/proc/self/fd")].length;
  const before = fds();
  const rig = proxyRig();
  const pairs = [];
  for (let i = 0; i < 30; i++) pairs.push(await connect(rig));
  for (const { near, far } of pairs) {
    const sink = new Sink(far);
    new Source(near, 2_000_000, () => 100_000).push();
    await until(turn, () => sink.ended, "the transfer ended");
  }
  const sockets = rig.loop.size;
  // epoll, eventfd, and a pool that one transfer after the other can share.
  assert(fds() - before <= sockets + 2 + 4, `${fds() - before} descriptors for ${sockets} sockets`);
  // Thirty blocked transfers hold their pipes: closing the loop must not lose them.
  for (const { near, far } of await Promise.all(pairs.map(() => connect(rig)))) {
    far.onReadableDo = () => {};
    new Source(near, 20_000_000, () => 100_000).push();
  }
  await turn();
  rig.loop.close();
  await rig.loop.finished;
  assert.equal(fds(), before);
});

/** Segments that the connection of a descriptor has received so far. */
function segmentsIn(fd: Fd): number {
  const [info, length] = [Memory.allocate(256), Memory.allocate(4)];
  length.u32[0] = 256;
  assert.equal(libc().getsockopt(fd, SOL_TCP, TCP_INFO, info.pointer, length.pointer), 0);
  const segments = info.u32[TCP_INFO_SEGS_IN >> 2]!;
  for (const memory of [info, length]) memory.free();
  return segments;
}

async function connect(rig: Rig): Promise<{ near: End; far: End; client: MeshStream }> {
  const near = new End("near");
  const far = new End("far");
  const [n, f] = await rig.pair(near, far);
  near.use(n);
  far.use(f);
  await until(turn, () => near.opened && far.opened, "both ends are open");
  return { near, far, client: n };
}
