/** The demo's steps about paths between nodes. What is claimed is counted on the wire, not asked of the agents. */
import { systemClock } from "../../lib/clock.ts";
import { until } from "../../lib/lab/exec.ts";
import type { Meter } from "../../lib/lab/meter.ts";
import { bytes, milliseconds, must, type Report } from "./report.ts";
import { curl, type World } from "./world.ts";

/** A TLS handshake and the answer to it have passed: two certificates are more than this. */
const HANDSHAKE_BYTES = 2_500;
/** How long a direct path may take to come; 3 s are promised on a machine that does nothing else. */
const DIRECT_MS = 10_000;
/** How long the loss of a path may take to be noticed and repaired. */
const REPAIR_MS = 20_000;

export async function pathSteps(world: World, report: Report): Promise<void> {
  const { topology } = world;
  const [first, , third] = topology.sites;
  const ends = [first!.address, third!.address] as const;
  const [pod1, pod3] = ["edge-1-pod-1", "edge-3-pod-2"].map((name) => topology.pod(name));
  report.section("Paths");
  await report.step("neighbours on one LAN: straight", async () => {
    const lan = await world.edge3.counters("demo-lan");
    const between = [world.edge3.address, world.edge4.address] as const;
    const { body, ms } = await curl(pod3!, "http://10.96.0.15/");
    must(body.includes("on edge-4"), `the answer is ${JSON.stringify(body)}`);
    await passed(lan, between, undefined);
    const again = await curl(pod3!, "http://10.96.0.15/");
    const { bytes: n } = await lan.total({ between });
    return {
      value: `${milliseconds(ms)}, then ${milliseconds(again.ms)}; ${bytes(n)} between ${between.join(" and ")}`,
      command: "curl http://10.96.0.15/; edgemesh status --peers",
    };
  });
  await report.step("two NATs: relay at once, then direct", async () => {
    const started = systemClock.now();
    const { body, ms } = await curl(pod1!, "http://10.96.0.14/");
    must(body.includes("on edge-3"), `the answer is ${JSON.stringify(body)}`);
    await passed(topology.internet.meter, ends, first!.leg.port);
    const direct = systemClock.now() - started;
    const again = await curl(pod1!, "http://10.96.0.14/");
    return {
      value: `${milliseconds(ms)}; direct ${milliseconds(direct)} after the first request, then ${
        milliseconds(again.ms)
      }`,
      command: "curl http://10.96.0.14/; edgemesh status --peers",
    };
  });
  await report.step("the direct path is cut: back to the relay", async () => {
    await topology.internet.cutPair(...ends);
    try {
      const cut = systemClock.now();
      await until(
        "an answer without the direct path",
        () => curl(pod1!, "http://10.96.0.14/", 2).then(() => true, () => undefined),
        REPAIR_MS,
      );
      return { value: `answered ${milliseconds(systemClock.now() - cut)} after the cut` };
    } finally {
      await topology.internet.healPair(...ends);
    }
  });
}

/** Waits until a whole handshake has passed between two addresses. */
async function passed(meter: Meter, between: readonly [string, string], iface: string | undefined): Promise<void> {
  await until(`a direct path between ${between.join(" and ")}`, async () => {
    const total = await meter.total({ between, ...(iface === undefined ? {} : { iface }) });
    return total.bytes >= HANDSHAKE_BYTES || undefined;
  }, DIRECT_MS);
}
