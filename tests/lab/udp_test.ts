/** UDP Services over the kernel and tunnel ways: what datagrams are promised, and what they get on a bad link. */
import assert from "node:assert/strict";
import { until } from "../../lib/lab/exec.ts";
import { serviceYaml } from "../../lib/lab/mesh.ts";
import type { Host } from "../../lib/lab/host.ts";
import type { Pod } from "../../lib/lab/pod.ts";
import type { PathEvent } from "../../lib/status.ts";
import { startAll, tell, withMesh } from "./fixture.ts";
import { labTest, longLabTest } from "./support.ts";
import { askUdp, startUdpPeer, startWho, type UdpAnswer, type UdpRun } from "./udp_peers.ts";

const NEAR = "10.96.0.10";
const FAR = "10.96.0.11";
const MOVING = "10.96.0.12";
const PORT = 5300;
const TARGET = 9000;
/** The largest is what IPv4 can carry: 65 535 − 20 − 8. */
const SIZES = [0, 1, 1472, 9000, 65_507];
const LATE_MS = 5_000;
/** A burst of ten times what a flow's queue of 256 KiB holds. */
const BURST = { size: 1200, count: 2_200 } as const;
/** What a burst may cost beside the queues themselves (256 KiB on either side): buffers that the engine grows for it. */
const BURST_MEMORY = 16_000_000;
const IDLE_MS = 2_000;
/** Until TCP has found its pace: IW10 (RFC 6928), doubled each round trip, and a queue to work off. */
const SLOW_START_ROUND_TRIPS = 8;

