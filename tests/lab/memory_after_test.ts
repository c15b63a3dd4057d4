/** Memory of agents and server after 1 000 streams and 1 000 UDP flows, and after 200 MB, came and went. */
import assert from "node:assert/strict";
import { serviceYaml } from "../../lib/lab/mesh.ts";
import type { HostProcess } from "../../lib/lab/process.ts";
import { tell, withMesh } from "./fixture.ts";
import { calm, LOAD_FLAGS, MANY, mb, MemoryLoad } from "./memory_load.ts";
import { ask, PORTS, startPeer } from "./peers.ts";
import { labTest } from "./support.ts";

const BULK = "10.96.0.12";
/** Over the memory before: code that is loaded, compiled and optimized by the first use stays; 3 to 5 MB were measured. */
const WARM = 7_000_000;
/** The second round over the first, which has not met all code often enough; `lab:memory` shows that later ones add nothing. */
const AGAIN = 3_000_000;
const BULK_BYTES = 200_000_000;
/** The same after 200 MB: one more megabyte or two of code. */
const BULK_SPARE = 12_000_000;

labTest("memory: back to where it was after 1 000 streams, 1 000 UDP flows and 200 MB", async (t) => {
  await withMesh({ cloud: "none", web: ["edge-2-pod-1"] }, async (mesh) => {
    const { topology } = mesh;
    const [client, far] = [topology.pod("edge-1-pod-1"), topology.pod("edge-2-pod-1")];
    const load = new MemoryLoad(mesh);
    await load.prepare();
    const endpoints = [{ ip: far.ip, node: far.node.name }];
    const bulk = { name: "bulk", clusterIP: BULK, port: PORTS.digest, targetPort: PORTS.digest, endpoints };
    await mesh.writeManifest("bulk.yaml", serviceYaml(bulk));
    await startPeer(far.host);
    await mesh.startServer();
    await Promise.all(topology.nodes.map((node) => mesh.join(node, { flags: LOAD_FLAGS })));
    const processes = [...["edge-1", "edge-2"].map((name) => mesh.agent(name)), mesh.server];
    const before = await calm(processes);
    report("idle", processes, before, before);
    const below = (now: readonly number[], then: readonly number[], spare: number) =>
      now.forEach((bytes, i) => assert.ok(bytes - then[i]! < spare, `${processes[i]!.host.name}: ${mb(bytes)}`));
    let first: readonly number[] = [];

    await t.step(`${MANY} streams and ${MANY} flows`, async () => {
      await load.round();
      first = await calm(processes);
      report("after the first round", processes, first, before);
      below(first, before, WARM);
    });
    await t.step("the same again: nothing more", async () => {
      await load.round();
      const second = await calm(processes);
      report("after the second round", processes, second, before);
      below(second, before, WARM);
      below(second, first, AGAIN);
    });
    await t.step("200 MB through the relay", async () => {
      const { answer, sha256 } = await ask(client.host, "upload", BULK, BULK_BYTES);
      assert.equal(answer, `${BULK_BYTES} ${sha256}`);
      const busy = await Promise.all(processes.map(async (p) => (await p.memory()).private));
      report("right after 200 MB", processes, busy, before);
      const after = await calm(processes);
      report("a while after 200 MB", processes, after, before);
      below(after, before, BULK_SPARE);
    });
  });
});

function report(when: string, all: readonly HostProcess[], now: readonly number[], before: readonly number[]): void {
  const parts = all.map((p, i) =>
    `${p.host.name} ${mb(now[i]!)} (${now[i]! >= before[i]! ? "+" : ""}${mb(now[i]! - before[i]!)})`
  );
  tell(`${when}: ${parts.join(", ")} private`);
}
