/**
 * The mesh's authority: makes its key once, issues certificates for keys that were proven, and writes down each one
 * before it leaves. Only servers load this file; the X.509 encoder behind it costs 15 MB and 0.3 s, so it is loaded
 * when the first certificate is made, not at start.
 *
 * Each certificate is read back by certificate.ts, an independent implementation, before anyone gets it: what our own
 * verification would not accept is never issued.
 */
import { Buffer } from "node:buffer";
import type { WallMs } from "../clock.ts";
import { MeshError } from "../errors.ts";
import { type Certificate, isNodeKey, parseCertificate, parsePem, sameBytes, toPem } from "./certificate.ts";
import type { AuthorityMaterial } from "./authority_state.ts";
import { authorityUri, type Identity, identityUri, isTrustDomain, parseAuthorityUri, type Role } from "./names.ts";
import { pinOf } from "./pin.ts";
import type { StateFiles } from "./state_files.ts";

type X509 = typeof import("@peculiar/x509");

const MINUTE = 60 * 1000;
const HOUR = 60 * MINUTE;

/** Life of a node's or server's certificate (design §2). */
export const CERTIFICATE_LIFETIME_MS = 24 * HOUR;
/** Certificates start in the past, so that a machine whose clock is a little behind can use a fresh one at once. */
export const BACKDATE_MS = 5 * MINUTE;
/** Agents pin the key and never look at the authority's own dates; other tools do. */
const AUTHORITY_LIFETIME_MS = 20 * 365 * 24 * HOUR;

/** Trusted authorities, PEM, one or more. */
export const CA_BUNDLE_FILE = "ca.crt";
/** The issuing certificate with its chain when it is not in the bundle itself (offline root). */
export const ISSUER_FILE = "issuer.crt";
/** The issuing key, PKCS #8 PEM. */
export const CA_KEY_FILE = "ca.key";
/** One JSON line per issued certificate. */
export const ISSUANCE_LOG_FILE = "issued.jsonl";

const ALGORITHM = { name: "ECDSA", namedCurve: "P-256", hash: "SHA-256" } as const;

export interface IssueRequest {
  readonly role: Role;
  readonly name: string;
  /** SubjectPublicKeyInfo of the P-256 key whose possession was proven. */
  readonly spki: Uint8Array;
  readonly now: WallMs;
  /** Default {@link CERTIFICATE_LIFETIME_MS}. */
  readonly lifetimeMs?: number | undefined;
  /** Goes to the issuance log: `join token=…`, `renew`, `server start`. */
  readonly why: string;
}

export interface Issued {
  /** PEM to present in handshakes: the leaf, then intermediates if there are any. */
  readonly chainPem: string;
  readonly certificate: Certificate;
}

/** An opened authority. */
export interface CertificateAuthority {
  readonly trustDomain: string;
  /** Authorities that members of the mesh trust. */
  readonly anchors: readonly Certificate[];
  /** The same as PEM. */
  readonly bundlePem: string;
  /** Pin of the authority that leads to what is issued now. */
  readonly pin: string;
  /** Issues and logs one certificate. Throws CERT_UNTRUSTED for a key that is not P-256. */
  issue(request: IssueRequest): Promise<Issued>;
}

/** Opens the authority in a state directory, making it when the directory has none. */
export async function openOrCreateAuthority(
  files: StateFiles,
  options: { readonly trustDomain: string; readonly now: WallMs },
): Promise<CertificateAuthority> {
  const key = await files.read(CA_KEY_FILE);
  const bundle = await files.read(CA_BUNDLE_FILE);
  if (key === undefined && bundle === undefined) await createAuthority(files, options);
  const authority = await openAuthority(files);
  if (authority.trustDomain === options.trustDomain) return authority;
  throw new MeshError(
    "CONFIG_INVALID",
    `the authority on disk is of trust domain ${authority.trustDomain}, but ${options.trustDomain} is configured`,
    { hint: "configure the trust domain of the authority; a new one means that every node joins again" },
  );
}

/** Opens the authority in a state directory. Throws STATE_INVALID when part of it is missing or does not fit. */
export async function openAuthority(files: StateFiles): Promise<CertificateAuthority> {
  const bundlePem = await required(files, CA_BUNDLE_FILE);
  const keyPem = await required(files, CA_KEY_FILE);
  const issuerPem = await files.read(ISSUER_FILE);
  try {
    return await open({ files, bundlePem, keyPem, issuerPem });
  } catch (cause) {
    throw new MeshError("STATE_INVALID", "the authority on disk cannot be used", {
      cause,
      hint:
        `restore ${CA_BUNDLE_FILE} and ${CA_KEY_FILE} of the server's state directory from a backup; removing both ` +
        "makes a new authority, and then every node must join again",
    });
  }
}

