/** A datagram socket of the runtime's own: {@link UdpSocket} where FFI is refused. */
import { createSocket, type Socket, type SocketOptions } from "node:dgram";
import { hostPort, parseIp } from "../addr.ts";
import { MeshError } from "../errors.ts";
import type { IpPort, ListenOptions, OnDatagram, UdpSocket } from "../net.ts";

/** Bytes that wait for the kernel; beyond it datagrams are dropped. */
const SEND_QUEUE = 1024 * 1024;
/** The largest payload of UDP over IPv4. */
const MAX_DATAGRAM = 65_507;
/** As of the loop over epoll; the kernel lowers it to net.core.rmem_max. */
const RECEIVE_BUFFER = 4 * 1024 * 1024;

/** Names are never looked up here, so that binding and sending happen within the call. */
const asGiven = (ip: string, _options: unknown, done: (error: null, address: string, family: number) => void) =>
  done(null, ip, ip.includes(":") ? 6 : 4);

export class PortableUdpSocket implements UdpSocket {
  readonly local: IpPort;
  readonly #socket: Socket;
  #waiting = 0;
  #closed = false;

  /** Throws MeshError KERNEL. `onClosed` is called once, when the descriptor is given back. */
  constructor(at: IpPort, onDatagram: OnDatagram, options: ListenOptions & { readonly onClosed: () => void }) {
    const six = at.ip.includes(":");
    const socket = createSocket(
      {
        type: six ? "udp6" : "udp4",
        ipv6Only: six,
        reusePort: options.reusePort ?? false,
        recvBufferSize: RECEIVE_BUFFER,
        lookup: asGiven,
      } as SocketOptions,
    );
    let failed: Error | undefined;
    socket.on("error", (error) => failed ??= error);
    socket.on("close", options.onClosed);
    socket.bind({ address: at.ip, port: at.port, exclusive: true });
    if (failed !== undefined) throw bindError(at, failed);
    try {
      const { address, port } = socket.address();
      this.local = { ip: canonical(address), port };
    } catch (cause) {
      throw bindError(at, cause);
    }
    socket.on("message", (bytes: Uint8Array, from) => {
      if (!this.#closed) onDatagram(bytes, bytes.length, { ip: canonical(from.address), port: from.port });
    });
    this.#socket = socket;
  }

  send(bytes: Uint8Array, length: number, to: IpPort): boolean {
    if (this.#closed || length > Math.min(bytes.length, MAX_DATAGRAM) || this.#waiting + length > SEND_QUEUE) {
      return false;
    }
    this.#waiting += length;
    // The runtime sends when it comes to it; the caller's buffer is its own again after this call.
    this.#socket.send(bytes.slice(0, length), 0, length, to.port, to.ip, () => this.#waiting -= length);
    return true;
  }

  close(): void {
    if (this.#closed) return;
    this.#closed = true;
    this.#socket.close();
  }
}

/** Without the name of the link that addresses for local use carry. */
function canonical(address: string): string {
  return parseIp(address.replace(/%.*$/, "")) ?? address;
}

function bindError(at: IpPort, cause: unknown): MeshError {
  const code = (cause as { readonly code?: string }).code ?? "";
  return new MeshError("KERNEL", `Cannot bind the UDP socket ${hostPort(at)}: ${code}`, { cause });
}
