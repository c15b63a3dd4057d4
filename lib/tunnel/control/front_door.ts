/**
 * The server's public port: TLS 1.3, then HTTP/1.1 for exactly three things: joining, the control connection, and what
 * servers of one mesh post to each other. To anybody else it is a web server without a name that has nothing (404).
 *
 * Each connection has one deadline from accept to upgrade or answer, so slow handshakes, slow headers and slow bodies
 * all end the same way; each source and the whole port have a cap of connections that are not agents yet.
 */
import http from "node:http";
import net from "node:net";
import type { Duplex } from "node:stream";
import { type WebSocket, WebSocketServer } from "ws";
import { parseIp } from "../../addr.ts";
import type { CancelTimer, Clock } from "../../clock.ts";
import { codeOf, describe, MeshError, type ReasonCode } from "../../errors.ts";
import type { Logger } from "../../log.ts";
import type { IpPort, MeshStream } from "../../net.ts";
import type { PeerIdentity } from "../carrier.ts";
import type { TlsCredentials } from "../carriers/engine.ts";
import { secureServer } from "../carriers/tls_handshake.ts";
import { Entrance, type EntranceSockets } from "./entrance.ts";
import { MAX_JSON } from "./message.ts";
import { WS_OPTIONS } from "./socket.ts";

/** Path of the control connection. */
export const CONTROL_PATH = "/v1/control";
/** Path of the join request: the only one that needs no certificate. */
export const JOIN_PATH = "/v1/join";

export interface DoorLimits {
  /** Milliseconds from accept to upgrade or answer. */
  readonly deadlineMs: number;
  /** Connections of one source address that are not agents yet: a site behind one NAT may bring a fleet at once. */
  readonly perSource: number;
  /** Connections of all sources that are not agents yet. */
  readonly pending: number;
  /** Bytes of a join request: a token, a certificate request and names. */
  readonly joinBytes: number;
  /** Join requests worked on at once: each signs a certificate. */
  readonly joins: number;
}

export const DEFAULT_DOOR_LIMITS: DoorLimits = {
  deadlineMs: 10_000,
  perSource: 64,
  pending: 1024,
  joinBytes: 16_384,
  joins: 16,
};

export interface JoinAnswer {
  readonly status: number;
  readonly body: string;
  /** Seconds, for 429. */
  readonly retryAfter?: number;
}

/** A path that takes a posted text beside {@link JOIN_PATH}. */
export interface DoorPost {
  /** Bytes of the text. */
  readonly maxBytes: number;
  /**
   * Judges the sender's certificates (DER, its own first, empty without) before a byte of the text is read, and gives
   * what answers it. Throws MeshError to refuse.
   */
  admit(chain: readonly Uint8Array[]): (body: string, source: string) => Promise<JoinAnswer>;
}

export interface DoorOptions<P extends PeerIdentity> {
  readonly clock: Clock;
  readonly log: Logger;
  credentials(): TlsCredentials;
  /** The one authority on who may connect; see EngineOptions in carriers/engine.ts. */
  verify(chain: readonly Uint8Array[]): P;
  /** Answers a join request. `source` is the sender's address. Rejections become 500 without details. */
  join(body: string, source: string): Promise<JoinAnswer>;
  /** By path. */
  readonly posts?: ReadonlyMap<string, DoorPost> | undefined;
  /** Whether this agent is wanted now. Rejects with MeshError; the agent is told. */
  admit(peer: P): Promise<void>;
  /** A verified agent's control connection is open. */
  onAgent(ws: WebSocket, peer: P, observed: IpPort): void;
  readonly limits?: Partial<DoorLimits>;
  /** Lets the loop accept, so that relay legs can be told from TLS. */
  readonly legs?: DoorLegs;
}

/** How relay legs come in. */
export interface DoorLegs {
  readonly sockets: EntranceSockets;
  onLeg(stream: MeshStream, done: () => void): void;
}

export class FrontDoor<P extends PeerIdentity> {
  readonly #options: DoorOptions<P>;
  readonly #limits: DoorLimits;
  readonly #tcp: net.Server;
  readonly #entrance: Entrance | undefined;
  readonly #http: http.Server;
  readonly #ws: WebSocketServer;
  readonly #visitors = new Map<Duplex, Visitor>();
  readonly #perSource = new Map<string, number>();
  #joins = 0;
  /** Connections turned away by a cap, for metrics. */
  turnedAway = 0;

