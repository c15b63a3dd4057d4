/**
 * The hidden subcommand `edgemesh lab-delay`: a process that stands between the legs of the lab's internet and holds
 * each packet for the one-way delay. It replaces sch_netem, which many kernels (and all containers without
 * CAP_SYS_MODULE) lack. One thread that blocks in ppoll(2): the process does nothing else.
 *
 * Protocol with the lab: one JSON line on stdout when the device is attached; then each line on stdin is a
 * {@link LinkShape} to use from now on, answered by the counters so far. End of stdin ends the process, so it cannot
 * outlive the lab that started it, unless the last line was {@link STAY}.
 */
import type { Clock } from "../clock.ts";
import { systemClock } from "../clock.ts";
import { describe, MeshError } from "../errors.ts";
import { Memory } from "../linux/memory.ts";
import { MAX_TUN_READ, Tun } from "../linux/tun.ts";
import { DelayLine, type LinkShape, PacketRing } from "./delay_line.ts";

/** What the box did since it started. */
export interface DelayStats {
  readonly packets: number;
  readonly bytes: number;
  /** Lost on purpose. */
  readonly lost: number;
  /** Dropped because the queue was full. */
  readonly overflow: number;
}

/** Packets read before those that are due are written: bounds how late a write can be under load. */
const BATCH = 64;
/** Slots of the queue: 64 bytes each at least, so the byte cap is reached first with any real traffic. */
const MAX_PACKETS = 1 << 16;
/**
 * A packet leaves this much before it is due, in ms: half of what waking for it and waking to send it costs on an idle
 * virtual machine. Measured with ping at 20 ms: 40.1 to 40.6 ms instead of 40.4 to 41.
 */
const EARLY_MS = 0.15;
/** 16 MiB hold 3.3 Gbit/s for 40 ms. */
const DEFAULT_QUEUE_MIB = 16;
const STDIN_FD = 0;
/** poll(2) passes over it. */
const NO_FD = -1;
/** The line after which nothing is read and the box stays until its device is gone: its lab is kept. */
export const STAY = "stay";

interface BoxOptions extends LinkShape {
  readonly tun: string;
  readonly seed: number;
  readonly queueMib: number;
}

/**
 * Runs the box until its device or its stdin is gone. `args`: `--tun NAME --delay-ms N [--jitter-ms N] [--loss 0..1]
 * [--seed N] [--queue-mib N]`. Resolves to the exit code.
 */
export function runDelayBox(args: readonly string[], clock: Clock = systemClock): Promise<number> {
  let tun: Tun | undefined;
  try {
    const options = parseArgs(args);
    tun = new Tun(options.tun);
    // By default the kernel may wake a sleeper 50 µs late to save power.
    Deno.writeTextFileSync("/proc/self/timerslack_ns", "1");
    new DelayBox(tun, options, clock).run();
    return Promise.resolve(0);
  } catch (error) {
    Deno.stderr.writeSync(new TextEncoder().encode(`error: ${describe(error)}\n`));
    return Promise.resolve(error instanceof MeshError && error.code === "CONFIG_INVALID" ? 2 : 1);
  } finally {
    tun?.close();
  }
}

class DelayBox {
  readonly #tun: Tun;
  readonly #clock: Clock;
  readonly #line: DelayLine;
  readonly #ring: PacketRing;
  readonly #memory: Memory;
  /** Where a packet goes that finds the queue full. */
  readonly #spill = Memory.allocate(MAX_TUN_READ);
  readonly #decoder = new TextDecoder();
  #input = "";
  #stays = false;
  #packets = 0;
  #bytes = 0;
  #lost = 0;
  #overflow = 0;

  constructor(tun: Tun, options: BoxOptions, clock: Clock) {
    this.#tun = tun;
    this.#clock = clock;
    this.#line = new DelayLine(options, options.seed);
    const capacity = options.queueMib * 1024 * 1024;
    this.#ring = new PacketRing(capacity, MAX_PACKETS);
    this.#memory = Memory.allocate(capacity);
    this.#applyOffload();
  }

