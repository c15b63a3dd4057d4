/**
 * Every reason the mesh can give, in one place. The same codes appear in errors, on the wire (as the number given
 * here), in metrics, in the access line, in `status` and in tests; a reader who greps a code finds all of them.
 */

/**
 * Code → number on the wire. Numbers are never reused; an unknown number is read as `INTERNAL`.
 * 0 is reserved for "no reason".
 */
export const REASONS = {
  /** A bug of ours: something that cannot happen did. */
  INTERNAL: 1,
  /** Bytes that break the protocol or a limit of it. */
  PROTOCOL: 2,
  /** The other side went away (process ended, connection lost). */
  PEER_GONE: 3,
  /** Closed on purpose because this agent stops. */
  SHUTDOWN: 4,
  /** A deadline passed. */
  TIMEOUT: 5,
  /** A cap was reached; see the message for which one. */
  LIMIT: 6,
  /** No such Service, port or slot in the receiver's own snapshot. */
  NO_SERVICE: 7,
  /** The Service has no usable endpoint. */
  NO_ENDPOINT: 8,
  /** The address asked for is not one the receiver serves (design: authorise each OPEN). */
  NOT_ALLOWED: 9,
  /** The endpoint refused the connection (RST). */
  DIAL_REFUSED: 10,
  /** The endpoint did not answer. */
  DIAL_TIMEOUT: 11,
  /** No route to the endpoint. */
  DIAL_UNREACHABLE: 12,
  /** The connection was reset by the application. */
  RESET: 13,
  /** The peer is not connected to any server we are connected to. */
  PEER_OFFLINE: 14,
  /** No node of that name is known. */
  UNKNOWN_NODE: 15,
  /** Not connected to a server. */
  SERVER_UNREACHABLE: 16,
  /** A certificate that is not from our authority, or for another name. */
  CERT_UNTRUSTED: 17,
  /** A certificate beyond its validity and the offline grace. */
  CERT_EXPIRED: 18,
  /** A certificate or node that was revoked. */
  REVOKED: 19,
  /** A join token that does not exist or has a wrong secret. */
  TOKEN_INVALID: 20,
  /** A join token beyond its time. */
  TOKEN_EXPIRED: 21,
  /** A join token that was used as often as it may be. */
  TOKEN_USED: 22,
  /** A join token that is bound to another node name. */
  TOKEN_NAME: 23,
  /** The node name is enrolled with another key. */
  NODE_KEY_MISMATCH: 24,
  /** The server's authority is not the pinned one. */
  PIN_MISMATCH: 25,
  /** The machine's clock differs too much from the server's. */
  CLOCK_SKEW: 26,
  /** Two sides have no protocol version in common. */
  VERSION: 27,
  /** A configuration value that cannot be used. */
  CONFIG_INVALID: 28,
  /** Nothing has been learned from a metadata source yet. */
  NOT_SYNCED: 29,
  /** The kernel refused a rule, link, route or socket. */
  KERNEL: 30,
  /** The endpoint is gone from the metadata. */
  ENDPOINT_REMOVED: 31,
  /** A file in a state directory that is missing, damaged or does not fit the others. */
  STATE_INVALID: 32,
  /** An object from a metadata source that cannot be used; the rest goes on. */
  OBJECT_INVALID: 33,
  /** Pushed metadata that this node does not believe: an address or name outside what it was told to accept. */
  META_REFUSED: 34,
  /** Another Service claimed the same address before. */
  CLAIM_LOST: 35,
  /** A metadata source refuses what we ask for (missing rights). */
  SOURCE_FORBIDDEN: 36,
  /** A metadata source does not know a kind of object (missing CRD). */
  SOURCE_UNKNOWN: 37,
  /** A snapshot on disk that cannot be read. */
  SNAPSHOT_INVALID: 38,
  /** Valid, but not something the mesh carries (SCTP ports, slices of DNS names). */
  UNSUPPORTED: 39,
  /** A program of the system that a command needs is not installed. */
  TOOL_MISSING: 40,
  /** Another connection of the same node took this one's place. */
  REPLACED: 41,
  /** Every resolver for other names is this one itself: a query would come back for ever. */
  DNS_LOOP: 42,
} as const;

export type ReasonCode = keyof typeof REASONS;

const BY_NUMBER = new Map<number, ReasonCode>(
  (Object.entries(REASONS) as [ReasonCode, number][]).map(([code, n]) => [n, code]),
);

/** The number of a code on the wire. */
export function reasonNumber(code: ReasonCode): number {
  return REASONS[code];
}

/** The code of a number on the wire; a number of a later version reads as `INTERNAL`. */
export function reasonCode(n: number): ReasonCode {
  return BY_NUMBER.get(n) ?? "INTERNAL";
}

/**
 * An error with a stable code. The message says what failed and why, without a final period; `hint` says what to do.
 * Printed by the CLI as `error: message; try: hint`, after a message of several lines on a line of its own.
 */
export class MeshError extends Error {
  override readonly name = "MeshError";
  readonly code: ReasonCode;
  readonly hint: string | undefined;

  constructor(code: ReasonCode, message: string, options: { hint?: string; cause?: unknown } = {}) {
    super(message, options.cause === undefined ? undefined : { cause: options.cause });
    this.code = code;
    this.hint = options.hint;
  }
}

/** What a person reads: the message, the chain of causes, and the hint. */
export function describe(error: unknown): string {
  const { text, hint } = explain(error);
  // Below a list the hint is about all of it, not about the last entry.
  return text + (hint ? `${text.includes("\n") ? "\n" : "; "}try: ${hint}` : "");
}

/** What failed and why, and apart from it what to do, for places that show the two in their own way. */
export function explain(error: unknown): { readonly text: string; readonly hint?: string } {
  const parts: string[] = [];
  let hint: string | undefined;
  let e: unknown = error;
  while (e instanceof Error && parts.length < 6) {
    if (e.message && !parts.includes(e.message)) parts.push(e.message);
    if (e instanceof MeshError && e.hint) hint ??= e.hint;
    e = e.cause;
  }
  if (parts.length === 0) parts.push(String(error));
  return { text: parts.join(": "), ...(hint ? { hint } : {}) };
}

/** The code of any thrown value: its own, or `INTERNAL`. */
export function codeOf(error: unknown): ReasonCode {
  return error instanceof MeshError ? error.code : "INTERNAL";
}

/** Ends an exhaustive switch: the compiler refuses a case that was forgotten. */
export function assertNever(value: never): never {
  throw new MeshError("INTERNAL", `Unexpected value ${JSON.stringify(value)}`);
}
