import "./preload.ts";
import { strict as assert } from "node:assert";
import { setImmediate } from "node:timers";
import { systemClock } from "../clock.ts";
import { nullLogger } from "../log.ts";
import { errno, libc } from "./ffi.ts";
import { EpollLoop } from "./loop.ts";
import { Memory } from "./memory.ts";
import { Poller } from "./poller.ts";
import { AF_UNIX, EPOLLIN, SOCK_CLOEXEC, SOCK_DGRAM, SOCK_NONBLOCK } from "./structs.ts";

/** Two descriptors; writing to one makes the other readable. */
function socketPair(): readonly [number, number] {
  const pair = Memory.allocate(8);
  const made = libc().socketpair(AF_UNIX, SOCK_DGRAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0, pair.pointer);
  assert.equal(made, 0, `errno ${errno()}`);
  pair.free();
  return [pair.i32[0]!, pair.i32[1]!];
}

const poke = (fd: number) => assert.equal(libc().sendFrom(fd, new Uint8Array(1), 1, 0), 1);
const take = (fd: number) => libc().recvInto(fd, new Uint8Array(1), 1, 0);
const quiet = { onFault: () => {}, abandon: () => {} };
const turn = () => new Promise<void>((resolve) => void setImmediate(resolve));

Deno.test("a descriptor that took the number of a closed one does not get its events", async () => {
  const poller = new Poller(nullLogger, systemClock);
  const [a, aPeer] = socketPair();
  const [b, bPeer] = socketPair();
  const heard: string[] = [];
  const done = Promise.withResolvers<void>();
  // Both are readable in the same turn. Whoever comes first replaces the other by a new descriptor of the same number.
  const replace = (name: string, other: number) => () => {
    heard.push(name);
    poller.closeFd(other);
    const [fresh, peer] = socketPair();
    assert([fresh, peer].includes(other), "the kernel gives the lowest free number");
    poller.add(other, EPOLLIN, { ...quiet, onEvents: () => heard.push("late event") });
    poller.defer({ run: () => poller.defer({ run: () => done.resolve() }) });
    libc().close(peer === other ? fresh : peer);
  };
  poller.add(a, EPOLLIN, { ...quiet, onEvents: replace("a", b) });
  poller.add(b, EPOLLIN, { ...quiet, onEvents: replace("b", a) });
  poke(aPeer);
  poke(bPeer);
  await done.promise;
  assert.equal(heard.length >= 1 && heard.includes("late event"), false, heard.join());
  for (const fd of [a, b]) poller.closeFd(fd);
  for (const fd of [aPeer, bPeer]) libc().close(fd);
  poller.close();
  await poller.finished;
});

Deno.test("Deno's own loop gets its turns while the poller is busy without end", async () => {
  const poller = new Poller(nullLogger, systemClock);
  let turns = 0;
  const again = {
    run() {
      turns++;
      poller.defer(again);
    },
  };
  poller.defer(again);
  let ticks = 0;
  for (let i = 0; i < 20; i++) {
    await turn();
    ticks++;
  }
  assert.equal(ticks, 20);
  assert(turns > 500 && turns < 20 * 64 + 200, `${turns} turns of ours in 20 of Deno's`);
  poller.close();
  await poller.finished;
});

Deno.test("Deno's own sockets are served within a few yields while the poller is busy without end", async () => {
  const poller = new Poller(nullLogger, systemClock);
  const [a, aPeer] = socketPair();
  let turns = 0;
  poller.add(a, EPOLLIN, { ...quiet, onEvents: () => turns++ });
  // Idle first: how it waits is found out then.
  while (!poller.isWaiting) await turn();
  using listener = Deno.listen({ hostname: "127.0.0.1", port: 0 });
  using dialled = await Deno.connect({ hostname: "127.0.0.1", port: listener.addr.port });
  using accepted = await listener.accept();
  poke(aPeer);
  while (turns === 0) await turn();
  const before = turns;
  const buffer = new Uint8Array(8);
  for (let i = 0; i < 20; i++) {
    await dialled.write(new Uint8Array(1));
    await accepted.read(buffer);
    await accepted.write(new Uint8Array(1));
    await dialled.read(buffer);
  }
  const perTrip = (turns - before) / 20;
  // By setImmediate alone each read would wait for 61 yields of 64 turns.
  assert(perTrip < 64 * 20, `${perTrip} turns for each way there and back`);
  poller.closeFd(a);
  libc().close(aPeer);
  poller.close();
  await poller.finished;
});

