/**
 * The server's observation port (3478/tcp): tells who knows a nonce from which address and port he is seen. Whoever
 * knows none gets nothing. Connections stay open for as long as a round of hole punching needs their NAT mapping.
 */
import net from "node:net";
import { parseIp } from "../../addr.ts";
import type { Clock } from "../../clock.ts";
import { describe, MeshError } from "../../errors.ts";
import type { Logger } from "../../log.ts";
import type { IpPort } from "../../net.ts";
import { decodeRequest, encodeAnswer, REQUEST_BYTES } from "../path/sighting.ts";

/** From accept to a whole request: it comes with the first packet. */
const REQUEST_MS = 5_000;
/** Connections at once, and those of one source: each round of a site's agents takes two or three for some seconds. */
const MAX_CONNECTIONS = 2_048;
const MAX_PER_SOURCE = 64;
/** After the answer: a round's preparation and its punching. */
const KEEP_MS = 12_000;

export interface ObservePortOptions {
  readonly clock: Clock;
  readonly log: Logger;
  /** Somebody showed a nonce, coming from `from` to our address `at`. False: it is nobody's. */
  seen(nonce: string, from: IpPort, at: IpPort): boolean;
}

export class ObservePort {
  readonly #options: ObservePortOptions;
  readonly #server: net.Server;
  readonly #sockets = new Set<net.Socket>();
  readonly #perSource = new Map<string, number>();

  constructor(options: ObservePortOptions) {
    this.#options = options;
    this.#server = net.createServer((socket) => this.#arrived(socket));
  }

  /** Binds the port; `[::]` means both families, and IPv4 alone on hosts without IPv6. Rejects with MeshError KERNEL. */
  async listen(at: IpPort): Promise<IpPort> {
    try {
      return await this.#listen(at);
    } catch (error) {
      if (at.ip !== "::") throw error;
      this.#options.log.info("the observation port has no IPv6", { error: describe(error) });
      return await this.#listen({ ip: "0.0.0.0", port: at.port });
    }
  }

  /** Connections that are open. */
  get size(): number {
    return this.#sockets.size;
  }

  async close(): Promise<void> {
    for (const socket of this.#sockets) socket.destroy();
    if (!this.#server.listening) return;
    await new Promise<void>((resolve) => this.#server.close(() => resolve()));
  }

  #listen(at: IpPort): Promise<IpPort> {
    return new Promise((resolve, reject) => {
      const failed = (cause: Error) => {
        reject(new MeshError("KERNEL", `Cannot listen on ${at.ip} port ${at.port}`, { cause }));
      };
      this.#server.once("error", failed);
      this.#server.listen({ host: at.ip, port: at.port, backlog: 512 }, () => {
        this.#server.removeListener("error", failed);
        this.#server.on("error", (error) => this.#options.log.error("accept failed", { error: describe(error) }));
        const bound = this.#server.address() as net.AddressInfo;
        resolve({ ip: parseIp(bound.address) ?? bound.address, port: bound.port });
      });
    });
  }

  #arrived(socket: net.Socket): void {
    const from = endOf(socket.remoteAddress, socket.remotePort);
    const at = endOf(socket.localAddress, socket.localPort);
    const ofSource = this.#perSource.get(from?.ip ?? "") ?? 0;
    if (!from || !at || ofSource >= MAX_PER_SOURCE || this.#sockets.size >= MAX_CONNECTIONS) {
      socket.on("error", () => {});
      return void socket.resetAndDestroy();
    }
    this.#sockets.add(socket);
    this.#perSource.set(from.ip, ofSource + 1);
    let cancel = this.#options.clock.timer(REQUEST_MS, () => socket.resetAndDestroy());
    const request = new Uint8Array(REQUEST_BYTES);
    let have = 0;
    socket.on("error", () => {});
    socket.once("close", () => {
      cancel();
      this.#sockets.delete(socket);
      const left = this.#perSource.get(from.ip)! - 1;
      if (left === 0) this.#perSource.delete(from.ip);
      else this.#perSource.set(from.ip, left);
    });
    socket.on("data", (chunk: Uint8Array) => {
      if (have + chunk.length > REQUEST_BYTES) return void socket.resetAndDestroy();
      request.set(chunk, have);
      have += chunk.length;
      if (have < REQUEST_BYTES) return;
      const nonce = decodeRequest(request);
      if (nonce === undefined || !this.#options.seen(nonce, from, at)) return void socket.resetAndDestroy();
      cancel();
      cancel = this.#options.clock.timer(KEEP_MS, () => socket.destroy());
      socket.write(encodeAnswer(nonce, from));
    });
  }
}

function endOf(address: string | undefined, port: number | undefined): IpPort | undefined {
  const ip = parseIp(address ?? "");
  return ip === undefined || port === undefined ? undefined : { ip, port };
}
