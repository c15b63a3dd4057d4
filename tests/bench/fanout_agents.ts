/**
 * The agents of tests/bench/fanout_bench.ts, in a process of their own:
 *   fanout_agents.ts URL CREDENTIALS.json
 * Prints `ready` when all have the first state; takes a line with the server's fingerprint, prints a report and ends.
 */
// deno-lint-ignore-file no-console -- its output is its interface
import { createHash } from "node:crypto";
import { parseCidr } from "../../lib/addr.ts";
import { systemClock } from "../../lib/clock.ts";
import { Revocations } from "../../lib/identity/revocation.ts";
import { attested, TEST_NOW } from "../../lib/identity/testing.ts";
import { DEFAULT_GRACE_MS, parseChain, type Trust, verifyPeer } from "../../lib/identity/trust.ts";
import { nullLogger } from "../../lib/log.ts";
import { Guard } from "../../lib/meta/guard.ts";
import type { Snapshot } from "../../lib/meta/store/snapshot.ts";
import { type MetaLink, ServerSource } from "../../lib/meta/fanout/source_server.ts";
import { MetaStore } from "../../lib/meta/store/store.ts";
import { ACK_EVERY, decodeMessage, decodeUnit, encodeAck, encodeHello } from "../../lib/meta/fanout/wire.ts";
import type { TlsCredentials } from "../../lib/tunnel/carriers/engine.ts";
import { ControlClient } from "../../lib/tunnel/control/client.ts";

/** Agents that hold the whole state. */
const WHOLE = 10;
/** Connections opened at a time, so that the start is no flood of handshakes. */
const AT_ONCE = 40;
/** The pod name of a changed endpoint says when it changed. */
const STAMP = /"at-(\d+)"/g;

export interface AgentsReport {
  readonly delivered: number;
  readonly p50: number;
  readonly p99: number;
  readonly max: number;
  readonly cpu: number;
  readonly rss: number;
  readonly whole: number;
  readonly equal: number;
}

/** Text that is equal for equal slices. */
export function fingerprint(snapshot: Snapshot): string {
  const hash = createHash("sha256");
  for (const [key, slice] of [...snapshot.entries("slice")].sort(([a], [b]) => a < b ? -1 : 1)) {
    hash.update(key);
    for (const e of slice.endpoints) hash.update(`${e.ip} ${e.pod} ${e.ready};`);
  }
  return hash.digest("hex");
}

async function run(url: string, file: string): Promise<void> {
  const credentials = JSON.parse(await Deno.readTextFile(file)) as TlsCredentials[];
  const trust = await trustIn(credentials[0]!);
  const latencies: number[] = [];
  const agents = credentials.map((own, i) => new Agent(`node-${i}`, { url, own, trust, latencies, whole: i < WHOLE }));
  for (let i = 0; i < agents.length; i += AT_ONCE) {
    const some = agents.slice(i, i + AT_ONCE);
    for (const agent of some) agent.client.start();
    while (!some.every((a) => a.synced)) await new Promise((resolve) => setTimeout(resolve, 10));
  }
  latencies.length = 0;
  const cpuBefore = cpu();
  console.log("ready");
  const [wanted] = await Array.fromAsync(firstLine(Deno.stdin.readable));
  const whole = agents.filter((a) => a.store);
  latencies.sort((a, b) => a - b);
  const at = (part: number) => latencies[Math.min(latencies.length - 1, Math.floor(latencies.length * part))] ?? -1;
  const report: AgentsReport = {
    delivered: latencies.length,
    p50: at(0.5),
    p99: at(0.99),
    max: at(1),
    cpu: cpu() - cpuBefore,
    rss: Deno.memoryUsage().rss,
    whole: whole.length,
    equal: whole.filter((a) => fingerprint(a.store!.snapshot) === wanted).length,
  };
  console.log(JSON.stringify(report));
  for (const agent of agents) agent.client.close();
  Deno.exit(0);
}

class Agent {
  readonly client: ControlClient;
  readonly store: MetaStore | undefined;
  synced = false;
  readonly #source: ServerSource | undefined;
  readonly #link: MetaLink | undefined;
  readonly #latencies: number[];
  #number = -1;
  #to = -1;
  #received = 0;
  #acknowledged = 0;

