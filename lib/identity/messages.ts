/**
 * What agents and servers say to each other about identity: `POST /v1/join` (server authenticated by the pin) and
 * `POST /v1/renew` (both authenticated by certificates). JSON, version 1; both answers have the same form.
 *
 * The join request carries no CSR. The server takes nothing from a CSR but the key and the proof that the sender holds
 * it, and making one would cost every agent an X.509 encoder. The proof here is an ECDSA signature over a text that
 * also names the token, the node and the *server's* key as the agent saw it: a request is worthless at any other
 * server, for any other name and with any other token.
 */
import { Buffer } from "node:buffer";
import type { WallMs } from "../clock.ts";
import { MeshError, type ReasonCode, REASONS } from "../errors.ts";
import { array, boolean, integer, LABELS, object, optional, parseJson, string, type Validator } from "./shape.ts";

export const IDENTITY_VERSION = 1;
export const JOIN_PATH = "/v1/join";
export const RENEW_PATH = "/v1/renew";
/** A request is about 700 bytes. */
export const MAX_REQUEST_BYTES = 8 * 1024;
/** A grant is about 3 KB with one authority; a bundle during rotation and long lists fit. */
export const MAX_REPLY_BYTES = 64 * 1024;

/** What an agent asks when it joins. */
export interface JoinRequest {
  /** The whole token; only ever sent inside the verified connection. */
  readonly token: string;
  readonly node: string;
  /** SubjectPublicKeyInfo, P-256. */
  readonly spki: Uint8Array;
  /** The agent's clock. */
  readonly time: WallMs;
  /** 16 random bytes, hex. */
  readonly nonce: string;
  /** ECDSA-Sig-Value over {@link proofText}. */
  readonly proof: Uint8Array;
  /** Version of the agent, for the log. */
  readonly agent: string;
  /** Join although the clocks differ: for machines that cannot have a right clock. */
  readonly acceptSkew: boolean;
}

/** What every member of the mesh is told at its join and at each renewal. */
export interface MeshInfo {
  /** The only networks in which pushed virtual addresses are believed (design §6). Fixed at the join. */
  readonly serviceCidrs: readonly string[];
  /** DNS zone of the cluster. */
  readonly zone: string;
  /** Addresses of the mesh's servers, `wss://…`. */
  readonly servers: readonly string[];
}

/** What the server grants. */
export interface Grant {
  readonly node: string;
  readonly trustDomain: string;
  /** PEM: the node's certificate, then intermediates if there are any. */
  readonly chainPem: string;
  /** PEM: the authorities to trust from now on. */
  readonly bundlePem: string;
  /** Name of the server that granted. */
  readonly server: string;
  /** The server's time. */
  readonly time: WallMs;
  readonly mesh: MeshInfo;
  readonly labels: Readonly<Record<string, string>>;
}

/** An answer ready to be sent. */
export interface Answer {
  /** HTTP status. */
  readonly status: number;
  /** JSON text. */
  readonly body: string;
}

const MESH_INFO: Validator<MeshInfo> = object({
  serviceCidrs: array(string(1, 64), 16),
  zone: string(1, 253),
  servers: array(string(1, 300), 8),
});

const GRANT: Validator<Grant> = object({
  node: string(1, 63),
  trustDomain: string(1, 255),
  chainPem: string(1, 16_384),
  bundlePem: string(1, 16_384),
  server: string(1, 63),
  time: integer(0),
  mesh: MESH_INFO,
  labels: LABELS,
});

const JOIN = object({
  token: string(1, 100),
  node: string(1, 63),
  key: string(1, 200),
  time: integer(0),
  nonce: string(32, 32, /^[0-9a-f]{32}$/),
  proof: string(1, 200),
  agent: string(1, 64),
  acceptSkew: optional(boolean),
});

const RENEWAL = object({ time: integer(0), agent: string(1, 64) });

/** A refusal inside an answer. */
export interface Refused {
  readonly code: string;
  readonly message: string;
  readonly hint?: string | undefined;
}

export const REFUSED: Validator<Refused> = object({
  code: string(1, 40),
  message: string(1, 2000),
  hint: optional(string(1, 2000)),
});

const ANSWER = object({ granted: optional(GRANT), refused: optional(REFUSED) });