  constructor(options: DoorOptions<P>) {
    this.#options = options;
    this.#limits = { ...DEFAULT_DOOR_LIMITS, ...options.limits };
    this.#tcp = net.createServer((socket) => this.#arrived(socket, socket.remoteAddress, socket.remotePort));
    this.#entrance = options.legs && new Entrance({
      clock: options.clock,
      log: options.log,
      sockets: options.legs.sockets,
      limits: this.#limits,
      onSocket: (socket, from) => this.#arrived(socket, from.ip, from.port),
      onLeg: options.legs.onLeg,
      onTurnedAway: () => this.turnedAway++,
    });
    this.#http = http.createServer({ maxHeaderSize: 8192, keepAlive: false });
    this.#http.on("request", (request, response) => void this.#request(request, response));
    this.#http.on("upgrade", (request, socket, head) => void this.#upgrade(request, socket, head));
    this.#http.on("clientError", (_error, socket) => socket.destroy());
    this.#http.on("connect", (_request, socket) => socket.destroy());
    this.#ws = new WebSocketServer({ ...WS_OPTIONS, noServer: true, clientTracking: false, maxPayload: 1 + MAX_JSON });
  }

  /** Binds the port. Rejects with MeshError KERNEL that names the address. */
  async listen(at: IpPort): Promise<IpPort> {
    if (this.#entrance) return this.#entrance.listen(at);
    return await new Promise((resolve, reject) => {
      this.#tcp.once("error", (cause) => {
        reject(new MeshError("KERNEL", `Cannot listen on ${at.ip} port ${at.port}`, { cause }));
      });
      this.#tcp.listen({ host: at.ip, port: at.port, backlog: 1024 }, () => {
        const bound = this.#tcp.address() as net.AddressInfo;
        this.#tcp.on("error", (error) => this.#options.log.error("accept failed", { error: describe(error) }));
        resolve({ ip: parseIp(bound.address) ?? bound.address, port: bound.port });
      });
    });
  }

  /** Stops accepting and cuts whoever is not an agent yet. Control connections are their owner's to end. */
  async close(): Promise<void> {
    this.#entrance?.close();
    const closed = new Promise<void>((resolve) => this.#tcp.close(() => resolve()));
    for (const visitor of [...this.#visitors.values()]) visitor.socket.destroy();
    this.#http.close();
    await closed;
  }

  /** Connections that are not agents yet. */
  get pending(): number {
    return this.#visitors.size + (this.#entrance?.pending ?? 0);
  }

  #arrived(socket: net.Socket, ip: string | undefined, port: number | undefined): void {
    // The zone of a link-local address (fe80::1%eth0) says which of our links it is on, not who it is.
    const source = parseIp((ip ?? "").replace(/%.*$/, "")) ?? "";
    const ofSource = this.#perSource.get(source) ?? 0;
    if (source === "" || ofSource >= this.#limits.perSource || this.#visitors.size >= this.#limits.pending) {
      this.turnedAway++;
      socket.on("error", () => {});
      socket.resetAndDestroy();
      return;
    }
    socket.setNoDelay(true);
    const visitor = new Visitor(socket, { ip: source, port: port ?? 0 });
    visitor.cancel = this.#options.clock.timer(this.#limits.deadlineMs, () => socket.destroy());
    this.#visitors.set(socket, visitor);
    this.#perSource.set(source, ofSource + 1);
    socket.on("error", () => {});
    socket.once("close", () => this.#left(visitor));
    void this.#welcome(visitor);
  }

  async #welcome(visitor: Visitor): Promise<void> {
    const { clock, credentials } = this.#options;
    try {
      const { socket, chain } = await secureServer(visitor.socket, {
        credentials: credentials(),
        alpn: "http/1.1",
        alpnOptional: true,
        clock,
        timeoutMs: this.#limits.deadlineMs,
      });
      visitor.chain = chain;
      visitor.secure = socket;
      this.#visitors.set(socket, visitor);
      this.#visitors.delete(visitor.socket);
      socket.on("error", () => {});
      this.#http.emit("connection", socket);
    } catch {
      // Scanners and plain HTTP end here; nobody needs a line for each.
      visitor.socket.destroy();
    }
  }

  /** A visitor is gone or has become an agent. */
  #left(visitor: Visitor): void {
    if (visitor.done) return;
    visitor.done = true;
    visitor.cancel();
    this.#visitors.delete(visitor.secure ?? visitor.socket);
    const left = (this.#perSource.get(visitor.from.ip) ?? 1) - 1;
    if (left > 0) this.#perSource.set(visitor.from.ip, left);
    else this.#perSource.delete(visitor.from.ip);
  }

  async #request(request: http.IncomingMessage, response: http.ServerResponse): Promise<void> {
    const visitor = this.#visitors.get(request.socket);
    const post = request.method === "POST" ? this.#post(request.url ?? "") : undefined;
    if (!visitor || !post) return answer(response, 404, "");
    if (this.#joins >= this.#limits.joins) return answer(response, 429, "", 5);
    this.#joins++;
    try {
      const handle = post.admit(visitor.chain);
      const body = await readBody(request, post.maxBytes);
      if (body === undefined) return answer(response, 413, "");
      const { status, body: text, retryAfter } = await handle(body, visitor.from.ip);
      answer(response, status, text, retryAfter);
    } catch (error) {
      const code = codeOf(error);
      if (code === "CERT_UNTRUSTED" || code === "REVOKED") {
        this.#options.log.warn("server refused", { source: visitor.from.ip, reason: code, error: describe(error) });
        return answer(response, 404, "");
      }
      this.#options.log.error("join failed", { source: visitor.from.ip, error: describe(error) });
      answer(response, 500, "");
    } finally {
      this.#joins--;
    }
  }

  #post(path: string): DoorPost | undefined {
    if (path !== JOIN_PATH) return this.#options.posts?.get(path);
    return { maxBytes: this.#limits.joinBytes, admit: () => this.#options.join };
  }

  async #upgrade(request: http.IncomingMessage, socket: Duplex, head: Uint8Array): Promise<void> {
    const visitor = this.#visitors.get(socket);
    if (!visitor || request.url !== CONTROL_PATH || visitor.chain.length === 0) return refuse(socket, 404, "");
    let peer: P;
    try {
      peer = this.#options.verify(visitor.chain);
      await this.#options.admit(peer);
    } catch (error) {
      const code = codeOf(error);
      this.#options.log.warn("agent refused", { source: visitor.from.ip, reason: code, error: describe(error) });
      return refuse(socket, code === "LIMIT" ? 429 : 403, refusalBody(code, error));
    }
    if (socket.destroyed) return;
    this.#ws.handleUpgrade(request, socket, head as never, (ws) => {
      this.#left(visitor);
      this.#options.onAgent(ws, peer, visitor.from);
    });
  }
}

