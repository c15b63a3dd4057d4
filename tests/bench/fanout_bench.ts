/**
 * Metadata fan-out at scale: one server, a thousand agents in a process of their own, over the real control
 * connections (WebSocket over mutual TLS), while endpoints change.
 *
 *   deno task bench:fanout [--agents 1000] [--services 1000] [--rate 100] [--seconds 30]
 *
 * Ten of the agents are whole (guard, store, indexes) and must end with exactly the server's state; the others speak
 * the protocol, check its numbers and note when each change came. Ends with exit code 1 when p99 is a second or more.
 */
// deno-lint-ignore-file no-console -- its output is its purpose
import { parseArgs } from "node:util";
import { pause, systemClock } from "../../lib/clock.ts";
import { nullLogger } from "../../lib/log.ts";
import type { AgentConnection } from "../../lib/meta/fanout/fanout_server.ts";
import { FanoutServer } from "../../lib/meta/fanout/fanout_server.ts";
import type { SessionInfo } from "../../lib/meta/fanout/fanout_session.ts";
import type { EndpointSlice } from "../../lib/meta/model.ts";
import { put } from "../../lib/meta/objects.ts";
import { MetaStore } from "../../lib/meta/store/store.ts";
import { bigCluster } from "../../lib/meta/testing.ts";
import { ControlServer } from "../../lib/tunnel/control/server.ts";
import type { VerifiedPeer } from "../../lib/identity/trust.ts";
import { TestPki } from "../contract/tunnel_pki.ts";
import { type AgentsReport, fingerprint } from "./fanout_agents.ts";

/** p99 of delivery that is asked for. */
const MAX_P99_MS = 1000;
const ENDPOINTS_EACH = 10;
/** After the last change; what did not arrive by then is counted as not delivered. */
const CATCH_UP_MS = 30_000;
const LOOK_MS = 20;

const { values } = parseArgs({
  args: Deno.args,
  options: {
    agents: { type: "string", default: "1000" },
    services: { type: "string", default: "1000" },
    rate: { type: "string", default: "100" },
    seconds: { type: "string", default: "30" },
  },
});
const [agents, services, rate, seconds] = [values.agents, values.services, values.rate, values.seconds].map(Number) as [
  number,
  number,
  number,
  number,
];

const folder = await Deno.makeTempDir();
const pki = await TestPki.create();
const store = new MetaStore({ clock: systemClock });
for (const batch of bigCluster(services, ENDPOINTS_EACH)) store.layer("base").apply(batch);
store.layer("base").apply([], { synced: true });
const fanout = new FanoutServer({ clock: systemClock, source: "bench" });
fanout.follow(store);

const connections = new Map<string, AgentConnection>();
const credentials = await pki.issue("bench", { role: "server" });
const control: ControlServer<VerifiedPeer> = new ControlServer<VerifiedPeer>({
  clock: systemClock,
  log: nullLogger,
  name: "bench",
  version: "bench",
  credentials: () => credentials,
  verify: pki.verifyNode,
  join: () => Promise.resolve({ status: 403, body: "{}" }),
  renew: () => Promise.resolve("{}"),
  revocations: () => ({ epoch: 0, entries: [] }),
  // Presence among a thousand agents is the tunnel's matter, and its cost is not to be measured here.
  maySee: () => false,
  onAgent: (node) => connections.set(node, fanout.connect({ node, send: (m) => control.sendMeta(node, m) })),
  onAgentGone(node) {
    connections.get(node)?.close();
    connections.delete(node);
  },
  onMeta: (node, message) => connections.get(node)?.receive(message),
  onMetaDrain: (node) => connections.get(node)?.writable(),
  // All agents come from one address here.
  limits: { door: { perSource: agents + 10, pending: agents + 10 } },
});
const at = await control.listen({ ip: "127.0.0.1", port: 0 });

console.log(`issuing ${agents} certificates`);
const issued = [];
for (let i = 0; i < agents; i++) issued.push(await pki.issue(`node-${i}`));
await Deno.writeTextFile(`${folder}/credentials.json`, JSON.stringify(issued), { mode: 0o600 });

