/**
 * The one authority on who is at the other end of a TLS connection. Carriers complete the handshake with the library's
 * own verification switched to lenient (it would refuse expired certificates, which offline autonomy accepts), and
 * then hand the raw certificates to {@link verifyPeer} before they use a single byte.
 *
 * What the handshake must already have proven: that the peer holds the private key of its first certificate.
 * certificate.ts says why that proof is only worth something together with strict parsing.
 */
import type { WallMs } from "../clock.ts";
import { MeshError } from "../errors.ts";
import {
  type Certificate,
  certificateText,
  isSignedBy,
  parseCertificate,
  sameBytes,
  USAGE_CLIENT,
  USAGE_SERVER,
} from "./certificate.ts";
import { parseAuthorityUri, parseIdentityUri, type Role } from "./names.ts";
import { pinOf } from "./pin.ts";
import type { Revocations } from "./revocation.ts";
import type { TimeEstimate } from "./time.ts";

const DAY = 24 * 3600 * 1000;

/** How long an expired certificate is accepted (design §2: offline autonomy wins). */
export const DEFAULT_GRACE_MS = 30 * DAY;
/** Certificates taken from a handshake: leaf, two intermediates, root. More is somebody making us work. */
export const MAX_CHAIN = 4;

/** Keys that nodes showed before (trust on first use). See peer_keys.ts. */
export interface KnownKeys {
  /** The key hash this node is known by, or undefined. */
  get(node: string): string | undefined;
  /** Remembers a node's key: its first one, or the one after its former key was revoked. */
  learn(node: string, keyHash: string): void;
}

/** Everything a verification depends on. The same object serves a whole process; its parts change in place. */
export interface Trust {
  readonly trustDomain: string;
  /** Pinned authorities; two while one replaces the other. */
  readonly anchors: readonly Certificate[];
  readonly revocations: Revocations;
  /** Absent on servers, which know enrolled keys themselves. */
  readonly knownKeys?: KnownKeys | undefined;
  /** Milliseconds an expired certificate is still accepted; see {@link DEFAULT_GRACE_MS}. */
  readonly graceMs: number;
}

export interface VerifyRequest {
  /** The peer's certificates as raw DER, its own first. See `peerChain` in tls_peer.ts. */
  readonly chainDer: readonly Uint8Array[];
  /** What the peer must be; `name` when a particular one is meant. */
  readonly expected: { readonly role: Role; readonly name?: string | undefined };
  readonly trust: Trust;
  readonly now: TimeEstimate;
}

/** A party that proved who it is. Assignable to the carriers' PeerIdentity. */
export interface VerifiedPeer {
  readonly role: Role;
  /** The name in its certificate: a node's or a server's. */
  readonly node: string;
  /** SHA-256 of its SubjectPublicKeyInfo, hex. */
  readonly keyHash: string;
  /** Its key itself, for renewal. */
  readonly spki: Uint8Array;
  readonly serial: string;
  readonly notBefore: WallMs;
  readonly notAfter: WallMs;
  /** Beyond notAfter, accepted by the offline grace. Worth showing. */
  readonly expired: boolean;
  /** The node's key was not known before this verification. Worth a log line. */
  readonly firstUse: boolean;
}

/**
 * Decides whether the peer is who it must be. Throws MeshError: CERT_UNTRUSTED (malformed, foreign authority, wrong
 * role or name, not yet valid), CERT_EXPIRED, REVOKED, NODE_KEY_MISMATCH. Synchronous, 1–2 ms, no I/O.
 */
export function verifyPeer(request: VerifyRequest): VerifiedPeer {
  const { trust, expected, now } = request;
  const chain = parseChain(request.chainDer);
  const leaf = chain[0]!;
  checkPath(chain, trust);

  const identity = identityOf(leaf, trust.trustDomain);
  if (identity.role !== expected.role || (expected.name !== undefined && identity.name !== expected.name)) {
    const wanted = expected.name === undefined ? `a ${expected.role}` : `${expected.role} ${expected.name}`;
    throw new MeshError(
      "CERT_UNTRUSTED",
      `the peer is ${identity.role} ${identity.name}, but ${wanted} is expected here`,
      {
        hint: "an address that belongs to another machine now, or a wrong server address, explains this",
      },
    );
  }
  checkRevoked(leaf, identity.name, trust);
  const expired = checkDates(leaf, identity.role, { trust, now });
  const firstUse = identity.role === "node" && checkKnownKey(leaf, identity.name, trust);
  return {
    role: identity.role,
    node: identity.name,
    keyHash: leaf.keyHash,
    spki: leaf.spki,
    serial: leaf.serial,
    notBefore: leaf.notBefore,
    notAfter: leaf.notAfter,
    expired,
    firstUse,
  };
}

