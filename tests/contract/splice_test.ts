/**
 * The stream contract between two ends that have a spliced pair of connections between them: whatever a direct
 * connection promises, a proxied one must keep.
 */
import "../../lib/linux/preload.ts";
import { strict as assert } from "node:assert";
import { setImmediate } from "node:timers";
import { systemClock } from "../../lib/clock.ts";
import { EpollLoop } from "../../lib/linux/loop.ts";
import { nullLogger } from "../../lib/log.ts";
import { idleHandler, type IpPort, type MeshStream, type StreamHandler } from "../../lib/net.ts";
import { End, patternAt, Sink, Source, until } from "./harness.ts";
import { streamContract, type StreamFactory } from "./stream_contract.ts";

const ANY: IpPort = { ip: "127.0.0.1", port: 0 };
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

async function connect(rig: Rig): Promise<{ near: End; far: End }> {
  const near = new End("near");
  const far = new End("far");
  const [n, f] = await rig.pair(near, far);
  near.use(n);
  far.use(f);
  await until(turn, () => near.opened && far.opened, "both ends are open");
  return { near, far };
}
