/** Client, host and pod in namespaces, with everything that can bring bytes from the first to the last. */
import { fileURLToPath } from "node:url";
import { pause } from "../../lib/clock.ts";
import type { Lab, Namespace } from "../../lib/lab/namespace.ts";
import type { IpPort } from "../../lib/net.ts";
import type { AgentSetup } from "./forward_agent.ts";
import type { LoadJob } from "./forward_load.ts";

const MESH = "169.254.96.16";
const HOST = "10.1.0.1";
const CLIENT = "10.1.0.2";
const POD = "10.2.0.2";
const HTTP = 8080;
const BULK = 5201;
const UDP = 7000;
const HZ = 100;
/** As the executable is built (scripts/build.ts). */
const V8_FLAGS = "--v8-flags=--max-semi-space-size=2,--max-old-space-size=256";

export interface Target {
  readonly name: "direct" | "kernel" | "proxy" | "haproxy" | "nginx";
  readonly http: IpPort;
  readonly bulk: IpPort;
  readonly udp: IpPort | undefined;
  /** The forwarding process; undefined for the direct connection. */
  readonly process: number | undefined;
}

export class Machine implements AsyncDisposable {
  readonly targets: readonly Target[];
  readonly #client: Namespace;
  readonly #children: readonly Deno.ChildProcess[];

  private constructor(client: Namespace, targets: readonly Target[], children: readonly Deno.ChildProcess[]) {
    this.#client = client;
    this.targets = targets;
    this.#children = children;
  }

  static async start(lab: Lab): Promise<Machine> {
    const [client, host, pod] = await lab.namespaces(["client", "host", "pod"]);
    await lab.link(
      [{ ns: client, ifname: "eth0" }, { ns: host, ifname: "client" }],
      [{ ns: pod, ifname: "eth0" }, { ns: host, ifname: "pod" }],
    );
    await client.configure({
      sysctl: { "net.ipv4.ip_local_port_range": "10000 65000", "net.ipv4.tcp_tw_reuse": 1 },
      ip: [`addr add ${CLIENT}/24 dev eth0`, `route add default via ${HOST}`],
    });
    await pod.ip(`addr add ${POD}/24 dev eth0`, "route add default via 10.2.0.1");
    await host.configure({
      sysctl: { "net.ipv4.ip_forward": 1, "net.ipv4.ip_local_port_range": "10000 65000", "net.ipv4.tcp_tw_reuse": 1 },
      ip: [
        `addr add ${HOST}/24 dev client`,
        "addr add 10.2.0.1/24 dev pod",
        "link add edgemesh0 type bridge",
        "link set edgemesh0 up",
        `addr add ${MESH}/32 dev edgemesh0`,
        "route add 10.96.0.0/16 dev edgemesh0",
      ],
    });
    const peers = await peersDir();
    const children: Deno.ChildProcess[] = [];
    const spawn = (ns: Namespace, argv: readonly string[]) => {
      const [command, ...args] = ns.command(argv);
      const child = new Deno.Command(command!, { args, stdin: "null", stdout: "piped", stderr: "inherit" }).spawn();
      children.push(child);
      return child;
    };
    await backends(lab, peers, (argv) => spawn(pod, argv));
    const agent = spawn(host, deno("forward_agent.ts", agentSetup()));
    await firstLine(agent);
    const haproxy = spawn(host, [`${peers}/bin/haproxy`, "-f", await haproxyConfig(lab), "-db"]);
    const nginx = spawn(host, [`${peers}/bin/nginx`, "-c", await nginxStreamConfig(lab, peers), "-e", "stderr"]);
    await pause(500);
    const at = (ip: string, http: number, bulk: number, udp: number | undefined) => ({
      http: { ip, port: http },
      bulk: { ip, port: bulk },
      udp: udp === undefined ? undefined : { ip, port: udp },
    });
    return new Machine(client, [
      { name: "direct", ...at(POD, HTTP, BULK, UDP), process: undefined },
      { name: "kernel", ...at("10.96.0.1", HTTP, 5202, 7001), process: agent.pid },
      { name: "proxy", ...at("10.96.0.2", HTTP, 5202, 7001), process: agent.pid },
      { name: "haproxy", ...at(HOST, 9001, 9002, undefined), process: haproxy.pid },
      { name: "nginx", ...at(HOST, 9011, 9012, 9013), process: nginx.pid },
    ], children);
  }

