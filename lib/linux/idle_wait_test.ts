import "./preload.ts";
import { strict as assert } from "node:assert";
import { setImmediate } from "node:timers";
import { errno, libc } from "./ffi.ts";
import { type IdleWait, ThreadWait } from "./idle_wait.ts";
import { Memory } from "./memory.ts";
import { reactorEntry, ReactorWait } from "./reactor_wait.ts";
import { EPOLL_CTL_ADD, EPOLLIN, O_CLOEXEC, SOCK_CLOEXEC, SOCK_NONBLOCK, STRUCT } from "./structs.ts";

/** An epoll instance with one eventfd in it. */
class Watched implements Disposable {
  readonly epoll = libc().epoll_create1(O_CLOEXEC);
  readonly event = libc().eventfd(0, SOCK_NONBLOCK | SOCK_CLOEXEC);
  readonly #one = Memory.allocate(8);

  constructor() {
    const control = Memory.allocate(STRUCT.epoll_event.size);
    control.u32[0] = EPOLLIN;
    assert.equal(libc().epoll_ctl(this.epoll, EPOLL_CTL_ADD, this.event, control.pointer), 0, `errno ${errno()}`);
    control.free();
    this.#one.u32[0] = 1;
  }

  readonly raise = () => void libc().write(this.event, this.#one.pointer, 8);

  get readable(): boolean {
    const events = Memory.allocate(STRUCT.epoll_event.size);
    const n = libc().epoll_wait(this.epoll, events.pointer, 1, 0);
    events.free();
    return n > 0;
  }

  lower(): void {
    assert.equal(libc().read(this.event, this.#one.pointer, 8), 8);
    this.#one.u32.set([1, 0]);
  }

  [Symbol.dispose](): void {
    this.#one.free();
    for (const fd of [this.epoll, this.event]) libc().close(fd);
  }
}

const turn = () => new Promise<void>((resolve) => void setImmediate(resolve));

const WAITS: Readonly<Record<string, (epoll: number, onWake: () => void) => IdleWait>> = {
  thread: (epoll, onWake) => new ThreadWait(epoll, onWake),
  reactor(epoll, onWake) {
    const wait = ReactorWait.open(epoll, onWake);
    assert(wait, "Deno's reactor takes the entry");
    return wait;
  },
};

for (const [name, open] of Object.entries(WAITS)) {
  Deno.test(`${name}: each wait ends by what comes during it and by what is there already`, async () => {
    using watched = new Watched();
    let wakes = 0;
    let next = Promise.withResolvers<void>();
    const woken = () => {
      wakes++;
      if (watched.readable) next.resolve();
      else wait.arm();
    };
    const wait = open(watched.epoll, woken);
    for (let round = 1; round <= 50; round++) {
      next = Promise.withResolvers<void>();
      if (round % 2) watched.raise();
      wait.arm();
      // In every second round the wait is under way by then: in the reactor's epoll_wait, or on its thread.
      for (let i = 0; i < round; i++) await turn();
      if (round % 2 === 0) watched.raise();
      await next.promise;
      watched.lower();
      await turn();
      await turn();
    }
    assert(wakes >= 50 && wakes < 60, `${wakes} wakes for 50 events`);
    await wait.close(watched.raise);
  });

  Deno.test(`${name}: no wake comes after close, and Deno's own work goes on during a wait`, async () => {
    using watched = new Watched();
    let closing = false;
    const wait = open(watched.epoll, () => {
      assert(!closing, "woken after close");
      wait.arm();
    });
    wait.arm();
    await new Promise((resolve) => setTimeout(resolve, 5));
    using listener = Deno.listen({ hostname: "127.0.0.1", port: 0 });
    const [accepted, dialled] = await Promise.all([
      listener.accept(),
      Deno.connect({ hostname: "127.0.0.1", port: listener.addr.port }),
    ]);
    await dialled.write(new Uint8Array(3));
    assert.equal(await accepted.read(new Uint8Array(8)), 3);
    accepted.close();
    dialled.close();
    closing = true;
    const closed = wait.close(watched.raise);
    watched.raise();
    await closed;
    await turn();
  });
}

Deno.test("the reactor has its own entries back after close, and several waits do not disturb each other", async () => {
  const nested = () => Number([...Deno.readDirSync("/proc/self/fd")].flatMap(({ name }) => entries(name)).length);
  const before = nested();
  const watched = Array.from({ length: 5 }, () => new Watched());
  const woken: number[] = [];
  const waits: IdleWait[] = watched.map((one, i) =>
    WAITS["reactor"]!(one.epoll, () => one.readable ? woken.push(i) : waits[i]!.arm())
  );
  for (const wait of waits) wait.arm();
  assert(nested() > before);
  watched[3]!.raise();
  watched[1]!.raise();
  while (woken.length < 2) await new Promise((resolve) => setTimeout(resolve, 1));
  assert.deepEqual(woken.sort(), [1, 3]);
  await Promise.all(waits.map((wait) => wait.close(() => {})));
  assert.equal(nested(), before);
  assert.equal(woken.length, 2);
  for (const one of watched) one[Symbol.dispose]();
});

/** What a descriptor watches, if it is an epoll instance: other epoll instances only. */
function entries(name: string): number[] {
  try {
    const text = Deno.readTextFileSync(`/proc/self/fdinfo/${name}`);
    const watched = [...text.matchAll(/^tfd:\s*(\d+)/gm)].map((m) => Number(m[1]));
    return watched.filter((fd) => Deno.readLinkSync(`/proc/self/fd/${fd}`) === "anon_inode:[eventpoll]");
  } catch {
    return [];
  }
}

Deno.test("the text of fdinfo gives an entry with all bits of its data", () => {
  const text = "pos:\t0\nflags:\t02000002\nmnt_id:\t17\nino:\t26\n" +
    "tfd:       21 events: 8000201d data:     562c80831880  pos:0 ino:5aca4b sdev:9\n" +
    "tfd:        8 events: 80002019 data:                1  pos:0 ino:5aca2c sdev:9\n" +
    "tfd:        2 events:       19 data: fedcba9876543210  pos:0 ino:1a sdev:10\n";
  assert.deepEqual(reactorEntry(text, 21), { events: 0x8000201d, low: 0x80831880, high: 0x562c });
  assert.deepEqual(reactorEntry(text, 8), { events: 0x80002019, low: 1, high: 0 });
  assert.deepEqual(reactorEntry(text, 2), { events: 0x19, low: 0x76543210, high: 0xfedcba98 });
  assert.equal(reactorEntry(text, 1), undefined);
  assert.equal(reactorEntry("", 1), undefined);
});
