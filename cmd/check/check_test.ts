import assert from "node:assert/strict";
import type { AgentStatus, ServerStatus, SourceView } from "../../lib/status.ts";
import { STATUS_VERSION } from "../../lib/status.ts";
import { VERSION } from "../../lib/version.ts";
import { checkText, completed } from "./check.ts";
import type { AgentFacts, Check, CheckState, HostFacts, RunningFacts, StartFacts } from "./facts.ts";
import { writeProblem } from "./gather_host.ts";
import { judgeRunning } from "./judge_agent.ts";
import { judgeSource } from "./judge_source.ts";
import { judgeHost, judgeReach, judgeStart } from "./judge_host.ts";
import { conflicts, parseSockets } from "./sockets.ts";

const NOW = Date.UTC(2026, 10, 23);
const HOUR = 3_600_000;

const host: HostFacts = {
  kernel: "6.1.0-18-amd64",
  glibc: "2.36",
  wall: NOW,
  built: NOW - HOUR,
  proxies: [],
  bridges: [],
  bridgeCall: undefined,
};
const start: StartFacts = {
  missingCapabilities: [],
  nftables: { by: "netlink" },
  ports: [{ what: "DNS", at: "169.254.96.16:53" }],
  openFiles: 1_048_576,
  ffi: undefined,
  stateDir: { path: "/var/lib/edgemesh/agent" },
  joined: { node: "edge-1" },
  servers: [{ url: "wss://mesh", tcpMs: 20, tlsMs: 61, pinned: true }],
};

/** Table: facts that differ from the good ones → state and words of the one line that is about them. */
function only(checks: readonly Check[], name: string): Check {
  const found = checks.filter((c) => c.name === name);
  assert.equal(found.length, 1, `${found.length} lines about ${name}`);
  return found[0]!;
}
function says(check: Check, state: CheckState, text: RegExp): void {
  assert.equal(check.state, state, check.text);
  assert.match(check.text, text);
  assert.equal(check.hint === undefined, state === "ok", `hint of ${check.name}`);
  assert.ok(!check.text.endsWith("."), check.text);
}

Deno.test("check: a good host has nothing but √", () => {
  for (const c of [...judgeHost(host), ...judgeStart(start)]) says(c, "ok", /./);
});

for (
  const [name, facts, state, text] of [
    ["kernel", { kernel: "4.15.0-213" }, "fail", /4\.15.* older than 4\.18/],
    ["kernel", { kernel: "4.18.0-553.el8" }, "ok", /4\.18/],
    ["glibc", { glibc: undefined }, "warn", /cannot be told/],
    ["clock", { wall: 0 }, "warn", /1970-01-01.*before this release/],
    ["http-proxy", { proxies: ["HTTPS_PROXY"] }, "ok", /HTTPS_PROXY is set/],
    ["bridge-nf", { bridges: ["cni0"] }, "warn", /cni0.*missing/],
    ["bridge-nf", { bridges: ["cni0"], bridgeCall: "0" }, "warn", /is 0/],
    ["bridge-nf", { bridges: ["cni0"], bridgeCall: "1" }, "ok", /cni0/],
  ] as const
) {
  Deno.test(`check: host ${JSON.stringify(facts)}`, () =>
    says(only(judgeHost({ ...host, ...facts }), name), state, text));
}

const failed = (step: "name" | "tcp" | "tls" | "mtu" | "pin") => ({
  url: "wss://mesh",
  pinned: false,
  failed: { step, code: "SERVER_UNREACHABLE" as const, text: `the ${step} failed` },
});
for (
  const [name, facts, state, text] of [
    ["privileges", { missingCapabilities: ["CAP_NET_ADMIN"] }, "fail", /CAP_NET_ADMIN is missing/],
    ["nf-tables", { nftables: { problem: "no such protocol" } }, "fail", /no such protocol/],
    ["nf-tables", { nftables: { by: "nft" } }, "warn", /nft program/],
    ["open-files", { openFiles: 1024 }, "warn", /1024/],
    ["ffi", { ffi: "Cannot open libc.so.6" }, "warn", /libc\.so\.6.*copied instead of spliced/],
    ["state-dir", { stateDir: { path: "/x", problem: "No space left on device" } }, "fail", /No space left/],
    [
      "port-dns",
      { ports: [{ what: "DNS", at: "169.254.96.16:53", holder: "dnsmasq (pid 7)" }] },
      "fail",
      /dnsmasq \(pid 7\)/,
    ],
    ["joined", { joined: undefined }, "warn", /not joined/],
    ["joined", { joined: { problem: "damaged" } }, "fail", /damaged/],
    ["reach", { servers: [] }, "warn", /no server/],
    ["reach", { servers: [failed("tcp")] }, "fail", /wss:\/\/mesh: the tcp failed/],
    ["reach", { servers: [failed("pin")] }, "fail", /the pin failed/],
    ["reach", { servers: [failed("mtu")] }, "fail", /the mtu failed/],
    ["reach", { servers: [{ url: "wss://mesh", tcpMs: 3, pinned: false }] }, "ok", /not known before the join/],
  ] as const
) {
  Deno.test(`check: start ${JSON.stringify(facts)}`, () =>
    says(only(judgeStart({ ...start, ...facts }), name), state, text));
}

