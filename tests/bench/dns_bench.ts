/**
 * DNS against its peers: the same records, the same questions, the same processor, in turns within one run.
 *
 *   scripts/deno task bench:dns [seconds] [rounds]
 *
 * dnsperf asks (Debian's dnsperf), flat out and paced at 2 000/s; each server is pinned to processor 0 and dnsperf to
 * processor 1. Measured: queries per second, the server's own processor time, latency, loss, memory. Peers are taken
 * where they are found: `dnsmasq`, `unbound` and `nsd` in PATH or by UNBOUND=/path and NSD=/path, CoreDNS by
 * COREDNS=/path (or in PATH; it is built by `GOBIN=/tmp/bin go install github.com/coredns/coredns@v1.12.4`). NSD
 * answers from answers it made before and can do nothing else: what it takes, the machine and dnsperf take. CoreDNS runs twice: with its `kubernetes` plugin on
 * an API server of ours that serves the same Services, and with its `file` plugin, its quickest.
 *
 *   EDGEMESH_DNS_ONLY=paced   leaves the flat-out rounds out
 *   EDGEMESH_DNS_UNPINNED=1   lets server and dnsperf share both processors
 *   EDGEMESH_DNS_REALTIME=1   runs every server and dnsperf before all other programs while paced (SCHED_FIFO), where
 *                             the machine has other work that would be measured instead
 */
import { DEFAULT_DNS_CONFIG } from "../../lib/dns/config.ts";
import { port, service } from "../../lib/dns/testing_meta.ts";
import { Host } from "../../lib/lab/host.ts";
import { Lab } from "../../lib/lab/namespace.ts";
import type { HostProcess, Ready } from "../../lib/lab/process.ts";
import type { DnsNodeConfig } from "../lab/dns_node.ts";

const ROOT = new URL("../..", import.meta.url).pathname;
const SECONDS = Number(Deno.args[0] ?? 5);
const ROUNDS = Number(Deno.args[1] ?? 3);
const SERVICES = 5000;
const PACE = 2000;
/** What a like machine reached on two processors: queries per second. */
const REFERENCE = { coredns: 43_500, original: 27_000 };
const REALTIME = Deno.env.get("EDGEMESH_DNS_REALTIME") !== undefined;
const PACED_ONLY = Deno.env.get("EDGEMESH_DNS_ONLY") === "paced";
const PINNED = Deno.env.get("EDGEMESH_DNS_UNPINNED") === undefined;
const ADDRESS = "127.0.0.1";
const API_PORT = 18_901;

interface Subject {
  readonly name: string;
  readonly port: number;
  readonly argv: readonly string[];
  readonly ready: Ready;
}

interface Flat {
  readonly perSecond: number;
  readonly perCpuSecond: number;
  readonly lost: number;
}

interface Paced {
  readonly medianMs: number;
  readonly meanMs: number;
  readonly p99Ms: number;
  readonly lost: number;
  readonly cpuPercent: number;
}

const services = Array.from({ length: SERVICES }, (_, i) => {
  const [namespace, name] = [`ns-${i % 50}`, `svc-${i}`];
  const ip = `10.${96 + (i >> 16)}.${(i >> 8) & 255}.${i & 255}`;
  return service(namespace, name, { clusterIPs: [ip], ports: [port("http", 80)] });
});
const fqdn = (s: { readonly name: string; readonly namespace: string }) => `${s.name}.${s.namespace}.svc.cluster.local`;

/** Each Service once by its address; `mixed` adds what a pod's C library asks on the way. */
const WORKLOADS: Readonly<Record<string, readonly string[]>> = {
  addresses: services.map((s) => `${fqdn(s)} A`),
  mixed: services.flatMap((s) => [
    `${fqdn(s)} A`,
    `${fqdn(s)} AAAA`,
    `${fqdn(s)}.${s.namespace}.svc.cluster.local A`,
    `_http._tcp.${fqdn(s)} SRV`,
  ]),
};

