/**
 * Reads the one kind of certificate this product accepts: X.509 v3, ECDSA P-256, signed with ecdsa-with-SHA256.
 *
 * Why a reader of our own. Deno's node:tls (2.9.6, ext/node/ops/tls_wrap.rs) lets a *server's* handshake signature pass
 * unchecked when rustls cannot parse the certificate (a v1 certificate, a trailing byte), to be as tolerant as
 * OpenSSL; node:crypto's X509Certificate is lenient too and ignores trailing bytes. Together they would let anyone who
 * has seen A's public certificate be A. So everything outside the signed part must be exactly the bytes our CA wrote:
 * shortest lengths, nothing left over, one algorithm. The signed part cannot be altered, and what our CA signs rustls
 * reads (trust_tls_test.ts proves both sides with a forged handshake).
 */
import { Buffer } from "node:buffer";
import { createHash, createPublicKey, type KeyObject, verify } from "node:crypto";
import type { WallMs } from "../clock.ts";
import { MeshError } from "../errors.ts";
import { derAscii, derBoolean, DerError, derOid, derOnly, DerReader, derTime, derUnsigned, TAG } from "./der.ts";

/** Our certificates are about 550 bytes; an offline root with long names may be larger. */
export const MAX_CERTIFICATE_BYTES = 4096;

/** What a certificate says; nothing in it is verified yet except its form. */
export interface Certificate {
  /** The DER as it came. */
  readonly raw: Uint8Array;
  /** The signed part. */
  readonly tbs: Uint8Array;
  /** ECDSA-Sig-Value in DER. */
  readonly signature: Uint8Array;
  /** Lower-case hex without leading zeros. */
  readonly serial: string;
  /** Encoded names, compared as bytes. */
  readonly issuer: Uint8Array;
  readonly subject: Uint8Array;
  /** Subject's CN for messages only; never used to decide. */
  readonly commonName: string;
  readonly notBefore: WallMs;
  readonly notAfter: WallMs;
  /** Public key as SubjectPublicKeyInfo, always 91 bytes. */
  readonly spki: Uint8Array;
  /** SHA-256 of {@link spki}, lower-case hex. */
  readonly keyHash: string;
  readonly isCa: boolean;
  /** Intermediates allowed below a CA; undefined = no limit. */
  readonly pathLength: number | undefined;
  /** keyUsage keyCertSign. */
  readonly signsCertificates: boolean;
  /** Extended key usages as OIDs. */
  readonly usages: readonly string[];
  /** URI names, in order. */
  readonly uris: readonly string[];
}

export const USAGE_SERVER = "1.3.6.1.5.5.7.3.1";
export const USAGE_CLIENT = "1.3.6.1.5.5.7.3.2";

/** SubjectPublicKeyInfo of an uncompressed P-256 point (RFC 5480 §2), up to the point's 64 bytes of coordinates. */
const SPKI_PREFIX = Uint8Array.from(
  [...[0x30, 0x59, 0x30, 0x13, 0x06, 0x07, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02, 0x01], ...[0x06, 0x08, 0x2a, 0x86]]
    .concat([0x48, 0xce, 0x3d, 0x03, 0x01, 0x07, 0x03, 0x42, 0x00, 0x04]),
);
/** AlgorithmIdentifier of ecdsa-with-SHA256 (RFC 5758 §3.2): no parameters. */
const ECDSA_SHA256 = Uint8Array.from([0x30, 0x0a, 0x06, 0x08, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x04, 0x03, 0x02]);
const SPKI_BYTES = 91;

/** Parses one DER certificate. Throws MeshError CERT_UNTRUSTED that says what is wrong with its form. */
export function parseCertificate(der: Uint8Array): Certificate {
  if (der.length > MAX_CERTIFICATE_BYTES) {
    throw new MeshError("CERT_UNTRUSTED", `a certificate has ${der.length} bytes, more than ${MAX_CERTIFICATE_BYTES}`);
  }
  try {
    return read(der);
  } catch (cause) {
    if (!(cause instanceof DerError)) throw cause;
    throw new MeshError("CERT_UNTRUSTED", `a certificate is malformed: ${cause.message}`);
  }
}