/** A connection that is not an agent's yet. */
class Visitor {
  chain: readonly Uint8Array[] = [];
  secure: Duplex | undefined;
  cancel: CancelTimer = () => {};
  done = false;

  constructor(readonly socket: net.Socket, readonly from: IpPort) {}
}

function refusalBody(code: ReasonCode, error: unknown): string {
  return JSON.stringify({ code, message: error instanceof MeshError ? error.message : "internal error" });
}

function answer(response: http.ServerResponse, status: number, body: string, retryAfter?: number): void {
  if (response.headersSent || response.destroyed) return;
  response.sendDate = false;
  response.writeHead(status, {
    "connection": "close",
    "content-length": String(new TextEncoder().encode(body).length),
    ...(body === "" ? {} : { "content-type": "application/json" }),
    ...(retryAfter === undefined ? {} : { "retry-after": String(retryAfter) }),
  });
  response.end(body);
}

function refuse(socket: Duplex, status: number, body: string): void {
  const bytes = new TextEncoder().encode(body);
  socket.on("error", () => {});
  socket.end(
    `HTTP/1.1 ${status} ${http.STATUS_CODES[status]}\r\nconnection: close\r\ncontent-length: ${bytes.length}\r\n\r\n` +
      body,
  );
}

/** The whole body as text, or undefined when it is longer than `max` bytes. */
function readBody(request: http.IncomingMessage, max: number): Promise<string | undefined> {
  return new Promise((resolve, reject) => {
    const parts: Uint8Array[] = [];
    let length = 0;
    request.on("data", (part: Uint8Array) => {
      length += part.length;
      if (length <= max) parts.push(part);
      else resolve(undefined);
    });
    request.once("end", () => resolve(new TextDecoder().decode(joined(parts, length))));
    request.once("error", reject);
    request.once("close", () => reject(new MeshError("PEER_GONE", "The request ended before its body")));
  });
}

function joined(parts: readonly Uint8Array[], length: number): Uint8Array {
  const all = new Uint8Array(length);
  let at = 0;
  for (const part of parts) {
    all.set(part, at);
    at += part.length;
  }
  return all;
}
