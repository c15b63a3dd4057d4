import "./preload.ts";
import { strict as assert } from "node:assert";
import net from "node:net";
import { hostPort } from "../addr.ts";
import { FakeClock, systemClock } from "../clock.ts";
import { createLogger, memorySink, nullLogger } from "../log.ts";
import { type Accepted, idleHandler, type IpPort, type MeshStream, WOULD_BLOCK } from "../net.ts";
import { type Fd, type Libc, libc } from "./ffi.ts";
import { EpollLoop } from "./loop.ts";
import { SocketOps } from "./socket_ops.ts";
import { SHUT_WR, SO_KEEPALIVE, SO_MARK, SOL_SOCKET, SOL_TCP, TCP_NODELAY } from "./structs.ts";
import { KEEPALIVE_AFTER_MS } from "./tcp_options.ts";
import { RESET_GRACE_MS } from "./tcp_stream.ts";
import { inNamespace, mayMakeNamespaces, Recorder, run } from "./testing.ts";

const LOCAL: IpPort = { ip: "127.0.0.1", port: 0 };
const DIAL = { timeoutMs: 10_000 };
const TCP_INFO = 11;
const TCP_FIN_WAIT2 = 5;
const PAUSE = new Int32Array(new SharedArrayBuffer(4));
const ignore = !mayMakeNamespaces("lib/linux/tcp_test.ts");

function openLoop(): EpollLoop {
  return EpollLoop.open({ clock: systemClock, log: nullLogger });
}

/** A dialled stream with its recorder, and the accepted one. Both are open. */
async function connect(loop: EpollLoop, ip = "127.0.0.1") {
  const accepted = Promise.withResolvers<Accepted>();
  const far = new Recorder();
  const listener = loop.listenTcp({ ip, port: 0 }, (a) => {
    a.stream.handler = far;
    accepted.resolve(a);
  });
  const near = new Recorder();
  const stream = loop.dialTcp(listener.local, near, DIAL);
  const [{ stream: other }] = await Promise.all([accepted.promise, near.opened.promise]);
  listener.close();
  return { near, far, stream, other };
}

/** Resolves at the next readable callback. */
function readable(recorder: Recorder): Promise<void> {
  return new Promise((resolve) => recorder.onReadableDo = resolve);
}

function readAll(stream: MeshStream): { bytes: number[]; last: number } {
  const buffer = new Uint8Array(1000);
  const bytes: number[] = [];
  for (;;) {
    const n = stream.read(buffer);
    if (n <= 0) return { bytes, last: n };
    bytes.push(...buffer.subarray(0, n));
  }
}

/** Returns when the other side's kernel has acknowledged our FIN: all that was sent before is in its queue. */
function untilEndArrived(fd: Fd): void {
  const ops = new SocketOps();
  while (ops.getInt(fd, SOL_TCP, TCP_INFO) % 256 !== TCP_FIN_WAIT2) Atomics.wait(PAUSE, 0, 0, 1);
  ops.free();
}

/** Runs `body` and counts its calls of recv(2). */
function countingReads<T>(body: () => T): { readonly of: T; readonly calls: number } {
  const c: { recvInto: Libc["recvInto"] } = libc();
  const real = c.recvInto;
  let calls = 0;
  c.recvInto = (...args) => {
    calls++;
    return real(...args);
  };
  try {
    return { of: body(), calls };
  } finally {
    c.recvInto = real;
  }
}

Deno.test("a paused listener leaves clients waiting, also in the middle of a burst; they are accepted after it", async () => {
  await using loop = openLoop();
  const accepted: MeshStream[] = [];
  let wake = () => {};
  const listener = loop.listenTcp(LOCAL, ({ stream }) => {
    accepted.push(stream);
    if (accepted.length === 2) listener.pause();
    wake();
  });
  const clients = Array.from({ length: 5 }, () => new Recorder());
  for (const client of clients) loop.dialTcp(listener.local, client, DIAL);
  await Promise.all(clients.map((client) => client.opened.promise));
  // A connection of its own to and fro: the loop has looked at the listener since.
  await connect(loop);
  assert.equal(accepted.length, 2);
  listener.resume();
  while (accepted.length < 5) await new Promise<void>((resolve) => wake = resolve);
  listener.close();
  listener.pause();
  listener.resume();
});

Deno.test("bytes that came before a reset are read first; the reset is then no clean end", async () => {
  await using loop = openLoop();
  const { near, stream, other } = await connect(loop);
  const arrived = readable(near);
  other.write(Uint8Array.of(1, 2, 3), 0, 3);
  await arrived;
  other.reset("RESET");
  // A connection of its own to and fro: the RST, sent before, has been taken in by then.
  await connect(loop);
  assert.deepEqual(near.calls, ["open", "readable"]);
  assert.deepEqual(readAll(stream), { bytes: [1, 2, 3], last: WOULD_BLOCK });
  assert.equal(await near.over.promise, "RESET");
  assert.deepEqual(near.calls, ["open", "readable", "close RESET"]);
});

