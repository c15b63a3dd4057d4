/**
 * DNS over TCP (RFC 7766): many questions on one connection, answers in whatever order they come, idle connections
 * closed, and nothing a client can do that makes us hold more than the caps below.
 */
import type { CancelTimer, Clock } from "../clock.ts";
import { type Accepted, type MeshStream, WOULD_BLOCK } from "../net.ts";
import { MAX_TCP_BYTES } from "./wire/constants.ts";
import type { Source } from "./limit.ts";
import type { ReplyPath, Resolver, Transport } from "./resolver.ts";

/** RFC 7766 §6.2.3 leaves it to the server; a resolver library never pauses that long inside a burst. */
export const TCP_IDLE_MS = 10_000;
/** No query we can answer is longer; the rest of RFC 1035's 64 KiB would only serve to fill memory. */
const MAX_QUERY_BYTES = 4096;
/** Questions of one connection that wait for upstreams. */
const MAX_PENDING = 100;
/** Answers to questions that had to wait, for a client that does not read; beyond it the connection ends. */
const MAX_QUEUED_BYTES = 4 * MAX_TCP_BYTES;
const READ_BYTES = 16384;
export const MAX_TCP_CONNECTIONS = 1000;
export const MAX_TCP_PER_SOURCE = 200;
const NOTHING = new Uint8Array(0);

export interface TcpDeps {
  readonly resolver: Resolver;
  readonly clock: Clock;
  /** Undefined: the source may not ask (now). */
  readonly admit: (ip: string) => Source | undefined;
  readonly allow: (source: Source, now: number) => boolean;
}

export class TcpFrontend {
  readonly #deps: TcpDeps;
  readonly #connections = new Set<Connection>();
  readonly #chunk = new Uint8Array(READ_BYTES);
  readonly stats = { accepted: 0, refused: 0, queries: 0 };

  constructor(deps: TcpDeps) {
    this.#deps = deps;
  }

  get size(): number {
    return this.#connections.size;
  }

  accept(accepted: Accepted): void {
    const source = this.#deps.admit(accepted.remote.ip);
    if (
      source === undefined || this.#connections.size >= MAX_TCP_CONNECTIONS || source.connections >= MAX_TCP_PER_SOURCE
    ) {
      this.stats.refused++;
      accepted.stream.reset("LIMIT");
      return;
    }
    this.stats.accepted++;
    source.connections++;
    const connection = new Connection(accepted.stream, source, {
      deps: this.#deps,
      chunk: this.#chunk,
      onQuery: () => this.stats.queries++,
      onOver: () => {
        this.#connections.delete(connection);
        source.connections--;
      },
    });
    this.#connections.add(connection);
  }

