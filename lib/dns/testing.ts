/** A server without a kernel and an independent codec, for tests of this folder. */
import assert from "node:assert/strict";
import { Buffer } from "node:buffer";
import packet from "dns-packet";
import { FakeClock } from "../clock.ts";
import { createLogger, memorySink } from "../log.ts";
import type { MetaReader } from "../meta/model.ts";
import type { IpPort } from "../net.ts";
import { DEFAULT_DNS_CONFIG, type DnsConfig } from "./config.ts";
import { FakeNetwork, type UdpProgram } from "./fake_network.ts";
import type { Sources } from "./limit.ts";
import type { CacheStore } from "./cache/persist.ts";
import { DnsServer } from "./server.ts";
import { MemoryMeta } from "./testing_meta.ts";

/** A message as an independent implementation (dns-packet) reads it. */
export type Decoded = packet.DecodedPacket & { readonly rcode: string };

export interface AskOptions {
  readonly edns?: number;
  readonly dnssecOk?: boolean;
  readonly flags?: number;
  readonly from?: IpPort;
}

/** Bytes of a query, written by an independent implementation. */
export function encodeQuery(name: string, type: string, options: AskOptions = {}): Uint8Array {
  const bytes = packet.encode({
    type: "query",
    id: 0x4242,
    flags: options.flags ?? packet.RECURSION_DESIRED,
    questions: [{ type: type as packet.RecordType, name }],
    additionals: options.edns === undefined ? [] : [{
      type: "OPT",
      name: ".",
      udpPayloadSize: options.edns,
      extendedRcode: 0,
      ednsVersion: 0,
      flags: options.dnssecOk ? packet.DNSSEC_OK : 0,
      flag_do: options.dnssecOk ?? false,
      options: [],
    }],
  });
  return new Uint8Array(bytes);
}

export function decode(bytes: Uint8Array): Decoded {
  return packet.decode(Buffer.from(bytes)) as Decoded;
}

/** `name ttl TYPE data` of decoded records, sorted; OPT left out. */
export function recordTexts(records: readonly packet.Answer[] | undefined): string[] {
  return (records ?? []).flatMap((r) => {
    if (r.type === "OPT") return [];
    const { data, ttl } = r as { data: unknown; ttl?: number };
    const text = typeof data === "string"
      ? data
      : Array.isArray(data)
      ? data.map((d) => typeof d === "string" ? d : new TextDecoder().decode(d as Uint8Array)).join(" ")
      : Object.values(data as Record<string, unknown>).join(" ");
    return [`${r.name} ${ttl} ${r.type} ${text}`];
  }).sort();
}

/** A server on a network without a kernel, and a client that asks it. */
export class TestServer {
  readonly network = new FakeNetwork();
  readonly clock: FakeClock;
  readonly sink = memorySink();
  readonly server: DnsServer;
  meta: MetaReader;
  readonly address: IpPort;
  #replies: Uint8Array[] = [];
  #sources: Sources = { hostIps: ["192.0.2.1"], networks: [{ ip: "10.1.0.0", bits: 16 }] };

  constructor(options: {
    readonly config?: Partial<DnsConfig>;
    readonly meta?: MetaReader;
    readonly files?: Readonly<Record<string, string>>;
    readonly store?: CacheStore;
    readonly wall?: number;
    readonly prepare?: (network: FakeNetwork) => void;
  } = {}) {
    this.clock = new FakeClock(1000, options.wall);
    this.meta = options.meta ?? new MemoryMeta({});
    options.prepare?.(this.network);
    this.server = DnsServer.start({
      loop: this.network,
      clock: this.clock,
      log: createLogger(this.sink),
      listen: [{ ip: "169.254.96.16", port: 53 }],
      meta: () => this.meta,
      config: { ...DEFAULT_DNS_CONFIG, ...options.config },
      sources: () => this.#sources,
      readText: (path) => options.files?.[path],
      ...(options.store ? { store: options.store } : {}),
    });
    this.address = this.server.addresses[0]!;
  }

  /** Replaces who may ask. */
  setSources(sources: Sources): void {
    this.#sources = sources;
  }

  /** Sends bytes as a datagram and returns what came back at once. */
  send(bytes: Uint8Array, from: IpPort = { ip: "10.1.2.3", port: 5353 }): readonly Uint8Array[] {
    this.network.at(from, (answer) => void this.#replies.push(answer));
    this.network.deliver(bytes, from, this.address);
    this.network.scheduler.run();
    return this.take();
  }

  /** Answers that have come since the last look. */
  take(): readonly Uint8Array[] {
    this.network.scheduler.run();
    const replies = this.#replies;
    this.#replies = [];
    return replies;
  }

  /** Asks and lets up to `ms` pass until the answer is there. */
  async ask(name: string, type = "A", options: AskOptions = {}, ms = 10_000): Promise<Decoded> {
    const bytes = await this.askBytes(encodeQuery(name, type, options), options.from, ms);
    assert.ok(bytes, `no answer to ${name} ${type} within ${ms} ms`);
    return decode(bytes);
  }

  async askBytes(query: Uint8Array, from?: IpPort, ms = 10_000): Promise<Uint8Array | undefined> {
    let [answer] = this.send(query, from);
    for (let passed = 0; answer === undefined && passed < ms; passed += 10) {
      await this.settle();
      [answer] = this.take();
      if (answer) break;
      this.clock.advance(10);
      await this.settle();
      [answer] = this.take();
    }
    return answer;
  }

  /** Lets time pass in small steps, so that what happens on the way happens at its time. */
  async pass(ms: number): Promise<void> {
    for (let passed = 0; passed < ms; passed += 50) {
      this.clock.advance(50);
      await this.settle();
    }
  }

  /** Lets everything that waits only for its turn happen. */
  async settle(): Promise<void> {
    for (let i = 0; i < 4; i++) {
      await Promise.resolve();
      this.network.scheduler.run();
    }
  }

  async close(): Promise<void> {
    await this.server.close();
  }
}

/** An upstream that answers by a table of `name/type`; everything else does not exist. */
export function upstreamProgram(
  zone: Readonly<Record<string, readonly packet.Answer[]>>,
  asked: string[] = [],
  flags = 0,
): UdpProgram {
  return (bytes, _from, reply) => {
    const query = packet.decode(Buffer.from(bytes));
    const question = query.questions![0]!;
    const key = `${question.name.toLowerCase()}/${question.type}`;
    asked.push(key);
    const answers = zone[key];
    reply(
      new Uint8Array(packet.encode({
        type: "response",
        id: query.id ?? 0,
        flags: packet.RECURSION_AVAILABLE | packet.RECURSION_DESIRED | flags | (answers ? 0 : 3),
        questions: query.questions ?? [],
        answers: [...answers ?? []],
        authorities: answers ? [] : [{
          name: "test",
          type: "SOA",
          ttl: 60,
          data: { mname: "ns.test", rname: "h.test", serial: 1, refresh: 1, retry: 1, expire: 1, minimum: 45 },
        }],
      })),
    );
  };
}
