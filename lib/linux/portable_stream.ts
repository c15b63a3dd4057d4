/** A TCP connection over the runtime's own socket: {@link MeshStream} where FFI is refused. */
import type { Socket } from "node:net";
import type { CancelTimer, Clock } from "../clock.ts";
import { MeshError, type ReasonCode } from "../errors.ts";
import { idleHandler, type MeshStream, type StreamHandler, WOULD_BLOCK } from "../net.ts";
import { dialReason } from "./tcp_options.ts";

/** Bytes that were read from the socket and wait for the owner; beyond it the socket is not read. */
const READ_AHEAD = 64 * 1024;
/** Bytes that the owner wrote and the kernel has not taken yet; beyond it writes are cut short. */
const WRITE_QUEUE = 256 * 1024;
/** After a reset by the other side, an owner that does not read what came before is told after this. */
const UNREAD_MS = 5_000;

/** What a failed socket says: errors of the runtime carry the system's error number. */
type SocketError = Error & { readonly code?: string; readonly errno?: number };

export class PortableStream implements MeshStream {
  handler: StreamHandler = idleHandler;
  readonly #socket: Socket;
  readonly #clock: Clock;
  readonly #chunks: Uint8Array[] = [];
  /** Bytes of the first chunk that were read already. */
  #at = 0;
  #queued = 0;
  #opened: boolean;
  /** The other side ended its direction; the owner has seen it; we ended ours. */
  #ended = false;
  #sawEnd = false;
  #wroteEnd = false;
  /** The socket is gone. */
  #gone = false;
  #reason: ReasonCode | undefined;
  /** Nothing is told any more. */
  #over = false;
  #wantRead = true;
  #wantWrite = false;
  #cancel: CancelTimer | undefined;

  /** `opened`: false for a socket that connects. */
  constructor(socket: Socket, options: { readonly clock: Clock; readonly opened: boolean }) {
    this.#socket = socket;
    this.#clock = options.clock;
    this.#opened = options.opened;
    socket.on("data", (chunk: Uint8Array) => this.#arrived(chunk));
    socket.on("end", () => this.#otherEnded());
    socket.on("drain", () => this.#drained());
    socket.on("error", (error: SocketError) => this.#failed(error));
    socket.on("close", () => this.#closed());
  }

  /** Tells the owner that the connection is there. */
  open(): void {
    if (this.#over) return;
    this.#opened = true;
    this.#cancel?.();
    this.handler.onOpen();
  }

  /** Ends an attempt to connect that takes longer than `ms`. */
  deadline(ms: number): void {
    this.#cancel = this.#clock.timer(ms, () => this.fail("DIAL_TIMEOUT"));
  }

  /** Breaks the stream and tells its owner. */
  fail(reason: ReasonCode): void {
    if (this.#over) return;
    this.#socket.destroy();
    this.#tell(reason);
  }

  /** Breaks the stream without a word. */
  abandon(): void {
    this.#silence();
    this.#socket.destroy();
  }

  read(into: Uint8Array): number {
    if (into.length === 0) throw new MeshError("INTERNAL", "Cannot read into an empty buffer");
    if (this.#over) return 0;
    if (this.#queued === 0) return this.#readNothing();
    let got = 0;
    while (got < into.length && this.#chunks.length > 0) {
      const chunk = this.#chunks[0]!;
      const n = Math.min(into.length - got, chunk.length - this.#at);
      into.set(chunk.subarray(this.#at, this.#at + n), got);
      got += n;
      this.#at += n;
      if (this.#at < chunk.length) break;
      this.#chunks.shift();
      this.#at = 0;
    }
    this.#queued -= got;
    if (this.#queued < READ_AHEAD && this.#socket.isPaused()) this.#socket.resume();
    return got;
  }

  write(from: Uint8Array, offset: number, length: number): number {
    if (this.#over || this.#wroteEnd || length === 0) return 0;
    const room = this.#opened && !this.#gone ? WRITE_QUEUE - this.#socket.writableLength : 0;
    const n = Math.max(0, Math.min(room, length));
    if (n > 0) this.#socket.write(from.slice(offset, offset + n));
    if (n < length) this.#wantWrite = true;
    return n;
  }

  closeWrite(): void {
    if (this.#over || this.#wroteEnd) return;
    this.#wroteEnd = true;
    this.#wantWrite = false;
    this.#socket.end();
    if (this.#gone) this.#finishLater();
  }

  reset(_code: ReasonCode): void {
    const connecting = !this.#opened;
    this.#silence();
    if (connecting) this.#socket.destroy();
    else this.#socket.resetAndDestroy();
  }

  #arrived(chunk: Uint8Array): void {
    if (this.#over) return;
    this.#chunks.push(chunk);
    this.#queued += chunk.length;
    if (this.#queued >= READ_AHEAD) this.#socket.pause();
    this.#announce();
  }

  #otherEnded(): void {
    this.#ended = true;
    this.#announce();
  }

  #announce(): void {
    if (this.#over || !this.#wantRead) return;
    this.#wantRead = false;
    this.handler.onReadable();
  }

  #drained(): void {
    if (this.#over || !this.#wantWrite || this.#wroteEnd) return;
    this.#wantWrite = false;
    this.handler.onWritable();
  }

  #readNothing(): number {
    if (this.#ended) {
      this.#sawEnd = true;
      if (this.#gone) this.#finishLater();
      return 0;
    }
    this.#wantRead = true;
    // The other side reset the connection, and what it sent before has been read.
    if (this.#gone) this.#finishLater();
    return WOULD_BLOCK;
  }

  #failed(error: SocketError): void {
    this.#reason ??= this.#opened ? streamReason(error) : dialReason(errorNumber(error));
  }

  /** Never from inside a call of the owner. */
  #closed(): void {
    this.#gone = true;
    if (this.#over) return;
    if (this.#reason === undefined && !this.#ended) this.#reason = "RESET";
    if (this.#reason === undefined ? this.#wroteEnd && this.#sawEnd : this.#queued === 0) {
      return this.#tell(this.#reason);
    }
    if (this.#reason === undefined) return;
    this.#cancel = this.#clock.timer(UNREAD_MS, () => this.#tell(this.#reason));
  }

  #finishLater(): void {
    queueMicrotask(() => {
      if (this.#reason !== undefined || (this.#wroteEnd && this.#sawEnd)) this.#tell(this.#reason);
    });
  }

  #tell(reason: ReasonCode | undefined): void {
    if (this.#over) return;
    this.#silence();
    this.handler.onClose(reason);
  }

  #silence(): void {
    this.#over = true;
    this.#cancel?.();
    this.#chunks.length = 0;
    this.#queued = 0;
  }
}

function streamReason({ code }: SocketError): ReasonCode {
  return code === "ETIMEDOUT" ? "PEER_GONE" : "RESET";
}

/** Without its sign; 0 where the runtime gave none. */
function errorNumber({ errno }: SocketError): number {
  return Math.abs(errno ?? 0);
}