  run(): void {
    this.#report();
    for (;;) {
      const timeout = this.#ring.count === 0 ? -1 : Math.max(0, this.#ring.due - EARLY_MS - this.#clock.now());
      const wake = this.#tun.wait(timeout, this.#stays ? NO_FD : STDIN_FD);
      if (wake.gone) return;
      if (wake.other && !this.#readCommands()) return;
      if (wake.packets) this.#takeIn();
      this.#sendDue();
    }
  }

  #takeIn(): void {
    const now = this.#clock.now();
    for (let i = 0; i < BATCH; i++) {
      const offset = this.#ring.reserve(MAX_TUN_READ);
      const full = offset < 0;
      const length = full ? this.#tun.read(this.#spill, 0) : this.#tun.read(this.#memory, offset);
      if (length === 0) return;
      this.#packets++;
      this.#bytes += length;
      if (full) {
        this.#overflow++;
        continue;
      }
      const due = this.#line.admit(now);
      if (due < 0) this.#lost++;
      else this.#ring.push(offset, length, due);
    }
  }

  #sendDue(): void {
    const now = this.#clock.now() + EARLY_MS;
    while (this.#ring.due <= now) {
      this.#tun.write(this.#memory, this.#ring.offset, this.#ring.length);
      this.#ring.pop();
    }
  }

  /** False at the end of stdin. */
  #readCommands(): boolean {
    const chunk = new Uint8Array(4096);
    const n = Deno.stdin.readSync(chunk);
    if (n === null) return false;
    this.#input += this.#decoder.decode(chunk.subarray(0, n), { stream: true });
    const lines = this.#input.split("\n");
    this.#input = lines.pop()!;
    for (const line of lines) {
      if (line === STAY) {
        this.#stays = true;
        return true;
      }
      this.#line.shape = checkShape(JSON.parse(line) as LinkShape);
      this.#applyOffload();
      this.#report();
    }
    return true;
  }

  /** Loss and jitter are per packet on the wire; without them large unsegmented packets save most of the work. */
  #applyOffload(): void {
    const { jitterMs, loss } = this.#line.shape;
    this.#tun.setOffload(jitterMs === 0 && loss === 0);
  }

  #report(): void {
    const stats: DelayStats = {
      packets: this.#packets,
      bytes: this.#bytes,
      lost: this.#lost,
      overflow: this.#overflow,
    };
    Deno.stdout.writeSync(new TextEncoder().encode(JSON.stringify(stats) + "\n"));
  }
}

function parseArgs(args: readonly string[]): BoxOptions {
  const values = new Map<string, string>();
  const known = ["--tun", "--delay-ms", "--jitter-ms", "--loss", "--seed", "--queue-mib"];
  for (let i = 0; i < args.length; i += 2) {
    const [name, value] = [args[i]!, args[i + 1]];
    if (!known.includes(name) || value === undefined) {
      throw new MeshError("CONFIG_INVALID", `Unknown or incomplete option ${name}`, {
        hint: `edgemesh lab-delay ${known.join(" … ")} …`,
      });
    }
    values.set(name, value);
  }
  const number = (name: string, fallback: number) => {
    const value = Number(values.get(name) ?? fallback);
    if (!Number.isFinite(value) || value < 0) {
      throw new MeshError("CONFIG_INVALID", `${name} ${values.get(name)} is not a number from 0 up`);
    }
    return value;
  };
  const shape = checkShape({
    delayMs: number("--delay-ms", 0),
    jitterMs: number("--jitter-ms", 0),
    loss: number("--loss", 0),
  });
  const tun = values.get("--tun");
  if (tun === undefined) throw new MeshError("CONFIG_INVALID", "Option --tun is missing");
  const queueMib = number("--queue-mib", DEFAULT_QUEUE_MIB);
  if (!Number.isInteger(queueMib) || queueMib < 1 || queueMib > 1024) {
    throw new MeshError("CONFIG_INVALID", `--queue-mib ${queueMib} is not an integer from 1 to 1024`);
  }
  return { ...shape, tun, seed: number("--seed", 1), queueMib };
}

function checkShape(shape: LinkShape): LinkShape {
  const { delayMs, jitterMs, loss } = shape;
  for (const value of [delayMs, jitterMs, loss]) {
    if (typeof value !== "number" || !(value >= 0)) {
      throw new MeshError("CONFIG_INVALID", `Link shape ${JSON.stringify(shape)} has a value below 0 or none`);
    }
  }
  if (loss > 1) throw new MeshError("CONFIG_INVALID", `Loss ${loss} is above 1`);
  return { delayMs, jitterMs, loss };
}