/** Makes a self-signed authority. Throws STATE_INVALID when the directory already has one. */
export async function createAuthority(
  files: StateFiles,
  options: { readonly trustDomain: string; readonly now: WallMs },
): Promise<void> {
  if (await files.read(CA_KEY_FILE) !== undefined) {
    throw new MeshError("STATE_INVALID", "this state directory already has an authority");
  }
  await writeMaterial(files, await makeMaterial(options));
}

/** A new self-signed authority, nowhere kept yet. Throws CONFIG_INVALID. `suffix` tells it from its predecessor. */
export async function makeMaterial(
  options: { readonly trustDomain: string; readonly now: WallMs; readonly suffix?: string },
): Promise<AuthorityMaterial> {
  const { trustDomain, now } = options;
  if (!isTrustDomain(trustDomain)) {
    throw new MeshError("CONFIG_INVALID", `${JSON.stringify(trustDomain)} cannot be a trust domain`, {
      hint: "use lower-case letters, digits, dots and dashes, such as mesh.example.com",
    });
  }
  const x509 = await encoder();
  const keys = await crypto.subtle.generateKey(ALGORITHM, true, ["sign", "verify"]) as CryptoKeyPair;
  const certificate = await x509.X509CertificateGenerator.createSelfSigned({
    serialNumber: randomSerial(),
    name: `CN=edgemesh authority${options.suffix ?? ""}`,
    notBefore: seconds(now - BACKDATE_MS),
    notAfter: seconds(now + AUTHORITY_LIFETIME_MS),
    signingAlgorithm: ALGORITHM,
    keys,
    extensions: [
      // No intermediates below: whoever wants an offline root brings a root of their own.
      new x509.BasicConstraintsExtension(true, 0, true),
      new x509.KeyUsagesExtension(x509.KeyUsageFlags.keyCertSign | x509.KeyUsageFlags.cRLSign, true),
      new x509.SubjectAlternativeNameExtension([{ type: "url", value: authorityUri(trustDomain) }]),
      await x509.SubjectKeyIdentifierExtension.create(keys.publicKey),
    ],
  });
  const read = parseCertificate(new Uint8Array(certificate.rawData));
  const pkcs8 = Buffer.from(await crypto.subtle.exportKey("pkcs8", keys.privateKey)).toString("base64");
  const keyPem = `-----BEGIN PRIVATE KEY-----\n${pkcs8.match(/.{1,64}/g)!.join("\n")}\n-----END PRIVATE KEY-----\n`;
  return { bundlePem: toPem(read), keyPem };
}

/** The authority in a state directory as it is; undefined when part of it is missing. */
export async function readMaterial(files: StateFiles): Promise<AuthorityMaterial | undefined> {
  const [bundlePem, keyPem, issuerPem] = await Promise.all(
    [CA_BUNDLE_FILE, CA_KEY_FILE, ISSUER_FILE].map((name) => files.read(name)),
  );
  if (bundlePem === undefined || keyPem === undefined) return undefined;
  return { bundlePem, keyPem, ...(issuerPem === undefined ? {} : { issuerPem }) };
}

/** Makes the files of a state directory an authority's; those that are right already stay untouched. */
export async function writeMaterial(files: StateFiles, material: AuthorityMaterial): Promise<void> {
  const put = async (name: string, text: string) => {
    if (await files.read(name) !== text) await files.writeAtomic(name, text);
  };
  // The key goes first: a crash in between leaves a directory that says so when it is opened, not a lost key.
  await put(CA_KEY_FILE, material.keyPem);
  if (material.issuerPem !== undefined) await put(ISSUER_FILE, material.issuerPem);
  await put(CA_BUNDLE_FILE, material.bundlePem);
  if (material.issuerPem === undefined) await files.remove(ISSUER_FILE);
}

/** Opens an authority that is not, or not alone, the one in the state directory; its log is there. */
export function openMaterial(files: StateFiles, material: AuthorityMaterial): Promise<CertificateAuthority> {
  const { bundlePem, keyPem, issuerPem } = material;
  return open({ files, bundlePem, keyPem, issuerPem });
}

interface Opening {
  readonly files: StateFiles;
  readonly bundlePem: string;
  readonly keyPem: string;
  readonly issuerPem: string | undefined;
}

async function open(o: Opening): Promise<CertificateAuthority> {
  const anchors = parsePem(o.bundlePem);
  const chain = o.issuerPem === undefined ? [] : parsePem(o.issuerPem);
  const { privateKey, spki } = await importKey(o.keyPem);
  const issuer = [...chain, ...anchors].find((c) => sameBytes(c.spki, spki));
  if (!issuer || !issuer.isCa || !issuer.signsCertificates) {
    throw new MeshError(
      "CERT_UNTRUSTED",
      `${CA_KEY_FILE} is not the key of an authority in ${CA_BUNDLE_FILE} or ${ISSUER_FILE}`,
    );
  }
  const anchor = chain.length === 0 ? issuer : anchors.find((a) => sameBytes(a.subject, chain.at(-1)!.issuer));
  const trustDomain = (anchor?.uris ?? []).map(parseAuthorityUri).find((d) => d !== undefined);
  if (!anchor || trustDomain === undefined) {
    throw new MeshError("CERT_UNTRUSTED", "the authority's certificate names no trust domain (URI spiffe://…)");
  }
  const chainPem = chain.map(toPem).join("");
  return {
    trustDomain,
    anchors,
    bundlePem: anchors.map(toPem).join(""),
    pin: pinOf(anchor),
    issue: async (request) => {
      const certificate = await issue({ issuer, privateKey, trustDomain }, request);
      await o.files.append(ISSUANCE_LOG_FILE, logLine(certificate, request));
      return { chainPem: toPem(certificate) + chainPem, certificate };
    },
  };
}