Deno.test("after the other side's end, its reset breaks only our direction: the end is read as an end", async () => {
  await using loop = openLoop();
  const { near, stream, other } = await connect(loop);
  const arrived = readable(near);
  other.write(Uint8Array.of(1, 2, 3), 0, 3);
  other.closeWrite();
  await arrived;
  other.reset("RESET");
  await connect(loop);
  assert.deepEqual(readAll(stream), { bytes: [1, 2, 3], last: 0 });
  assert.equal(await near.over.promise, "RESET");
});

Deno.test("a write into a broken connection takes nothing; what came before can still be read", async () => {
  await using loop = openLoop();
  const { near, stream, other } = await connect(loop);
  const arrived = readable(near);
  other.write(Uint8Array.of(1, 2, 3), 0, 3);
  await arrived;
  other.reset("RESET");
  await connect(loop);
  assert.equal(stream.write(Uint8Array.of(9), 0, 1), 0);
  assert.equal(stream.write(Uint8Array.of(9), 0, 1), 0);
  assert.deepEqual(readAll(stream), { bytes: [1, 2, 3], last: WOULD_BLOCK });
  assert.equal(await near.over.promise, "RESET");
  assert(!near.calls.includes("writable"));
});

Deno.test("a write that is the first to meet the break hides no bytes and makes no clean end of it", async () => {
  await using loop = openLoop();
  const { near, stream, other } = await connect(loop);
  const arrived = readable(near);
  other.write(Uint8Array.of(1, 2, 3), 0, 3);
  await arrived;
  // In one piece, before the loop can hear of it: the write takes the error away from the read.
  other.reset("RESET");
  assert.equal(stream.write(Uint8Array.of(9), 0, 1), 0);
  assert.deepEqual(readAll(stream), { bytes: [1, 2, 3], last: WOULD_BLOCK });
  assert.equal(await near.over.promise, "RESET");
});

Deno.test("a reset after the end was read is told at once: nothing is left to be read", async () => {
  await using loop = EpollLoop.open({ clock: new FakeClock(), log: nullLogger });
  const { near, stream, other } = await connect(loop);
  const arrived = readable(near);
  other.closeWrite();
  await arrived;
  assert.equal(readAll(stream).last, 0);
  other.reset("RESET");
  assert.equal(await near.over.promise, "RESET");
});

Deno.test("an owner that does not read is told of a reset after the grace time", async () => {
  const clock = new FakeClock();
  await using loop = EpollLoop.open({ clock, log: nullLogger });
  const { near, other } = await connect(loop);
  const arrived = readable(near);
  other.write(Uint8Array.of(1, 2, 3), 0, 3);
  await arrived;
  other.reset("RESET");
  await connect(loop);
  clock.advance(RESET_GRACE_MS - 1);
  assert.deepEqual(near.calls, ["open", "readable"]);
  clock.advance(10);
  assert.deepEqual(near.calls, ["open", "readable", "close RESET"]);
});

Deno.test("an urgent mark in the middle does not stop the stream", async () => {
  await using loop = openLoop();
  const { near, stream, other } = await connect(loop);
  const arrived = readable(near);
  const fd = loop.takeFd(other);
  const MSG_OOB = 1;
  const send = (text: string, flags: number) => {
    const bytes = new TextEncoder().encode(text);
    assert.equal(libc().sendFrom(fd, bytes, bytes.length, flags), bytes.length);
  };
  send("before", 0);
  send("!", MSG_OOB);
  send("behind", 0);
  await arrived;
  await connect(loop);
  // The first read stops at the mark, short of the buffer; no event will announce what is behind it.
  assert.equal(String.fromCharCode(...readAll(stream).bytes), "beforebehind");
  stream.reset("SHUTDOWN");
  libc().close(fd);
});

Deno.test("an urgent mark before the end hides no bytes, also where one event tells both", async () => {
  await using loop = openLoop();
  const { near, stream, other } = await connect(loop);
  const arrived = readable(near);
  const fd = loop.takeFd(other);
  const MSG_OOB = 1;
  for (const [text, flags] of [["before", 0], ["!", MSG_OOB], ["behind", 0]] as const) {
    const bytes = new TextEncoder().encode(text);
    assert.equal(libc().sendFrom(fd, bytes, bytes.length, flags), bytes.length);
  }
  libc().shutdown(fd, SHUT_WR);
  untilEndArrived(fd);
  await arrived;
  const { bytes, last } = readAll(stream);
  assert.equal(String.fromCharCode(...bytes), "beforebehind");
  assert.equal(last, 0);
  stream.reset("SHUTDOWN");
  libc().close(fd);
});

