/** The HTTP side that the fakes share: plain or TLS, the same port after a restart, connections that can be broken. */
import type { IncomingMessage, Server, ServerResponse } from "node:http";
import { createServer } from "node:http";
import { createServer as createTlsServer } from "node:https";
import type { AddressInfo, Socket } from "node:net";

export interface ListenOptions {
  readonly tls?: { readonly cert: string; readonly key: string; readonly clientCa?: string };
  /** Port on 127.0.0.1; default: any, the same one after a restart. */
  readonly port?: number;
}

export class FakeListener {
  readonly #handle: (request: IncomingMessage, response: ServerResponse) => void;
  readonly #tls: ListenOptions["tls"];
  readonly #sockets = new Set<Socket>();
  #server: Server | undefined;
  #port: number;

  constructor(handle: (request: IncomingMessage, response: ServerResponse) => void, options: ListenOptions) {
    this.#handle = handle;
    this.#tls = options.tls;
    this.#port = options.port ?? 0;
  }

  get url(): string {
    return `${this.#tls ? "https" : "http"}://127.0.0.1:${this.#port}`;
  }

  /** Listens, on the same port as before after the first time. */
  async start(): Promise<void> {
    const { cert, key, clientCa } = this.#tls ?? { cert: "", key: "" };
    const client = clientCa ? { ca: clientCa, requestCert: true, rejectUnauthorized: true } : {};
    const server = this.#tls ? createTlsServer({ cert, key, ...client }, this.#handle) : createServer(this.#handle);
    this.#server = server;
    server.on(this.#tls ? "secureConnection" : "connection", (socket: Socket) => {
      this.#sockets.add(socket);
      socket.on("close", () => this.#sockets.delete(socket));
      socket.on("error", () => {});
    });
    server.on("tlsClientError", () => {});
    await new Promise<void>((resolve) => server.listen(this.#port, "127.0.0.1", resolve));
    this.#port = (server.address() as AddressInfo).port;
  }

  /** Stops listening and breaks every connection. */
  async stop(): Promise<void> {
    const server = this.#server;
    this.#server = undefined;
    if (!server) return;
    const closed = new Promise<void>((resolve) => server.close(() => resolve()));
    for (const socket of this.#sockets) socket.destroy();
    server.closeAllConnections();
    await closed;
  }

  /** Resets all connections. */
  reset(): void {
    for (const socket of this.#sockets) socket.resetAndDestroy();
  }
}
