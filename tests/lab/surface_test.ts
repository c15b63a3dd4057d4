/** What a running agent and server show, and to whom: documents, metrics, log levels, admin sockets, and no secret. */
import assert from "node:assert/strict";
import { until } from "../../lib/lab/exec.ts";
import { lintMetrics } from "../../lib/metrics_lint.ts";
import { type Bed, onBed } from "./broken/bed.ts";
import { tell } from "./fixture.ts";
import { labTest } from "./support.ts";
import { serviceYaml } from "../../lib/lab/mesh.ts";

const CANARY = "canary0in0the0mine4711";
const GHOST = "10.96.0.99";
const NOBODY = "65534";
const METRICS = "http://127.0.0.1:9464";
/** A proxy that leads nowhere, for other hosts than the server: its password is read and must stay where it is. */
const SECRET_ENV = {
  HTTPS_PROXY: `http://edge:${CANARY}@192.168.1.250:3128`,
  NO_PROXY: "203.0.113.1",
  EDGEMESH_TOKEN_FILE: `em_abcd1234.${CANARY}`,
};

const THEIRS = `kind: EdgeMeshAgent
modules:
  edgeTunnel:
    psk: { enable: true }
    listenPort: 20007
  edgeDNS: { enable: true, cacheDNS: { enable: true } }
`;

/** Paths of version edgemesh/v1 that programs may rely on: fields are added, never renamed. */
const AGENT_V1 = `apiVersion:string commit:string form:string role:string version:string node:string mode:string
  modeSince:string tlsEngine:string pid:number uptimeSeconds:number ready:boolean waitingFor:array warnings:array
  memory.privateMb:number memory.rssMb:number modules[].name:string modules[].state:string modules[].detail:string
  servers[].url:string servers[].state:string servers[].rttMs:number servers[].observed:string
  metadata.source:string metadata.epoch:string metadata.number:number metadata.ageSeconds:number
  metadata.services:number metadata.endpoints:number metadata.nodes:number metadata.refused:array
  metadata.follows.kind:string metadata.follows.from:string metadata.follows.state:string
  metadata.follows.problems:array metadata.follows.unreadable:array peers:array
  services[].service:string services[].address:string services[].port:number services[].protocol:string
  services[].endpoints[].endpoint:string services[].endpoints[].node:string services[].endpoints[].way:string
  services[].endpoints[].why:string`;
const SERVER_V1 = `apiVersion:string role:string version:string commit:string form:string pid:number
  uptimeSeconds:number ready:boolean waitingFor:array warnings:array memory.privateMb:number memory.rssMb:number
  name:string url:string pin:string trustDomain:string agents[].node:string agents[].address:string
  agents[].since:string agents[].version:string agents[].channels:number agents[].relayedBytes:number
  metadata.source:string metadata.number:number metadata.services:number metadata.problems:array`;