/**
 * Checks that `chain[0]` leads to an anchor by signatures, through at most `MAX_CHAIN - 2` intermediates of the chain.
 * Throws CERT_UNTRUSTED. Dates of authorities are not looked at: anchors are pinned, not dated (RFC 5280 §6.1.1d), and
 * an intermediate is replaced by revocation or a new pin.
 */
export function checkPath(chain: readonly Certificate[], trust: Pick<Trust, "anchors">): void {
  const leaf = chain[0]!;
  if (leaf.isCa || leaf.signsCertificates) {
    throw new MeshError(
      "CERT_UNTRUSTED",
      `the peer presented an authority's certificate ${certificateText(leaf)} as its own`,
    );
  }
  let current = leaf;
  for (let depth = 0; depth <= MAX_CHAIN - 2; depth++) {
    if (trust.anchors.some((a) => issued(a, current, depth))) return;
    // The first intermediate that fits; our own servers never send two for one name.
    const next = chain.slice(1).find((c) => c !== current && issued(c, current, depth));
    if (!next) break;
    current = next;
  }
  const pins = trust.anchors.map(pinOf);
  const other = chain.slice(1).find((c) => c.isCa && !pins.includes(pinOf(c)) && sharesDomain(c, trust.anchors));
  if (other) {
    throw new MeshError(
      "CERT_UNTRUSTED",
      `the certificate ${certificateText(leaf)} is not from this mesh's authority (${pins.join(", ")}), but from ${
        pinOf(other)
      }`,
      {
        hint:
          "if the authority was replaced while this machine was away, make a token on a server, and start the agent " +
          "once with --token-file FILE and the --ca-pin that was printed: it joins again under its name, with its key",
      },
    );
  }
  throw new MeshError(
    "CERT_UNTRUSTED",
    `the certificate ${certificateText(leaf)} is not from this mesh's authority (${pins.join(", ")})`,
    {
      hint: "the other machine belongs to another mesh, or the authority was replaced while one of the two was away: " +
        "the one that reaches no server has to join again with a new token",
    },
  );
}

/** Pin of the authority that a chain comes from. Throws CERT_UNTRUSTED for none of them. */
export function issuerPin(chain: readonly Certificate[], anchors: readonly Certificate[]): string {
  const from = anchors.find((anchor) => {
    try {
      checkPath(chain, { anchors: [anchor] });
      return true;
    } catch {
      return false;
    }
  });
  if (from) return pinOf(from);
  throw new MeshError("CERT_UNTRUSTED", "the certificate is from none of the authorities that are trusted");
}

/** Whether an authority claims to be one of the same mesh; believed no further than for a sentence. */
function sharesDomain(authority: Certificate, anchors: readonly Certificate[]): boolean {
  return authority.uris.some((uri) =>
    parseAuthorityUri(uri) !== undefined && anchors.some((a) => a.uris.includes(uri))
  );
}

/** Parses the certificates of a handshake. Throws CERT_UNTRUSTED. */
export function parseChain(chainDer: readonly Uint8Array[]): Certificate[] {
  if (chainDer.length === 0) {
    throw new MeshError("CERT_UNTRUSTED", "the peer presented no certificate", {
      hint: "only edgemesh agents and servers can connect here",
    });
  }
  if (chainDer.length > MAX_CHAIN) {
    throw new MeshError(
      "CERT_UNTRUSTED",
      `the peer presented ${chainDer.length} certificates; ${MAX_CHAIN} are allowed`,
    );
  }
  return chainDer.map(parseCertificate);
}

function issued(authority: Certificate, subject: Certificate, depth: number): boolean {
  return authority.isCa && authority.signsCertificates &&
    (authority.pathLength === undefined || authority.pathLength >= depth) &&
    sameBytes(authority.subject, subject.issuer) && isSignedBy(subject, authority);
}

