/** The demo's steps with no server anywhere: what goes on, what is said about the rest, and how soon all is back. */
import { systemClock } from "../../lib/clock.ts";
import { until } from "../../lib/lab/exec.ts";
import { milliseconds, must, type Report } from "./report.ts";
import { curl, type World } from "./world.ts";

const BACK_MS = 10_000;

export async function offlineSteps(world: World, report: Report): Promise<void> {
  const { mesh, topology, edge1 } = world;
  const pod = topology.pod("edge-1-pod-1");
  report.section("No server");
  await report.step("server killed: own node and LAN go on", async () => {
    await mesh.stopServer("kill");
    const own = await curl(pod, "http://10.96.0.13/");
    must(own.body.includes("on edge-1"), `the answer is ${JSON.stringify(own.body)}`);
    const lan = await curl(topology.pod("edge-3-pod-2"), "http://10.96.0.15/");
    must(lan.body.includes("on edge-4"), `the answer is ${JSON.stringify(lan.body)}`);
    return { value: `${milliseconds(own.ms)}, ${milliseconds(lan.ms)}`, command: "kill -9 $(pidof edgemesh-server)" };
  });
  await report.step("agent restarted offline serves from disk", async () => {
    await mesh.stopAgent(edge1);
    const started = systemClock.now();
    await mesh.startAgent(edge1, { waitReady: false });
    await until(
      "an own-node Service to answer",
      () => curl(pod, "http://10.96.0.13/", 1).then(() => true, () => undefined),
      BACK_MS,
    );
    return {
      value: `${milliseconds(systemClock.now() - started)} from exec to the first answer`,
      command: "systemctl restart edgemesh-agent; curl http://10.96.0.13/",
    };
  });
  await report.step("another site: refused, and status says why", async () => {
    const refused = await pod.host.exec(["curl", "-sS", "--max-time", "5", "-o", "/dev/null", "http://10.96.0.11/"]);
    must([7, 52, 56].includes(refused.code), `curl ended with code ${refused.code}: ${refused.stderr.trim()}`);
    must(refused.ms < 3000, `it took ${milliseconds(refused.ms)}`);
    const why = (await mesh.status(edge1)).peers.find((peer) => peer.node === "edge-2")?.detail;
    must(why !== undefined, "status does not say why");
    return { value: `${milliseconds(refused.ms)}: ${why.split("; ")[0]}`, command: "edgemesh status --peers" };
  });
  await report.step("server is back, next request answered", async () => {
    await mesh.startServer();
    const ready = systemClock.now();
    await until(
      "an answer of the other site",
      () => curl(pod, "http://10.96.0.11/", 1).then(() => true, () => undefined),
      BACK_MS,
    );
    await until("all agents to be connected", async () => {
      return (await mesh.serverStatus()).agents.length === topology.nodes.length || undefined;
    }, BACK_MS);
    return {
      value: `answered ${milliseconds(systemClock.now() - ready)} after it was ready`,
      command: "systemctl start edgemesh-server",
    };
  });
}
