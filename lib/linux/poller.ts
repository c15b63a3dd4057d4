/**
 * One epoll instance that shares its thread with Deno's event loop: while there is work it asks the kernel without
 * waiting and lets Deno's loop run now and then; when there is none, a helper thread waits. It keeps the process alive
 * exactly as long as a descriptor is watched.
 */
import { setImmediate } from "node:timers";
import type { Clock } from "../clock.ts";
import type { Logger } from "../log.ts";
import { EAGAIN, EINTR, sysError } from "./errno.ts";
import { errno, type Fd, type Libc, libc } from "./ffi.ts";
import { type IdleWait, openIdleWait } from "./idle_wait.ts";
import { Memory } from "./memory.ts";
import { Napping } from "./nap.ts";
import {
  EPOLL_CTL_ADD,
  EPOLL_CTL_DEL,
  EPOLL_CTL_MOD,
  EPOLLIN,
  O_CLOEXEC,
  SOCK_CLOEXEC,
  SOCK_NONBLOCK,
  STRUCT,
} from "./structs.ts";

/** What a watched descriptor belongs to. */
export interface Pollable {
  /** Readiness, as EPOLL* bits. */
  onEvents(events: number): void;
  /** A callback of its owner threw inside {@link onEvents}. */
  onFault(): void;
  /** Closes the descriptor without a word to its owner: the poller is closing. */
  abandon(): void;
}

/** Work for the end of the turn. */
export interface Deferred {
  run(): void;
}

const EVENTS_PER_CALL = 256;
// Deno's own loop (TLS, timers, control traffic) gets a turn after this many of ours, or after this many events where
// turns are full: an event is 20 µs of work, and nobody should wait longer than 5 ms for the others.
const TURNS_PER_YIELD = 64;
const EVENTS_PER_YIELD = 256;
/**
 * Before the wait, the kernel is asked once more in a turn of Deno's loop; where the last wait was over quickly or asking
 * found something, as on a connection that goes back and forth, so often in each of so many turns: going to sleep and
 * coming back costs some 15 µs and what the scheduler takes for it. Otherwise asking would keep the processor from
 * whoever has the answer. Several questions per turn, because each turn leaves 0.6 KB of garbage.
 */
const IDLE_TURNS = 3;
const ASKS_PER_IDLE_TURN = 8;
const QUICK_MS = 0.1;
/** Marks the eventfd that ends a wait; no descriptor has this number. */
const WAKE = 0xffffffff;

const WORD = { stride: STRUCT.epoll_event.size >>> 2, data: STRUCT.epoll_event.at.data >>> 2 } as const;

type State = "stopped" | "scheduled" | "running" | "waiting" | "closed";

/** The turn engine under the sockets. */
export class Poller {
  readonly #c: Libc = libc();
  readonly #log: Logger;
  readonly #clock: Clock;
  readonly #epoll: Fd;
  readonly #wake: Fd;
  readonly #control = Memory.allocate(STRUCT.epoll_event.size);
  readonly #events = Memory.allocate(EVENTS_PER_CALL * STRUCT.epoll_event.size);
  readonly #one = Memory.allocate(8);
  /** By descriptor number; the generation tells a late event of a closed descriptor from one of its successor. */
  readonly #targets: (Pollable | undefined)[] = [];
  readonly #generations: number[] = [];
  // A callback that comes although nothing was asked for is no turn: two at a time would each ask for another.
  readonly #turn = () => {
    if (this.#state === "scheduled") this.#run();
  };
  readonly #alone: boolean;
  #idle: IdleWait | undefined;
  #napping: Napping | undefined;
  /** Events came since the last nap. */
  #busy = false;
  #generation = 0;
  #size = 0;
  #idleTurns = 0;
  #askingPays = false;
  #waitedFrom = 0;
  #state: State = "stopped";
  #deferred: Deferred[] = [];
  #running: Deferred[] = [];
  readonly #finished = Promise.withResolvers<void>();