function identityOf(leaf: Certificate, trustDomain: string): { role: Role; name: string } {
  const [uri] = leaf.uris;
  const identity = leaf.uris.length === 1 ? parseIdentityUri(uri!) : undefined;
  // SPIFFE X509-SVID §2: exactly one URI; a second one would leave open whom the certificate means.
  if (!identity) {
    throw new MeshError(
      "CERT_UNTRUSTED",
      `the certificate ${certificateText(leaf)} does not name exactly one node or server`,
    );
  }
  if (identity.trustDomain !== trustDomain) {
    throw new MeshError("CERT_UNTRUSTED", `the peer is of trust domain ${identity.trustDomain}, not ${trustDomain}`);
  }
  if (!leaf.usages.includes(USAGE_SERVER) || !leaf.usages.includes(USAGE_CLIENT)) {
    throw new MeshError(
      "CERT_UNTRUSTED",
      `the certificate ${certificateText(leaf)} is not for TLS servers and clients`,
    );
  }
  return identity;
}

function checkRevoked(leaf: Certificate, name: string, trust: Trust): void {
  const entry = trust.revocations.find({ node: name, keyHash: leaf.keyHash, serial: leaf.serial });
  if (!entry) return;
  const why = entry.reason ? `: ${entry.reason}` : "";
  throw new MeshError("REVOKED", `${name} was revoked on ${new Date(entry.at).toISOString()}${why}`, {
    hint: `if ${name} should be part of the mesh, lift the revocation on the server and join it again with a new token`,
  });
}

/** Returns whether the certificate is expired but accepted. */
function checkDates(leaf: Certificate, role: Role, at: { trust: Trust; now: TimeEstimate }): boolean {
  const { trust, now } = at;
  // A server is judged by the time that is certainly past, not by our clock: with a clock that is ahead we could
  // otherwise never reach the server that corrects it. Peers are judged by our best estimate.
  const judgedAt = role === "server" && !now.attested ? now.floor : now.ms;
  if (judgedAt > leaf.notAfter + trust.graceMs) {
    const days = Math.floor((judgedAt - leaf.notAfter) / DAY);
    throw new MeshError(
      "CERT_EXPIRED",
      `the certificate ${certificateText(leaf)} expired ${days} days ago; ${
        Math.floor(trust.graceMs / DAY)
      } days are accepted`,
      {
        hint:
          "check the clock of this machine (`date -u`), and that the other machine reaches a server: it renews by itself",
      },
    );
  }
  // A clock that no server confirmed may be in the past (a board without a battery): then "not yet valid" says nothing
  // about the certificate. With confirmed time the same leniency applies as after the end: clocks err both ways.
  if (now.attested && leaf.notBefore > now.ms + trust.graceMs) {
    throw new MeshError(
      "CERT_UNTRUSTED",
      `the certificate ${certificateText(leaf)} is valid from ${new Date(leaf.notBefore).toISOString()} on`,
      { hint: "the server that issued it has a clock that is ahead; correct it there, then restart that node's agent" },
    );
  }
  return now.ms > leaf.notAfter;
}

/** Returns whether this key is new to us. */
function checkKnownKey(leaf: Certificate, node: string, trust: Trust): boolean {
  const known = trust.knownKeys?.get(node);
  if (known === leaf.keyHash) return false;
  // A changed key needs its re-enrolment attested: the operator who removed the old enrolment revoked the old key,
  // and that revocation, signed off by a server, stays on every node's disk for all to see.
  const formerRevoked = known !== undefined &&
    trust.revocations.find({ node: "", keyHash: known, serial: "" })?.by === "key";
  if (known === undefined || formerRevoked) {
    trust.knownKeys?.learn(node, leaf.keyHash);
    return true;
  }
  throw new MeshError(
    "NODE_KEY_MISMATCH",
    `${node} shows the key ${short(leaf.keyHash)}, but this node knows it by ${short(known)}`,
    {
      hint:
        `if ${node} was set up anew, remove its old enrolment on the server (that revokes the old key), or remove ` +
        `it from peers.json in this node's state directory and restart the agent; otherwise somebody with power over ` +
        "the server is impersonating it",
    },
  );
}

function short(keyHash: string): string {
  return keyHash.slice(0, 16) + "…";
}