Deno.test("bytes and the end that came together take one call, the end alone one, a full buffer one more", async () => {
  await using loop = openLoop();
  for (const { bytes, calls } of [{ bytes: 999, calls: 1 }, { bytes: 0, calls: 1 }, { bytes: 1000, calls: 2 }]) {
    const { near, stream, other } = await connect(loop);
    const arrived = readable(near);
    const fd = loop.takeFd(other);
    if (bytes > 0) assert.equal(libc().sendFrom(fd, new Uint8Array(bytes), bytes, 0), bytes);
    libc().shutdown(fd, SHUT_WR);
    untilEndArrived(fd);
    await arrived;
    const read = countingReads(() => readAll(stream));
    assert.deepEqual([read.of.bytes.length, read.of.last, read.calls], [bytes, 0, calls]);
    assert.equal(stream.read(new Uint8Array(1)), 0);
    stream.closeWrite();
    assert.equal(await near.over.promise, undefined);
    libc().close(fd);
  }
});

Deno.test("what comes between an event and its read is all read, and so is the end after it", async () => {
  await using loop = openLoop();
  const { near, stream, other } = await connect(loop);
  const arrived = readable(near);
  const fd = loop.takeFd(other);
  const send = () => assert.equal(libc().sendFrom(fd, Uint8Array.of(1, 2, 3), 3, 0), 3);
  send();
  await arrived;
  // The event spoke of the first bytes only.
  send();
  libc().shutdown(fd, SHUT_WR);
  untilEndArrived(fd);
  const end = readable(near);
  assert.deepEqual(readAll(stream), { bytes: [1, 2, 3, 1, 2, 3], last: WOULD_BLOCK });
  await end;
  assert.deepEqual(readAll(stream), { bytes: [], last: 0 });
  stream.reset("SHUTDOWN");
  libc().close(fd);
});

Deno.test("a descriptor can be taken and adopted by node:net", async () => {
  await using loop = openLoop();
  const { near, far, stream, other } = await connect(loop);
  const socket = new net.Socket({ fd: loop.takeFd(stream), readable: true, writable: true });
  const heard = new Promise<string>((resolve) => socket.once("data", (data) => resolve(String(data))));
  other.write(new TextEncoder().encode("to node"), 0, 7);
  assert.equal(await heard, "to node");
  const arrived = readable(far);
  socket.write("to loop");
  await arrived;
  assert.equal(String.fromCharCode(...readAll(other).bytes), "to loop");
  const closed = new Promise((resolve) => socket.once("close", resolve));
  socket.destroy();
  await closed;
  assert.deepEqual(near.calls, ["open"]);
  assert.throws(() => loop.takeFd(stream), /stream that is over/);
  assert.throws(() => loop.takeFd({ ...stream, handler: idleHandler } as MeshStream), /foreign stream/);
});

Deno.test("a connecting stream cannot be taken; a reset of it leaves silence", async () => {
  await using loop = openLoop();
  const listener = loop.listenTcp(LOCAL, ({ stream }) => stream.reset("SHUTDOWN"));
  const handler = new Recorder();
  const stream = loop.dialTcp(listener.local, handler, DIAL);
  assert.throws(() => loop.takeFd(stream), /stream that is connecting/);
  stream.closeWrite();
  stream.reset("SHUTDOWN");
  await connect(loop);
  assert.deepEqual(handler.calls, []);
  assert.equal(loop.size, 3);
});

Deno.test("a dial may leave from the port of a listener, with reusePort on both: hole punching", async () => {
  await using loop = openLoop();
  const origin = loop.listenTcp(LOCAL, () => {}, { reusePort: true });
  const seen = Promise.withResolvers<IpPort>();
  const target = loop.listenTcp(LOCAL, ({ remote }) => seen.resolve(remote));
  loop.dialTcp(target.local, new Recorder(), { ...DIAL, from: origin.local, reusePort: true });
  assert.deepEqual(await seen.promise, origin.local);
  const refused = new Recorder();
  const sink = memorySink();
  await using strict = EpollLoop.open({ clock: systemClock, log: createLogger(sink) });
  strict.dialTcp(target.local, refused, { ...DIAL, from: origin.local });
  assert.equal(await refused.over.promise, "KERNEL");
  assert.match(sink.lines[0]!, /local address.*EADDRINUSE/);
});

Deno.test("sockets send small messages at once and notice peers that vanish", async () => {
  await using loop = openLoop();
  const ops = new SocketOps();
  const { stream, other } = await connect(loop);
  for (const end of [stream, other]) {
    const fd = loop.takeFd(end);
    assert.equal(ops.getInt(fd, SOL_TCP, TCP_NODELAY), 1);
    assert.equal(ops.getInt(fd, SOL_SOCKET, SO_KEEPALIVE), 1);
    libc().close(fd);
  }
  ops.free();
});