Deno.test("work that is deferred while the loop is idle runs at once, not with the next event", async () => {
  const poller = new Poller(nullLogger, systemClock);
  const [a, aPeer] = socketPair();
  poller.add(a, EPOLLIN, { ...quiet, onEvents: () => {} });
  while (!poller.isWaiting) await turn();
  const order: string[] = [];
  await new Promise<void>((resolve) => {
    poller.defer({ run: () => order.push("first") });
    poller.defer({
      run() {
        order.push("second");
        poller.defer({ run: resolve });
      },
    });
    order.push("after the calls");
  });
  assert.deepEqual(order, ["after the calls", "first", "second"]);
  while (!poller.isWaiting) await turn();
  poller.closeFd(a);
  libc().close(aPeer);
  poller.close();
  await poller.finished;
});

Deno.test("closing from inside a callback ends it all, also for events that are already there", async () => {
  const poller = new Poller(nullLogger, systemClock);
  const pairs = Array.from({ length: 5 }, socketPair);
  let heard = 0;
  for (const [fd] of pairs) {
    poller.add(fd, EPOLLIN, {
      onFault: () => {},
      abandon: () => poller.closeFd(fd),
      onEvents() {
        heard++;
        poller.close();
      },
    });
  }
  for (const [, peer] of pairs) poke(peer);
  await poller.finished;
  assert.equal(heard, 1);
  assert.equal(poller.size, 0);
  for (const [, peer] of pairs) libc().close(peer);
});

Deno.test("a watch tells as long as there is something to read, and leaves the descriptor open", async () => {
  await using loop = EpollLoop.open({ clock: systemClock, log: nullLogger });
  const [fd, peer] = socketPair();
  let heard = 0;
  const twice = Promise.withResolvers<void>();
  const watch = loop.watch(fd, () => {
    heard++;
    if (heard === 2) {
      take(fd);
      twice.resolve();
    }
  });
  poke(peer);
  await twice.promise;
  await turn();
  await turn();
  assert.equal(heard, 2);
  watch.close();
  watch.close();
  assert.equal(loop.size, 0);
  poke(peer);
  assert.equal(take(fd), 1);
  for (const open of [fd, peer]) libc().close(open);
});

/** Runs a script in a process of its own; returns its output and how long it lived after its last line. */
async function script(body: string, alone = false): Promise<{ output: string; code: number }> {
  const imports = `
    import { EpollLoop } from "${import.meta.resolve("./loop.ts")}";
    import { systemClock } from "${import.meta.resolve("../clock.ts")}";
    import { nullLogger } from "${import.meta.resolve("../log.ts")}";
    const loop = EpollLoop.open({ clock: systemClock, log: nullLogger, alone: ${alone} });
    const say = (text) => Deno.stdout.writeSync(new TextEncoder().encode(text + " "));
  `;
  const child = new Deno.Command(Deno.execPath(), {
    args: ["eval", imports + body],
    stdout: "piped",
    stderr: "inherit",
  });
  const { stdout, code } = await child.output();
  return { output: new TextDecoder().decode(stdout).trim(), code };
}