Deno.test("check: one server of two is enough to work, and is said", () => {
  const [a, b] = judgeReach([failed("name"), start.servers[0]!]);
  says(a!, "warn", /the name failed/);
  says(b!, "ok", /pinned/);
});

const common = {
  apiVersion: STATUS_VERSION,
  version: VERSION,
  commit: "x",
  form: "source",
  pid: 1,
  uptimeSeconds: 100,
  ready: true,
  waitingFor: [],
  memory: { privateMb: 1, rssMb: 1 },
  warnings: [],
} as const;
const status: AgentStatus = {
  ...common,
  role: "agent",
  node: "edge-1",
  mode: "online",
  modeSince: "",
  tlsEngine: "portable",
  tlsDetail: "node:tls",
  modules: [],
  servers: [{ url: "wss://mesh", state: "connected", rttMs: 20 }],
  metadata: {
    source: "server:a",
    epoch: "e",
    number: 1,
    ageSeconds: 1,
    follows: { kind: "server", from: "cloud", state: "synced", problems: [], unreadable: [] },
    services: 2,
    endpoints: 3,
    nodes: 2,
    refused: [],
  },
  peers: [],
  services: [],
  leftAlone: [],
};
const agent: AgentFacts = {
  rules: { backend: "netlink", repairs: 0 },
  dns: { listen: ["169.254.96.16:53"], upstreams: 1, leftOut: [] },
  sample: { name: "web.default.svc.cluster.local", address: "10.96.0.10" },
  certificate: { notBefore: NOW - 2 * HOUR, notAfter: NOW + 22 * HOUR, expired: false },
  skewMs: 12,
  snapshot: {},
  resolvers: [{
    who: "this host",
    uses: "mesh",
    nameservers: ["169.254.96.16"],
    search: [],
    ndots: 1,
    completesNames: false,
    summary: "this host asks the agent",
  }],
  foreignRoutes: [],
  podBridges: [],
  servers: [{ url: "wss://mesh", name: "server", version: VERSION }],
};
const running: RunningFacts = { status, agent, answer: { addresses: ["10.96.0.10"], ms: 0.4 }, openFiles: 20_000 };

Deno.test("check: a good agent has nothing but √", () => {
  for (const c of judgeRunning(running, NOW)) says(c, "ok", /./);
});

