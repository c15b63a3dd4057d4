/**
 * `deno task lab:media [SECONDS]`: a camera at the edge sends 8 Mbit/s of RTP to a pod in the cloud, over UDP and over
 * TCP, with 2 % of all packets lost on the way; beside it the same without the mesh, from node to node. Prints loss,
 * jitter and delay of each. UDP through the mesh travels inside TCP carriers: what is lost on the way comes late instead.
 */
import { pause } from "../../../lib/clock.ts";
import { serviceYaml } from "../../../lib/lab/mesh.ts";
import type { Host } from "../../../lib/lab/host.ts";
import { curl, startAll, webService, withMesh } from "../fixture.ts";
import { fixture, say } from "../support.ts";

const KBIT_PER_SECOND = 8_000;
const LOSS = 0.02;
const ONE_WAY_MS = 10;
const JITTER_MS = 2;
const PORT = 5004;
/** The stream arrives over TCP, or would not keep up: what was sent has come before its end, less what UDP may lose. */
const LEAST = { udp: 0.9, tcp: 1 } as const;

interface Received {
  readonly sent: number;
  readonly received: number;
  readonly duplicates: number;
  readonly reordered: number;
  readonly jitterMs: number;
  readonly delayMs: { readonly least: number; readonly p50: number; readonly p99: number; readonly most: number };
  readonly longestGapMs: number;
}

const seconds = Number(Deno.args[0] ?? 20);
const shape = { oneWayDelayMs: ONE_WAY_MS, jitterMs: JITTER_MS, loss: LOSS, seed: 11 } as const;
const sites = [{ nat: "cone" }] as const;
await withMesh({ sites, cloud: "public", defaultRoute: true, ...shape }, async (mesh) => {
  const { topology } = mesh;
  const [edge, cloud] = [topology.pod("edge-1-pod-1"), topology.pod("cloud-1-pod-1")];
  const endpoints = [{ ip: cloud.ip, node: cloud.node.name }];
  const addresses = { udp: "10.96.0.20", tcp: "10.96.0.21" } as const;
  for (const protocol of ["udp", "tcp"] as const) {
    await mesh.writeManifest(
      `${protocol}.yaml`,
      serviceYaml({
        name: `camera-${protocol}`,
        clusterIP: addresses[protocol],
        port: PORT,
        targetPort: PORT,
        protocol: protocol === "udp" ? "UDP" : "TCP",
        endpoints,
      }),
    );
  }
  await mesh.writeManifest("web.yaml", webService("web", "10.96.0.10", [cloud]));
  await startAll(mesh);
  await curl(edge, "http://10.96.0.10/");
  await pause(3_000);
  say(`${KBIT_PER_SECOND / 1000} Mbit/s for ${seconds} s, ${LOSS * 100} % loss and ${2 * ONE_WAY_MS} ms round trip`);
  const problems: string[] = [];
  for (const protocol of ["udp", "tcp"] as const) {
    const plain = await stream(
      protocol,
      [edge.node.host, topology.node("cloud-1").address],
      topology.node("cloud-1").host,
    );
    show(`${protocol} without the mesh`, plain);
    const through = await stream(protocol, [edge.host, addresses[protocol]], cloud.host);
    const { peers } = await mesh.status(topology.node("edge-1"));
    show(`${protocol} through the mesh, ${peers[0]?.path}`, through);
    if (through.received < through.sent * LEAST[protocol]) problems.push(`${protocol}: too little arrived`);
    if (through.duplicates > 0) problems.push(`${protocol}: something came twice`);
  }
  if (problems.length > 0) throw new Error(problems.join("; "));
});

async function stream(
  protocol: "udp" | "tcp",
  [from, to]: readonly [Host, string],
  receiver: Host,
): Promise<Received> {
  const receiving = await receiver.start(`receive-${protocol}`, [
    ...fixture("media_peer"),
    ...["receive", protocol, String(PORT)],
  ], { ready: { log: /^listening/m } });
  const argv = [...fixture("media_peer"), "send", protocol, to, ...[PORT, KBIT_PER_SECOND, seconds * 1000].map(String)];
  await from.execOk(argv, { timeoutMs: seconds * 1000 + 20_000 });
  await receiving.waitFor({ log: /^\{/m }, 30_000);
  const result = JSON.parse((await receiving.log()).split("\n").find((line) => line.startsWith("{"))!) as Received;
  await receiving.kill();
  return result;
}

function show(name: string, r: Received): void {
  const lost = (100 * (r.sent - r.received) / r.sent).toFixed(2);
  const { p50, p99, most } = r.delayMs;
  say(
    `${name}: ${r.sent} sent, ${lost} % lost, ${r.reordered} out of order, jitter ${r.jitterMs} ms, ` +
      `delay p50 ${p50} p99 ${p99} most ${most} ms, longest gap ${r.longestGapMs} ms`,
  );
}
