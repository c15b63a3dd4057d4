/**
 * `deno task lab:change [MEGABYTES]`: a file of 1 GB by curl through a ClusterIP, with twenty changes of the network under
 * it. Prints each change and each pause of the stream; fails when a byte or the connection was lost, or when the stream
 * stood still for longer than promised.
 */
import { pause } from "../../../lib/clock.ts";
import { startAll, withMesh } from "../fixture.ts";
import { say } from "../support.ts";
import { Upheaval } from "./changes.ts";
import { Download } from "./transfer.ts";

const ROUNDS = 4;
/** The promise: users see a pause, not a break. */
const STALL_MS = 3_000;

const bytes = Number(Deno.args[0] ?? 1_000) * 1_000_000;
const sites = [{ nat: "cone" }, { nat: "cone" }] as const;
await withMesh({ sites, cloud: "none", defaultRoute: true, web: [] }, async (mesh) => {
  const { topology } = mesh;
  const download = new Download(mesh, topology.pod("edge-1-pod-1"), topology.pod("edge-2-pod-1"));
  await download.serve(bytes);
  await startAll(mesh);
  await download.first();
  await pause(1_500);
  const upheaval = new Upheaval(mesh);
  const changes = Array.from({ length: ROUNDS }, () => upheaval.round().slice(Number(Deno.args[1] ?? 0))).flat();
  const t = await download.run(Math.floor(bytes / (changes.length + 1)), changes);
  say(`curl ended with ${t.code} after ${t.seconds.toFixed(1)} s, ${t.bytes} bytes, SHA-256 ${t.sha256}`);
  for (const { atMs, ms, bytes } of t.stalls) {
    say(`  ${(atMs / 1000).toFixed(1)} s, ${bytes >> 20} MiB: stood still for ${ms} ms`);
  }
  say(`${t.changes} changes; longest pause ${t.longestMs} ms (promised: ${STALL_MS} ms)`);
  const whole = t.code === 0 && t.bytes === bytes && t.sha256 === t.expected;
  say(whole ? "SHA-256 equal, no connection broken" : `BROKEN: expected ${bytes} bytes, SHA-256 ${t.expected}`);
  const kept = whole && t.changes === changes.length && t.longestMs <= STALL_MS;
  // Thrown inside, so that the agents' logs are shown.
  if (!kept) throw new Error("what is promised was not kept");
});