Deno.test({
  name: "a dialled connection that lasts gets its keepalive, one that does not costs no calls for it",
  ignore,
  fn: () =>
    inNamespace(async () => {
      run("ip", "link", "set", "lo", "up");
      const clock = new FakeClock();
      await using loop = EpollLoop.open({ clock, log: nullLogger });
      const { stream } = await connect(loop);
      const { ip, port } = loop.localOf(stream);
      const timer = () => run("ss", "-tnoH", "src", `${ip}:${port}`);
      assert.doesNotMatch(timer(), /keepalive/);
      clock.advance(KEEPALIVE_AFTER_MS);
      assert.match(timer(), /timer:\(keepalive,/);
    }),
});

Deno.test({
  name: "a connection that a rule redirected knows where it was meant to go, on both families",
  ignore,
  fn: () =>
    inNamespace(async () => {
      run("ip", "addr", "add", "10.99.0.1/32", "dev", "lo");
      run("ip", "-6", "addr", "add", "fd00:99::1/128", "dev", "lo", "nodad");
      run("ip", "route", "add", "10.96.0.0/12", "dev", "lo", "src", "10.99.0.1");
      run("ip", "-6", "route", "add", "fd00:96::/64", "dev", "lo", "src", "fd00:99::1");
      await using loop = openLoop();
      for (
        const [family, ip, at] of [["ip", "10.96.0.10", "10.99.0.1"], ["ip6", "fd00:96::10", "fd00:99::1"]] as const
      ) {
        const redirected = Promise.withResolvers<Accepted>();
        const listener = loop.listenTcp(
          { ip: family === "ip" ? "0.0.0.0" : "::", port: 0 },
          (a) => redirected.resolve(a),
        );
        const to = family === "ip" ? `${at}:${listener.local.port}` : `[${at}]:${listener.local.port}`;
        const table = `${family} t`;
        for (
          const rule of [
            `add table ${table}`,
            `add chain ${table} out { type nat hook output priority -100; }`,
            `add rule ${table} out ${family} daddr ${ip} tcp dport 80 dnat to ${to}`,
          ]
        ) run("nft", rule);
        const handler = new Recorder();
        loop.dialTcp({ ip, port: 80 }, handler, DIAL);
        const accepted = await redirected.promise;
        assert.equal(hostPort(accepted.original), hostPort({ ip, port: 80 }));
        assert.deepEqual(accepted.local, { ip: at, port: listener.local.port });
        assert.equal(accepted.remote.ip, at);
      }
    }),
});

Deno.test({
  name: "dials say why nobody is reached: no route, a route that refuses, a rule that refuses",
  ignore,
  fn: () =>
    inNamespace(async () => {
      run("ip", "route", "add", "unreachable", "192.0.2.0/24");
      run("ip", "route", "add", "prohibit", "198.51.100.0/24");
      run("nft", "add table ip t");
      run("nft", "add chain ip t out { type filter hook output priority 0; }");
      run("nft", "add rule ip t out tcp dport 81 drop");
      await using loop = openLoop();
      const fate = (ip: string, port: number) => {
        const handler = new Recorder();
        loop.dialTcp({ ip, port }, handler, DIAL);
        return handler.over.promise;
      };
      assert.equal(await fate("203.0.113.1", 80), "DIAL_UNREACHABLE");
      assert.equal(await fate("192.0.2.1", 80), "DIAL_UNREACHABLE");
      assert.equal(await fate("198.51.100.1", 80), "DIAL_UNREACHABLE");
      assert.equal(await fate("2001:db8::1", 80), "DIAL_UNREACHABLE");
      assert.equal(await fate("127.0.0.1", 82), "DIAL_REFUSED");
      assert.equal(loop.size, 0);
    }),
});

Deno.test({
  name: "a marked dial carries its mark, so that our own rules can let it pass",
  ignore,
  fn: () =>
    inNamespace(async () => {
      run("nft", "add table ip t");
      run("nft", "add chain ip t out { type filter hook output priority 0; }");
      run("nft", "add rule ip t out tcp flags syn / syn,ack meta mark != 0x6d65 reject with tcp reset");
      await using loop = openLoop();
      const listener = loop.listenTcp(LOCAL, () => {});
      const [plain, marked] = [new Recorder(), new Recorder()];
      loop.dialTcp(listener.local, plain, DIAL);
      const stream = loop.dialTcp(listener.local, marked, { ...DIAL, mark: 0x6d65 });
      assert.equal(await plain.over.promise, "DIAL_REFUSED");
      await marked.opened.promise;
      const ops = new SocketOps();
      const fd = loop.takeFd(stream);
      assert.equal(ops.getInt(fd, SOL_SOCKET, SO_MARK), 0x6d65);
      libc().close(fd);
      ops.free();
    }),
});
