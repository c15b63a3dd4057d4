/**
 * The pin: SHA-256 of an authority's public key. It travels in the join command and is all a fresh node knows, so it
 * must not depend on what changes when an authority's certificate is renewed with the same key (kubeadm's
 * `--discovery-token-ca-cert-hash` uses the same form).
 */
import { Buffer } from "node:buffer";
import { timingSafeEqual } from "node:crypto";
import { MeshError } from "../errors.ts";
import { type Certificate, hashKey } from "./certificate.ts";

const PIN = /^sha256:[0-9a-f]{64}$/;

/** `sha256:<64 hex digits>` of a certificate's SubjectPublicKeyInfo. */
export function pinOf(authority: Pick<Certificate, "spki">): string {
  return `sha256:${hashKey(authority.spki)}`;
}

/** Reads a pin as a person may have pasted it (surrounding space, upper-case digits). Throws CONFIG_INVALID. */
export function parsePin(text: string): string {
  const pin = text.trim().toLowerCase();
  if (PIN.test(pin)) return pin;
  throw new MeshError(
    "CONFIG_INVALID",
    `the CA pin ${JSON.stringify(text.slice(0, 100))} is not "sha256:" and 64 hex digits`,
    {
      hint: "copy the whole join command that `edgemesh token create` printed on the server",
    },
  );
}

/** Compares two well-formed pins in a time that does not depend on where they differ. */
export function samePin(a: string, b: string): boolean {
  return a.length === b.length && timingSafeEqual(Buffer.from(a), Buffer.from(b));
}

/** The first authority among `certificates` that has the pinned key. Throws PIN_MISMATCH naming both sides. */
export function pinnedAuthority(certificates: readonly Certificate[], pin: string): Certificate {
  const authorities = certificates.filter((c) => c.isCa && c.signsCertificates);
  const found = authorities.find((c) => samePin(pinOf(c), pin));
  if (found) return found;
  const presented = authorities.length > 0 ? authorities.map(pinOf).join(", ") : "no authority at all";
  throw new MeshError("PIN_MISMATCH", `the server presented ${presented}, but ${pin} is pinned`, {
    hint: "check that the server address is right; if the server was set up anew, take the join command that " +
      "`edgemesh token create` prints there. If neither explains it, something between this machine and the server " +
      "is intercepting the connection",
  });
}
