/**
 * WebSocket framing of batches inside an agent-to-agent carrier (RFC 6455 §5), as bytes in and calls out.
 *
 * There is no HTTP upgrade: ALPN `edgemesh/1` already said what follows the TLS handshake, and a round trip is saved.
 * What is left of RFC 6455 is the frame format, and of that the strict subset both our sides write: unfragmented
 * binary messages of at most {@link MAX_BATCH} bytes, and one close frame. Neither direction is masked: §5.3 asks
 * clients to mask so that bytes chosen by a web page cannot look like a request to a proxy on the way, and inside
 * mutual TLS between two agents there is no page and no proxy. A frame with a mask bit, a reserved bit, another opcode,
 * a continuation, or a length written longer than needed ends the carrier.
 */
import { MeshError, type ReasonCode, reasonCode, reasonNumber } from "../../errors.ts";
import { MAX_BATCH } from "../carrier.ts";

/** Longest header we write or accept: two bytes and a 64-bit length. */
export const MAX_WS_HEADER = 10;
/** Bytes of the close frame {@link encodeClose} writes. */
export const CLOSE_FRAME_BYTES = 4;

/** FIN and opcode 2 (binary). */
const BINARY = 0x82;
/** FIN and opcode 8 (close). */
const CLOSE = 0x88;
/** RFC 6455 §7.4.2: 4000–4999 is for private use; a reason code is sent as 4000 + its number. */
const CLOSE_BASE = 4000;
/** RFC 6455 §7.4.1: normal closure, for "no reason". */
const CLOSE_NORMAL = 1000;

/** Writes the header of a binary message of `length` bytes at the start of `into`; returns the header's length. */
export function encodeHeader(into: Uint8Array, length: number): number {
  if (length > MAX_BATCH) throw new MeshError("INTERNAL", `Batch of ${length} bytes is above ${MAX_BATCH}`);
  into[0] = BINARY;
  if (length < 126) {
    into[1] = length;
    return 2;
  }
  if (length < 65536) {
    into[1] = 126;
    into[2] = length >>> 8;
    into[3] = length & 0xff;
    return 4;
  }
  into[1] = 127;
  into.fill(0, 2, 10);
  into[7] = length >>> 16;
  into[8] = (length >>> 8) & 0xff;
  into[9] = length & 0xff;
  return 10;
}

/** A close frame that carries `reason`; `undefined` is a normal closure. */
export function encodeClose(reason: ReasonCode | undefined): Uint8Array {
  const code = reason === undefined ? CLOSE_NORMAL : CLOSE_BASE + reasonNumber(reason);
  return new Uint8Array([CLOSE, 2, code >>> 8, code & 0xff]);
}

export interface FrameSink {
  /** One whole message; `message` is valid during the call only. */
  onMessage(message: Uint8Array): void;
  /** The other side closed; whatever follows is ignored. */
  onClose(reason: ReasonCode | undefined): void;
}

/** Where a reader borrows the one buffer it needs while a message arrives in pieces. */
export interface BufferLender {
  take(): Uint8Array;
  give(buffer: Uint8Array): void;
}

/**
 * Cuts a byte stream into messages. A message that lies whole inside one chunk is handed on as a view of that chunk;
 * one that arrives in pieces is put together in one borrowed buffer, which is returned when the message is done, so
 * that an idle carrier holds none.
 */
export class FrameReader {
  readonly #lender: BufferLender;
  readonly #header = new Uint8Array(MAX_WS_HEADER);
  #headerUsed = 0;
  #part: Uint8Array | undefined;
  #partUsed = 0;
  /** Payload length of the frame in `#part`. */
  #length = 0;
  #closeFrame = false;
  #over = false;

  /** `lender` gives buffers of at least {@link MAX_BATCH} bytes. */
  constructor(lender: BufferLender) {
    this.#lender = lender;
  }

  /** True when bytes of an unfinished frame are held: the stream must not end here. */
  get midFrame(): boolean {
    return this.#headerUsed > 0 || this.#part !== undefined;
  }