/** The text whose signature proves the key at a join. */
export function proofText(claim: {
  readonly tokenId: string;
  readonly node: string;
  readonly keyHash: string;
  readonly time: WallMs;
  readonly nonce: string;
  /** SHA-256 of the SubjectPublicKeyInfo the server showed in the handshake, hex. */
  readonly serverKeyHash: string;
}): Uint8Array {
  const { tokenId, node, keyHash, time, nonce, serverKeyHash } = claim;
  const lines = ["edgemesh join 1", tokenId, node, keyHash, String(time), nonce, serverKeyHash];
  return new TextEncoder().encode(lines.join("\n"));
}

export function writeJoinRequest(r: JoinRequest): string {
  const key = Buffer.from(r.spki).toString("base64");
  const proof = Buffer.from(r.proof).toString("base64");
  const { token, node, time, nonce, agent, acceptSkew } = r;
  return JSON.stringify({ version: IDENTITY_VERSION, token, node, key, time, nonce, proof, agent, acceptSkew });
}

/** Throws PROTOCOL, LIMIT or VERSION. */
export function readJoinRequest(text: string): JoinRequest {
  const r = parseRequest(text, JOIN, "join request");
  return {
    token: r.token,
    node: r.node,
    spki: new Uint8Array(Buffer.from(r.key, "base64")),
    time: r.time,
    nonce: r.nonce,
    proof: new Uint8Array(Buffer.from(r.proof, "base64")),
    agent: r.agent,
    acceptSkew: r.acceptSkew ?? false,
  };
}

/** Asks for a new certificate for the key that the connection itself proves. */
export function writeRenewRequest(r: { readonly time: WallMs; readonly agent: string }): string {
  return JSON.stringify({ version: IDENTITY_VERSION, ...r });
}

/** Throws PROTOCOL, LIMIT or VERSION. */
export function readRenewRequest(text: string): { readonly time: WallMs; readonly agent: string } {
  return parseRequest(text, RENEWAL, "renew request");
}

export function grantAnswer(granted: Grant): Answer {
  return { status: 200, body: JSON.stringify({ version: IDENTITY_VERSION, granted }) };
}

/** A refusal as an answer. What is not a MeshError is a fault of ours and tells the other side nothing. */
export function refusalAnswer(error: unknown): Answer {
  const e = error instanceof MeshError
    ? error
    : new MeshError("INTERNAL", "the server could not handle the request", { hint: "see the server's log" });
  const refused = { code: e.code, message: e.message, ...(e.hint === undefined ? {} : { hint: e.hint }) };
  return { status: STATUS[e.code] ?? 403, body: JSON.stringify({ version: IDENTITY_VERSION, refused }) };
}

/** The grant in an answer. Throws the server's refusal as a MeshError, or PROTOCOL, LIMIT, VERSION. */
export function readAnswer(text: string): Grant {
  const { granted, refused } = parseVersioned(text, ANSWER, {
    what: "server's answer",
    maxBytes: MAX_REPLY_BYTES,
    older: "update the older of the two",
  });
  if (granted) return granted;
  throw refusalOf(refused);
}

/** The error that a refusal in an answer states. */
export function refusalOf(refused: Refused | undefined): MeshError {
  if (!refused) return new MeshError("PROTOCOL", "the server's answer neither grants nor refuses");
  const code = Object.hasOwn(REASONS, refused.code) ? refused.code as ReasonCode : "INTERNAL";
  return new MeshError(code, refused.message, refused.hint === undefined ? {} : { hint: refused.hint });
}

const STATUS: Partial<Record<ReasonCode, number>> = {
  PROTOCOL: 400,
  VERSION: 400,
  NODE_KEY_MISMATCH: 409,
  LIMIT: 429,
  INTERNAL: 500,
  STATE_INVALID: 500,
};

function parseRequest<T>(text: string, check: Validator<T>, what: string): T {
  return parseVersioned(text, check, { what, maxBytes: MAX_REQUEST_BYTES, older: "update this machine's edgemesh" });
}

/**
 * JSON with a `version` that is judged before the shape: a later version may have another shape, and the sentence must
 * say so. Throws PROTOCOL, LIMIT or VERSION.
 */
export function parseVersioned<T>(
  text: string,
  check: Validator<T>,
  options: { readonly what: string; readonly maxBytes: number; readonly older: string },
): T {
  return parseJson(text, (value, path) => {
    const { version } = object({ version: integer(0) })(value, path);
    if (version !== IDENTITY_VERSION) {
      throw new MeshError("VERSION", `the ${path} has version ${version}; this side speaks ${IDENTITY_VERSION}`, {
        hint: options.older,
      });
    }
    return check(value, path);
  }, options);
}