interface Issuer {
  readonly issuer: Certificate;
  readonly privateKey: CryptoKey;
  readonly trustDomain: string;
}

async function issue(by: Issuer, request: IssueRequest): Promise<Certificate> {
  if (!isNodeKey(request.spki)) {
    throw new MeshError("CERT_UNTRUSTED", `the key of ${request.role} ${request.name} is not an ECDSA P-256 key`);
  }
  const x509 = await encoder();
  const identity: Identity = { trustDomain: by.trustDomain, role: request.role, name: request.name };
  const publicKey = await crypto.subtle.importKey("spki", Uint8Array.from(request.spki), ALGORITHM, true, ["verify"]);
  const made = await x509.X509CertificateGenerator.create({
    serialNumber: randomSerial(),
    subject: `CN=${request.name}`,
    issuer: new x509.X509Certificate(Uint8Array.from(by.issuer.raw)).subjectName,
    notBefore: seconds(request.now - BACKDATE_MS),
    notAfter: seconds(request.now + (request.lifetimeMs ?? CERTIFICATE_LIFETIME_MS)),
    signingAlgorithm: ALGORITHM,
    publicKey,
    signingKey: by.privateKey,
    extensions: [
      new x509.BasicConstraintsExtension(false, undefined, true),
      new x509.KeyUsagesExtension(x509.KeyUsageFlags.digitalSignature, true),
      new x509.ExtendedKeyUsageExtension([x509.ExtendedKeyUsage.serverAuth, x509.ExtendedKeyUsage.clientAuth]),
      new x509.SubjectAlternativeNameExtension([{ type: "url", value: identityUri(identity) }]),
    ],
  });
  const certificate = parseCertificate(new Uint8Array(made.rawData));
  if (!sameBytes(certificate.spki, request.spki) || !sameBytes(certificate.issuer, by.issuer.subject)) {
    throw new MeshError("INTERNAL", "a certificate was made that does not say what it should");
  }
  return certificate;
}

/** Loads the encoder once. It works on decorators, hence the metadata shim first. */
async function encoder(): Promise<X509> {
  await import("reflect-metadata");
  const x509 = await import("@peculiar/x509");
  x509.cryptoProvider.set(crypto);
  return x509;
}

async function importKey(pem: string): Promise<{ privateKey: CryptoKey; spki: Uint8Array }> {
  const body = /-----BEGIN PRIVATE KEY-----([A-Za-z0-9+/=\s]+)-----END PRIVATE KEY-----/.exec(pem);
  if (!body) throw new MeshError("STATE_INVALID", `${CA_KEY_FILE} holds no PKCS #8 private key`);
  const { createPrivateKey, createPublicKey } = await import("node:crypto");
  const object = createPrivateKey({ key: Buffer.from(body[1]!, "base64"), format: "der", type: "pkcs8" });
  const der = object.export({ format: "der", type: "pkcs8" });
  const privateKey = await crypto.subtle.importKey("pkcs8", Uint8Array.from(der), ALGORITHM, false, ["sign"]);
  return { privateKey, spki: new Uint8Array(createPublicKey(object).export({ format: "der", type: "spki" })) };
}

async function required(files: StateFiles, name: string): Promise<string> {
  const text = await files.read(name);
  if (text !== undefined) return text;
  throw new MeshError("STATE_INVALID", `${name} is missing from the server's state directory`, {
    hint: "restore it from a backup; on a server that no node has joined yet, remove ca.crt and ca.key to start anew",
  });
}

function logLine(c: Certificate, request: IssueRequest): string {
  return JSON.stringify({
    time: new Date(request.now).toISOString(),
    role: request.role,
    name: request.name,
    serial: c.serial,
    keyHash: c.keyHash,
    notAfter: new Date(c.notAfter).toISOString(),
    why: request.why,
  }) + "\n";
}

/** 127 random bits: positive, and far beyond what RFC 5280 §4.1.2.2 and browsers ask for. */
function randomSerial(): string {
  const bytes = crypto.getRandomValues(new Uint8Array(16));
  bytes[0] = (bytes[0]! & 0x7f) | 0x40;
  return Buffer.from(bytes).toString("hex");
}

/** Certificates have whole seconds. */
function seconds(ms: WallMs): Date {
  return new Date(Math.floor(ms / 1000) * 1000);
}