  /** Takes the next bytes. Throws MeshError PROTOCOL on the first byte that breaks the format; then it is over. */
  push(chunk: Uint8Array, sink: FrameSink): void {
    let at = 0;
    while (at < chunk.length && !this.#over) {
      if (this.#part !== undefined) {
        at = this.#fill(chunk, at, sink);
        continue;
      }
      const start = this.#readHeader(chunk, at);
      if (start < 0) return;
      if (!this.#closeFrame && start + this.#length <= chunk.length) {
        at = start + this.#length;
        sink.onMessage(chunk.subarray(start, at));
      } else {
        this.#part = this.#lender.take();
        this.#partUsed = 0;
        at = start;
      }
    }
  }

  /** Returns what was borrowed and takes nothing any more; safe to call twice, also from inside a sink's call. */
  end(): void {
    this.#over = true;
    this.#release();
  }

  #fill(chunk: Uint8Array, from: number, sink: FrameSink): number {
    const part = this.#part!;
    const take = Math.min(this.#length - this.#partUsed, chunk.length - from);
    part.set(chunk.subarray(from, from + take), this.#partUsed);
    this.#partUsed += take;
    if (this.#partUsed < this.#length) return from + take;
    // Detached first: the sink may end this reader, or feed it again through the same stack.
    this.#part = undefined;
    try {
      if (this.#closeFrame) {
        this.#over = true;
        sink.onClose(closeReason((part[0]! << 8) | part[1]!));
      } else sink.onMessage(part.subarray(0, this.#length));
    } finally {
      this.#lender.give(part);
    }
    return from + take;
  }

  /** Reads a header that may be cut anywhere. Returns where the payload starts, or -1 when more bytes are needed. */
  #readHeader(chunk: Uint8Array, from: number): number {
    const h = this.#header;
    let at = from;
    for (;;) {
      const need = this.#headerUsed < 2 ? 2 : headerLength(h[1]!);
      if (this.#headerUsed >= need) break;
      if (at >= chunk.length) return -1;
      h[this.#headerUsed++] = chunk[at++]!;
      if (this.#headerUsed === 2) this.#checkStart(h[0]!, h[1]!);
    }
    this.#headerUsed = 0;
    this.#length = payloadLength(h);
    if (this.#length < 0) this.#fail("a length that is out of range or written longer than needed");
    return at;
  }

  #checkStart(first: number, second: number): void {
    if (first !== BINARY && first !== CLOSE) this.#fail(`a frame that starts with 0x${first.toString(16)}`);
    if (second & 0x80) this.#fail("a masked frame");
    this.#closeFrame = first === CLOSE;
    if (this.#closeFrame && second !== 2) this.#fail("a close frame without exactly a code");
    if (second === 0) this.#fail("an empty message");
  }

  #fail(what: string): never {
    this.end();
    throw new MeshError("PROTOCOL", `Carrier got ${what}`);
  }

  #release(): void {
    this.#headerUsed = 0;
    const part = this.#part;
    this.#part = undefined;
    if (part) this.#lender.give(part);
  }
}

function headerLength(second: number): number {
  return second < 126 ? 2 : second === 126 ? 4 : 10;
}

/** The payload length of a complete header, or -1 when it is not the shortest form or above the cap. */
function payloadLength(h: Uint8Array): number {
  const short = h[1]!;
  if (short < 126) return short;
  if (short === 126) {
    const n = (h[2]! << 8) | h[3]!;
    return n < 126 ? -1 : n;
  }
  for (let i = 2; i < 7; i++) if (h[i] !== 0) return -1;
  const n = (h[7]! << 16) | (h[8]! << 8) | h[9]!;
  return n < 65536 || n > MAX_BATCH ? -1 : n;
}

/** The reason of a close code: our private range, or none for a normal closure; any other code reads as PROTOCOL. */
function closeReason(code: number): ReasonCode | undefined {
  if (code === CLOSE_NORMAL) return undefined;
  return code > CLOSE_BASE && code < 5000 ? reasonCode(code - CLOSE_BASE) : "PROTOCOL";
}