labTest("UDP Services: sizes, sources, late answers, bursts, idle flows and endpoints that go", async (t) => {
  await withMesh({ cloud: "none", podsPerNode: 2, web: [] }, async (mesh) => {
    const { topology } = mesh;
    const node = topology.node("edge-1");
    const client = topology.pod("edge-1-pod-1");
    const [near, far, other] = ["edge-1-pod-2", "edge-2-pod-1", "edge-2-pod-2"].map((name) => topology.pod(name));
    await mesh.writeManifest("near.yaml", udpService("near", NEAR, [near!]));
    await mesh.writeManifest("far.yaml", udpService("far", FAR, [far!]));
    await mesh.writeManifest("moving.yaml", udpService("moving", MOVING, [far!]));
    await Promise.all([near!, far!, other!].map((pod) => startUdpPeer(pod.host, pod.name, TARGET)));
    await startAll(mesh);

    for (const [way, ip] of [["kernel", NEAR], ["tunnel", FAR]] as const) {
      await t.step(
        `${way}: datagrams of 0 to 65 507 bytes keep their boundaries; answers come from the Service`,
        async () => {
          const answers = await askUdp<UdpAnswer[]>(client.host, "sizes", ip, PORT, SIZES.join());
          assert.deepEqual(
            answers.map(({ size, same, from }) => ({ size, same, from })),
            SIZES.map((size) => ({ size, same: true, from: `${ip}:${PORT}` })),
          );
          tell(`${way}: ${answers.map(({ size, ms }) => `${size} bytes ${ms} ms`).join(", ")}`);
        },
      );
    }
    await t.step("for programs of the host too", async () => {
      for (const ip of [NEAR, FAR]) {
        const [answer] = await askUdp<UdpAnswer[]>(node.host, "sizes", ip, PORT, 100);
        assert.deepEqual([answer!.same, answer!.from], [true, `${ip}:${PORT}`]);
      }
    });
    await t.step("an answer five seconds later arrives", async () => {
      const answer = await askUdp<UdpAnswer>(client.host, "text", FAR, PORT, `late ${LATE_MS}`);
      assert.equal(answer.text, `late ${LATE_MS}`);
      assert.ok(answer.ms >= LATE_MS, `after ${answer.ms} ms`);
    });
    await t.step(
      // Its own bytes make the way busy: relay legs take over in the middle of it.
      "a burst beyond the queue: nothing twice, nothing altered, the newest survive, memory stays",
      async () => {
        const agents = ["edge-1", "edge-2"].map((name) => mesh.agent(name));
        const before = await Promise.all(agents.map(async (agent) => (await agent.memory()).private));
        const hosts = [client.host, far!.host, ...agents.map((agent) => agent.host)];
        const overflows = await socketOverflows(hosts);
        const run = await askUdp<UdpRun>(client.host, "burst", FAR, PORT, BURST.size, BURST.count);
        // What a socket's own buffer had no room for, because its program was not scheduled, never reached a queue of ours.
        const lost = await socketOverflows(hosts) - overflows;
        const after = await Promise.all(agents.map(async (agent) => (await agent.memory()).private));
        tell(`${run.received} of ${run.sent} came back, number ${run.first} to ${run.last}`);
        assert.deepEqual([run.duplicates, run.wrong], [0, 0]);
        assert.ok(
          run.received > 0 && run.last >= BURST.count - 32 - lost,
          `the newest that came back was ${run.last}, and sockets had no room for ${lost}`,
        );
        after.forEach((bytes, i) => {
          assert.ok(
            bytes - before[i]! < BURST_MEMORY,
            `${agents[i]!.host.name} grew by ${(bytes - before[i]!) / 1e6} MB`,
          );
        });
        const { events } = (await mesh.status(node)).peers[0]!;
        assert.ok(events.filter(isRelayUp).length > 1, "the way did not change: this test would see nothing");
        // The queue is of the flow: another one is not behind it.
        const [answer] = await askUdp<UdpAnswer[]>(client.host, "sizes", FAR, PORT, 100);
        assert.ok(answer!.same);
      },
    );
    for (const [from, to] of [[far!, other!], [near!, other!], [other!, near!]] as const) {
      await t.step(`a flow dies with its endpoint: ${from.name} goes, ${to.name} answers the same socket`, async () => {
        await mesh.writeManifest("moving.yaml", udpService("moving", MOVING, [from]));
        const who = await startWho(client.host, MOVING, PORT);
        try {
          await who.waitFor({ log: new RegExp(`^${from.name}$`, "m") });
          await mesh.writeManifest("moving.yaml", udpService("moving", MOVING, [to]));
          // After the first one: a Service of the step before may have led there for a moment.
          await who.waitFor({ log: new RegExp(`^${from.name}$[^]*^${to.name}$`, "m") });
          const tracked = (await node.host.exec(["conntrack", "-L", "-p", "udp", "-d", MOVING])).stdout;
          assert.ok(!tracked.includes(`src=${from.ip} `), `the kernel still leads to ${from.name}: ${tracked}`);
        } finally {
          await who.kill();
        }
      });
    }
    await t.step("flows end after their idle time, which can be configured, and come again", async () => {
      await mesh.stopAgent(node);
      await mesh.startAgent(node, { flags: ["--set", `forward.udpIdleMs=${IDLE_MS}`] });
      const flows = async () => (await mesh.status(node)).peers.reduce((sum, peer) => sum + peer.streams, 0);
      const { answered } = await askUdp<{ answered: number }>(client.host, "flows", FAR, PORT, 20);
      assert.equal(answered, 20);
      assert.ok(await flows() >= 20, "the flows are not seen: this test would see nothing");
      await until("the flows to be gone", async () => await flows() === 0 || undefined, 15_000);
      const [answer] = await askUdp<UdpAnswer[]>(client.host, "sizes", FAR, PORT, 100);
      assert.ok(answer!.same);
    });
  });
});