Deno.test("a process lives as long as a socket is open, and ends by itself when none is, although the loop is not closed", async () => {
  const { output, code } = await script(`
    const listener = loop.listenTcp({ ip: "127.0.0.1", port: 0 }, () => {});
    setTimeout(() => { say("still here"); listener.close(); say(loop.size); }, 150);
    globalThis.addEventListener("unload", () => say("ended"));
  `);
  assert.deepEqual({ output, code }, { output: "still here 0 ended", code: 0 });
});

Deno.test("a process can exit while the loop is idle", async () => {
  const { output, code } = await script(`
    loop.bindUdp({ ip: "127.0.0.1", port: 0 }, () => {});
    setTimeout(() => { say("exits"); Deno.exit(7); }, 100);
  `);
  assert.deepEqual({ output, code }, { output: "exits", code: 7 });
});

for (const alone of [false, true]) {
  Deno.test(`an idle loop${alone ? " that is alone" : ""} uses no CPU, also after traffic at every pace`, async () => {
    const { output } = await script(
      `
    const echo = loop.bindUdp({ ip: "127.0.0.1", port: 0 }, (bytes, length, from) => void echo.send(bytes, length, from));
    let answered = () => {};
    const asker = loop.bindUdp({ ip: "127.0.0.1", port: 0 }, () => answered());
    for (let i = 0; i < 300; i++) {
      const answer = new Promise((resolve) => answered = resolve);
      asker.send(new Uint8Array(9), 9, echo.local);
      await answer;
      if (i % 3 === 0) await new Promise((resolve) => setTimeout(resolve, i % 7));
    }
    await new Promise((resolve) => setTimeout(resolve, 200));
    const ticks = () => {
      const fields = Deno.readTextFileSync("/proc/self/stat").split(") ")[1].split(" ");
      return Number(fields[11]) + Number(fields[12]);
    };
    const before = ticks();
    await new Promise((resolve) => setTimeout(resolve, 1000));
    say(ticks() - before);
    loop.close();
  `,
      alone,
    );
    // One tick is 10 ms: a loop that spins would use a hundred.
    assert(Number(output) <= 3, `${output} ticks of CPU in a second`);
  });
}

Deno.test("naps of a loop that is alone end for Deno's sockets at once, and for its timers soon", async () => {
  const { output } = await script(
    `
    const echo = loop.bindUdp({ ip: "127.0.0.1", port: 0 }, (bytes, length, from) => void echo.send(bytes, length, from));
    let heard = 0;
    const asker = loop.bindUdp({ ip: "127.0.0.1", port: 0 }, () => heard++);
    // Traffic that never lets the loop go back to Deno's reactor for good.
    const traffic = setInterval(() => asker.send(new Uint8Array(9), 9, echo.local), 20);
    const listener = Deno.listen({ hostname: "127.0.0.1", port: 0 });
    const accepted = listener.accept();
    const client = await Deno.connect({ hostname: "127.0.0.1", port: listener.addr.port });
    const server = await accepted;
    const byte = new Uint8Array(1);
    const from = performance.now();
    for (let i = 0; i < 200; i++) {
      await client.write(byte);
      await server.read(byte);
      await server.write(byte);
      await client.read(byte);
    }
    const socketMs = (performance.now() - from) / 200;
    const then = performance.now();
    for (let i = 0; i < 50; i++) await new Promise((resolve) => setTimeout(resolve, 1));
    const timerMs = (performance.now() - then) / 50;
    clearInterval(traffic);
    for (const open of [listener, client, server]) open.close();
    loop.close();
    say(JSON.stringify({ heard: heard > 3, socketMs, timerMs }));
  `,
    true,
  );
  const { heard, socketMs, timerMs } = JSON.parse(output) as { heard: boolean; socketMs: number; timerMs: number };
  assert.ok(heard);
  // A nap takes 10 ms unless something ends it.
  assert.ok(socketMs < 8, `${socketMs} ms for a round trip of Deno's sockets`);
  assert.ok(timerMs < 40, `${timerMs} ms for a timer of 1 ms`);
});