labTest("what agent and server show, to whom, and no secret in it", async (t) => {
  await onBed({}, async (bed) => {
    const { node, mesh } = bed;
    const server = mesh.topology.server;
    const flags = ["--log-level", "info"];
    // A Service whose only endpoint is on a node that is not there: the agent takes the connection and fails.
    const endpoints = [{ ip: "10.244.9.2", node: "edge-9" }];
    await mesh.writeManifest(
      "ghost.yaml",
      serviceYaml({ name: "ghost", clusterIP: GHOST, port: 80, targetPort: 80, endpoints }),
    );
    await bed.agent({ flags, env: SECRET_ENV, ready: /connected to server/ }, async (agent) => {
      await until("the Service", async () => {
        return (await bed.status()).services.some((s) => s.service === "default/ghost") || undefined;
      });

      await t.step("status documents have what version edgemesh/v1 promises, in JSON and YAML", async () => {
        for (const [at, role, promised] of [[node, "agent", AGENT_V1], [server, "server", SERVER_V1]] as const) {
          const { stdout } = await at.run(["status", "--role", role, "-o", "json"]);
          const document = JSON.parse(stdout);
          assert.equal(document.apiVersion, "edgemesh/v1");
          const there = new Set(paths(document));
          assert.deepEqual(promised.split(/\s+/).filter((path) => !there.has(path)), [], role);
          assert.match((await at.run(["status", "--role", role, "-o", "yaml"])).stdout, /^apiVersion: edgemesh\/v1$/m);
        }
        const only = await bed.check(["--category", "names", "identity", "--wait", "1s"]);
        assert.deepEqual([...new Set(only.map((line) => line.name))].slice(0, 2), ["certificate", "clock-skew"]);
        const watched = await node.host.exec([
          "timeout",
          "3",
          ...node.command,
          "status",
          "--services",
          "--watch",
          "300ms",
        ]);
        assert.ok(watched.stdout.match(/default\/near/g)!.length >= 2, watched.stdout);
        await Deno.writeTextFile(node.host.path("/run/theirs.yaml"), THEIRS);
        const converted = (await node.run(["config", "convert", "/run/theirs.yaml"])).stdout;
        assert.match(converted, /^# \/run\/theirs\.yaml:4: modules\.edgeTunnel\.psk: there is no shared key/m);
        await Deno.writeTextFile(node.host.path("/run/ours.yaml"), converted);
        assert.equal((await node.run(["config", "validate", "/run/ours.yaml"])).code, 0, converted);
        const peers = JSON.parse((await node.run(["status", "--peers", "-o", "json"])).stdout);
        assert.deepEqual(peers, { apiVersion: "edgemesh/v1", peers: [] });
      });
      await t.step("metrics: names, units, labels as Prometheus' linter wants them, on both", async () => {
        for (const [at, port, has] of [[node, 9464, METRICS_OF_AGENT], [server, 9465, METRICS_OF_SERVER]] as const) {
          const { stdout } = await at.host.execOk(["curl", "-sS", `http://127.0.0.1:${port}/metrics`]);
          assert.deepEqual(lintMetrics(stdout), []);
          for (const name of has) assert.match(stdout, new RegExp(`^# TYPE ${name} `, "m"));
          tell(
            `port ${port}: ${stdout.match(/^# TYPE/gm)!.length} metrics, ${stdout.match(/^[a-z]/gm)!.length} series`,
          );
        }
        for (const path of ["livez", "readyz"]) {
          assert.equal((await node.host.execOk(["curl", "-sS", `${METRICS}/${path}`])).stdout, "ok\n");
        }
      });
      await t.step("levels: at info nothing tells who spoke with whom, at debug it does", async () => {
        const speak = async () => {
          await bed.sh(`dig +time=1 +tries=1 @169.254.96.16 secret-name.default.svc.cluster.local >/dev/null; true`);
          await mesh.topology.pod("edge-1-pod-1").host.exec(["curl", "-s", "--max-time", "3", `http://${GHOST}/`]);
        };
        await speak();
        const quiet = await agent.log();
        assert.doesNotMatch(quiet, /secret-name|10\.244\.1\.2:|default\/ghost|"level":"(debug|trace)"/);
        for (const line of quiet.trim().split("\n")) {
          const { level, msg } = JSON.parse(line) as { level: string; msg: string };
          assert.ok(["info", "warn", "error"].includes(level) && msg.length > 0, line);
        }
        assert.equal((await node.run(["log", "level", "trace"])).code, 0);
        await speak();
        await agent.waitFor({ log: /"level":"debug".*"Endpoint did not answer".*default\/ghost/ });
      });
      await t.step("T41: a secret of the environment and the configuration is shown nowhere", async () => {
        const shown: [string, string][] = [["log", await agent.log()]];
        for (const command of [["config", "show"], ["status"], ["check"], ["netcheck"], ["config", "validate"]]) {
          const { stdout, stderr } = await node.run(command, { env: SECRET_ENV });
          shown.push([command.join(" "), stdout + stderr]);
        }
        // Starts that fail, on what holds the secret and on something else.
        for (
          const [setting, says] of [
            [`proxy=http://edge:${CANARY}@192.168.1.250:99999`, /proxy must be/],
            [`proxi=http://edge:${CANARY}@192.168.1.250:3128`, /proxi is not a known key/],
            ["stateDir=/proc/1/none", /error: .*\/proc\/1\/none/],
          ] as const
        ) {
          const { code, stdout, stderr } = await node.run(["agent", "--set", setting], { env: SECRET_ENV });
          assert.ok(code === 1 || code === 2, stderr);
          assert.match(stderr, says);
          shown.push([`agent --set ${setting}`, stdout + stderr]);
        }
        shown.push(["metrics", (await node.host.execOk(["curl", "-sS", `${METRICS}/metrics`])).stdout]);
        const file = "/run/edgemesh/bundle.tar.gz";
        assert.equal((await node.run(["support-bundle", "--file", file], { env: SECRET_ENV })).code, 0);
        shown.push(["bundle", (await node.host.execOk(["tar", "-xzOf", file])).stdout]);
        for (const [what, text] of shown) {
          assert.ok(text.length > 0, `${what} is empty`);
          assert.ok(!text.includes(CANARY), `${what} shows the secret`);
          assert.ok(!text.includes("PRIVATE KEY"), what);
        }
      });
      await t.step(
        "T44: admin sockets and metrics are for this host, its root and one group",
        async () => await surface(bed),
      );
    });
  });
});

const METRICS_OF_AGENT = [
  "edgemesh_ready",
  "edgemesh_connections_total",
  "edgemesh_connection_bytes_total",
  "edgemesh_dial_failures_total",
  "edgemesh_peer_path",
  "edgemesh_peer_rtt_seconds",
  "edgemesh_dns_responses_total",
  "edgemesh_rules_last_sync_seconds",
  "edgemesh_memory_private_bytes",
  "edgemesh_peer_carriers_total",
  "edgemesh_punch_rounds_total",
  "edgemesh_connect_duration_seconds",
  "edgemesh_connections_failed_total",
  "edgemesh_dns_queries_total",
  "edgemesh_rules_syncs_total",
  "edgemesh_process_cpu_seconds_total",
];
const METRICS_OF_SERVER = [
  "edgemesh_punch_rounds_coordinated_total",
  "edgemesh_agents",
  "edgemesh_relayed_bytes_total",
  "edgemesh_process_open_descriptors",
];

async function surface(bed: Bed): Promise<void> {
  const modes = await bed.sh("cd /run/edgemesh && stat -c '%n %a %U' *.sock");
  assert.match(modes, /^agent\.root\.sock 600 root$/m);
  assert.match(modes, /^agent\.sock (600|660) root$/m);
  const code = async (...curl: string[]) => {
    const { stdout } = await bed.node.host.exec(["curl", "-s", "-o", "/dev/null", "-w", "%{http_code}", ...curl]);
    return stdout;
  };
  // A page in a browser on this host, through a name that it controls.
  assert.equal(await code("-H", "Host: evil.example", `${METRICS}/metrics`), "421");
  assert.equal(await code("-X", "POST", `${METRICS}/metrics`), "405");
  assert.equal(await code(`${METRICS}/v1/status`), "404", "the admin routes are not on the port");
  const { stdout } = await bed.node.host.execOk([
    "curl",
    "-si",
    "-H",
    "Origin: http://evil.example",
    `${METRICS}/metrics`,
  ]);
  assert.doesNotMatch(stdout, /access-control-allow/i);
  const socket = (name: string) => ["--unix-socket", `/run/edgemesh/${name}.sock`];
  assert.equal(await code(...socket("agent"), "-X", "PUT", "-d", "{}", "http://x/v1/log-level"), "403", "read-only");
  assert.equal(await code(...socket("agent.root"), "http://x/v1/log-level"), "405", "nothing changes by GET");
  await bed.sh("head -c 3000000 /dev/zero | tr '\\0' a >/run/long");
  assert.equal(await code(...socket("agent.root"), "-X", "PUT", "-T", "/run/long", "http://x/v1/log-level"), "413");
  // Another user of the host.
  const as = ["setpriv", `--reuid=${NOBODY}`, `--regid=${NOBODY}`, "--clear-groups", "curl", "-s", "--max-time", "2"];
  for (const name of ["agent", "agent.root"]) {
    assert.equal((await bed.node.host.exec([...as, ...socket(name), "http://x/v1/status"])).code, 7, name);
  }
  // A pod of the host: neither by its loopback, nor by any address of the host.
  const pod = bed.mesh.topology.pod("edge-1-pod-1");
  for (const ip of ["127.0.0.1", bed.node.address, "169.254.96.16", "10.244.1.1"]) {
    const { code } = await pod.host.exec(["curl", "-s", "--max-time", "2", `http://${ip}:9464/metrics`]);
    assert.ok(code === 7 || code === 28, `${ip}: exit code ${code}`);
  }
}

/** Every path of a document with the type of its value: `servers[].url:string`. */
function paths(value: unknown, at = ""): string[] {
  if (Array.isArray(value)) return [`${at}:array`, ...value.flatMap((item) => paths(item, `${at}[]`))];
  if (value === null || typeof value !== "object") return [`${at}:${typeof value}`];
  return Object.entries(value).flatMap(([key, inner]) => paths(inner, at ? `${at}.${key}` : key));
}
