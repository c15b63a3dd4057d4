/** Sockets under an {@link UpstreamPool}: a datagram socket of its own for each exchange, TCP where asked. */
import { familyOf } from "../../addr.ts";
import type { CancelTimer, Clock } from "../../clock.ts";
import type { IpPort, Loop, MeshStream, UdpSocket } from "../../net.ts";
import { WOULD_BLOCK } from "../../net.ts";
import type { UpstreamQuestion } from "./messages.ts";
import { UpstreamPool, type UpstreamResult } from "./pool.ts";
import type { UpstreamSpec } from "./server_state.ts";

/** A server that truncated over UDP is alive: its TCP port opens at once or not at all. */
const CONNECT_TIMEOUT_MS = 1500;
const READ_BYTES = 4096;

export interface UpstreamIoDeps {
  readonly loop: Loop;
  readonly clock: Clock;
  readonly random: (into: Uint8Array) => void;
  /** An answer, or that there is none; `bytes` are valid during the call only. */
  readonly done: (ticket: number, result: UpstreamResult) => void;
  readonly allSilent: () => void;
}

type Channel = { readonly kind: "udp"; readonly socket: UdpSocket } | {
  readonly kind: "tcp";
  readonly stream: MeshStream;
};

export class UpstreamIo {
  readonly pool: UpstreamPool;
  readonly #deps: UpstreamIoDeps;
  readonly #channels = new Map<number, Channel>();
  #timer: CancelTimer | undefined;
  #timerMs = 0;
  #closed = false;

  constructor(upstreams: readonly UpstreamSpec[], deps: UpstreamIoDeps) {
    this.#deps = deps;
    this.pool = new UpstreamPool(upstreams, {
      sendUdp: (exchange, to, bytes) => this.#sendUdp(exchange, to, bytes),
      sendTcp: (exchange, to, bytes) => this.#sendTcp(exchange, to, bytes),
      close: (exchange) => this.#close(exchange),
      done: deps.done,
      allSilent: deps.allSilent,
      random: deps.random,
    });
  }

  /** `done` is told `ticket`, possibly before this returns. */
  ask(ticket: number, question: UpstreamQuestion): void {
    this.pool.ask(ticket, question, this.#deps.clock.now());
    this.#arm();
  }

  networkChanged(): void {
    this.pool.networkChanged(this.#deps.clock.now());
    this.#arm();
  }

  close(): void {
    this.#closed = true;
    this.#timer?.();
    this.pool.close();
    for (const exchange of [...this.#channels.keys()]) this.#close(exchange);
  }

  #arm(): void {
    const ms = this.pool.tickMs;
    // A slow timer for probes gives way to the fast one of a query.
    if (ms === undefined || this.#closed || (this.#timer !== undefined && this.#timerMs <= ms)) return;
    this.#timer?.();
    this.#timerMs = ms;
    this.#timer = this.#deps.clock.timer(ms, () => {
      this.#timer = undefined;
      this.pool.tick(this.#deps.clock.now());
      this.#arm();
    });
  }

  #sendUdp(exchange: number, to: IpPort, bytes: Uint8Array): boolean {
    let socket: UdpSocket;
    try {
      socket = this.#deps.loop.bindUdp(
        { ip: familyOf(to.ip) === 6 ? "::" : "0.0.0.0", port: 0 },
        (got, length, from) => {
          this.pool.onUdp(exchange, got.subarray(0, length), from, this.#deps.clock.now());
          this.#arm();
        },
      );
    } catch {
      // No descriptor, or a family the kernel does not have: this server cannot be asked now.
      return false;
    }
    this.#channels.set(exchange, { kind: "udp", socket });
    // Inside a turn of the loop datagrams are queued and their errors are lost; after it, a machine without a route
    // says so at once, and nobody waits for an answer that cannot come.
    queueMicrotask(() => {
      if (!this.#channels.has(exchange) || socket.send(bytes, bytes.length, to)) return;
      this.pool.onUnreachable(exchange, this.#deps.clock.now());
      this.#arm();
    });
    return true;
  }

  #sendTcp(exchange: number, to: IpPort, bytes: Uint8Array): void {
    const framed = new Uint8Array(bytes.length + 2);
    framed[0] = bytes.length >>> 8;
    framed[1] = bytes.length;
    framed.set(bytes, 2);
    let sent = 0;
    const flush = () => {
      if (sent < framed.length) sent += stream.write(framed, sent, framed.length - sent);
    };
    const answer = new Reassembly((message) => {
      this.pool.onTcp(exchange, message, this.#deps.clock.now());
      this.#arm();
    });
    const failed = () => {
      this.pool.onTcpFailed(exchange, this.#deps.clock.now());
      this.#arm();
    };
    const stream = this.#deps.loop.dialTcp(to, {
      onOpen: flush,
      onWritable: flush,
      onReadable: () => {
        if (answer.drain(stream) === 0) failed();
      },
      onClose: failed,
    }, { timeoutMs: CONNECT_TIMEOUT_MS });
    this.#channels.set(exchange, { kind: "tcp", stream });
  }

  #close(exchange: number): void {
    const channel = this.#channels.get(exchange);
    if (channel === undefined) return;
    this.#channels.delete(exchange);
    if (channel.kind === "udp") channel.socket.close();
    else channel.stream.reset("SHUTDOWN");
  }
}

/** Bytes of one TCP stream back into messages with a length prefix (RFC 1035 §4.2.2). */
class Reassembly {
  readonly #onMessage: (message: Uint8Array) => void;
  readonly #chunk = new Uint8Array(READ_BYTES);
  #held = new Uint8Array(0);
  #over = false;

  constructor(onMessage: (message: Uint8Array) => void) {
    this.#onMessage = onMessage;
  }

  /** Reads what is there; returns what the last read returned: 0 = the other side is done. */
  drain(stream: MeshStream): number {
    for (;;) {
      if (this.#over) return WOULD_BLOCK;
      const n = stream.read(this.#chunk);
      if (n <= 0) return n;
      const all = new Uint8Array(this.#held.length + n);
      all.set(this.#held);
      all.set(this.#chunk.subarray(0, n), this.#held.length);
      this.#held = all;
      const need = all.length < 2 ? Infinity : 2 + ((all[0]! << 8) | all[1]!);
      if (all.length < need) continue;
      // One question per connection: whatever follows is nobody's answer.
      this.#over = true;
      this.#onMessage(all.subarray(2, need));
    }
  }
}
