/**
 * `deno task lab:fair [SECONDS]`: one download without end and 100 small requests at a time to the same node, over one
 * tunnel at 40 ms round trip. Prints the requests' latency without and with the download; fails when the 99th percentile
 * grows more than fivefold.
 */
import { startNginx } from "../../../lib/lab/backends.ts";
import { serviceYaml } from "../../../lib/lab/mesh.ts";
import type { Host } from "../../../lib/lab/host.ts";
import { curl, startAll, webService, withMesh } from "../fixture.ts";
import { say } from "../support.ts";

/** A bulk stream beside small ones leaves their 99th percentile below so many times its unloaded value. */
const GROWTH = 5;
const REQUESTS_AT_ONCE = 100;
const ONE_WAY_MS = 20;
const SMALL = "10.96.0.10";
const BULK = "10.96.0.11";
const BULK_PORT = 8081;
/** More than the link carries in the time. */
const BULK_BYTES = 4_000_000_000;

interface Latency {
  readonly p50: number;
  readonly p99: number;
  readonly perSecond: number;
}

const seconds = Number(Deno.args[0] ?? 15);
const sites = [{ nat: "cone" }, { nat: "cone" }] as const;
await withMesh({ sites, cloud: "none", defaultRoute: true, oneWayDelayMs: ONE_WAY_MS }, async (mesh) => {
  const { topology } = mesh;
  const [client, server] = [topology.pod("edge-1-pod-1"), topology.pod("edge-2-pod-1")];
  await startNginx(server.host, { port: BULK_PORT, text: "" });
  await server.host.execOk([
    "truncate",
    "-s",
    String(BULK_BYTES),
    `${server.host.logDir}/nginx-${BULK_PORT}/answer.txt`,
  ]);
  const endpoints = [{ ip: server.ip, node: server.node.name }];
  await mesh.writeManifest("web.yaml", webService("web", SMALL, [server]));
  await mesh.writeManifest(
    "bulk.yaml",
    serviceYaml({ name: "bulk", clusterIP: BULK, port: 80, targetPort: BULK_PORT, endpoints }),
  );
  await startAll(mesh);
  await curl(client, `http://${SMALL}/`);
  // The first run makes the path direct and the connections' windows known.
  await latency(client.host, 5);
  const alone = await latency(client.host, seconds);
  const bulk = await client.host.start("bulk", [
    "curl",
    "-sS",
    "-o",
    "/dev/null",
    "-w",
    "%{size_download}",
    `http://${BULK}/`,
  ]);
  const before = await received(client.host);
  const beside = await latency(client.host, seconds);
  const rate = (await received(client.host) - before) * 8 / seconds / 1e6;
  if (!bulk.running) throw new Error("the download ended: there was nothing beside the requests");
  await bulk.kill();
  const { peers } = await mesh.status(client.node);
  say(`path ${peers[0]?.path}; ${REQUESTS_AT_ONCE} requests at a time`);
  say(`  alone                 p50 ${alone.p50} ms, p99 ${alone.p99} ms, ${alone.perSecond} a second`);
  say(
    `  beside ${
      rate.toFixed(0).padStart(4)
    } Mbit/s    p50 ${beside.p50} ms, p99 ${beside.p99} ms, ${beside.perSecond} a second`,
  );
  say(`  p99 grows ${(beside.p99 / alone.p99).toFixed(2)} times (promised: ${GROWTH} at most)`);
  if (beside.p99 > GROWTH * alone.p99) throw new Error("what is promised was not kept");
});

/** Bytes that reached the host's interface. */
async function received(host: Host): Promise<number> {
  const { stdout } = await host.execOk(["cat", "/proc/net/dev"]);
  return [...stdout.matchAll(/^\s*(?!lo:)\S+:\s*(\d+)/gm)].reduce((sum, [, bytes]) => sum + Number(bytes), 0);
}

async function latency(host: Host, seconds: number): Promise<Latency> {
  const command = ["wrk", "-t1", `-c${REQUESTS_AT_ONCE}`, `-d${seconds}s`, "--latency", `http://${SMALL}/`];
  const { stdout } = await host.execOk(command, { timeoutMs: (seconds + 15) * 1000 });
  if (/Socket errors|Non-2xx/.test(stdout)) throw new Error(`requests failed:\n${stdout}`);
  const ms = (share: string) => {
    const [, value, unit] = new RegExp(`^\\s+${share}%\\s+([\\d.]+)(us|ms|s)$`, "m").exec(stdout)!;
    return Math.round(Number(value) * ({ us: 0.001, ms: 1, s: 1000 }[unit as "us" | "ms" | "s"]) * 10) / 10;
  };
  return { p50: ms("50"), p99: ms("99"), perSecond: Math.round(Number(/Requests\/sec:\s+([\d.]+)/.exec(stdout)![1])) };
}
