/**
 * One process of the scale measurements (meta_machine.ts), by its first argument:
 *   server           a fake API server with 5 000 Services and 50 000 endpoints; prints its address; at each line on
 *                    stdin it expires all versions, so that everything is listed anew, and prints a line when every
 *                    list is complete and followed by a watch
 *   empty            memory of a process with the same modules and nothing learned
 *   client ADDRESS   follows the server; after each line on stdin it prints what it measured as one line of JSON
 * Lines are printed on stderr: V8 tells of its collections on stdout, in pieces of its own.
 */
// deno-lint-ignore-file no-console -- its output is its interface
import { FakeApiServer } from "../kube/fake_apiserver.ts";
import { kubeService, kubeSlice, SERVICES, SLICES } from "../kube/objects.ts";
import { giveBack } from "../../lib/linux/idle_memory.ts";
import { pause, systemClock } from "../../lib/clock.ts";
import { nullLogger } from "../../lib/log.ts";
import { FetchApi } from "../../lib/meta/kube/kube_api.ts";
import { prepareFetch } from "../../lib/meta/kube/prepare_fetch.ts";
import type { EndpointSlice } from "../../lib/meta/model.ts";
import { put } from "../../lib/meta/objects.ts";
import { KubeSource } from "../../lib/meta/kube/source_kube.ts";
import { MetaStore } from "../../lib/meta/store/store.ts";

const SERVICE_COUNT = 5000;
const ENDPOINTS_EACH = 10;
/** Shorter turns are not told: there are thousands. */
const SHORT_TURN_MS = 1;
/** Turns after the last work, so that the one it was done in is told, too. */
const LAST_TURNS = 3;

/** The loop between two looks at it, which it takes every millisecond. */
export interface Turn {
  /** End, in milliseconds since the process began. */
  readonly at: number;
  /** Processor time of the main thread: what the program itself did, collections included. */
  readonly cpu: number;
  /** Time on the clock: what others had of the processors meanwhile is in it. */
  readonly wall: number;
}

export interface Measured {
  /** Megabytes when calm: the agent gives memory back seconds after its work is done, see lib/linux/idle_memory.ts. */
  readonly rss: number;
  readonly private: number;
  /** The same before that. */
  readonly busyRss: number;
  readonly services: number;
  readonly endpoints: number;
  /** Turns since the line before, without those of measuring. */
  readonly turns: readonly Turn[];
  /** Milliseconds for one endpoint's change, median of many. */
  readonly oneChange: number;
  readonly syncMs: number;
  /** When a collection was asked for, once, in milliseconds since the process began: V8's own clock differs. */
  readonly collectedAt: number;
}

async function serve(): Promise<void> {
  const api = new FakeApiServer();
  await api.start();
  for (let i = 0; i < SERVICE_COUNT; i++) {
    const namespace = `ns-${i % 50}`;
    const ips = Array.from({ length: ENDPOINTS_EACH }, (_, j) => {
      const n = i * ENDPOINTS_EACH + j;
      return `10.${128 + (n >> 16)}.${(n >> 8) & 255}.${n & 255}`;
    });
    api.put(SERVICES, kubeService(`service-${i}`, `10.96.${(i >> 8) & 255}.${i & 255}`, namespace));
    api.put(SLICES, kubeSlice(`service-${i}-x7k2p`, `service-${i}`, ips, namespace));
  }
  print(api.url);
  let watches = 0;
  for await (const _ of Deno.stdin.readable) {
    watches ||= api.openWatches;
    // A change in a resource nobody watches lets the versions of all others fall behind.
    api.put("/unwatched", { metadata: { name: "x" } });
    api.compact();
    api.endWatches();
    await api.watched(watches);
    print("listed anew");
  }
  await api.stop();
}

