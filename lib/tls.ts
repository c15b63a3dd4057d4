/**
 * The seam between whoever moves bytes and a TLS library: a connection without a socket. Ciphertext goes in and comes
 * out as bytes, so the same code runs over a TCP connection, a relayed channel or a test's memory. Implemented by
 * lib/linux over the system's OpenSSL; used by lib/tunnel/carriers.
 */

/** Most bytes {@link TlsLibrary.input} takes. Two batches of the tunnel: larger reads save few system calls. */
export const TLS_INPUT = 131_072;

/** Our own side of mutual TLS, PEM. */
export interface TlsIdentity {
  /** Our certificate, and intermediates if there are any. */
  readonly cert: string;
  readonly key: string;
}

export interface TlsOpen {
  readonly role: "client" | "server";
  readonly identity: TlsIdentity;
  /** The one protocol that is offered, or accepted. */
  readonly alpn: string;
}

/**
 * One TLS 1.3 connection. The library checks that the peer holds the key of the certificate it shows, and nothing else
 * about it: who may connect is judged by the caller from {@link chain}. Methods throw MeshError PROTOCOL when the peer
 * breaks TLS; an alert may then wait in {@link take}. Nothing may be called after {@link free}.
 */
export interface TlsMachine {
  /** Goes on with the handshake; true when it is finished. Give what {@link take} has to the peer after each call. */
  handshake(): boolean;
  /** The agreed protocol; undefined when the peer offered none. */
  readonly alpn: string | undefined;
  /** What the peer showed, in DER, its own first; empty when it showed none. */
  chain(): Uint8Array[];
  /** Takes bytes `[start, end)` of {@link TlsLibrary.input}; `start` is a multiple of {@link TLS_SLICE}. */
  push(start: number, end: number): void;
  /**
   * Decrypted bytes in a buffer of the library, valid until the next call of any machine's `pull`; undefined when more
   * ciphertext is needed, or when the peer has ended its direction ({@link ended}).
   */
  pull(): Uint8Array | undefined;
  /** The peer said that nothing follows (close_notify). A connection that ends without it was cut. */
  readonly ended: boolean;
  /** Encrypts the first `length` bytes of `from`; they may be reused at once. */
  seal(from: Uint8Array, length: number): void;
  /** Says that nothing follows (close_notify). */
  finish(): void;
  /** Moves ciphertext for the peer into `into`; returns how many bytes. Less than `into` takes: no more waits. */
  take(into: Uint8Array): number;
  /** Whether {@link take} has something. */
  readonly waiting: boolean;
  /** Gives everything back. Safe to call twice. */
  free(): void;
}

/** Bytes given to {@link TlsMachine.push} at once: it bounds what a connection keeps. */
export const TLS_SLICE = 32_768;

export interface TlsLibrary {
  /** For people: `OpenSSL 3.0.19`. */
  readonly name: string;
  /** Where received ciphertext is put before {@link TlsMachine.push}; {@link TLS_INPUT} bytes, shared by all machines. */
  readonly input: Uint8Array;
  /** Begins a connection. Throws MeshError INTERNAL when the identity cannot be used. */
  open(options: TlsOpen): TlsMachine;
  /** Machines that are not freed: for leak tests. */
  readonly live: number;
  /** Gives everything back; machines must be freed before. */
  close(): void;
}
