/** A stream that is watched while something happens to the network. */
import assert from "node:assert/strict";
import type { Pod } from "../../lib/lab/pod.ts";
import type { HostProcess } from "../../lib/lab/process.ts";
import { fixture } from "./support.ts";

/** A stream to an echo at port 7 of an address: sends all the time, and measures the silences. */
export function watch(from: Pod, ip: string): Promise<HostProcess> {
  return from.host.start("watch", [...fixture("stream_watch"), ip, "7"], { ready: { log: /^open/m } });
}

/** Ends a watch: every byte came back, in order. Returns its longest silence in ms. */
export async function finish(process: HostProcess): Promise<number> {
  process.signal("SIGUSR2");
  await process.ended;
  const result = JSON.parse((await process.log()).trim().split("\n").at(-1)!) as {
    readonly ended: string;
    readonly sent: number;
    readonly received: number;
    readonly wrong: number;
    readonly longestMs: number;
  };
  assert.deepEqual([result.ended, result.wrong, result.received], ["cleanly", 0, result.sent], "the stream broke");
  return result.longestMs;
}