const withAgent = (facts: Partial<AgentFacts>): RunningFacts => ({ ...running, agent: { ...agent, ...facts } });
const withStatus = (facts: Partial<AgentStatus>): RunningFacts => ({ ...running, status: { ...status, ...facts } });
const meta = status.metadata;
const other = { ...agent.resolvers[0]!, uses: "other", summary: "asks 1.1.1.1", hint: "set dns" } as const;
for (
  const [what, facts, name, state, text] of [
    ["not ready", withStatus({ ready: false, waitingFor: ["kernel rules"] }), "ready", "fail", /kernel rules/],
    ["few files", { ...running, openFiles: 1024 }, "open-files", "warn", /1024/],
    ["rules refused", withAgent({ rules: { backend: "nft", repairs: 0, problem: "EPERM" } }), "rules", "fail", /EPERM/],
    ["foreign flush", withAgent({ rules: { backend: "nft", repairs: 3 } }), "rules-foreign", "warn", /3 times/],
    ["forward off", withAgent({ rules: undefined }), "rules", "ok", /switched off/],
    ["foreign route", withAgent({ foreignRoutes: ["10.96.0.0/12 (eth0)"] }), "routes", "warn", /eth0/],
    ["nothing known", withStatus({ metadata: { ...meta, source: "" } }), "metadata", "fail", /nothing is known/],
    [
      "old",
      withStatus({ mode: "offline", metadata: { ...meta, ageSeconds: 200_000 } }),
      "metadata",
      "warn",
      /2d7h old/,
    ],
    ["old, but confirmed", withStatus({ metadata: { ...meta, ageSeconds: 200_000 } }), "metadata", "ok", /2 Services/],
    ["refused", withStatus({ metadata: { ...meta, refused: ["web: not ours"] } }), "refused", "warn", /web: not ours/],
    ["disk full", withAgent({ snapshot: { writeProblem: "No space left" } }), "snapshot", "fail", /No space left/],
    [
      "no server",
      withStatus({ servers: [{ url: "wss://mesh", state: "down", detail: "refused" }] }),
      "connected",
      "fail",
      /refused/,
    ],
    [
      "older server",
      withAgent({ servers: [{ url: "wss://mesh", version: "0.0.9" }] }),
      "version",
      "warn",
      /server is 0\.0\.9/,
    ],
    [
      "expired",
      withAgent({ certificate: { ...agent.certificate, expired: true, lastError: "no server" } }),
      "certificate",
      "fail",
      /expired: no server/,
    ],
    [
      "not renewed",
      withAgent({ certificate: { ...agent.certificate, notAfter: NOW + HOUR / 4 } }),
      "certificate",
      "warn",
      /15m0s/,
    ],
    ["clock", withAgent({ skewMs: -7_200_000 }), "clock-skew", "warn", /2h0m behind/],
    [
      "port 53 taken",
      withAgent({ dns: { listen: [], problem: "address in use", upstreams: 0, leftOut: [] } }),
      "dns",
      "fail",
      /address in use/,
    ],
    [
      "resolv.conf names only us",
      withAgent({ dns: { listen: ["169.254.96.16:53"], upstreams: 0, leftOut: ["/etc/resolv.conf names us"] } }),
      "upstreams",
      "fail",
      /outside the cluster cannot be resolved: .*resolv\.conf names us/,
    ],
    ["snapshot damaged", withAgent({ snapshot: { loadError: "truncated" } }), "snapshot-loaded", "warn", /truncated/],
    ["DNS drops", { ...running, answer: { problem: "nothing within 2 s" } }, "dns", "fail", /nothing within/],
    [
      "DNS lies",
      { ...running, answer: { addresses: ["1.2.3.4"], ms: 1 } },
      "dns",
      "fail",
      /1\.2\.3\.4 instead of 10\.96\.0\.10/,
    ],
    [
      "host asks others",
      withAgent({ resolvers: [{ ...other, who: "this host" }] }),
      "resolver-host",
      "warn",
      /1\.1\.1\.1/,
    ],
    ["pod asks others", withAgent({ resolvers: [{ ...other, who: "pod a/b" }] }), "resolver-pod", "warn", /1\.1\.1\.1/],
    ["pods hidden", withAgent({ podsHidden: "not root" }), "resolver-pod", "warn", /only root/],
    ["pods not judged", withAgent({ podsHidden: "other version" }), "resolver-pod", "warn", /another version/],
  ] as const
) {
  Deno.test(`check: agent, ${what}`, () => {
    const lines = judgeRunning(facts, NOW).filter((c) => c.name === name);
    says(lines.find((c) => c.state === state) ?? lines[0]!, state, text);
  });
}

Deno.test("check: an agent from before the command looked itself: its findings stay, and what is missing is said", async () => {
  const facts = await completed({ ...agent, resolvers: [other] }, "/nonexistent");
  assert.deepEqual([facts.resolvers, facts.podsHidden], [[other], "other version"]);
});