  /** Runs a job to its end and gives its result. */
  async load<T>(job: LoadJob): Promise<T> {
    const { stdout } = await this.#client.execOk(deno("forward_load.ts", job), { timeoutMs: 120_000 });
    return JSON.parse(stdout) as T;
  }

  /** Starts a job that lasts until it is closed; resolves when it has said that it stands. */
  async hold(job: LoadJob): Promise<{ close(): Promise<void> }> {
    const [command, ...args] = this.#client.command(deno("forward_load.ts", job));
    const child = new Deno.Command(command!, { args, stdin: "piped", stdout: "piped", stderr: "inherit" }).spawn();
    await firstLine(child);
    await pause(1000);
    return {
      close: async () => {
        await child.stdin.close();
        await child.status;
        await pause(500);
      },
    };
  }

  async wrk(target: Target, of: { readonly connections: number; readonly seconds: number; readonly close?: boolean }) {
    const argv = ["wrk", "-t1", `-c${of.connections}`, `-d${of.seconds}s`, "--latency"];
    if (of.close) argv.push("-H", "Connection: close");
    const before = await this.cpu(target);
    const { stdout } = await this.#client.execOk([...argv, `http://${target.http.ip}:${target.http.port}/`], {
      timeoutMs: of.seconds * 1000 + 30_000,
    });
    const number = (pattern: RegExp) => Number(pattern.exec(stdout)?.[1] ?? NaN);
    const p50 = /50%\s+([\d.]+)(us|ms|s)/.exec(stdout);
    return {
      requests: number(/(\d+) requests in/),
      requestsPerSecond: number(/Requests\/sec:\s+([\d.]+)/),
      p50: p50 ? Number(p50[1]) * { us: 1, ms: 1e3, s: 1e6 }[p50[2] as "us" | "ms" | "s"] : NaN,
      cpu: await this.cpu(target) - before,
    };
  }

  async iperf(target: Target, seconds: number) {
    const before = await this.cpu(target);
    const { stdout } = await this.#client.execOk(
      ["iperf3", "-J", "-c", target.bulk.ip, "-p", String(target.bulk.port), "-t", String(seconds)],
      { timeoutMs: seconds * 1000 + 30_000 },
    );
    const sum = (JSON.parse(stdout) as { end: { sum_received: { bits_per_second: number; bytes: number } } }).end
      .sum_received;
    return { gbits: sum.bits_per_second / 1e9, gigabytes: sum.bytes / 1e9, cpu: await this.cpu(target) - before };
  }

  /** CPU seconds of the forwarding process so far. */
  async cpu(target: Target): Promise<number> {
    if (target.process === undefined) return 0;
    const stat = await Deno.readTextFile(`/proc/${target.process}/stat`);
    const fields = stat.slice(stat.lastIndexOf(")") + 2).split(" ");
    return (Number(fields[11]) + Number(fields[12])) / HZ;
  }

  async privateKb(target: Target): Promise<number> {
    const rollup = await Deno.readTextFile(`/proc/${target.process}/smaps_rollup`);
    const kb = (name: string) => Number(new RegExp(`^${name}:\\s+(\\d+) kB`, "m").exec(rollup)?.[1] ?? 0);
    return kb("Private_Dirty") + kb("Private_Clean");
  }

  async [Symbol.asyncDispose](): Promise<void> {
    for (const child of this.#children) {
      try {
        child.kill("SIGKILL");
      } catch {
        // Ended by itself.
      }
    }
    await Promise.all(this.#children.map((child) => child.output().catch(() => {})));
  }
}

