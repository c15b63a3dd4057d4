/**
 * The way of one query: parse, the two caches, decide, forward. Synchronous as long as the answer is at hand; whoever
 * has to wait is called back. Knows no sockets: bytes in, bytes out.
 */
import type { Clock } from "../clock.ts";
import type { MetaReader } from "../meta/model.ts";
import type { ClusterAnswer } from "./cluster/answer.ts";
import { AnswerCache } from "./cache/cache.ts";
import { CLASS_IN, MAX_TCP_BYTES, RCODE, TYPE } from "./wire/constants.ts";
import { decide, type DecideContext, type Decision } from "./cluster/decide.ts";
import { anyAnswer, encodeCluster, encodeError, joinChain } from "./cache/encode.ts";
import { type Entry, makeEntry, SNAPSHOT_LIFE } from "./cache/entry.ts";
import { type Forwarder, type ForwardHow, type ForwardQuestion, nearlyExpired } from "./upstream/forwarder.ts";
import type { HostsTable } from "./cluster/hosts.ts";
import { type Labels, lowerLabels } from "./wire/labels.ts";
import type { Source } from "./limit.ts";
import { Query } from "./wire/query.ts";
import { appendOpt, Responder } from "./cache/response.ts";
import type { ReverseOptions } from "./cluster/reverse.ts";
import type { MessageWriter } from "./wire/writer.ts";

/** Where a response goes that comes later. Made only when it is needed. */
export interface ReplyPath {
  /** Takes `bytes[0, length)`, valid during the call only. */
  send(bytes: Uint8Array, length: number): void;
}

export interface ResolverDeps {
  readonly clock: Clock;
  readonly meta: () => MetaReader;
  readonly forwarder: Forwarder;
  readonly foreign: AnswerCache;
  readonly writer: MessageWriter;
  readonly options: ReverseOptions;
  readonly hosts: HostsTable;
  readonly searchNamespaces: readonly string[];
  readonly forwardZones: readonly Labels[];
  readonly maxPendingPerSource: number;
}

/** Answers from the snapshot kept as bytes; thrown away with the snapshot. */
const CLUSTER_CACHE = { maxEntries: 8192, maxBytes: 4 << 20 };

export class Resolver {
  readonly #deps: ResolverDeps;
  readonly #query = new Query();
  readonly #responder = new Responder();
  readonly #cluster = new AnswerCache(CLUSTER_CACHE);
  #reader: MetaReader | undefined;
  readonly stats = {
    queries: 0,
    clusterHits: 0,
    foreignHits: 0,
    stale: 0,
    local: 0,
    forwarded: 0,
    malformed: 0,
    refused: 0,
    rcodes: new Uint32Array(16),
  };

  constructor(deps: ResolverDeps) {
    this.#deps = deps;
  }

  /** What {@link handle} filled; two bytes in front of it are {@link frame}'s, for the length prefix of TCP. */
  get out(): Uint8Array {
    return this.#responder.out;
  }
  get frame(): Uint8Array {
    return this.#responder.frame;
  }

  get clusterCache(): AnswerCache {
    return this.#cluster;
  }

  /**
   * Handles one message. Returns the length of the response in {@link out}; 0 = no response now: it was dropped, or
   * the transport was asked for a path on which the response will come later.
   */
  handle(bytes: Uint8Array, length: number, source: Source, transport: Transport): number {
    const query = this.#query;
    const verdict = query.parse(bytes, length);
    if (verdict === "drop") {
      this.stats.malformed++;
      return 0;
    }
    this.stats.queries++;
    if (verdict !== "query") return this.#error(bytes, verdictRcode(verdict));
    if (query.qclass !== CLASS_IN || query.type === TYPE.AXFR || query.type === TYPE.IXFR) {
      this.stats.refused++;
      return this.#error(bytes, RCODE.REFUSED);
    }
    const meta = this.#deps.meta();
    if (meta !== this.#reader) {
      this.#reader = meta;
      this.#cluster.clear();
    }
    const limit = transport.limit(query);
    const hit = this.#cluster.get(query);
    if (hit !== undefined && !(hit.caseBound && query.hasUpper)) {
      this.stats.clusterHits++;
      return this.#respond(hit, bytes, limit, 0);
    }
    const now = this.#deps.clock.now();
    if (query.type !== TYPE.PTR && !this.#mayBeShort(source, query.labelCount)) {
      const known = this.#deps.foreign.get(query);
      if (known !== undefined && now < known.life.expiresAt && !nearlyExpired(known, now)) {
        this.stats.foreignHits++;
        return this.#respond(known, bytes, limit, now);
      }
    }
    return this.#slow(bytes, meta, source, transport);
  }

