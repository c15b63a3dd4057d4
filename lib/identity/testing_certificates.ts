/** Certificates that the product's authority would never make. Imported by tests only. */
import "reflect-metadata";
import * as x509 from "@peculiar/x509";
import { Buffer } from "node:buffer";
import { sign } from "node:crypto";
import type { WallMs } from "../clock.ts";
import { DerReader, TAG } from "./der.ts";
import { TEST_NOW, testKey } from "./testing.ts";

const ALGORITHM = { name: "ECDSA", namedCurve: "P-256", hash: "SHA-256" } as const;
const DAY = 24 * 3600 * 1000;

/** What a certificate shall say; everything has a default that makes a good leaf of node `a`. */
export interface Recipe {
  readonly subject?: string;
  readonly uris?: readonly string[];
  readonly ca?: boolean;
  readonly pathLength?: number;
  readonly usages?: readonly string[];
  readonly notBefore?: WallMs;
  readonly notAfter?: WallMs;
  readonly extra?: readonly x509.Extension[];
  /** Signs; absent = self-signed. */
  readonly by?: { readonly der: Uint8Array; readonly keyPem: string };
}

export interface Made {
  readonly der: Uint8Array;
  readonly keyPem: string;
}

/** Makes a certificate with a fresh key. */
export async function makeCertificate(recipe: Recipe = {}): Promise<Made> {
  x509.cryptoProvider.set(crypto);
  const { keyPem, spki } = testKey();
  const own = await importKey(keyPem);
  const publicKey = await crypto.subtle.importKey("spki", Uint8Array.from(spki), ALGORITHM, true, ["verify"]);
  const subject = recipe.subject ?? "CN=a";
  const uris = recipe.uris ?? ["spiffe://mesh.test/node/a"];
  const flags = x509.KeyUsageFlags;
  const made = await x509.X509CertificateGenerator.create({
    serialNumber: "5a" + Buffer.from(crypto.getRandomValues(new Uint8Array(8))).toString("hex"),
    subject,
    issuer: recipe.by ? new x509.X509Certificate(Uint8Array.from(recipe.by.der)).subjectName : subject,
    notBefore: new Date(recipe.notBefore ?? TEST_NOW - DAY / 24),
    notAfter: new Date(recipe.notAfter ?? TEST_NOW + DAY),
    signingAlgorithm: ALGORITHM,
    publicKey,
    signingKey: recipe.by ? await importKey(recipe.by.keyPem) : own,
    extensions: [
      new x509.BasicConstraintsExtension(recipe.ca ?? false, recipe.pathLength, true),
      new x509.KeyUsagesExtension(recipe.ca ? flags.keyCertSign : flags.digitalSignature, true),
      ...(recipe.ca
        ? []
        : [new x509.ExtendedKeyUsageExtension([...(recipe.usages ?? ["1.3.6.1.5.5.7.3.1", "1.3.6.1.5.5.7.3.2"])])]),
      ...(uris.length > 0
        ? [new x509.SubjectAlternativeNameExtension(uris.map((value) => ({ type: "url" as const, value })))]
        : []),
      ...(recipe.extra ?? []),
    ],
  });
  return { der: new Uint8Array(made.rawData), keyPem };
}

/** An extension of an unknown kind. */
export function unknownExtension(critical: boolean): x509.Extension {
  return new x509.Extension("1.3.6.1.4.1.99999.1", critical, new Uint8Array([5, 0]));
}

/** Takes a certificate apart, lets `edit` change the parts of its signed half, and signs it again. */
export function resign(der: Uint8Array, keyPem: string, edit: (parts: Uint8Array[]) => Uint8Array[]): Uint8Array {
  const outer = new DerReader(new DerReader(der).next(TAG.SEQUENCE).content);
  const tbs = new DerReader(outer.next(TAG.SEQUENCE).content);
  const algorithm = outer.next(TAG.SEQUENCE).raw;
  const parts: Uint8Array[] = [];
  while (!tbs.done) parts.push(tbs.next().raw);
  const signed = element(TAG.SEQUENCE, ...edit(parts));
  const signature = sign("sha256", signed, keyPem);
  return element(TAG.SEQUENCE, signed, algorithm, element(TAG.BIT_STRING, Uint8Array.of(0), signature));
}

/** One DER element of the given contents. */
export function element(tag: number, ...contents: readonly Uint8Array[]): Uint8Array {
  const content = Buffer.concat(contents);
  const n = content.length;
  const length = n < 0x80 ? [n] : n < 0x100 ? [0x81, n] : [0x82, n >> 8, n & 255];
  return new Uint8Array(Buffer.concat([Buffer.from([tag, ...length]), content]));
}

async function importKey(keyPem: string): Promise<CryptoKey> {
  const der = Buffer.from(keyPem.replace(/-----[^-]+-----|\s/g, ""), "base64");
  return await crypto.subtle.importKey("pkcs8", Uint8Array.from(der), ALGORITHM, true, ["sign"]);
}
