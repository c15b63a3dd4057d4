/**
 * One control connection as whole messages: npm:ws with everything off that we do not use, the same at both ends.
 * Outgoing bytes are never copied; back-pressure is a boolean and a callback, as in the rest of the tunnel.
 */
import type { WebSocket } from "ws";
import type { Clock } from "../../clock.ts";
import { type ReasonCode, reasonCode, reasonNumber } from "../../errors.ts";

/** Bytes not yet taken by the kernel above which {@link ControlSocket.send} says stop. */
const HIGH_WATER = 262_144;
/** Bytes left when it says go on: enough that the kernel never runs dry meanwhile. */
const LOW_WATER = 131_072;
/** RFC 6455 §7.4.2: 4000–4999 is for private use; a reason code is sent as 4000 + its number. */
const CLOSE_BASE = 4000;
/** How long a closed connection waits for the other side to take note before it is cut. */
const LINGER_MS = 1000;

export interface ControlSocketHandler {
  /** One message; the receiver owns its bytes. */
  onMessage(message: Uint8Array): void;
  /** {@link ControlSocket.send} may be called again. */
  onDrain(): void;
  /** The connection is gone; nothing else comes. Not called after {@link ControlSocket.close}. */
  onClose(reason: ReasonCode): void;
}

/** Options of npm:ws at both ends. */
export const WS_OPTIONS = {
  // Compression costs a context per connection and leaks lengths of secrets; what is large here is encrypted anyway.
  perMessageDeflate: false,
  // Nobody here sends text.
  skipUTF8Validation: true,
  // Pings are messages of ours (they carry time); answering the protocol's own would be work a peer could order.
  autoPong: false,
} as const;

export class ControlSocket {
  readonly #ws: WebSocket;
  readonly #clock: Clock;
  readonly #handler: ControlSocketHandler;
  #congested = false;
  #over = false;

  /** Takes an open WebSocket. */
  constructor(ws: WebSocket, clock: Clock, handler: ControlSocketHandler) {
    this.#ws = ws;
    this.#clock = clock;
    this.#handler = handler;
    ws.on("message", (data: Uint8Array, isBinary: boolean) => {
      if (this.#over) return;
      if (!isBinary) {
        this.close("PROTOCOL");
        return handler.onClose("PROTOCOL");
      }
      // Not as a Buffer: its slice() is a view, and who is handed these bytes expects a copy of it.
      handler.onMessage(new Uint8Array(data.buffer, data.byteOffset, data.byteLength));
    });
    ws.on("error", () => this.#lost("PEER_GONE"));
    ws.on("close", (code: number) => {
      this.#lost(code > CLOSE_BASE && code < 5000 ? reasonCode(code - CLOSE_BASE) : "PEER_GONE");
    });
  }

  /**
   * Sends one message; its bytes belong to the socket from now on. False: it was taken, but stop until `onDrain`.
   */
  send(message: Uint8Array): boolean {
    if (this.#over) return false;
    this.#ws.send(message, SEND, this.#sent);
    if (this.#ws.bufferedAmount < HIGH_WATER) return !this.#congested;
    this.#congested = true;
    return false;
  }

  /** Bytes that wait for the kernel. */
  get backlog(): number {
    return this.#ws.bufferedAmount;
  }

  /** Whether `onDrain` will come. */
  get congested(): boolean {
    return this.#congested;
  }

  /** Ends the connection with a reason the other side sees. */
  close(reason: ReasonCode): void {
    if (this.#over) return;
    this.#over = true;
    const cancel = this.#clock.timer(LINGER_MS, () => this.#ws.terminate());
    this.#ws.once("close", cancel);
    this.#ws.close(CLOSE_BASE + reasonNumber(reason));
  }

  /** Cuts the connection at once: for peers that do not answer. */
  terminate(): void {
    this.#over = true;
    this.#ws.terminate();
  }

  readonly #sent = (): void => {
    if (!this.#congested || this.#over || this.#ws.bufferedAmount > LOW_WATER) return;
    this.#congested = false;
    this.#handler.onDrain();
  };

  #lost(reason: ReasonCode): void {
    if (this.#over) return;
    this.terminate();
    this.#handler.onClose(reason);
  }
}

const SEND = { binary: true, compress: false, fin: true } as const;