  /** Asks in the name of a process of this host, past rate and size limits; resolves to the whole response. */
  ask(query: Uint8Array, source: Source): Promise<Uint8Array> {
    return new Promise((resolve) => {
      const send = (bytes: Uint8Array, length: number) => resolve(bytes.slice(0, length));
      const n = this.handle(query, query.length, source, { limit: () => MAX_TCP_BYTES, later: () => ({ send }) });
      if (n > 0) send(this.out, n);
    });
  }

  /** The decision about a name, as {@link handle} would take it. */
  decide(name: Labels, type: number, fromHost: boolean): Decision {
    return decide(name, type, this.#context(this.#deps.meta(), fromHost));
  }

  #slow(bytes: Uint8Array, meta: MetaReader, source: Source, transport: Transport): number {
    const query = this.#query;
    // Answers are made for the question in lower case and patched to the case asked; only SRV targets cannot be.
    const bound = query.hasUpper && query.type === TYPE.SRV;
    const name = bound ? query.labels(bytes) : query.lowerLabels();
    const decision = decide(name, query.type, this.#context(meta, source.isHost));
    if (decision.kind === "local") {
      const { answer } = decision;
      if (answer.chase !== undefined) return this.#chase(answer, answer.chase, { bytes, name, source, transport });
      this.stats.local++;
      const entry = this.#encode(name, query, answer);
      if (decision.shared && !bound) this.#cluster.set(entry);
      return this.#respond(entry, bytes, transport.limit(query), 0);
    }
    if (query.type === TYPE.ANY) {
      anyAnswer(this.#deps.writer, name);
      const entry = this.#ownEntry();
      this.#cluster.set(entry);
      return this.#respond(entry, bytes, transport.limit(query), 0);
    }
    const question: ForwardQuestion = {
      hash: query.hash,
      variant: query.variant,
      wire: query.lower.subarray(0, query.questionEnd - 12),
      name: lowerLabels(name),
      type: query.type,
    };
    return this.#forward(question, decision.zone, { bytes, name, source, transport }, (entry) => entry);
  }

  /** An alias that leaves our zones: its records in front, the foreign answer behind. */
  #chase(answer: ClusterAnswer, target: Labels, asker: Asker): number {
    const { type, variant } = this.#query;
    const lower = lowerLabels(target);
    const next = decide(target, type, this.#context(this.#deps.meta(), asker.source.isHost));
    const question = ownQuestion(lower, type, variant);
    const join = (entry: Entry, now: number): Entry => {
      joinChain(this.#deps.writer, { name: asker.name, type }, answer.answers, entry, now);
      return this.#ownEntry(variant);
    };
    if (next.kind === "forward") return this.#forward(question, next.zone, asker, join);
    this.stats.local++;
    const entry = join(this.#encode(lower, { hash: question.hash, type, variant }, next.answer), 0);
    return this.#respond(entry, asker.bytes, asker.transport.limit(this.#query), 0);
  }

  /** Asks the forwarder; answers now when it does, else through the asker's own path. */
  #forward(question: ForwardQuestion, zone: Labels, asker: Asker, finish: Finish): number {
    const { bytes, source, transport } = asker;
    const { clock, foreign, forwarder, maxPendingPerSource } = this.#deps;
    if (source.pending >= maxPendingPerSource) {
      this.stats.refused++;
      return this.#error(bytes, RCODE.REFUSED);
    }
    const later: { waiting?: Waiting } = {};
    let length = 0;
    const known = foreign.peek(question.hash, question.variant, question.wire);
    forwarder.ask(question, zone, known, (entry, how) => {
      this.#count(how);
      // An answer that just came is as old as it says, also when its TTL is 0.
      const at = how === "upstream" ? entry.life.storedAt : clock.now();
      const final = finish(entry, at);
      const { waiting } = later;
      if (waiting === undefined) {
        length = this.#respond(final, bytes, transport.limit(this.#query), at);
        return;
      }
      source.pending--;
      this.stats.rcodes[final.rcode]!++;
      const limit = transport.limit(waiting.query);
      waiting.path.send(this.out, this.#responder.write(final, waiting.query, waiting.asked, limit, at));
    });
    if (length > 0) return length;
    later.waiting = {
      query: this.#query.copy(),
      asked: bytes.slice(0, this.#query.questionEnd),
      path: transport.later(),
    };
    source.pending++;
    return 0;
  }

  #count(how: ForwardHow): void {
    if (how === "stale") this.stats.stale++;
    else if (how === "fresh") this.stats.foreignHits++;
    else this.stats.forwarded++;
  }

  #encode(
    name: Labels,
    about: { readonly hash: number; readonly type: number; readonly variant: number },
    answer: ClusterAnswer,
  ): Entry {
    const { writer, options, meta } = this.#deps;
    encodeCluster(writer, { name, type: about.type }, answer, { serial: meta().version.number, ttl: options.ttl });
    return makeEntry(
      writer.copy(),
      { hash: about.hash, variant: about.variant, caseBound: answer.caseBound },
      SNAPSHOT_LIFE,
    );
  }

  #ownEntry(variant = this.#query.variant): Entry {
    const about = { hash: this.#query.hash, variant, caseBound: false };
    return makeEntry(this.#deps.writer.copy(), about, SNAPSHOT_LIFE);
  }

  #respond(entry: Entry, asked: Uint8Array, limit: number, now: number): number {
    this.stats.rcodes[entry.rcode]!++;
    return this.#responder.write(entry, this.#query, asked, limit, now);
  }

  #error(bytes: Uint8Array, rcode: number): number {
    const query = this.#query;
    const { out } = this;
    this.stats.rcodes[rcode & 0xf]!++;
    const length = encodeError(out, bytes, { questionEnd: query.questionEnd, rcode });
    return query.edns ? appendOpt(out, length, query.dnssecOk, rcode >>> 4) : length;
  }

  #mayBeShort(source: Source, labelCount: number): boolean {
    return source.isHost && labelCount <= 3 && this.#deps.searchNamespaces.length > 0;
  }

  #context(meta: MetaReader, fromHost: boolean): DecideContext {
    const { options, hosts, searchNamespaces, forwardZones } = this.#deps;
    return { meta, options, hosts, searchNamespaces, forwardZones, fromHost };
  }
}

/** How responses of one kind of socket travel. */
export interface Transport {
  /** The largest response, by the client's word and the transport's nature. */
  limit(query: Query): number;
  /** A path for a response that comes after `handle` returned. */
  later(): ReplyPath;
}

/** What is kept of a query whose answer comes later. */
interface Waiting {
  readonly query: Query;
  readonly asked: Uint8Array;
  readonly path: ReplyPath;
}

/** Makes the answer to send of the one that was found, as of `now`. */
type Finish = (entry: Entry, now: number) => Entry;

interface Asker {
  readonly bytes: Uint8Array;
  readonly name: Labels;
  readonly source: Source;
  readonly transport: Transport;
}

function verdictRcode(verdict: "formerr" | "notimp" | "badvers"): number {
  switch (verdict) {
    case "formerr":
      return RCODE.FORMERR;
    case "notimp":
      return RCODE.NOTIMP;
    case "badvers":
      return RCODE.BADVERS;
  }
}

/** A question of our own, in the form the caches know. */
export function ownQuestion(lower: Labels, type: number, variant: number): ForwardQuestion {
  const query = new Query();
  query.fill(lower, type, variant);
  return { hash: query.hash, variant, wire: query.lower.slice(0, query.questionEnd - 12), name: lower, type };
}
