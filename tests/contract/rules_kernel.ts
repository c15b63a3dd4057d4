/** A machine in namespaces for the contract of kernel rules: a host with endpoints and the writer, and a pod. */
import { fileURLToPath } from "node:url";
import { pause } from "../../lib/clock.ts";
import { Lab, type Namespace } from "../../lib/lab/namespace.ts";
import type { Grammar, Ruleset } from "../../lib/forward/rules/ruleset.ts";
import type { ApplyResult } from "../../lib/forward/rules/writer.ts";
import { type Ask, type Listing, MACHINE, type RulesBench, SERVERS } from "./rules_bench.ts";
import { type Command, READY } from "./rules_probe.ts";

/** Long enough for a loaded machine to answer, short enough that "silent" does not cost the suite its time. */
const SILENCE_MS = 400;

export class KernelBench implements RulesBench {
  readonly #lab: Lab;
  readonly #host: Namespace;
  readonly #backend: string;
  #writer: Probe;
  readonly #servers: Probe;
  readonly #pod: Probe;
  readonly #outside: Probe;

  private constructor(lab: Lab, host: Namespace, backend: string, probes: readonly [Probe, Probe, Probe, Probe]) {
    this.#lab = lab;
    this.#host = host;
    this.#backend = backend;
    [this.#writer, this.#servers, this.#pod, this.#outside] = probes;
  }

  static async open(backend: string): Promise<KernelBench> {
    const lab = await Lab.open();
    const [host, pod, outside] = await lab.namespaces(["host", "pod", "outside"]);
    await lab.link(
      [{ ns: host, ifname: "pod0" }, { ns: pod, ifname: "eth0" }],
      [{ ns: host, ifname: "wan0" }, { ns: outside, ifname: "eth0" }],
    );
    const locals = [...new Set([...SERVERS.map((s) => s.ip), MACHINE.host4])];
    const meshes: readonly string[] = [MACHINE.mesh4, MACHINE.mesh6];
    await host.ip(
      "link add edgemesh0 type bridge",
      "link set edgemesh0 up",
      ...locals.map((ip) => `${v(ip)}addr add ${ip}/${bits(ip)} dev ${meshes.includes(ip) ? "edgemesh0" : "lo"}`),
      "addr add 10.1.0.254/24 dev pod0",
      "addr add 198.51.100.1/24 dev wan0",
      "-6 addr add fd00:1::fe/64 dev pod0",
      `route add ${MACHINE.serviceCidr4} dev edgemesh0`,
      `-6 route add ${MACHINE.serviceCidr6} dev edgemesh0`,
    );
    await pod.ip(
      `addr add ${MACHINE.pod4}/24 dev eth0`,
      `-6 addr add ${MACHINE.pod6}/64 dev eth0`,
      "route add default via 10.1.0.254",
      "-6 route add default via fd00:1::fe",
    );
    await outside.ip(`addr add ${MACHINE.outside4}/24 dev eth0`, "route add default via 198.51.100.1");
    const probes = await Promise.all([
      Probe.start(host, backend),
      Probe.start(host),
      Probe.start(pod),
      Probe.start(outside),
    ]);
    for (const probe of probes) lab.adopt(probe.child);
    await probes[1].call({ do: "serve", at: SERVERS });
    return new KernelBench(lab, host, backend, probes);
  }

  get ownsTables(): boolean {
    return this.#backend === "netlink";
  }

  get grammar(): Grammar {
    return this.#backend === "netlink" ? "full" : "nft";
  }

  apply(ruleset: Ruleset): Promise<ApplyResult> {
    return this.#writer.call({ do: "apply", ruleset: [ruleset.shards, ruleset.tables, [...ruleset.fragments]] });
  }

  repair(): Promise<ApplyResult> {
    return this.#writer.call({ do: "repair" });
  }

  list(): Promise<Listing> {
    return this.#writer.call({ do: "list" });
  }

  remove(which: "all" | "agent"): Promise<void> {
    return this.#writer.call({ do: "remove", which });
  }

  forget(targets: readonly string[]): Promise<number> {
    return this.#writer.call({ do: "forget", targets });
  }

  pass(ms: number): Promise<void> {
    return pause(ms);
  }

  async ask({ from, protocol, to }: Ask): Promise<string> {
    const probe = this.#client(from);
    if (protocol === "tcp") return named(await probe.call({ do: "connect", to, timeoutMs: SILENCE_MS }));
    const answer = await probe.call<string>({ do: "ask-udp", to, timeoutMs: SILENCE_MS });
    return answer === "silent" ? await this.#refusedUdp(from, to) : named(answer);
  }

  async foreign(script: string): Promise<void> {
    await this.#host.execOk(["nft", script]);
  }

  async crash(): Promise<void> {
    await this.#writer.stop();
    this.#writer = await Probe.start(this.#host, this.#backend);
    this.#lab.adopt(this.#writer.child);
  }

  async close(): Promise<void> {
    await Promise.all([this.#writer, this.#servers, this.#pod, this.#outside].map((probe) => probe.stop()));
    await this.#lab.close();
  }

  #client(from: Ask["from"]): Probe {
    return from === "host" ? this.#servers : from === "pod" ? this.#pod : this.#outside;
  }

  /** A client with a connected socket hears the ICMP error; dig has one and says so. */
  async #refusedUdp(from: Ask["from"], to: { readonly ip: string; readonly port: number }): Promise<string> {
    const argv = ["dig", `@${to.ip}`, "-p", String(to.port), "+tries=1", "+time=1", "x"];
    const probe = this.#client(from);
    const { stdout } = await probe.ns.exec(argv);
    return /connection refused/.test(stdout) ? "reject" : "silent";
  }
}

/** `10.1.0.5 8080 client` → `10.1.0.5:8080 client`. */
function named(answer: string): string {
  return answer.replace(" ", ":");
}

function v(ip: string): string {
  return ip.includes(":") ? "-6 " : "";
}

function bits(ip: string): number {
  return ip.includes(":") ? 128 : 32;
}

/** A probe process and the conversation with it. */
class Probe {
  readonly ns: Namespace;
  readonly child: Deno.ChildProcess;
  readonly #input: WritableStreamDefaultWriter<Uint8Array>;
  readonly #lines: AsyncGenerator<string>;