Deno.test("check: what to do about a server depends on what the system said", () => {
  const hint = (text: string) => {
    const down = {
      url: "wss://mesh",
      pinned: false,
      failed: { step: "tcp", code: "SERVER_UNREACHABLE", text },
    } as const;
    return judgeReach([down])[0]!.hint!;
  };
  assert.match(hint("Connection refused (os error 111)"), /nothing listens/);
  assert.match(hint("Network is unreachable (os error 101)"), /no route/);
  assert.match(hint("no answer from mesh:443 within 5 s"), /firewall.*HTTPS_PROXY/);
  assert.match(hint("the HTTP proxy 10.0.0.1:3128 did not reach mesh:443 within 5 s"), /check the proxy's address/);
});

Deno.test("check: with one of two servers gone the agent works on", () => {
  const servers = [{ url: "wss://a", state: "down", detail: "x" }, status.servers[0]!] as const;
  const lines = judgeRunning(withStatus({ servers }), NOW).filter((c) => c.name === "connected");
  assert.deepEqual(lines.map((c) => c.state), ["warn", "ok"]);
});

Deno.test("check: revoked wins over the certificate's dates", () => {
  const warnings = [{ code: "REVOKED", text: "this node was revoked", hint: "node reset" }];
  says(only(judgeRunning(withStatus({ warnings }), NOW), "certificate"), "fail", /revoked/);
});

Deno.test("check: server", () => {
  const server: ServerStatus = {
    ...common,
    role: "server",
    name: "server",
    url: "wss://mesh",
    pin: "sha256:0",
    trustDomain: "edgemesh",
    servers: [],
    agents: [],
    metadata: { source: "", number: 0, services: 0, problems: ["a.yaml:3: no port"] },
  };
  const lines = judgeRunning({ status: server }, NOW);
  says(only(lines, "metadata"), "warn", /knows no Services/);
  says(only(lines, "objects"), "warn", /a\.yaml:3/);
  says(only(lines, "agents"), "warn", /no agent/);
  const one = { node: "edge-1", address: "a", since: "", version: "0.0.1", channels: 0, relayedBytes: 0 };
  says(only(judgeRunning({ status: { ...server, agents: [one] } }, NOW), "agent-version"), "warn", /edge-1 is 0\.0\.1/);
});

Deno.test("check: text has a hint per finding and ends with the result", () => {
  const text = checkText(judgeHost({ ...host, glibc: undefined }), "warn");
  assert.match(text, /^system\n------\n√ Linux 6\.1/);
  assert.match(text, /‼ the C library.*\n {4}try: .+\n/);
  assert.match(text, /\nStatus check results are ‼$/);
});

Deno.test("check: sockets of /proc/net, and which of them are in the way", () => {
  const head = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n";
  const tcp = parseSockets(
    `${head}   0: 3500007F:0035 00000000:0000 0A 00000000:00000000 00:00000000 00000000   101        0 1234 1\n` +
      `   1: 0100007F:1F90 0100007F:C350 01 00000000:00000000 00:00000000 00000000     0        0 99 1\n`,
    "tcp",
  );
  assert.deepEqual(tcp, [{ protocol: "tcp", ip: "127.0.0.53", port: 53, inode: "1234" }]);
  const udp6 = parseSockets(
    `${head}  12: 00000000000000000000000000000000:0035 00000000000000000000000000000000:0000 07 0:0 00:0 0 0 0 77 2\n`,
    "udp",
  );
  assert.deepEqual(udp6, [{ protocol: "udp", ip: "::", port: 53, inode: "77" }]);
  assert.ok(!conflicts(tcp[0]!, "169.254.96.16", 53));
  assert.ok(conflicts(udp6[0]!, "169.254.96.16", 53));
  assert.ok(conflicts(tcp[0]!, "::", 53));
  assert.ok(!conflicts(udp6[0]!, "169.254.96.16", 5353));
});

Deno.test("check: a directory that cannot be written is told from one that is still to be made", async () => {
  const dir = await Deno.makeTempDir();
  try {
    assert.deepEqual(await writeProblem(`${dir}/to/be/made`), {});
    assert.deepEqual(await Array.fromAsync(Deno.readDir(dir)), []);
    assert.match((await writeProblem("/proc/1")).problem ?? "", /./);
  } finally {
    await Deno.remove(dir, { recursive: true });
  }
});

Deno.test("check: what an API does not let us read, and what it does not have", () => {
  const view = { kind: "kube", from: "https://api", state: "synced", problems: [] };
  const lines = (...unreadable: SourceView["unreadable"][number][]) => judgeSource({ ...view, unreadable }, "agent");
  for (const c of lines()) says(c, "ok", /./);
  const services = lines({ resource: "services", why: "forbidden" });
  says(only(services, "kube-rbac"), "fail", /https:\/\/api gives no right to list and watch services/);
  const routes = lines({ resource: "virtualservices.networking.istio.io", why: "forbidden" });
  says(only(routes, "kube-rbac"), "warn", /virtualservices/);
  const crds = lines({ resource: "virtualservices.networking.istio.io", why: "unknown" });
  says(only(crds, "kube-crds"), "ok", /1 kinds are not installed.*virtualservices/);
  const old = lines({ resource: "endpointslices.discovery.k8s.io", why: "unknown" });
  says(only(old, "kube-kinds"), "ok", /Endpoints are read instead/);
  const web = lines({ resource: "services", why: "unknown" });
  says(only(web, "kube-kinds"), "fail", /does not know services/);
  const gone = judgeSource({ ...view, state: "degraded", detail: "refused", unreadable: [] }, "mesh");
  says(only(gone, "source"), "fail", /is not followed: refused/);
  assert.deepEqual(judgeSource({ ...view, kind: "server", unreadable: [] }, "agent"), []);
});
