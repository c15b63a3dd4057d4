/**
 * Takes the peer's certificates out of a TLS socket as the raw bytes that were on the wire. In one place because the
 * obvious other ways are traps: `getPeerX509Certificate()` and `new X509Certificate(bytes)` look for PEM text inside
 * the bytes first, so a peer could show the TLS library garbage and us somebody else's certificate.
 */

/** What a TLS endpoint shows and proves itself with. */
export interface TlsMaterial {
  readonly keyPem: string;
  /** Leaf, intermediates, and on servers the authorities: a joining agent finds the pinned one there. */
  readonly certPem: string;
}

/** What is used of node:tls's TLSSocket; stated as a shape so that only carriers import node:tls. */
export interface PeerCertificateSource {
  getPeerCertificate(detailed: true): unknown;
}

interface Presented {
  readonly raw?: unknown;
  readonly issuerCertificate?: unknown;
}

/**
 * The peer's chain as DER, its own certificate first; empty when it presented none. At most five, so that `verifyPeer`
 * can refuse a longer one without walking it.
 */
export function peerChain(socket: PeerCertificateSource): Uint8Array[] {
  const chain: Uint8Array[] = [];
  const seen = new Set<unknown>();
  let current = presented(socket);
  // A root is linked to itself.
  while (current && !seen.has(current) && chain.length < 5) {
    seen.add(current);
    if (!(current.raw instanceof Uint8Array)) break;
    chain.push(current.raw);
    current = current.issuerCertificate as Presented | undefined;
  }
  return chain;
}

function presented(socket: PeerCertificateSource): Presented | undefined {
  try {
    return (socket.getPeerCertificate(true) ?? undefined) as Presented | undefined;
  } catch {
    // Deno throws when a certificate of the chain cannot be parsed: as good as none.
    return undefined;
  }
}