  close(): void {
    for (const connection of [...this.#connections]) connection.end();
  }
}

interface ConnectionContext {
  readonly deps: TcpDeps;
  readonly chunk: Uint8Array;
  readonly onQuery: () => void;
  readonly onOver: () => void;
}

class Connection implements Transport, ReplyPath {
  readonly #stream: MeshStream;
  readonly #source: Source;
  readonly #context: ConnectionContext;
  /** Bytes that have come and are not answered: less than a message, or more while the client is held back. */
  #unread = NOTHING;
  #queue: Uint8Array[] = [];
  #queued = 0;
  #pending = 0;
  #over = false;
  #sawEnd = false;
  #lastActive: number;
  #cancelIdle: CancelTimer;

  constructor(stream: MeshStream, source: Source, context: ConnectionContext) {
    this.#stream = stream;
    this.#source = source;
    this.#context = context;
    this.#lastActive = context.deps.clock.now();
    this.#cancelIdle = context.deps.clock.timer(TCP_IDLE_MS, () => this.#onIdle());
    stream.handler = {
      onOpen: () => {},
      onReadable: () => this.#read(),
      onWritable: () => this.#flush(),
      onClose: () => this.#finish(),
    };
  }

  limit(): number {
    return MAX_TCP_BYTES;
  }

  later(): ReplyPath {
    this.#pending++;
    return this;
  }

  /** An answer that had to wait. */
  send(bytes: Uint8Array, length: number): void {
    this.#pending--;
    if (this.#over) return;
    this.#reply(bytes, length);
    if (!this.#over && !this.#blocked) this.#read();
  }

  end(): void {
    if (this.#over) return;
    this.#stream.reset("SHUTDOWN");
    this.#finish();
  }

  #read(): void {
    const { chunk, deps } = this.#context;
    while (!this.#over && this.#process() && !this.#sawEnd) {
      const n = this.#stream.read(chunk);
      if (n === WOULD_BLOCK) return;
      if (n === 0) {
        this.#sawEnd = true;
        break;
      }
      this.#lastActive = deps.clock.now();
      const bytes = new Uint8Array(this.#unread.length + n);
      bytes.set(this.#unread);
      bytes.set(chunk.subarray(0, n), this.#unread.length);
      this.#unread = bytes;
    }
    this.#endIfDone();
  }

  /** Answers the complete messages that have come; false when the client first has to take answers. */
  #process(): boolean {
    let at = 0;
    const bytes = this.#unread;
    while (!this.#over && !this.#blocked && bytes.length - at >= 2) {
      const size = (bytes[at]! << 8) | bytes[at + 1]!;
      if (size === 0 || size > MAX_QUERY_BYTES) {
        this.end();
        return false;
      }
      if (bytes.length - at - 2 < size) break;
      this.#question(bytes.subarray(at + 2, at + 2 + size));
      at += 2 + size;
    }
    if (at > 0) this.#unread = bytes.slice(at);
    return !this.#over && !this.#blocked;
  }

  /** A client that does not take its answers, or waits for too many, gets no further questions in. */
  get #blocked(): boolean {
    return this.#queued > 0 || this.#pending >= MAX_PENDING;
  }

  #question(message: Uint8Array): void {
    const { deps, onQuery } = this.#context;
    onQuery();
    if (!deps.allow(this.#source, deps.clock.now())) return;
    const length = deps.resolver.handle(message, message.length, this.#source, this);
    if (length > 0) this.#reply(deps.resolver.out, length);
  }

  /** Sends with the length prefix; what the stream does not take waits in a copy. */
  #reply(bytes: Uint8Array, length: number): void {
    const { resolver } = this.#context.deps;
    let framed: Uint8Array;
    if (bytes === resolver.out) framed = resolver.frame;
    else {
      framed = new Uint8Array(length + 2);
      framed.set(bytes.subarray(0, length), 2);
    }
    framed[0] = length >>> 8;
    framed[1] = length;
    const total = length + 2;
    const sent = this.#queued === 0 ? this.#stream.write(framed, 0, total) : 0;
    if (sent === total) return;
    this.#queue.push(framed.slice(sent, total));
    this.#queued += total - sent;
    if (this.#queued > MAX_QUEUED_BYTES) this.end();
  }

  #flush(): void {
    while (this.#queue.length > 0) {
      const head = this.#queue[0]!;
      const n = this.#stream.write(head, 0, head.length);
      this.#queued -= n;
      if (n < head.length) {
        this.#queue[0] = head.subarray(n);
        return;
      }
      this.#queue.shift();
      this.#lastActive = this.#context.deps.clock.now();
    }
    if (!this.#over && !this.#blocked) this.#read();
  }

  /** The client has asked all it will and got all there is: our end too. */
  #endIfDone(): void {
    if (this.#sawEnd && !this.#over && this.#pending === 0 && this.#queued === 0) this.#stream.closeWrite();
  }

  #onIdle(): void {
    const { clock } = this.#context.deps;
    const left = this.#lastActive + TCP_IDLE_MS - clock.now();
    // Questions under way end by themselves, and then the client may ask on.
    if (left <= 0 && this.#pending === 0) return this.end();
    this.#cancelIdle = clock.timer(Math.max(left, TCP_IDLE_MS / 10), () => this.#onIdle());
  }

  #finish(): void {
    if (this.#over) return;
    this.#over = true;
    this.#cancelIdle();
    this.#queue = [];
    this.#unread = NOTHING;
    this.#context.onOver();
  }
}