/** The certificates of a PEM text in order. Throws MeshError CERT_UNTRUSTED when there is none or one is malformed. */
export function parsePem(pem: string): Certificate[] {
  const found = [...pem.matchAll(/-----BEGIN CERTIFICATE-----([A-Za-z0-9+/=\s]+)-----END CERTIFICATE-----/g)];
  if (found.length === 0) throw new MeshError("CERT_UNTRUSTED", "no PEM certificate was found where one is needed");
  return found.map((m) => parseCertificate(new Uint8Array(Buffer.from(m[1]!, "base64"))));
}

/** One certificate as PEM, with a final newline. */
export function toPem(certificate: Pick<Certificate, "raw">): string {
  const lines = Buffer.from(certificate.raw).toString("base64").match(/.{1,64}/g)!;
  return `-----BEGIN CERTIFICATE-----\n${lines.join("\n")}\n-----END CERTIFICATE-----\n`;
}

/** Whether `issuer`'s key signed `certificate`. Costs about a millisecond. */
export function isSignedBy(certificate: Certificate, issuer: Certificate): boolean {
  return verifySignature(issuer.spki, certificate.tbs, certificate.signature);
}

/** Whether `signature` (ECDSA-Sig-Value) over SHA-256 of `bytes` was made by the key. */
export function verifySignature(spki: Uint8Array, bytes: Uint8Array, signature: Uint8Array): boolean {
  try {
    return verify("sha256", bytes, keyOf(spki), signature);
  } catch {
    return false; // A point that is not on the curve, or a signature that is not one.
  }
}

/** Whether bytes are the SubjectPublicKeyInfo of a P-256 key on its curve, in its one allowed encoding. */
export function isNodeKey(spki: Uint8Array): boolean {
  if (!hasSpkiForm(spki)) return false;
  try {
    keyOf(spki);
    return true;
  } catch {
    return false;
  }
}

/** SHA-256 of a SubjectPublicKeyInfo, lower-case hex. */
export function hashKey(spki: Uint8Array): string {
  return createHash("sha256").update(spki).digest("hex");
}

/** Whether two byte strings are equal; not for secrets. */
export function sameBytes(a: Uint8Array, b: Uint8Array): boolean {
  return a.length === b.length && a.every((v, i) => v === b[i]);
}

/** One line about a certificate for messages: its name, key and dates. */
export function certificateText(c: Certificate): string {
  const until = new Date(c.notAfter).toISOString();
  return `${JSON.stringify(c.uris[0] ?? c.commonName)} (serial ${c.serial}, valid until ${until})`;
}

function keyOf(spki: Uint8Array): KeyObject {
  return createPublicKey({ key: Buffer.from(spki), format: "der", type: "spki" });
}

function hasSpkiForm(spki: Uint8Array): boolean {
  return spki.length === SPKI_BYTES && sameBytes(spki.subarray(0, SPKI_PREFIX.length), SPKI_PREFIX);
}

function read(der: Uint8Array): Certificate {
  const outer = new DerReader(derOnly(der, TAG.SEQUENCE).content);
  const tbs = outer.next(TAG.SEQUENCE);
  algorithm(outer.next(TAG.SEQUENCE).raw);
  const signature = bits(outer.next(TAG.BIT_STRING).content);
  outer.end();
  checkSignatureForm(signature);

  const r = new DerReader(tbs.content);
  const version = r.optional(0xa0);
  if (!version || !sameBytes(version.content, Uint8Array.from([2, 1, 2]))) throw new DerError("version is not 3");
  const serial = derUnsigned(r.next(TAG.INTEGER).content);
  if (serial.length > 20) throw new DerError("serial number beyond 20 bytes");
  algorithm(r.next(TAG.SEQUENCE).raw);
  const issuer = r.next(TAG.SEQUENCE).raw;
  const validity = new DerReader(r.next(TAG.SEQUENCE).content);
  const notBefore = derTime(validity.next());
  const notAfter = derTime(validity.next());
  validity.end();
  const subject = r.next(TAG.SEQUENCE);
  const spki = r.next(TAG.SEQUENCE).raw;
  if (!hasSpkiForm(spki)) throw new DerError("public key is not an uncompressed P-256 point");
  const extensions = readExtensions(r.optional(0xa3)?.content);
  r.end();
  return {
    raw: der,
    tbs: tbs.raw,
    signature,
    serial: Buffer.from(serial).toString("hex").replace(/^0+(?=.)/, ""),
    issuer,
    subject: subject.raw,
    commonName: commonName(subject.content),
    notBefore,
    notAfter,
    spki,
    keyHash: hashKey(spki),
    ...extensions,
  };
}

