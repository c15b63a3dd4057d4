/**
 * The seam of the data plane. Sockets of the epoll loop (lib/linux), streams of a tunnel session (lib/tunnel) and the
 * in-memory pair (lib/net_memory.ts) are the same thing to whoever forwards bytes: a {@link MeshStream}. Each
 * implementation passes the same contract suite (tests/contract/stream_contract.ts).
 *
 * The interface is synchronous and edge-notified on purpose: no promise, no event object and no buffer is allocated
 * per read or write.
 */
import type { ReasonCode } from "./errors.ts";

/** An IP address in canonical text (RFC 5952 for IPv6) with a port. */
export interface IpPort {
  readonly ip: string;
  readonly port: number;
}

/** Result of {@link MeshStream.read} when nothing is there now. */
export const WOULD_BLOCK = -1;

/**
 * What a stream tells its owner. Callbacks come from the loop, never from inside a call the owner makes on the same
 * stream, with one exception: none comes after {@link onClose} or after the owner called `reset`.
 */
export interface StreamHandler {
  /** The other end accepted the connection. Comes once, before any other callback; at once for accepted streams. */
  onOpen(): void;
  /** Bytes, or the end of the bytes, can be read. Comes again only after a read returned {@link WOULD_BLOCK}. */
  onReadable(): void;
  /** A write that was cut short can go on. */
  onWritable(): void;
  /**
   * The stream is over. `undefined`: both directions ended cleanly. A reason: it broke; before `onOpen` this means
   * the dial failed and no byte reached the application. Unread bytes are gone.
   */
  onClose(reason: ReasonCode | undefined): void;
}

/** A handler that does nothing: the state of a stream before its owner takes it. */
export const idleHandler: StreamHandler = {
  onOpen() {},
  onReadable() {},
  onWritable() {},
  onClose() {},
};

/** One bidirectional, ordered byte stream with half-close, reset and back-pressure. */
export interface MeshStream {
  /** Replaced by the owner as the connection moves through its stages. */
  handler: StreamHandler;
  /**
   * Fills `into`, which must not be empty, from its beginning. Returns the count; 0 = the other side closed its direction (every later read
   * returns 0 too); {@link WOULD_BLOCK} = nothing now. Not reading is how a consumer slows the producer down.
   */
  read(into: Uint8Array): number;
  /**
   * Takes bytes `[offset, offset + length)` of `from`; they may be reused at once. Returns how many were accepted;
   * fewer than `length` means the way is full and `onWritable` will follow. 0 before `onOpen` is allowed.
   */
  write(from: Uint8Array, offset: number, length: number): number;
  /** Ends our direction after all accepted bytes (TCP FIN). Reading goes on. */
  closeWrite(): void;
  /** Ends both directions at once and drops what is in flight (TCP RST). Safe to call at any time, also twice. */
  reset(code: ReasonCode): void;
}

/** A stream that came in through a listener. */
export interface Accepted {
  readonly stream: MeshStream;
  /** The other end. */
  readonly remote: IpPort;
  /** Where it connected to, as the kernel sees it after any rewriting. */
  readonly local: IpPort;
  /** Where the client meant to go before a DNAT rule sent it here; equal to `local` when nothing was rewritten. */
  readonly original: IpPort;
}

export interface Listener {
  readonly local: IpPort;
  /** Leaves new connections waiting in the kernel's queue until {@link resume}: back-pressure on clients. */
  pause(): void;
  resume(): void;
  close(): void;
}

export interface ListenOptions {
  /** Several listeners may share the port (SO_REUSEPORT): punching and hand-over need it. */
  readonly reusePort?: boolean;
  /** May bind an address the machine does not have yet (IP_FREEBIND). */
  readonly freeBind?: boolean;
  /** Connections that wait for accept; the kernel's cap applies. */
  readonly backlog?: number;
}

export interface DialOptions {
  /** Milliseconds until `DIAL_TIMEOUT`. */
  readonly timeoutMs: number;
  /** Bind to this address and port first. */
  readonly from?: IpPort;
  /** SO_REUSEADDR and SO_REUSEPORT before binding: punching. */
  readonly reusePort?: boolean;
  /** SO_MARK, so that our own rules can tell our own connections apart. */
  readonly mark?: number;
  /** Most bytes of a segment, both ways (TCP_MAXSEG): what still passes where larger packets are lost. */
  readonly maxSegment?: number;
}

/** One address a datagram socket talks to. */
export interface UdpSocket {
  readonly local: IpPort;
  /** Sends one datagram; false when the kernel's buffer is full: the datagram is dropped, as UDP does. */
  send(bytes: Uint8Array, length: number, to: IpPort): boolean;
  close(): void;
}

/**
 * Called for each datagram; `bytes` is valid during the call only, `length` of it is the datagram. `from` never changes:
 * it may be kept, and answering it costs less than answering a copy.
 */
export type OnDatagram = (bytes: Uint8Array, length: number, from: IpPort) => void;

/** Everything the traffic path asks of the kernel's sockets. Implemented by lib/linux over epoll. */
export interface Loop {
  /** Listens for TCP. Throws MeshError KERNEL with the address and errno. */
  listenTcp(at: IpPort, onAccept: (accepted: Accepted) => void, options?: ListenOptions): Listener;
  /** Starts a connection; its fate is told to `handler`. */
  dialTcp(to: IpPort, handler: StreamHandler, options: DialOptions): MeshStream;
  /** Binds a datagram socket. Throws MeshError KERNEL. */
  bindUdp(at: IpPort, onDatagram: OnDatagram, options?: ListenOptions): UdpSocket;
  /** Open descriptors of the loop, for status and leak tests. */
  readonly size: number;
  /** Closes every descriptor. */
  close(): void;
}

/** The endpoint of a Service that was chosen, and why the receiver may let it in. */
export interface ServiceTarget {
  readonly namespace: string;
  readonly service: string;
  readonly protocol: "TCP" | "UDP";
  /** The Service's own port number. */
  readonly port: number;
  /** The node the endpoint runs on; undefined for endpoints outside the cluster, dialled by the client's own node. */
  readonly node: string | undefined;
  /** The endpoint: (node, ip) identifies it, because pod addresses may repeat between nodes. */
  readonly endpoint: IpPort;
}

/** Makes streams to endpoints. The local one uses the loop, the remote one the tunnel; forward knows neither. */
export interface Dialer {
  /**
   * Starts a stream to `target`. `first` is sent with the request where the way allows it (saves a round trip) and
   * counts as written in full; it is copied before the call returns.
   */
  dial(target: ServiceTarget, first: Uint8Array | undefined, handler: StreamHandler): MeshStream;
}

export interface FlowHandler {
  /** One datagram from the other side; `bytes[0, length)` is valid during the call only. */
  onDatagram(bytes: Uint8Array, length: number): void;
  /** The flow is over; nothing can be sent any more. */
  onClose(reason: ReasonCode | undefined): void;
}

/** A series of datagrams between one client and one endpoint; boundaries kept, order and delivery not promised. */
export interface DatagramFlow {
  /** Up to 65 507 bytes. False when it was dropped here because the way is full. */
  send(bytes: Uint8Array, length: number): boolean;
  close(code: ReasonCode): void;
}

export interface DatagramDialer {
  openFlow(target: ServiceTarget, handler: FlowHandler): DatagramFlow;
}
