/** A server and agents in one process over loopback, real TLS and all, for tests of the whole tunnel. */
import net from "node:net";
import { pause, systemClock } from "../../lib/clock.ts";
import type { ReasonCode } from "../../lib/errors.ts";
import { nullLogger } from "../../lib/log.ts";
import type { IpPort, MeshStream, ServiceTarget, StreamHandler } from "../../lib/net.ts";
import { AgentTunnel, type AgentTunnelOptions } from "../../lib/tunnel/agent_tunnel.ts";
import { ControlServer, type ControlServerOptions } from "../../lib/tunnel/control/server.ts";
import type { VerifiedPeer } from "../../lib/identity/trust.ts";
import type { TlsCredentials } from "../../lib/tunnel/carriers/engine.ts";
import type { IncomingStream } from "../../lib/tunnel/session/session_types.ts";
import { TestPki } from "./tunnel_pki.ts";

export type ServerParts = Partial<ControlServerOptions<VerifiedPeer>>;
export type AgentParts = Partial<AgentTunnelOptions>;

/** Everything one test starts; `close` ends all of it. */
export class TunnelRig {
  readonly pki: TestPki;
  readonly #closers: (() => unknown)[] = [];

  private constructor(pki: TestPki) {
    this.pki = pki;
  }

  /** Runs a test with a fresh mesh and ends everything it started. */
  static async run(test: (rig: TunnelRig) => Promise<void>): Promise<void> {
    const rig = new TunnelRig(await TestPki.create());
    // The product's timers do not keep a process alive; while every connection is down nothing else would.
    const hold = setInterval(() => {}, 1000);
    try {
      await test(rig);
    } finally {
      for (const close of rig.#closers.reverse()) await close();
      // Sockets of node:net report their end from the event loop's next turns.
      await pause(20);
      clearInterval(hold);
    }
  }

  onEnd(close: () => unknown): void {
    this.#closers.push(close);
  }

  async server(parts: ServerParts = {}, port = 0): Promise<TestServer> {
    const credentials = await this.pki.issue("srv-1", { role: "server" });
    const server = new ControlServer<VerifiedPeer>({
      clock: systemClock,
      log: nullLogger,
      name: "srv-1",
      version: "test",
      credentials: () => credentials,
      verify: this.pki.verifyNode,
      join: () => Promise.resolve({ status: 403, body: "{}" }),
      renew: () => Promise.resolve("{}"),
      revocations: () => ({ epoch: 0, entries: [] }),
      ...parts,
    });
    const at = await server.listen({ ip: "127.0.0.1", port });
    const test = new TestServer(server, at);
    this.onEnd(() => test.close());
    return test;
  }

  /** An agent that is connected when this resolves, unless `wait` is false. */
  async agent(
    node: string,
    url: string | readonly string[],
    parts: AgentParts & { wait?: boolean } = {},
  ): Promise<TestAgent> {
    const credentials = await this.pki.issue(node);
    const agent = new TestAgent(node, {
      urls: typeof url === "string" ? [url] : url,
      credentials: () => credentials,
      verifyNode: this.pki.verifyNode,
      verifyServer: this.pki.verifyServer,
      ...parts,
    });
    this.onEnd(() => agent.tunnel.close());
    agent.tunnel.start();
    if (parts.wait !== false) await agent.until(() => agent.up > 0);
    return agent;
  }

  /** A TCP forwarder that holds every byte back for `delayMs` each way, and drops all of them while `muted` says so. */
  async delayed(to: IpPort, delayMs: number, muted = () => false): Promise<string> {
    const sockets = new Set<net.Socket>();
    const listener = net.createServer((client) => {
      const server = net.connect({ host: to.ip, port: to.port });
      for (const socket of [client, server]) {
        sockets.add(socket);
        socket.setNoDelay(true);
        socket.on("error", () => {});
        socket.on("close", () => sockets.delete(socket));
      }
      late(client, server, delayMs, muted);
      late(server, client, delayMs, muted);
    });
    await new Promise<void>((resolve) => listener.listen(0, "127.0.0.1", () => resolve()));
    this.onEnd(async () => {
      for (const socket of sockets) socket.destroy();
      await new Promise<void>((resolve) => listener.close(() => resolve()));
      await pause(delayMs + 20);
    });
    return `wss://127.0.0.1:${(listener.address() as net.AddressInfo).port}`;
  }
}

function late(from: net.Socket, to: net.Socket, delayMs: number, muted: () => boolean): void {
  let queue: Promise<void> = Promise.resolve();
  const after = (act: () => void) => {
    const due = pause(delayMs);
    queue = queue.then(() => due).then(() => {
      if (!to.destroyed && !muted()) act();
    });
  };
  from.on("data", (chunk: Uint8Array) => after(() => void to.write(chunk)));
  from.on("close", () => after(() => void to.destroy()));
}

export class TestServer {
  #closed = false;

  constructor(readonly server: ControlServer<VerifiedPeer>, readonly at: IpPort) {}

  get url(): string {
    return `wss://127.0.0.1:${this.at.port}`;
  }