function agentSetup(): AgentSetup {
  const ports = [
    { name: "http", port: HTTP, targetPort: HTTP, protocol: "TCP" },
    { name: "bulk", port: 5202, targetPort: BULK, protocol: "TCP" },
    { name: "udp", port: 7001, targetPort: UDP, protocol: "UDP" },
  ] as const;
  return {
    mesh: MESH,
    addresses: [HOST, "10.2.0.1"],
    podCidrs: ["10.1.0.0/24", "10.2.0.0/24"],
    services: [
      { name: "kernel", ip: "10.96.0.1", endpoint: { ip: POD, node: "n1" }, ports },
      { name: "proxy", ip: "10.96.0.2", endpoint: { ip: POD }, ports },
    ],
  };
}

async function backends(lab: Lab, peers: string, spawn: (argv: readonly string[]) => Deno.ChildProcess): Promise<void> {
  const body = "x".repeat(64);
  const conf = await file(
    lab,
    "backend.conf",
    `daemon off; master_process off; pid ${lab.dir}/backend.pid; error_log stderr crit;
     events { worker_connections 16384; }
     http { access_log off; keepalive_requests 100000000; keepalive_timeout 600s;
       ${temporary(lab, "backend")}
       server { listen ${HTTP} backlog=8192; location / { return 200 "${body}"; } } }`,
  );
  spawn([`${peers}/bin/nginx`, "-c", conf, "-e", "stderr"]);
  spawn(["iperf3", "-s", "-p", String(BULK)]);
  await firstLine(spawn(deno("forward_load.ts", { do: "udp-echo", at: { ip: POD, port: UDP } } satisfies LoadJob)));
}

function haproxyConfig(lab: Lab): Promise<string> {
  const side = (name: string, port: number, target: number) =>
    `listen ${name}\n  bind :${port}\n  server pod ${POD}:${target}\n`;
  return file(
    lab,
    "haproxy.cfg",
    `global
  nbthread 1
  maxconn 6000
defaults
  mode tcp
  option splice-auto
  timeout connect 5s
  timeout client 1h
  timeout server 1h
  maxconn 6000
${side("http", 9001, HTTP)}${side("bulk", 9002, BULK)}`,
  );
}

function nginxStreamConfig(lab: Lab, peers: string): Promise<string> {
  return file(
    lab,
    "stream.conf",
    `daemon off; master_process off; pid ${lab.dir}/stream.pid; error_log stderr crit;
     load_module ${peers}/root/usr/lib/nginx/modules/ngx_stream_module.so;
     worker_rlimit_nofile 30000;
     events { worker_connections 16384; }
     stream { proxy_timeout 1h;
       server { listen 9011 backlog=8192; proxy_pass ${POD}:${HTTP}; }
       server { listen 9012; proxy_pass ${POD}:${BULK}; }
       server { listen 9013 udp; proxy_pass ${POD}:${UDP}; proxy_timeout 60s; } }`,
  );
}

function temporary(lab: Lab, name: string): string {
  return ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"].map((t) => `${t}_temp_path ${lab.dir}/${name}-${t};`)
    .join(" ");
}

async function file(lab: Lab, name: string, text: string): Promise<string> {
  const path = `${lab.dir}/${name}`;
  await Deno.writeTextFile(path, text);
  return path;
}

async function peersDir(): Promise<string> {
  const given = Deno.env.get("EDGEMESH_PEERS");
  if (given) return given;
  const script = fileURLToPath(new URL("../../scripts/fetch_peers.sh", import.meta.url));
  const { stdout, success } = await new Deno.Command("sh", { args: [script], stderr: "inherit" }).output();
  if (!success) throw new Error("The peers cannot be fetched");
  return new TextDecoder().decode(stdout).trim();
}

function deno(script: string, argument: unknown): string[] {
  const path = fileURLToPath(new URL(script, import.meta.url));
  return [Deno.execPath(), "run", "-A", "--quiet", V8_FLAGS, path, JSON.stringify(argument)];
}

/** The first line a child prints: that it is ready, or its result. */
async function firstLine(child: Deno.ChildProcess): Promise<string> {
  const reader = child.stdout.getReader();
  let text = "";
  while (!text.includes("\n")) {
    const { value, done } = await reader.read();
    if (done) throw new Error("A program of the bench ended before it was ready");
    text += new TextDecoder().decode(value);
  }
  reader.releaseLock();
  return text.slice(0, text.indexOf("\n"));
}