async function main(): Promise<void> {
  await using lab = await Lab.open();
  const host = await Host.create(await lab.namespace("bench"));
  const dir = lab.dir;
  for (const [name, lines] of Object.entries(WORKLOADS)) {
    await Deno.writeTextFile(`${dir}/${name}.txt`, lines.join("\n") + "\n");
  }
  const subjects = await prepare(dir, host);
  const running = new Map<Subject, HostProcess>();
  for (const subject of subjects) {
    running.set(
      subject,
      await host.start(subject.name, pin(0, subject.argv), { ready: subject.ready, readyTimeoutMs: 60_000 }),
    );
  }
  const how = PINNED ? "server and dnsperf on a processor each" : "not pinned";
  say(`${SERVICES} Services, ${ROUNDS} rounds of ${SECONDS} s, ${how}${REALTIME ? ", paced in real time" : ""}`);
  const flat = new Map<string, Flat[]>();
  const paced = new Map<string, Paced[]>();
  for (let round = 0; round < ROUNDS; round++) {
    for (const subject of subjects) {
      const process = running.get(subject)!;
      for (const workload of PACED_ONLY ? [] : Object.keys(WORKLOADS)) {
        push(flat, `${subject.name} ${workload}`, await flatOut(host, process, subject, `${dir}/${workload}.txt`));
      }
      push(paced, subject.name, await atPace(host, process, subject, `${dir}/addresses.txt`));
    }
  }
  await report(subjects, { flat, paced, running });
}

async function flatOut(host: Host, process: HostProcess, subject: Subject, file: string): Promise<Flat> {
  const before = process.cpuSeconds();
  const { stdout } = await host.execOk(pin(1, [...dnsperf(subject, file), "-q", "200", "-c", "8"]), {
    timeoutMs: 60_000,
  });
  const cpu = process.cpuSeconds() - before;
  const completed = Number(/Queries completed:\s+(\d+)/.exec(stdout)?.[1]);
  return {
    perSecond: Number(/Queries per second:\s+([\d.]+)/.exec(stdout)?.[1]),
    perCpuSecond: completed / cpu,
    lost: Number(/Queries lost:\s+(\d+)/.exec(stdout)?.[1]),
  };
}

async function atPace(host: Host, process: HostProcess, subject: Subject, file: string): Promise<Paced> {
  const argv = pin(1, [...dnsperf(subject, file), "-Q", String(PACE), "-c", "4", "-v"]);
  if (REALTIME) await host.execOk(["chrt", "-a", "-f", "-p", "5", String(process.pid)]);
  const before = process.cpuSeconds();
  const { stdout } = await host.execOk(REALTIME ? ["chrt", "-f", "4", ...argv] : argv, { timeoutMs: 60_000 });
  if (REALTIME) await host.execOk(["chrt", "-a", "-o", "-p", "0", String(process.pid)]);
  const cpu = process.cpuSeconds() - before;
  const times = [...stdout.matchAll(/^> \S+ \S+ \S+ ([\d.]+)$/gm)].map((m) => Number(m[1]) * 1000).sort((a, b) =>
    a - b
  );
  return {
    medianMs: median(times),
    meanMs: times.reduce((sum, t) => sum + t, 0) / times.length,
    p99Ms: times[Math.floor(times.length * 0.99)] ?? NaN,
    lost: Number(/Queries lost:\s+(\d+)/.exec(stdout)?.[1]),
    cpuPercent: (cpu / SECONDS) * 100,
  };
}

interface Results {
  readonly flat: ReadonlyMap<string, readonly Flat[]>;
  readonly paced: ReadonlyMap<string, readonly Paced[]>;
  readonly running: ReadonlyMap<Subject, HostProcess>;
}

async function report(subjects: readonly Subject[], results: Results): Promise<void> {
  const own = (workload: string) => median(results.flat.get(`edgemesh ${workload}`)!.map((f) => f.perCpuSecond));
  for (const workload of PACED_ONLY ? [] : Object.keys(WORKLOADS)) {
    say(`\nflat out, ${workload}`);
    say(row(["", "queries/s", "per CPU s", "edgemesh/it", "lost"]));
    for (const { name } of subjects) {
      const runs = results.flat.get(`${name} ${workload}`)!;
      const perCpu = median(runs.map((f) => f.perCpuSecond));
      const ratio = (own(workload) / perCpu).toFixed(2);
      const lost = runs.reduce((sum, f) => sum + f.lost, 0);
      say(row([name, int(median(runs.map((f) => f.perSecond))), int(perCpu), ratio, String(lost)]));
    }
  }
  say(`\npaced at ${PACE}/s, addresses`);
  say(row(["", "median ms", "mean ms", "p99 ms", "CPU %", "lost"]) + "   mean/p99 ms and CPU % of each round");
  for (const { name } of subjects) {
    const runs = results.paced.get(name)!;
    const cell = (pick: (p: Paced) => number, digits: number) => median(runs.map(pick)).toFixed(digits);
    const lost = String(runs.reduce((sum, p) => sum + p.lost, 0));
    const rounds = runs.map((p) => `${p.meanMs.toFixed(3)}/${p.p99Ms.toFixed(2)} ${p.cpuPercent.toFixed(0)}`).join(
      "  ",
    );
    say(
      row([
        name,
        cell((p) => p.medianMs, 3),
        cell((p) => p.meanMs, 3),
        cell((p) => p.p99Ms, 3),
        cell((p) => p.cpuPercent, 1),
        lost,
      ]) + `   ${rounds}`,
    );
  }
  say(`\nmemory with ${SERVICES} Services, after the load, MiB`);
  say(row(["", "private", "RSS", "PSS"]));
  for (const [{ name }, process] of results.running) {
    const m = await process.memory();
    say(row([name, mib(m.private), mib(m.rss), mib(m.pss)]));
  }
  say(`\na like machine, two processors: CoreDNS ${REFERENCE.coredns}/s, the original ${REFERENCE.original}/s`);
}