async function follow(address: string): Promise<void> {
  const collectedAt = collect();
  const store = new MetaStore({ clock: systemClock });
  const api = new FetchApi(() => Promise.resolve({ server: address, caCerts: [] }), { clock: systemClock, address });
  const source = new KubeSource({ api, layer: store.layer("base"), clock: systemClock, log: nullLogger, pods: "none" });
  const beat = new Beat();
  await beat.next(1);
  const started = systemClock.now();
  await prepareFetch(() => pause(0));
  await source.start();
  while (source.status().state !== "synced") await beat.next(1);
  const syncMs = systemClock.now() - started;
  print("synced");
  for await (const _ of Deno.stdin.readable) {
    await beat.next(LAST_TURNS);
    const turns = beat.take();
    const s = store.snapshot;
    let endpoints = 0;
    for (const slice of s.objects("slice")) endpoints += slice.endpoints.length;
    const measured: Measured = {
      ...await memory(),
      services: s.count("service"),
      endpoints,
      turns,
      oneChange: oneChange(store),
      syncMs,
      collectedAt,
    };
    await beat.next(1);
    beat.take();
    print(JSON.stringify(measured));
  }
  beat.stop();
  await source.stop();
}

/** Looks at the loop every millisecond. */
class Beat {
  readonly #timer: ReturnType<typeof setInterval>;
  #turns: Turn[] = [];
  #cpu = mainThreadCpu();
  #at = performance.now();
  readonly #waiting = new Set<() => void>();

  constructor() {
    this.#timer = setInterval(() => {
      const [cpu, at] = [mainThreadCpu(), performance.now()];
      if (cpu - this.#cpu >= SHORT_TURN_MS) this.#turns.push({ at, cpu: cpu - this.#cpu, wall: at - this.#at });
      [this.#cpu, this.#at] = [cpu, at];
      for (const resolve of this.#waiting) resolve();
      this.#waiting.clear();
    }, 1);
  }

  async next(count: number): Promise<void> {
    for (let i = 0; i < count; i++) await new Promise<void>((resolve) => this.#waiting.add(resolve));
  }

  take(): Turn[] {
    const turns = this.#turns;
    this.#turns = [];
    return turns;
  }

  stop(): void {
    clearInterval(this.#timer);
  }
}

/** Has V8 collect, and says when it was done. */
function collect(): number {
  (globalThis as { gc?: () => void }).gc!();
  return performance.now();
}

function print(line: string): void {
  console.error(line);
}

/** Median time of a change of one endpoint in a snapshot, indexes and change set included. */
function oneChange(store: MetaStore): number {
  const times: number[] = [];
  for (let i = 0; i < 101; i++) {
    const key = `ns-${i % 50}/service-${i}-x7k2p`;
    const slice = store.snapshot.get("slice", key) as EndpointSlice;
    const endpoints = slice.endpoints.with(3, { ...slice.endpoints[3]!, ip: `10.200.0.${i}` });
    const from = systemClock.now();
    store.snapshot.apply([put("slice", { ...slice, endpoints })]);
    times.push(systemClock.now() - from);
  }
  return times.sort((a, b) => a - b)[50]!;
}

async function memory(): Promise<Pick<Measured, "rss" | "private" | "busyRss">> {
  const busyRss = Deno.memoryUsage().rss / 1048576;
  for (let i = 0; i < 2; i++) {
    giveBack();
    await new Promise((resolve) => setTimeout(resolve, 50));
  }
  const text = await Deno.readTextFile("/proc/self/smaps_rollup");
  const kb = (name: string) => Number(new RegExp(`^${name}:\\s+(\\d+)`, "m").exec(text)?.[1] ?? 0);
  return { rss: kb("Rss") / 1024, private: (kb("Private_Clean") + kb("Private_Dirty")) / 1024, busyRss };
}

const CLOCK_THREAD_CPUTIME_ID = 3;
const libc = Deno.dlopen("libc.so.6", { clock_gettime: { parameters: ["i32", "buffer"], result: "i32" } });
const timespec = new BigInt64Array(2);

/**
 * CPU time of this thread in milliseconds: what others do on a busy machine is not counted. Asked of the kernel's clock:
 * what /proc tells of a running thread is as old as the last tick, four milliseconds.
 */
function mainThreadCpu(): number {
  libc.symbols.clock_gettime(CLOCK_THREAD_CPUTIME_ID, timespec);
  return Number(timespec[0]) * 1e3 + Number(timespec[1]) / 1e6;
}

if (import.meta.main) {
  const [role, address] = Deno.args;
  if (role === "server") await serve();
  else if (role === "empty") print(JSON.stringify(await memory()));
  else if (role === "client") await follow(address!);
  else throw new Error(`unknown role ${role}`);
}
