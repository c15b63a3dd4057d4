/**
 * One process of the scale test (tests/kube/scale_test.ts), by its first argument:
 *   server           a fake API server with 5 000 Services and 50 000 endpoints; prints its address; a line `e` on
 *                    stdin expires all versions, so that everything is listed anew; each line is answered with the
 *                    number of further pages of slices read so far
 *   empty            memory of a process with the same modules and nothing learned
 *   client ADDRESS   follows the server; prints what it measured as one line of JSON after each line on stdin
 */
// deno-lint-ignore-file no-console -- its output is its interface
import { FakeApiServer } from "../kube/fake_apiserver.ts";
import { kubeService, kubeSlice, SERVICES, SLICES } from "../kube/objects.ts";
import { giveBack } from "../../lib/linux/idle_memory.ts";
import { systemClock } from "../../lib/clock.ts";
import { nullLogger } from "../../lib/log.ts";
import { FetchApi } from "../../lib/meta/kube_api.ts";
import type { EndpointSlice } from "../../lib/meta/model.ts";
import { put } from "../../lib/meta/objects.ts";
import { KubeSource } from "../../lib/meta/source_kube.ts";
import { MetaStore } from "../../lib/meta/store.ts";

const SERVICE_COUNT = 5000;
const ENDPOINTS_EACH = 10;
/** First byte of a line to the server: expire everything. Any other: only say how many pages of slices were read. */
const EXPIRE = "e".charCodeAt(0);

export interface Measured {
  /** Megabytes when calm: the agent gives memory back seconds after its work is done, see lib/linux/idle_memory.ts. */
  readonly rss: number;
  readonly private: number;
  /** The same before that. */
  readonly busyRss: number;
  readonly services: number;
  readonly endpoints: number;
  /** CPU milliseconds of the main thread between two turns of the loop, at most, before memory was given back. */
  readonly longestTurn: number;
  /** Milliseconds for one endpoint's change, median of many. */
  readonly oneChange: number;
  readonly syncMs: number;
}

if (import.meta.main) {
  const [role, address] = Deno.args;
  if (role === "server") await serve();
  else if (role === "empty") console.log(JSON.stringify(await memory()));
  else if (role === "client") await follow(address!);
  else throw new Error(`unknown role ${role}`);
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
  console.log(api.url);
  for await (const bytes of Deno.stdin.readable) {
    if (bytes[0] === EXPIRE) {
      // A change in a resource nobody watches lets the versions of all others fall behind.
      api.put("/unwatched", { metadata: { name: "x" } });
      api.compact();
      api.endWatches();
    }
    console.log(api.count(`PAGE ${SLICES}`));
  }
  await api.stop();
}

async function follow(address: string): Promise<void> {
  const store = new MetaStore({ clock: systemClock });
  const api = new FetchApi(() => Promise.resolve({ server: address, caCerts: [] }), { clock: systemClock, address });
  const source = new KubeSource({ api, layer: store.layer("base"), clock: systemClock, log: nullLogger, pods: "none" });
  let longest = 0;
  let last = mainThreadCpu();
  const beat = setInterval(() => {
    const now = mainThreadCpu();
    longest = Math.max(longest, now - last);
    last = now;
  }, 1);
  const started = systemClock.now();
  await source.start();
  while (source.status().state !== "synced") await new Promise((resolve) => setTimeout(resolve, 5));
  const syncMs = systemClock.now() - started;
  console.log("synced");
  for await (const _ of Deno.stdin.readable) {
    const longestTurn = longest;
    const s = store.snapshot;
    let endpoints = 0;
    for (const slice of s.objects("slice")) endpoints += slice.endpoints.length;
    const measured: Measured = {
      ...await memory(),
      services: s.count("service"),
      endpoints,
      longestTurn,
      oneChange: oneChange(store),
      syncMs,
    };
    console.log(JSON.stringify(measured));
    longest = 0;
    last = mainThreadCpu();
  }
  clearInterval(beat);
  await source.stop();
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

/** CPU time of this thread in milliseconds: what others do on a busy machine is not counted. */
function mainThreadCpu(): number {
  return Number(Deno.readTextFileSync("/proc/self/schedstat").split(" ", 1)[0]) / 1e6;
}