type Extensions = Pick<Certificate, "isCa" | "pathLength" | "signsCertificates" | "usages" | "uris">;

function readExtensions(content: Uint8Array | undefined): Extensions {
  let found: Extensions = { isCa: false, pathLength: undefined, signsCertificates: false, usages: [], uris: [] };
  if (content === undefined) return found;
  const list = new DerReader(derOnly(content, TAG.SEQUENCE).content);
  const seen = new Set<string>();
  while (!list.done) {
    const r = new DerReader(list.next(TAG.SEQUENCE).content);
    const oid = derOid(r.next(TAG.OID).content);
    const flag = r.optional(TAG.BOOLEAN);
    const critical = flag !== undefined && derBoolean(flag.content);
    const value = r.next(TAG.OCTET_STRING).content;
    r.end();
    if (seen.has(oid)) throw new DerError(`extension ${oid} comes twice`);
    seen.add(oid);
    switch (oid) {
      case "2.5.29.19":
        found = { ...found, ...basicConstraints(value) };
        break;
      case "2.5.29.15": {
        const usage = derOnly(value, TAG.BIT_STRING).content;
        found = { ...found, signsCertificates: ((usage[1] ?? 0) & 0x04) !== 0 };
        break;
      }
      case "2.5.29.37":
        found = { ...found, usages: sequenceOf(value).map((e) => derOid(e.content)) };
        break;
      case "2.5.29.17":
        // [6] uniformResourceIdentifier; other kinds of name (DNS, IP) mean nothing to us.
        found = { ...found, uris: sequenceOf(value).filter((e) => e.tag === 0x86).map((e) => derAscii(e.content)) };
        break;
      default:
        if (critical) throw new DerError(`critical extension ${oid} is unknown`);
    }
  }
  return found;
}

function basicConstraints(value: Uint8Array): Pick<Certificate, "isCa" | "pathLength"> {
  const r = new DerReader(derOnly(value, TAG.SEQUENCE).content);
  const ca = r.optional(TAG.BOOLEAN);
  const isCa = ca !== undefined && derBoolean(ca.content);
  const limit = r.optional(TAG.INTEGER);
  r.end();
  if (!limit) return { isCa, pathLength: undefined };
  const n = derUnsigned(limit.content);
  if (n.length !== 1) throw new DerError("path length");
  return { isCa, pathLength: n[0]! };
}

function sequenceOf(value: Uint8Array): { tag: number; content: Uint8Array }[] {
  const r = new DerReader(derOnly(value, TAG.SEQUENCE).content);
  const elements = [];
  while (!r.done) elements.push(r.next());
  return elements;
}

function algorithm(raw: Uint8Array): void {
  if (!sameBytes(raw, ECDSA_SHA256)) throw new DerError("signature algorithm is not ecdsa-with-SHA256");
}

function bits(content: Uint8Array): Uint8Array {
  if (content[0] !== 0) throw new DerError("BIT STRING with unused bits");
  return content.subarray(1);
}

function checkSignatureForm(signature: Uint8Array): void {
  const r = new DerReader(derOnly(signature, TAG.SEQUENCE).content);
  for (let i = 0; i < 2; i++) {
    const n = derUnsigned(r.next(TAG.INTEGER).content);
    if (n.length > 32) throw new DerError("signature integer beyond 32 bytes");
  }
  r.end();
}

/** The last CN of a Name, or "" where there is none or it is not plain text: it only serves messages. */
function commonName(name: Uint8Array): string {
  let text = "";
  const rdns = new DerReader(name);
  while (!rdns.done) {
    const set = new DerReader(rdns.next(TAG.SET).content);
    while (!set.done) {
      const attribute = new DerReader(set.next(TAG.SEQUENCE).content);
      const oid = derOid(attribute.next(TAG.OID).content);
      const value = attribute.next();
      attribute.end();
      if (oid === "2.5.4.3" && (value.tag === TAG.UTF8_STRING || value.tag === TAG.PRINTABLE_STRING)) {
        text = new TextDecoder().decode(value.content).replace(/[^\x20-\x7e]/g, "?").slice(0, 64);
      }
    }
  }
  return text;
}
