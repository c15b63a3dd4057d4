/**
 * `deno task lab:outage`: what people's networks and machines do to a mesh, and how long a connection stands still for it.
 * A client and an echo behind two NATs exchange a block every 20 ms while each thing happens; nothing is restarted, and
 * both directions must answer new requests afterwards. Prints a line for each; fails where a stream broke that should
 * not, or an outage was longer than its limit.
 */
import { pause, systemClock } from "../../../lib/clock.ts";
import { startEcho } from "../../../lib/lab/backends.ts";
import { until } from "../../../lib/lab/exec.ts";
import { type Mesh, serviceYaml } from "../../../lib/lab/mesh.ts";
import type { Pod } from "../../../lib/lab/pod.ts";
import type { Plug } from "../../../lib/lab/site.ts";
import { curl, startAll, webService, withMesh } from "../fixture.ts";
import { fixture, say } from "../support.ts";

const [ECHO, THERE, BACK] = ["10.96.0.10", "10.96.0.11", "10.96.0.12"];
/** Longer than a session is held without a carrier (60 s): its streams are gone, the agents are not. */
const SUSPENDED_MS = 90_000;
/** Between two things, so that each meets a mesh at rest, on the direct path again. */
const REST_MS = 4_000;

interface Disturbance {
  readonly name: string;
  /** The longest that a stream may stand still, what it is made to wait for by the disturbance itself included. */
  readonly limitMs: number;
  act(): Promise<void>;
}

interface Watched {
  readonly ended: string;
  readonly wrong: number;
  readonly sent: number;
  readonly received: number;
  readonly longestMs: number;
}

const sites = [{ nat: "cone", strict: true }, { nat: "cone", strict: true }] as const;
await withMesh({ sites, cloud: "none", defaultRoute: true }, async (mesh) => {
  const { topology } = mesh;
  const [one, two] = [topology.pod("edge-1-pod-1"), topology.pod("edge-2-pod-1")];
  const echo = { name: "echo", clusterIP: ECHO, port: 7, targetPort: 7007 };
  await mesh.writeManifest("echo.yaml", serviceYaml({ ...echo, endpoints: [{ ip: two.ip, node: two.node.name }] }));
  await mesh.writeManifest("there.yaml", webService("there", THERE, [two]));
  await mesh.writeManifest("back.yaml", webService("back", BACK, [one]));
  await startEcho(two.host, { port: 7007 });
  await startAll(mesh);
  await bothWays(mesh);
  await pause(REST_MS);
  const failures: string[] = [];
  for (const { name, limitMs, act } of disturbances(mesh)) {
    const watched = await watch(one, act);
    const again = await bothWays(mesh);
    const whole = watched.ended === "cleanly" && watched.wrong === 0 && watched.received === watched.sent;
    say(
      `${name}: outage ${watched.longestMs} ms, stream ${whole ? "whole" : watched.ended}; ` +
        `new requests both ways within ${again} ms`,
    );
    if (!whole) failures.push(`${name}: the stream broke`);
    if (watched.longestMs > limitMs) failures.push(`${name}: more than ${limitMs} ms`);
    await pause(REST_MS);
  }
  for (const [name, agents] of [["edge-1", ["edge-1"]], ["both nodes", ["edge-1", "edge-2"]]] as const) {
    say(
      `suspended for ${SUSPENDED_MS / 1000} s: ${name}: new requests both ways ${await suspended(
        mesh,
        agents,
      )} ms after`,
    );
    await pause(REST_MS);
  }
  if (failures.length > 0) throw new Error(failures.join("; "));
});

function disturbances(mesh: Mesh): readonly Disturbance[] {
  const { topology } = mesh;
  const [near, far] = topology.sites as [typeof topology.sites[0], typeof topology.sites[0]];
  const { attachment } = topology.node("edge-1");
  if (!("plug" in attachment)) throw new Error("edge-1 is in no site");
  const { plug } = attachment;
  return [
    { name: "strict NAT of the client reboots", limitMs: 3_000, act: () => near!.reboot() },
    {
      name: "strict NATs of both sites reboot",
      limitMs: 3_000,
      act: async () => void await Promise.all([near!.reboot(), far!.reboot()]),
    },
    {
      name: "provider gives the server's side another public address",
      limitMs: 3_500,
      act: () => far!.renumber("203.0.113.77"),
    },
    { name: "node moves to another address, without its link noticing", limitMs: 3_000, act: () => moved(plug, 177) },
    {
      name: "node roams: link down for half a second, then another address",
      limitMs: 3_500,
      act: async () => {
        await plug.unplug();
        await pause(500);
        await plug.replug();
        await moved(plug, 178);
      },
    },
    {
      name: "cable pulled for 5 s",
      limitMs: 5_000 + 2_500,
      act: async () => {
        await plug.unplug();
        await pause(5_000);
        await plug.replug();
      },
    },
    {
      name: "uplink swallows everything for 5 s",
      limitMs: 5_000 + 2_500,
      act: async () => {
        await near!.cut();
        await pause(5_000);
        await near!.heal();
      },
    },
    { name: "server starts anew with another key", limitMs: 3_000, act: () => newServerKey(mesh) },
  ];
}

/** The longest pause of a stream around something that happens, every byte checked. */
async function watch(from: Pod, happens: () => Promise<void>): Promise<Watched> {
  const process = await from.host.start("watch", [...fixture("stream_watch"), ECHO, "7"], { ready: { log: /^open/m } });
  await pause(1_500);
  await happens();
  await pause(8_000);
  process.signal("SIGUSR2");
  await process.ended;
  return JSON.parse((await process.log()).trim().split("\n").at(-1)!) as Watched;
}

/** Milliseconds until a new request was answered in each direction. */
async function bothWays({ topology }: Mesh): Promise<number> {
  const started = systemClock.now();
  for (const [from, to, ip] of [["edge-1", "edge-2", THERE], ["edge-2", "edge-1", BACK]] as const) {
    await until(`${from} to reach ${to}`, async () => {
      const { body } = await curl(topology.pod(`${from}-pod-1`), `http://${ip}/`, ["--max-time", "2"]);
      return body === `${to}-pod-1 on ${to}` || undefined;
    }, 60_000);
  }
  return Math.round(systemClock.now() - started);
}

async function moved(plug: Plug, last: number): Promise<void> {
  const other = plug.address.replace(/\d+$/, String(last));
  await plug.ns.ip(
    `addr flush dev ${plug.ifname}`,
    `addr add ${other}/24 dev ${plug.ifname}`,
    `route replace default via ${plug.gateway} dev ${plug.ifname}`,
  );
}

/** The key is made anew, the authority stays: agents believe the authority, not one key. */
async function newServerKey(mesh: Mesh): Promise<void> {
  const { host } = mesh.topology.server;
  await mesh.stopServer();
  await host.execOk(["rm", "/var/lib/edgemesh/server/server.key"]);
  await mesh.startServer();
}

/** Stops agents as a laptop's lid does; milliseconds from their waking up to answers in both directions. */
async function suspended(mesh: Mesh, agents: readonly string[]): Promise<number> {
  for (const name of agents) mesh.agent(name).signal("SIGSTOP");
  await pause(SUSPENDED_MS);
  for (const name of agents) mesh.agent(name).signal("SIGCONT");
  return await bothWays(mesh);
}
