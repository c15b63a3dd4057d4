/**
 * What the session itself costs: bytes and frames through two sessions joined by memory carriers, on one thread, so
 * the numbers are the sum of both ends. The yardstick is the same bytes copied as often as a carrier must copy them.
 * Run: scripts/deno run -A tests/bench/session_bench.ts [seconds per case]
 */
import { cpuUsage } from "node:process";
import { FakeClock } from "../../lib/clock.ts";
import { DEFAULT_LIMITS } from "../../lib/tunnel/constants.ts";
import { memoryCarriers } from "../../lib/tunnel/memory_carrier.ts";
import { Session } from "../../lib/tunnel/session/session.ts";
import type { SessionRole } from "../../lib/tunnel/session/session_types.ts";
import { WOULD_BLOCK } from "../../lib/net.ts";
import { NODE_A, NODE_B, TARGET, UDP_TARGET } from "../fixtures/sessions.ts";

const SECONDS = Number(Deno.args[0] ?? 1);
const WARM_UP_MS = 300;

/** A queue of tasks without allocation: the scheduler must not be what is measured. */
class Tasks {
  #next: (() => void)[] = [];
  readonly later = (task: () => void): void => void this.#next.push(task);

  turn(): boolean {
    const tasks = this.#next;
    this.#next = spare;
    for (let i = 0; i < tasks.length; i++) tasks[i]!();
    spare = tasks;
    spare.length = 0;
    return this.#next.length > 0;
  }
}
let spare: (() => void)[] = [];

interface Ends {
  readonly a: Session;
  readonly b: Session;
  readonly turn: () => boolean;
}

function connect(onStreamBytes: (n: number) => void): Ends {
  const tasks = new Tasks();
  const clock = new FakeClock();
  const buffer = new Uint8Array(65_536);
  const make = (role: SessionRole) =>
    new Session({
      role,
      peer: role === "initiator" ? NODE_B : NODE_A,
      clock,
      later: tasks.later,
      events: {
        onStream(incoming) {
          const stream = incoming.accept({
            onOpen() {},
            onReadable() {
              for (;;) {
                const n = stream.read(buffer);
                if (n === WOULD_BLOCK) return;
                if (n === 0) return stream.closeWrite();
                onStreamBytes(n);
              }
            },
            onWritable() {},
            onClose() {},
          });
        },
        onFlow(incoming) {
          incoming.accept({ onDatagram: (_bytes, length) => onStreamBytes(length), onClose() {} });
        },
        onUp() {},
        onDown() {},
        onClosed() {},
      },
    });
  const a = make("initiator");
  const b = make("acceptor");
  const [near, far] = memoryCarriers({ a: NODE_A, b: NODE_B, later: tasks.later });
  a.attach(near);
  b.attach(far);
  return { a, b, turn: () => tasks.turn() };
}

interface Result {
  readonly name: string;
  readonly bytes: number;
  readonly operations: number;
  /** Wall time, and CPU time of the process (both ends, collector threads included), milliseconds. */
  readonly ms: number;
  readonly cpuMs: number;
}

function cpuMs(): number {
  const { user, system } = cpuUsage();
  return (user + system) / 1000;
}

/** Repeats `step`, which returns how many operations it did, for the time of one case. */
function measure(name: string, step: () => number, bytes: () => number): Result {
  const run = (ms: number) => {
    const start = performance.now();
    const cpu = cpuMs();
    const before = bytes();
    let operations = 0;
    while (performance.now() - start < ms) operations += step();
    return { name, operations, bytes: bytes() - before, ms: performance.now() - start, cpuMs: cpuMs() - cpu };
  };
  run(WARM_UP_MS);
  return run(SECONDS * 1000);
}

/** Writes of `size` bytes on `streams` streams, as many as are taken, one turn after the other. */
function writes(streams: number, size: number): Result {
  let got = 0;
  const ends = connect((n) => got += n);
  const data = new Uint8Array(size).fill(7);
  let written = 0;
  const push = (stream: { write(b: Uint8Array, o: number, n: number): number }) => {
    for (let i = 0; i < 4_194_304 / size / streams + 1; i++) {
      written++;
      if (stream.write(data, 0, size) < size) return;
    }
  };
  const all = Array.from({ length: streams }, () => {
    const stream = ends.a.openStream(TARGET, undefined, {
      onOpen() {},
      onReadable() {},
      onWritable: () => push(stream),
      onClose() {},
    });
    return stream;
  });
  return measure(`${streams} streams, writes of ${size} B`, () => {
    const before = written;
    for (const stream of all) push(stream);
    ends.turn();
    return written - before;
  }, () => got);
}

/** Streams opened, 300 bytes sent, closed both ways, 50 at a time. */
function opens(): Result {
  let got = 0;
  const ends = connect((n) => got += n);
  const first = new Uint8Array(300);
  const buffer = new Uint8Array(1024);
  return measure("open, 300 B, close", () => {
    for (let i = 0; i < 50; i++) {
      const stream = ends.a.openStream(TARGET, first, {
        onOpen() {},
        onReadable() {
          while (stream.read(buffer) > 0);
        },
        onWritable() {},
        onClose() {},
      });
      stream.closeWrite();
    }
    while (ends.turn());
    return 50;
  }, () => got);
}

function datagrams(size: number): Result {
  let got = 0;
  const ends = connect((n) => got += n);
  const flow = ends.a.openFlow(UDP_TARGET, { onDatagram() {}, onClose() {} });
  const data = new Uint8Array(size).fill(7);
  return measure(`datagrams of ${size} B`, () => {
    let n = 0;
    // Within what a flow may queue: beyond, dropping would be measured.
    while ((n + 1) * (size + 2) <= DEFAULT_LIMITS.flowQueue / 2 && flow.send(data, size)) n++;
    while (ends.turn());
    return n;
  }, () => got);
}

/**
 * The yardstick: 16 KiB pieces copied `copies` times between as many buffers. They lie 1 KiB apart within their pages:
 * a target just ahead of its source, modulo 4096, makes the processor copy ten times slower.
 */
function memcpy(copies: number): Result {
  const stride = 65_536 + 1024;
  const memory = new Uint8Array(stride * (copies + 1)).fill(7);
  let bytes = 0;
  let at = 0;
  return measure(`memcpy, ${copies} times`, () => {
    for (let i = 0; i < 64; i++, at = (at + 16_384) & 65_535) {
      for (let from = at; from < copies * stride; from += stride) {
        memory.set(memory.subarray(from, from + 16_384), from + stride);
      }
      bytes += 16_384;
    }
    return 64;
  }, () => bytes);
}

function print(line: string): void {
  Deno.stdout.writeSync(new TextEncoder().encode(`${line}\n`));
}

const results = [
  memcpy(3),
  writes(1, 16_384),
  writes(1, 65_536),
  writes(8, 16_384),
  writes(64, 16_384),
  writes(64, 1_024),
  writes(64, 100),
  opens(),
  datagrams(100),
  datagrams(1_200),
  datagrams(65_507),
  memcpy(3),
];
const yardstick = results.at(-1)!;
const base = yardstick.bytes / yardstick.cpuMs;
print("case                               MB/s   k ops/s   CPU s/GB   memcpy's share");
for (const r of results) {
  const columns = [
    (r.bytes / r.ms / 1000).toFixed(0).padStart(6),
    (r.operations / r.ms).toFixed(1).padStart(9),
    ((1e6 * r.cpuMs) / r.bytes).toFixed(3).padStart(10),
    (r.bytes / r.cpuMs / base).toFixed(3).padStart(16),
  ];
  print(`${r.name.padEnd(32)} ${columns.join(" ")}`);
}
