/** A download under which the network changes: the short form of `deno task lab:change`. */
import assert from "node:assert/strict";
import { Upheaval } from "./change/changes.ts";
import { Download } from "./change/transfer.ts";
import { allowed, startAll, tell, withMesh } from "./fixture.ts";
import { labTest } from "./support.ts";

const BYTES = 60_000_000;
/** One pause is promised to be shorter. */
const STALL_MS = 3_000;

labTest(
  "60 MB by curl through a ClusterIP while the network changes four times: every byte, one connection",
  async () => {
    const sites = [{ nat: "cone" }, { nat: "cone" }] as const;
    await withMesh({ sites, cloud: "none", defaultRoute: true, web: [] }, async (mesh) => {
      const { topology } = mesh;
      const download = new Download(mesh, topology.pod("edge-1-pod-1"), topology.pod("edge-2-pod-1"));
      await download.serve(BYTES);
      await startAll(mesh);
      await download.first();
      const changes = new Upheaval(mesh).round().slice(0, 4);
      const result = await download.run(Math.floor(BYTES / (changes.length + 1)), changes);
      assert.deepEqual(
        [result.code, result.bytes, result.sha256, result.changes],
        [0, BYTES, result.expected, changes.length],
      );
      tell(`longest pause ${result.longestMs} ms of ${result.seconds.toFixed(1)} s; ${JSON.stringify(result.stalls)}`);
      assert.ok(result.longestMs < allowed(STALL_MS), `the download stood still for ${result.longestMs} ms`);
    });
  },
);
