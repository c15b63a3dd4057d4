/**
 * Who a certificate speaks for: `spiffe://<trust-domain>/node/<name>` and `spiffe://<trust-domain>/server/<name>`.
 * The form is one exact text per identity, so that two spellings can never name one party.
 * Source: SPIFFE-ID specification §2 (lower-case trust domain, no port, query, fragment or percent-encoding).
 */
import { isNodeName } from "../addr.ts";

/** What a certificate's holder may act as. */
export type Role = "node" | "server";

/** A party of one mesh. */
export interface Identity {
  readonly trustDomain: string;
  readonly role: Role;
  /** RFC 1123 label. */
  readonly name: string;
}

/** SPIFFE-ID §2.1: at most 255 bytes of lower-case letters, digits, dots, dashes and underscores. */
const TRUST_DOMAIN = /^[a-z0-9]([a-z0-9._-]{0,253}[a-z0-9])?$/;

/** Whether a text can be a trust domain. */
export function isTrustDomain(text: string): boolean {
  return TRUST_DOMAIN.test(text);
}

/** The URI that names a party. The parts must be valid ({@link isTrustDomain}, `isNodeName`). */
export function identityUri(identity: Identity): string {
  return `spiffe://${identity.trustDomain}/${identity.role}/${identity.name}`;
}

/** The URI of the authority itself (SPIFFE X509-SVID §3.1: a signing certificate carries the bare trust domain). */
export function authorityUri(trustDomain: string): string {
  return `spiffe://${trustDomain}`;
}

/** The party a URI names, or undefined when the text is not exactly what {@link identityUri} writes. */
export function parseIdentityUri(uri: string): Identity | undefined {
  const parts = uri.split("/");
  const [scheme, empty, trustDomain, role, name] = parts;
  if (parts.length !== 5 || scheme !== "spiffe:" || empty !== "") return undefined;
  if (!trustDomain || !isTrustDomain(trustDomain) || !name || !isNodeName(name)) return undefined;
  if (role !== "node" && role !== "server") return undefined;
  return { trustDomain, role, name };
}

/** The trust domain an authority's URI names, or undefined. */
export function parseAuthorityUri(uri: string): string | undefined {
  const domain = uri.startsWith("spiffe://") ? uri.slice("spiffe://".length) : "";
  return isTrustDomain(domain) ? domain : undefined;
}