  constructor(
    node: string,
    parts: { url: string; own: TlsCredentials; trust: Trust; latencies: number[]; whole: boolean },
  ) {
    this.#latencies = parts.latencies;
    if (parts.whole) {
      this.store = new MetaStore({ clock: systemClock });
      const networks = ["10.96.0.0/11", "10.128.0.0/9"].map((c) => parseCidr(c)!);
      const guard = new Guard({
        serviceCidrs: networks.slice(0, 1),
        externalCidrs: [],
        own: new Set(),
        vital: new Set(),
        zones: ["cluster.local"],
      });
      this.#source = new ServerSource({ layer: this.store.layer("base"), guard, clock: systemClock, log: nullLogger });
      this.#link = {
        from: parts.url,
        send: (m) => void this.client.sendMeta(m),
        fail: (error) => {
          throw error;
        },
      };
    }
    this.client = new ControlClient({
      clock: systemClock,
      log: nullLogger,
      url: parts.url,
      node,
      version: "bench",
      boot: node,
      random: Math.random,
      credentials: () => parts.own,
      verify: (chainDer) =>
        verifyPeer({ chainDer, expected: { role: "server" }, trust: parts.trust, now: attested(TEST_NOW) }),
      onUp: () => {
        if (this.#source) this.#source.attach(this.#link!);
        else this.client.sendMeta(encodeHello(undefined));
      },
      onDown: () => {},
      onPeers: () => {},
      onMeta: (message) => this.#message(message),
      onMetaDrain: () => {},
      onRevocations: () => {},
      onTime: () => {},
      onChannel: () => {},
    });
  }

  #message(bytes: Uint8Array): void {
    if (this.synced) this.#stamps(bytes);
    if (this.#source) {
      this.#source.receive(this.#link!, bytes);
      this.synced = this.store!.snapshot.synced;
    } else this.#light(bytes);
  }

  /** Speaks the protocol and checks its numbers, keeps nothing. Units of this bench fit one message each. */
  #light(bytes: Uint8Array): void {
    const message = decodeMessage(bytes);
    if (message?.type !== "unit") return;
    if (!message.first || !message.last) throw new Error("a unit in several messages");
    this.#received++;
    const unit = decodeUnit(message.bytes);
    if (unit.begin) {
      if (!unit.begin.full && unit.begin.from !== this.#number) throw new Error("a difference to another state");
      this.#to = unit.begin.to;
    }
    if (!unit.more) {
      this.#number = this.#to;
      this.synced = true;
    }
    if (unit.more && this.#received - this.#acknowledged < ACK_EVERY) return;
    this.#acknowledged = this.#received;
    this.client.sendMeta(encodeAck(this.#received));
  }

  #stamps(bytes: Uint8Array): void {
    const now = Date.now();
    for (const [, stamp] of decoder.decode(bytes).matchAll(STAMP)) this.#latencies.push(now - Number(stamp));
  }
}

const decoder = new TextDecoder();

/** Trust in the authority that follows each certificate in its file. */
async function trustIn(own: TlsCredentials): Promise<Trust> {
  const pem = /-----BEGIN CERTIFICATE-----([^-]+)-----END/.exec(String(own.ca))![1]!;
  const der = Uint8Array.from(atob(pem.replaceAll(/\s/g, "")), (c) => c.charCodeAt(0));
  const anchors = await Promise.resolve(parseChain([der]));
  return { trustDomain: "mesh.test", anchors, revocations: new Revocations(), graceMs: DEFAULT_GRACE_MS };
}

async function* firstLine(stream: ReadableStream<Uint8Array>): AsyncIterableIterator<string> {
  let text = "";
  for await (const chunk of stream) {
    text += decoder.decode(chunk);
    if (!text.includes("\n")) continue;
    yield text.slice(0, text.indexOf("\n"));
    return;
  }
}

/** CPU seconds of the main thread. */
function cpu(): number {
  return Number(Deno.readTextFileSync("/proc/self/schedstat").split(" ", 1)[0]) / 1e9;
}

if (import.meta.main) await run(Deno.args[0]!, Deno.args[1]!);