/** Writes every server's files and says how each is started. */
async function prepare(dir: string, host: Host): Promise<Subject[]> {
  const subjects: Subject[] = [];
  const config: DnsNodeConfig = {
    listen: [{ ip: ADDRESS, port: 18_910 }],
    // The limit stays on and is never reached: what it costs belongs to the measurement.
    dns: { ...DEFAULT_DNS_CONFIG, maxQueriesPerSecond: 10_000_000, reverseNetworks: ["10.96.0.0/12"] },
    meta: { services },
  };
  await Deno.writeTextFile(`${dir}/edgemesh.json`, JSON.stringify(config));
  subjects.push({
    name: "edgemesh",
    port: 18_910,
    argv: [
      `${ROOT}scripts/deno`,
      "run",
      "-A",
      "--quiet",
      "--no-check",
      `${ROOT}tests/lab/dns_node.ts`,
      `${dir}/edgemesh.json`,
    ],
    ready: { log: /"listening"/ },
  });
  const coredns = Deno.env.get("COREDNS") ?? await which("coredns");
  if (coredns) {
    const api = await host.start("api", [
      ...pin(1, [`${ROOT}scripts/deno`, "run", "-A", "--quiet", `${ROOT}tests/bench/kube_api.ts`]),
      String(API_PORT),
      `${dir}/edgemesh.json`,
    ], { ready: { log: /ready/ } });
    await Deno.writeTextFile(
      `${dir}/Corefile.kube`,
      corefile(
        18_911,
        `kubernetes cluster.local {\n endpoint http://${ADDRESS}:${API_PORT}\n pods insecure\n}\nready ${ADDRESS}:18981`,
      ),
    );
    subjects.push({
      name: "coredns kubernetes",
      port: 18_911,
      argv: [coredns, "-conf", `${dir}/Corefile.kube`],
      ready: { probe: async () => api.running && await httpOk(host, 18_981) },
    });
    await Deno.writeTextFile(`${dir}/zone`, zoneFile());
    await Deno.writeTextFile(`${dir}/Corefile.file`, corefile(18_912, `file ${dir}/zone cluster.local`));
    subjects.push({
      name: "coredns file",
      port: 18_912,
      argv: [coredns, "-conf", `${dir}/Corefile.file`],
      ready: { port: 18_912, protocol: "udp" },
    });
  } else say("CoreDNS is not measured: set COREDNS=/path/to/coredns");
  const dnsmasq = await which("dnsmasq");
  if (dnsmasq) {
    await Deno.writeTextFile(`${dir}/hosts`, services.map((s) => `${s.clusterIPs[0]} ${fqdn(s)}`).join("\n") + "\n");
    await Deno.writeTextFile(
      `${dir}/dnsmasq.conf`,
      [
        `port=18913`,
        `listen-address=${ADDRESS}`,
        "bind-interfaces",
        "no-resolv",
        "no-hosts",
        "keep-in-foreground",
        "user=root",
        "cache-size=10000",
        "local-ttl=5",
        "local=/cluster.local/",
        `addn-hosts=${dir}/hosts`,
        ...services.map((s) => `srv-host=_http._tcp.${fqdn(s)},${fqdn(s)},80`),
      ].join("\n") + "\n",
    );
    subjects.push({
      name: "dnsmasq",
      port: 18_913,
      argv: [dnsmasq, "-C", `${dir}/dnsmasq.conf`],
      ready: { port: 18_913, protocol: "udp" },
    });
  }
  const unbound = Deno.env.get("UNBOUND") ?? await which("unbound");
  if (unbound) {
    await Deno.writeTextFile(`${dir}/unbound.conf`, unboundConf(dir));
    subjects.push({
      name: "unbound",
      port: 18_914,
      argv: [unbound, "-d", "-c", `${dir}/unbound.conf`],
      ready: { port: 18_914, protocol: "udp" },
    });
  }
  const nsd = Deno.env.get("NSD") ?? await which("nsd");
  if (nsd) {
    await Deno.writeTextFile(`${dir}/zone`, zoneFile());
    await Deno.writeTextFile(`${dir}/nsd.conf`, nsdConf(dir));
    subjects.push({
      name: "nsd",
      port: 18_915,
      argv: [nsd, "-d", "-c", `${dir}/nsd.conf`],
      ready: { port: 18_915, protocol: "udp" },
    });
  }
  return subjects;
}