labTest("UDP at 20 ms and 2 % loss: what is delivered, how late and how much", async (t) => {
  // 10 ms each way between any two machines; through the relay a datagram takes two such ways there and two back.
  await withMesh({ cloud: "none", web: [], oneWayDelayMs: 10, jitterMs: 2, loss: 0.02, seed: 7 }, async (mesh) => {
    const { topology } = mesh;
    const [client, far] = [topology.pod("edge-1-pod-1"), topology.pod("edge-2-pod-1")];
    await mesh.writeManifest("far.yaml", udpService("far", FAR, [far]));
    await startUdpPeer(far.host, far.name, TARGET);
    await startAll(mesh);
    // One TCP carrier at this loss and round trip carries about 10 Mbit/s (Mathis et al. 1997: 1.2 · MSS / (RTT · √p)):
    // the last rate is above it where the relay doubles the way, so that the queue has to drop; it must still carry most
    // of what fits.
    for (const [size, perSecond, least] of [[200, 200, 0.9], [1200, 200, 0.9], [1200, 1000, 0.3]] as const) {
      await t.step(`${size} bytes, ${perSecond} a second`, async () => {
        const run = await askUdp<UdpRun>(client.host, "rate", FAR, PORT, size, perSecond, 5_000);
        const share = run.received / run.sent;
        const { peers } = await mesh.status(topology.node("edge-1"));
        tell(
          `${size} bytes at ${perSecond}/s by ${peers[0]?.path}: ${
            (share * 100).toFixed(1)
          } % delivered, p50 ${run.p50} ms, ` +
            `p99 ${run.p99} ms, ${run.kbitPerSecond} kbit/s there and back`,
        );
        assert.deepEqual([run.duplicates, run.wrong], [0, 0]);
        // Carriers are TCP: loss costs time, not datagrams, unless they are older than anybody waits for.
        assert.ok(share > least, `only ${run.received} of ${run.sent}`);
      });
    }
  });
});

for (
  const { oneWayMs, count, perSecond, test } of [
    { oneWayMs: 150, count: 1_300, perSecond: 200, test: labTest },
    { oneWayMs: 150, count: 10_000, perSecond: 200, test: longLabTest },
  ]
) {
  test(`B02: ${count} datagrams of 4 to 65 000 bytes and their answers at ${2 * oneWayMs} ms and more`, async () => {
    await withMesh({ cloud: "none", web: [], oneWayDelayMs: oneWayMs }, async (mesh) => {
      const { topology } = mesh;
      const [client, far] = [topology.pod("edge-1-pod-1"), topology.pod("edge-2-pod-1")];
      await mesh.writeManifest("far.yaml", udpService("far", FAR, [far]));
      await startUdpPeer(far.host, far.name, TARGET);
      await startAll(mesh);
      // The first one makes the way: what would come while it is made is more than a flow may queue.
      await askUdp(client.host, "sizes", FAR, PORT, 100);
      const run = await askUdp<UdpRun>(client.host, "mixed", FAR, PORT, count, perSecond);
      const { peers } = await mesh.status(topology.node("edge-1"));
      tell(
        `${run.received} of ${run.sent} by ${
          peers[0]?.path
        }, the last lost ${run.lastLost}, p50 ${run.p50} ms, p99 ${run.p99} ms, ` +
          `${run.kbitPerSecond} kbit/s`,
      );
      assert.deepEqual([run.duplicates, run.wrong], [0, 0]);
      // The way's TCP begins slowly, and a flow queues no more than 256 KiB meanwhile; then nothing is lost.
      const slowStart = SLOW_START_ROUND_TRIPS * 4 * oneWayMs / 1000 * perSecond;
      assert.ok(run.lastLost < slowStart, `number ${run.lastLost} was lost, after the first ${slowStart}`);
      assert.ok(run.p50 >= 2 * oneWayMs, `p50 ${run.p50} ms: the way was not long`);
    });
  });
}

/** The channel is the first carrier over the relay, legs are the second. */
function isRelayUp(event: PathEvent): boolean {
  return event.path === "relay" && event.text === "carrier ready";
}

/** Datagrams that sockets of these hosts had no room for, over IPv4. */
async function socketOverflows(hosts: readonly Host[]): Promise<number> {
  const texts = await Promise.all(hosts.map((host) => host.execOk(["cat", "/proc/net/snmp"])));
  return texts.reduce((sum, { stdout }) => {
    const [names, values] = stdout.split("\n").filter((line) => line.startsWith("Udp:")).map((line) => line.split(" "));
    return sum + Number(values![names!.indexOf("RcvbufErrors")]);
  }, 0);
}

function udpService(name: string, clusterIP: string, pods: readonly Pod[]): string {
  return serviceYaml({
    name,
    clusterIP,
    port: PORT,
    targetPort: TARGET,
    protocol: "UDP",
    endpoints: pods.map((pod) => ({ ip: pod.ip, node: pod.node.name })),
  });
}