  async close(): Promise<void> {
    if (this.#closed) return;
    this.#closed = true;
    await this.server.close();
  }
}

export class TestAgent {
  readonly tunnel: AgentTunnel;
  readonly credentials: () => TlsCredentials;
  /** What the servers said. */
  up = 0;
  readonly downs: ReasonCode[] = [];
  readonly meta: Uint8Array[] = [];
  readonly revocationLists: unknown[] = [];
  readonly times: number[] = [];
  readonly incoming: ServiceTarget[] = [];
  /** What is done with streams of others; an echo unless a test says otherwise. */
  serve: (incoming: IncomingStream) => void = (incoming) => echo(incoming);

  constructor(
    readonly node: string,
    parts: Pick<AgentTunnelOptions, "urls" | "credentials" | "verifyNode" | "verifyServer"> & AgentParts,
  ) {
    this.credentials = parts.credentials;
    this.tunnel = new AgentTunnel({
      clock: systemClock,
      log: nullLogger,
      node,
      version: "test",
      boot: crypto.randomUUID(),
      random: Math.random,
      onStream: (incoming) => {
        this.incoming.push(incoming.target);
        this.serve(incoming);
      },
      onFlow: (incoming) => {
        const flow = incoming.accept({ onDatagram: (bytes, n) => void flow.send(bytes, n), onClose() {} });
      },
      ...parts,
      events: {
        onUp: () => void this.up++,
        onDown: (_server, reason) => void this.downs.push(reason),
        onMeta: (_server, message) => void this.meta.push(message),
        onRevocations: (_server, list) => void this.revocationLists.push(list),
        onTime: (_server, time) => void this.times.push(time),
        ...parts.events,
      },
    });
  }

  get online(): string[] {
    return [...this.tunnel.servers.clients[0]!.online].sort();
  }

  /** Waits for a condition, looking every 2 ms; fails after `ms`. */
  async until(done: () => boolean, ms = 10_000): Promise<void> {
    for (let waited = 0; !done(); waited += 2) {
      if (waited > ms) throw new Error(`${this.node}: the condition did not come true in ${ms} ms`);
      await pause(2);
    }
  }

  dial(node: string, first?: Uint8Array | string): Client {
    const target: ServiceTarget = {
      namespace: "shop",
      service: "web",
      protocol: "TCP",
      port: 80,
      node,
      endpoint: { ip: "10.0.0.1", port: 8080 },
    };
    return new Client((handler) => {
      const bytes = typeof first === "string" ? new TextEncoder().encode(first) : first;
      return this.tunnel.manager.dial(target, bytes, handler);
    });
  }
}

/** A stream with its whole life recorded; reads everything at once unless told not to. */
export class Client implements StreamHandler {
  readonly stream: MeshStream;
  opened = false;
  ended = false;
  over = false;
  reason: ReasonCode | undefined;
  received = 0;
  reading = true;
  onBytes: (bytes: Uint8Array) => void = () => {};
  readonly #parts: Uint8Array[] = [];
  readonly #buffer = new Uint8Array(65536);
  #writable: (() => void) | undefined;
  #wake: (() => void)[] = [];

  constructor(open: (handler: StreamHandler) => MeshStream) {
    this.stream = open(this);
  }

  onOpen(): void {
    this.opened = true;
    this.#woken();
  }

  onReadable(): void {
    while (this.reading && !this.over && !this.ended) {
      const n = this.stream.read(this.#buffer);
      if (n < 0) break;
      if (n === 0) this.ended = true;
      else {
        this.received += n;
        this.onBytes(this.#buffer.subarray(0, n));
        if (this.received <= 1_000_000) this.#parts.push(this.#buffer.slice(0, n));
      }
    }
    this.#woken();
  }

  onWritable(): void {
    this.#writable?.();
  }

  onClose(reason: ReasonCode | undefined): void {
    this.over = true;
    this.reason = reason;
    this.#writable?.();
    this.#woken();
  }

  /** The first megabyte that came. */
  get text(): string {
    const all = new Uint8Array(this.#parts.reduce((n, p) => n + p.length, 0));
    let at = 0;
    for (const part of this.#parts) {
      all.set(part, at);
      at += part.length;
    }
    return new TextDecoder().decode(all);
  }

  /** Writes all of it, waiting where the stream says so; stops when the stream is over. */
  async write(bytes: Uint8Array | string): Promise<void> {
    const from = typeof bytes === "string" ? new TextEncoder().encode(bytes) : bytes;
    for (let at = 0; at < from.length && !this.over;) {
      at += this.stream.write(from, at, from.length - at);
      if (at < from.length) await new Promise<void>((resolve) => (this.#writable = resolve));
    }
  }

  async until(done: () => boolean): Promise<void> {
    while (!done()) await new Promise<void>((resolve) => this.#wake.push(resolve));
  }

  async closed(): Promise<ReasonCode | undefined> {
    await this.until(() => this.over);
    return this.reason;
  }

  #woken(): void {
    for (const wake of this.#wake.splice(0)) wake();
  }
}

/** Takes a stream and sends back what comes, end included. */
export function echo(incoming: IncomingStream): void {
  const buffer = new Uint8Array(65536);
  let at = 0;
  let end = 0;
  const pump = () => {
    for (;;) {
      if (at < end) {
        at += stream.write(buffer, at, end - at);
        if (at < end) return;
      }
      const n = stream.read(buffer);
      if (n < 0) return;
      if (n === 0) return stream.closeWrite();
      at = 0;
      end = n;
    }
  };
  const stream = incoming.accept({ onOpen() {}, onReadable: pump, onWritable: pump, onClose() {} });
}