function corefile(portNumber: number, plugins: string): string {
  return `cluster.local:${portNumber} {\n bind ${ADDRESS}\n ${plugins}\n}\n`;
}

function zoneFile(): string {
  const lines = ["@ SOA ns.dns hostmaster 1 7200 1800 86400 5", "@ NS ns.dns", `ns.dns A ${ADDRESS}`];
  for (const s of services) {
    lines.push(
      `${s.name}.${s.namespace}.svc A ${s.clusterIPs[0]}`,
      `_http._tcp.${s.name}.${s.namespace}.svc SRV 0 100 80 ${fqdn(s)}.`,
    );
  }
  return `$ORIGIN cluster.local.\n$TTL 5\n${lines.join("\n")}\n`;
}

function unboundConf(dir: string): string {
  const data = services.flatMap((s) => [
    `local-data: "${fqdn(s)}. 5 A ${s.clusterIPs[0]}"`,
    `local-data: "_http._tcp.${fqdn(s)}. 5 SRV 0 100 80 ${fqdn(s)}."`,
  ]);
  return [
    "server:",
    `interface: ${ADDRESS}@18914`,
    "do-daemonize: no",
    "use-syslog: no",
    'username: ""',
    'chroot: ""',
    `directory: "${dir}"`,
    `pidfile: "${dir}/unbound.pid"`,
    "num-threads: 1",
    "module-config: iterator",
    "local-zone: cluster.local. static",
    'local-data: "cluster.local. 5 SOA ns.dns.cluster.local. hostmaster.cluster.local. 1 7200 1800 86400 5"',
    ...data,
    "remote-control:",
    "control-enable: no",
  ].join("\n") + "\n";
}

function nsdConf(dir: string): string {
  return [
    "server:",
    `ip-address: ${ADDRESS}@18915`,
    "server-count: 1",
    'username: ""',
    'chroot: ""',
    'database: ""',
    'logfile: "/dev/null"',
    `zonesdir: "${dir}"`,
    `pidfile: "${dir}/nsd.pid"`,
    `xfrdir: "${dir}"`,
    `xfrdfile: "${dir}/xfrd.state"`,
    `zonelistfile: "${dir}/zone.list"`,
    "rrl-ratelimit: 0",
    "remote-control:",
    "control-enable: no",
    "zone:",
    'name: "cluster.local"',
    `zonefile: "${dir}/zone"`,
  ].join("\n") + "\n";
}

function dnsperf(subject: Subject, file: string): string[] {
  return ["dnsperf", "-s", ADDRESS, "-p", String(subject.port), "-d", file, "-l", String(SECONDS)];
}

/** On a processor of its own, and before whatever else the machine does: all servers and dnsperf alike. */
function pin(cpu: number, argv: readonly string[]): string[] {
  const first = ["nice", "-n", "-15"];
  return PINNED ? [...first, "taskset", "-c", String(cpu), ...argv] : [...first, ...argv];
}

async function httpOk(host: Host, portNumber: number): Promise<boolean> {
  return (await host.exec(["curl", "-sf", "-o", "/dev/null", `http://${ADDRESS}:${portNumber}/ready`])).code === 0;
}

async function which(program: string): Promise<string | undefined> {
  const { code, stdout } = await new Deno.Command("sh", { args: ["-c", `PATH=$PATH:/usr/sbin command -v ${program}`] })
    .output();
  return code === 0 ? new TextDecoder().decode(stdout).trim() : undefined;
}

function push<V>(map: Map<string, V[]>, key: string, value: V): void {
  map.set(key, [...map.get(key) ?? [], value]);
}

function median(values: readonly number[]): number {
  return [...values].sort((a, b) => a - b)[Math.floor(values.length / 2)] ?? NaN;
}

const int = (n: number) => Math.round(n).toLocaleString("en");
const mib = (n: number) => (n / (1 << 20)).toFixed(1);
const row = (cells: readonly string[]) => cells.map((c, i) => i === 0 ? c.padEnd(20) : c.padStart(12)).join("");

function say(line: string): void {
  Deno.stdout.writeSync(new TextEncoder().encode(line + "\n"));
}

await main();