const script = new URL("./fanout_agents.ts", import.meta.url).pathname;
const child = new Deno.Command(Deno.execPath(), {
  args: ["run", "-A", "--quiet", "--no-check", script, `wss://127.0.0.1:${at.port}`, `${folder}/credentials.json`],
  stdin: "piped",
  stdout: "piped",
}).spawn();
const input = child.stdin.getWriter();
const lines = child.stdout.pipeThrough(new TextDecoderStream())[Symbol.asyncIterator]();
let buffered = "";
async function line(): Promise<string> {
  while (!buffered.includes("\n")) {
    const next = await lines.next();
    if (next.done) throw new Error("the agents' process ended");
    buffered += next.value;
  }
  const end = buffered.indexOf("\n");
  const text = buffered.slice(0, end);
  buffered = buffered.slice(end + 1);
  return text;
}

const startedAt = systemClock.now();
if (await line() !== "ready") throw new Error("the agents did not get the first state");
const sent = () => fanout.sessions().reduce((sum, s) => sum + s.bytesSent, 0);
const stateBytes = sent();
console.log(
  `${agents} agents connected and have ${services} Services with ${services * ENDPOINTS_EACH} endpoints after ` +
    `${((systemClock.now() - startedAt) / 1000).toFixed(1)} s, ${(stateBytes / agents / 1024).toFixed(0)} KiB each`,
);
await caughtUp();
const memoryBefore = Deno.memoryUsage().rss;

const cpu = (pid: string) => Number(Deno.readTextFileSync(`/proc/${pid}/schedstat`).split(" ", 1)[0]) / 1e9;
const cpuBefore = { server: cpu("self"), bytes: sent() };
const from = systemClock.now();
let changes = 0;
while (systemClock.now() - from < seconds * 1000) {
  while (changes < (systemClock.now() - from) / 1000 * rate) change(changes++);
  await new Promise((resolve) => setTimeout(resolve, 5));
}
const spent = (systemClock.now() - from) / 1000;
await caughtUp();
const serverCpu = cpu("self") - cpuBefore.server;
const bytes = sent() - cpuBefore.bytes;

await input.write(new TextEncoder().encode(`${fingerprint(store.snapshot)}\n`));
const report = JSON.parse(await line()) as AgentsReport;
await input.close();
await child.status;
await control.close();
fanout.stop();
await Deno.remove(folder, { recursive: true });

const mb = (n: number) => (n / 1048576).toFixed(0);
console.log(
  `${changes} changes in ${spent.toFixed(1)} s, ${report.delivered} deliveries (${
    (report.delivered / changes).toFixed(1)
  } agents each)`,
);
console.log(`delivery: p50 ${report.p50} ms, p99 ${report.p99} ms, max ${report.max} ms`);
console.log(
  `server: ${(serverCpu / spent * 100).toFixed(0)} % of a core on its main thread, RSS ${
    mb(Deno.memoryUsage().rss)
  } MB ` +
    `(${mb(memoryBefore)} before), ${(bytes / changes / agents).toFixed(0)} bytes per change and agent, ` +
    `${(bytes / spent / 1048576).toFixed(1)} MiB/s in all`,
);
console.log(`agents' process: ${(report.cpu / spent * 100).toFixed(0)} % of a core, RSS ${mb(report.rss)} MB`);
console.log(`whole agents: ${report.equal} of ${report.whole} have exactly the server's state`);
const good = report.p99 < MAX_P99_MS && report.equal === report.whole && report.delivered >= changes * agents * 0.999;
console.log(good ? "fanout: ok" : "fanout: FAILED");
Deno.exit(good ? 0 : 1);

/** Every agent has acknowledged the state of now. */
async function caughtUp(): Promise<void> {
  const end = systemClock.now() + CATCH_UP_MS;
  const has = (s: SessionInfo) => s.number === fanout.number && s.unacknowledged === 0;
  while (!fanout.sessions().every(has) && systemClock.now() < end) await pause(LOOK_MS);
}

/** One endpoint of one slice changes; its pod's name says when. */
function change(n: number): void {
  const i = n % services;
  const key = `ns-${i % 50}/service-${i}-x7k2p`;
  const slice = store.snapshot.get("slice", key) as EndpointSlice;
  const which = Math.floor(n / services) % ENDPOINTS_EACH;
  const pod = `at-${Date.now()}`;
  const endpoints = slice.endpoints.with(which, { ...slice.endpoints[which]!, pod });
  store.layer("base").apply([put("slice", { ...slice, endpoints })]);
}