  /** `alone`: no other poller runs in this process, so that this one may wait by itself. Throws MeshError KERNEL. */
  constructor(log: Logger, clock: Clock, alone = false) {
    this.#log = log;
    this.#clock = clock;
    this.#alone = alone;
    this.#epoll = this.#c.epoll_create1(O_CLOEXEC);
    if (this.#epoll < 0) throw sysError("create an epoll instance", errno());
    this.#wake = this.#c.eventfd(0, SOCK_NONBLOCK | SOCK_CLOEXEC);
    if (this.#wake < 0) {
      const e = errno();
      this.#c.close(this.#epoll);
      throw sysError("create an eventfd", e);
    }
    this.#one.u32[0] = 1;
    this.#ctl(EPOLL_CTL_ADD, this.#wake, EPOLLIN, WAKE, 0);
  }

  /** Watched descriptors. */
  get size(): number {
    return this.#size;
  }

  get closed(): boolean {
    return this.#state === "closed";
  }

  /** Resolves once a closed poller has given back its descriptors; who waits for it may need a moment to end. */
  get finished(): Promise<void> {
    return this.#finished.promise;
  }

  /** Whether a turn is running, that is, deferred work runs before anything waits. */
  get inTurn(): boolean {
    return this.#state === "running";
  }

  /** Whether the loop is idle: it is called when there are events. */
  get isWaiting(): boolean {
    return this.#state === "waiting";
  }

  /** What is watched now. */
  *watched(): Generator<Pollable> {
    for (const target of this.#targets) if (target !== undefined) yield target;
  }

  /** Starts watching. Throws MeshError KERNEL. */
  add(fd: Fd, events: number, target: Pollable): void {
    const generation = this.#generation = (this.#generation + 1) >>> 0;
    if (this.#ctl(EPOLL_CTL_ADD, fd, events, fd, generation) < 0) throw sysError(`watch descriptor ${fd}`, errno());
    this.#targets[fd] = target;
    this.#generations[fd] = generation;
    this.#size++;
    if (this.#state === "stopped") this.#schedule();
  }

  /** Changes what a watched descriptor waits for. */
  modify(fd: Fd, events: number): void {
    this.#ctl(EPOLL_CTL_MOD, fd, events, fd, this.#generations[fd]!);
  }

  /** Stops watching a descriptor that stays open. */
  remove(fd: Fd): void {
    this.#ctl(EPOLL_CTL_DEL, fd, 0, fd, 0);
    this.#forget(fd);
  }

  /** Stops watching and closes. */
  closeFd(fd: Fd): void {
    this.#forget(fd);
    this.#c.close(fd);
  }

  /** Runs `task` at the end of the turn, or soon if none is running; never from inside this call. */
  defer(task: Deferred): void {
    this.#deferred.push(task);
    if (this.#state === "stopped") this.#schedule();
    else if (this.#state === "waiting" && this.#deferred.length === 1) setImmediate(this.#drainWaiting);
  }

  /** Notes that a callback threw: a bug of its owner, which must not stop everybody else's traffic. */
  report(error: unknown): void {
    const text = error instanceof Error ? error.stack ?? error.message : String(error);
    this.#log.error("A socket callback failed", { error: text });
  }

  /** Abandons everything that is watched. No callback comes afterwards. */
  close(): void {
    if (this.#state === "closed") return;
    const before = this.#state;
    this.#state = "closed";
    for (const target of this.#targets.slice()) target?.abandon();
    this.#deferred = [];
    // The epoll descriptor must outlive whoever uses it: the turn that is running, or the wait.
    if (before !== "running") this.#release();
  }

  #forget(fd: Fd): void {
    if (this.#targets[fd] === undefined) return;
    this.#targets[fd] = undefined;
    this.#size--;
    // A wait for nothing would keep the process alive.
    if (this.#size === 0 && this.#state === "waiting") this.#poke();
  }

  #schedule(): void {
    this.#state = "scheduled";
    setImmediate(this.#turn);
  }

  #run(): void {
    if (this.#state === "closed") return;
    this.#state = "running";
    let events = 0;
    for (let turn = 0; turn < TURNS_PER_YIELD && events < EVENTS_PER_YIELD; turn++) {
      const n = this.#ask();
      if (n > 0) {
        events += n;
        this.#dispatch(n);
      }
      const worked = this.#drain();
      if (this.closed) return this.#release();
      if (n <= 0 && !worked) {
        if (this.#rest()) continue;
        return;
      }
      this.#idleTurns = 0;
    }
    this.#yield();
  }

  /**
   * Lets Deno's loop run. By setImmediate alone it would look at its own sockets and timers only in every 61st turn
   * (tokio's event interval); a wait that is over at once makes it look.
   */
  #yield(): void {
    this.#state = "scheduled";
    setImmediate(this.#idle?.prompt ? this.#look : this.#turn);
  }

  readonly #look = () => {
    if (this.#state !== "scheduled" || !this.#idle) return;
    if (this.#deferred.length > 0) this.#poke();
    this.#wait(this.#idle);
  };

  /** Events that are there now; asks again at once while the loop is only just idle. */
  #ask(): number {
    const idle = this.#idleTurns > 0;
    let asks = idle && this.#askingPays ? ASKS_PER_IDLE_TURN : 1;
    for (;;) {
      const n = this.#c.epoll_wait(this.#epoll, this.#events.pointer, EVENTS_PER_CALL, 0);
      if (n > 0 && idle) this.#askingPays = this.#napping === undefined;
      if (n > 0 || --asks === 0) return n;
    }
  }

  /**
   * Nothing to do: ask a few times more, then wait; stop when there is nothing to wait for. True when there are events
   * again, else a later turn goes on.
   */
  #rest(): boolean {
    if (this.#size === 0) {
      this.#state = "stopped";
      this.#idle?.rest();
      return false;
    }
    // At least one turn of Deno's loop: what callbacks have left to microtasks runs before any wait.
    if (this.#idleTurns++ < (this.#askingPays ? IDLE_TURNS : 1)) {
      this.#schedule();
      return false;
    }
    this.#idleTurns = 0;
    const idle = this.#idle ??= this.#openIdle();
    const nap = this.#napping?.nap(this.#busy) ?? "quiet";
    this.#busy = false;
    if (nap === "events") return true;
    if (nap === "others") this.#poke();
    this.#wait(idle);
    return false;
  }

  #openIdle(): IdleWait {
    const idle = openIdleWait(this.#epoll, this.#wakeUp);
    if (this.#alone && idle.reactor !== undefined) {
      this.#napping = new Napping(this.#c, this.#clock, this.#epoll, idle.reactor);
    }
    return idle;
  }

  #wait(idle: IdleWait): void {
    this.#state = "waiting";
    this.#waitedFrom = this.#clock.now();
    idle.arm();
  }

  readonly #wakeUp = () => {
    if (this.#state !== "waiting") return;
    const now = this.#clock.now();
    this.#napping?.othersServed(now);
    // Where naps are possible they do better than asking.
    this.#askingPays = this.#napping === undefined && now - this.#waitedFrom < QUICK_MS;
    this.#run();
  };

  readonly #drainWaiting = () => {
    if (this.#state === "waiting") this.#drain();
  };

  #dispatch(n: number): void {
    const words = this.#events.u32;
    for (let k = 0, at = 0; k < n; k++, at += WORD.stride) {
      const fd = words[at + WORD.data]!;
      if (fd === WAKE) {
        this.#c.read(this.#wake, this.#one.pointer, 8);
        this.#one.u32[0] = 1;
        this.#one.u32[1] = 0;
        continue;
      }
      this.#busy = true;
      const target = this.#targets[fd];
      if (target === undefined || this.#generations[fd] !== words[at + WORD.data + 1]) continue;
      try {
        target.onEvents(words[at]!);
      } catch (error) {
        this.report(error);
        this.#guard(() => target.onFault());
      }
      if (this.closed) return;
    }
  }

  /** Runs the work that is deferred now; what it defers itself waits for the next turn. Returns whether there was any. */
  #drain(): boolean {
    if (this.#deferred.length === 0 || this.closed) return false;
    const tasks = this.#deferred;
    this.#deferred = this.#running;
    this.#running = tasks;
    for (let i = 0; i < tasks.length && !this.closed; i++) {
      try {
        tasks[i]!.run();
      } catch (error) {
        this.report(error);
      }
    }
    tasks.length = 0;
    return true;
  }

  #guard(call: () => void): void {
    try {
      call();
    } catch (error) {
      this.report(error);
    }
  }

  #poke(): void {
    this.#c.write(this.#wake, this.#one.pointer, 8);
  }

  #release(): void {
    if (this.#idle) this.#idle.close(() => this.#poke()).then(() => this.#free());
    else this.#free();
  }

  #free(): void {
    this.#c.close(this.#epoll);
    this.#c.close(this.#wake);
    this.#napping?.free();
    for (const memory of [this.#control, this.#events, this.#one]) memory.free();
    this.#finished.resolve();
  }

  #ctl(op: number, fd: Fd, events: number, low: number, high: number): number {
    const words = this.#control.u32;
    words[0] = events >>> 0;
    words[WORD.data] = low;
    words[WORD.data + 1] = high;
    return this.#c.epoll_ctl(this.#epoll, op, fd, this.#control.pointer);
  }
}

/** Whether an error number means "later", not "broken". */
export function isRetry(n: number): boolean {
  return n === EAGAIN || n === EINTR;
}
