/**
 * What agents and servers tell each other about the authorities they trust, so that a new one is known everywhere within
 * seconds and nobody is left behind unseen. Layout: PROTOCOL.md, "AUTHORITIES".
 */
import { MeshError } from "../../errors.ts";

/** The feature's name in HELLO and WELCOME. */
export const AUTHORITIES_FEATURE = "authorities";
/** Largest body. */
export const MAX_AUTHORITIES_BODY = 2048;
/** Authorities one side can trust at a time. */
const MAX_TRUSTED = 8;
const PIN = /^sha256:[0-9a-f]{64}$/;

export interface AuthoritiesMessage {
  readonly type: "authorities";
  /** Pins of all that are trusted. */
  readonly trusted: readonly string[];
  /** Server: the pin that certificates of nodes come from now. Agent: the one its own comes from. */
  readonly issuer: string;
}

/** Checks a decoded body. Throws MeshError PROTOCOL. */
export function readAuthorities(body: Readonly<Record<string, unknown>>): AuthoritiesMessage {
  const { trusted, issuer } = body;
  const isPin = (value: unknown): value is string => typeof value === "string" && PIN.test(value);
  if (!Array.isArray(trusted) || trusted.length > MAX_TRUSTED || !trusted.every(isPin) || !isPin(issuer)) {
    throw new MeshError("PROTOCOL", "AUTHORITIES does not name pins");
  }
  return { type: "authorities", trusted, issuer };
}