  private constructor(ns: Namespace, child: Deno.ChildProcess) {
    this.ns = ns;
    this.child = child;
    this.#input = child.stdin.getWriter();
    this.#lines = lines(child.stdout);
  }

  static async start(ns: Namespace, backend = "none"): Promise<Probe> {
    const script = fileURLToPath(new URL("rules_probe.ts", import.meta.url));
    const [command, ...args] = ns.command([Deno.execPath(), "run", "-A", "--quiet", script, backend]);
    const child = new Deno.Command(command!, { args, stdin: "piped", stdout: "piped", stderr: "inherit" }).spawn();
    const probe = new Probe(ns, child);
    const first = await probe.#lines.next();
    if (first.done || JSON.parse(first.value) !== READY) throw new Error("The probe did not start");
    return probe;
  }

  async call<T>(command: Command): Promise<T> {
    await this.#input.write(new TextEncoder().encode(JSON.stringify(command) + "\n"));
    const line = await this.#lines.next();
    if (line.done) throw new Error(`The probe ended at ${command.do}`);
    const answer = JSON.parse(line.value) as { ok?: T; error?: string };
    if (answer.error !== undefined) throw new Error(`${command.do}: ${answer.error}`);
    return answer.ok as T;
  }

  async stop(): Promise<void> {
    try {
      this.child.kill("SIGKILL");
    } catch {
      // Ended by itself.
    }
    await this.child.status;
    await this.#input.close().catch(() => {});
    await this.#lines.return(undefined);
  }
}

async function* lines(stream: ReadableStream<Uint8Array>): AsyncGenerator<string> {
  let rest = "";
  for await (const chunk of stream.pipeThrough(new TextDecoderStream() as ReadableWritablePair<string, Uint8Array>)) {
    const parts = (rest + chunk).split("\n");
    rest = parts.pop()!;
    yield* parts;
  }
}
