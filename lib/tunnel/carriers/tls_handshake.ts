/**
 * Mutual TLS 1.3 by node:tls over any byte pipe, with our own verifier as the only judge of certificates.
 *
 * `rejectUnauthorized: false` on both sides: the TLS library's own check knows names and dates, while we decide by
 * pinned authority, URI, revocation and offline grace. The handshake still proves that the peer holds the key of
 * the certificate it shows (CertificateVerify is checked regardless). The server side goes through `tls.createServer`
 * and its "connection" event, because `new tls.TLSSocket(…, { isServer: true })` never asks for a client certificate.
 * No session is ever resumed: with own credentials the library does not match cached sessions, and
 * {@link secured} refuses one if it ever does, since a resumed session would not prove the key again.
 */
import type { Duplex } from "node:stream";
import tls from "node:tls";
import type { CancelTimer, Clock } from "../../clock.ts";
import { MeshError } from "../../errors.ts";
import type { TlsCredentials } from "./engine.ts";

/** Certificates looked at; a longer chain is cut here and judged by the verifier, which allows fewer. */
const MAX_CHAIN = 5;

/** A finished handshake. The peer's certificate is not verified yet, and no byte of the peer has been read. */
export interface SecureLeg {
  readonly socket: tls.TLSSocket;
  /** The peer's certificates in DER, its own first; empty when it showed none. */
  readonly chain: readonly Uint8Array[];
}

export interface HandshakeOptions {
  readonly credentials: TlsCredentials;
  /** The protocol both sides must agree on. */
  readonly alpn: string;
  /** The other side may also say nothing (HTTP clients that know only one version). */
  readonly alpnOptional?: boolean;
  readonly clock: Clock;
  readonly timeoutMs: number;
  /** SNI, where something on the way may route by it; carriers send none. */
  readonly servername?: string;
}

/** Handshake as TLS client. Owns `leg`: it is destroyed when this rejects (MeshError). */
export function secureClient(leg: Duplex, options: HandshakeOptions): Promise<SecureLeg> {
  return new Promise((resolve, reject) => {
    const socket = tls.connect({
      socket: leg as never,
      ...common(options),
      ca: options.credentials.ca,
      checkServerIdentity: () => undefined,
      ...(options.servername === undefined ? {} : { servername: options.servername }),
    });
    const attempt = new Attempt(leg, options, resolve, reject);
    attempt.watch(socket);
    socket.once("secureConnect", () => attempt.secured(socket));
  });
}

/** Handshake as TLS server; asks the client for its certificate. Owns `leg`: it is destroyed when this rejects. */
export function secureServer(leg: Duplex, options: HandshakeOptions): Promise<SecureLeg> {
  return new Promise((resolve, reject) => {
    // One server object per leg: it only carries options here, listens nowhere, and ties the result to the leg.
    const server = tls.createServer({
      ...common(options),
      requestCert: true,
      // Our deadline runs on the injected clock; any value above 0 would arm a second timer inside the library.
      handshakeTimeout: -1,
    });
    const attempt = new Attempt(leg, options, resolve, reject);
    server.once("secureConnection", (socket: tls.TLSSocket) => {
      attempt.watch(socket);
      attempt.secured(socket);
    });
    server.once("tlsClientError", (error: Error, socket?: tls.TLSSocket) => {
      attempt.failed(error);
      socket?.destroy();
    });
    server.emit("connection", leg);
  });
}

function common(options: HandshakeOptions) {
  return {
    cert: options.credentials.cert,
    key: options.credentials.key,
    minVersion: "TLSv1.3",
    maxVersion: "TLSv1.3",
    ALPNProtocols: [options.alpn],
    rejectUnauthorized: false,
  } satisfies tls.TlsOptions & tls.ConnectionOptions;
}

/** One handshake: ends exactly once, by success, failure or deadline. */
class Attempt {
  readonly #leg: Duplex;
  readonly #options: HandshakeOptions;
  readonly #resolve: (secure: SecureLeg) => void;
  readonly #reject: (error: MeshError) => void;
  readonly #cancel: CancelTimer;
  #done = false;

  constructor(
    leg: Duplex,
    options: HandshakeOptions,
    resolve: (secure: SecureLeg) => void,
    reject: (error: MeshError) => void,
  ) {
    this.#leg = leg;
    this.#options = options;
    this.#resolve = resolve;
    this.#reject = reject;
    this.#cancel = options.clock.timer(options.timeoutMs, () => {
      this.failed(new MeshError("TIMEOUT", `TLS handshake did not finish within ${Math.round(options.timeoutMs)} ms`));
    });
    // The leg's own error knows best why it broke (an offline peer, say); it may come before or after TLS noticed.
    leg.on("error", (error: Error) => this.failed(error));
    leg.once("close", () => this.failed(new MeshError("PEER_GONE", "The connection ended during the TLS handshake")));
  }

  /** Failures of the TLS layer end the attempt; afterwards they are the carrier's, but never nobody's. */
  watch(socket: tls.TLSSocket): void {
    socket.on("error", (error: Error) => this.failed(error));
    socket.once(
      "close",
      () => this.failed(new MeshError("PEER_GONE", "The connection ended during the TLS handshake")),
    );
  }

  secured(socket: tls.TLSSocket): void {
    if (this.#done) return void socket.destroy();
    const { alpn, alpnOptional } = this.#options;
    if (socket.alpnProtocol !== alpn && (socket.alpnProtocol || !alpnOptional)) {
      return this.failed(new MeshError("PROTOCOL", `The other side does not speak ${alpn}`));
    }
    if (socket.isSessionReused()) {
      return this.failed(new MeshError("INTERNAL", "A TLS session was resumed although resumption is off"));
    }
    this.#done = true;
    this.#cancel();
    this.#resolve({ socket, chain: peerChain(socket) });
  }

  failed(error: Error): void {
    if (this.#done) return;
    this.#done = true;
    this.#cancel();
    this.#reject(handshakeError(error));
    this.#leg.destroy();
  }
}

/**
 * What the peer showed, as the bytes that were on the wire. `getPeerX509Certificate()` would be shorter, but looks for
 * PEM text inside the bytes first: a peer could show the TLS library one thing and us another.
 */
function peerChain(socket: tls.TLSSocket): Uint8Array[] {
  const chain: Uint8Array[] = [];
  try {
    let next: tls.DetailedPeerCertificate | undefined = socket.getPeerCertificate(true);
    while (next?.raw !== undefined && chain.length < MAX_CHAIN) {
      chain.push(next.raw);
      // The library ends a chain with a root that points to itself.
      next = next.issuerCertificate === next ? undefined : next.issuerCertificate;
    }
  } catch {
    // Deno throws for a certificate it cannot parse: as good as none.
    return [];
  }
  return chain;
}

function handshakeError(error: Error): MeshError {
  if (error instanceof MeshError) return error;
  const code = (error as { code?: unknown }).code;
  const gone = code === "ECONNRESET" || code === "EPIPE" || code === "ERR_STREAM_PREMATURE_CLOSE";
  return new MeshError(gone ? "PEER_GONE" : "PROTOCOL", "TLS handshake failed", { cause: error });
}
