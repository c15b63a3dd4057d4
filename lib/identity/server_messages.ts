/**
 * What servers of one mesh say to each other: `POST /v1/server-join` (the joining one has a token and the pin) and
 * `POST /v1/server-sync` (both have certificates). JSON, version 1, like messages.ts.
 */
import { Buffer } from "node:buffer";
import type { WallMs } from "../clock.ts";
import { AUTHORITY_STATE, type AuthorityState } from "./authority_state.ts";
import { type Enrolment, ENROLMENTS } from "./enrolment.ts";
import { type Member, MEMBERS } from "./members.ts";
import { type Answer, IDENTITY_VERSION, MAX_REQUEST_BYTES, parseVersioned, refusalOf, REFUSED } from "./messages.ts";
import { MAX_REVOCATIONS, REVOCATION_ENTRY } from "./revocation.ts";
import { LIFTED, type SharedRevocations } from "./revocation_registry.ts";
import { array, integer, object, optional, string, type Validator } from "./shape.ts";

export const SERVER_JOIN_PATH = "/v1/server-join";
export const SERVER_SYNC_PATH = "/v1/server-sync";
/** A request or answer between servers: 20 000 nodes and 10 000 revocations are 6 MB. */
export const MAX_SERVER_BYTES = 8 * 1024 * 1024;
/** Text of the issuance log in one answer; more is asked for at once. */
export const MAX_ISSUED_BYTES = 64 * 1024;

/** Everything that all servers of a mesh know alike, besides the authority. */
export interface SharedState {
  readonly revocations: SharedRevocations;
  readonly nodes: readonly Enrolment[];
  readonly servers: readonly Member[];
}

export interface ServerJoinRequest {
  readonly token: string;
  readonly name: string;
  readonly url: string;
  /** SubjectPublicKeyInfo, P-256. */
  readonly spki: Uint8Array;
  readonly time: WallMs;
  /** 16 random bytes, hex. */
  readonly nonce: string;
  /** ECDSA-Sig-Value over {@link serverProofText}. */
  readonly proof: Uint8Array;
}

/** What a joining server gets: the authority itself. Whoever logs this gives the mesh away. */
export interface ServerGrant {
  readonly name: string;
  readonly trustDomain: string;
  readonly authority: AuthorityState;
  readonly serviceCidrs: readonly string[];
  readonly zone: string;
  /** Name of the server that granted. */
  readonly server: string;
  readonly time: WallMs;
  readonly state: SharedState;
}

/** What one server says about itself, asking or answering. */
export interface Sync {
  /** Of its {@link SharedState}. */
  readonly digest: string;
  /** Of its authority. */
  readonly generation: number;
  readonly state?: SharedState | undefined;
  readonly authority?: AuthorityState | undefined;
}

export interface SyncRequest extends Sync {
  /** Bytes of the other's issuance log that are known here. */
  readonly issuedFrom: number;
}

export interface SyncAnswer extends Sync {
  /** What follows {@link SyncRequest.issuedFrom} in its issuance log: whole lines. */
  readonly issued: string;
}

const STATE: Validator<SharedState> = object({
  revocations: object({ entries: array(REVOCATION_ENTRY, MAX_REVOCATIONS), lifted: LIFTED }),
  nodes: ENROLMENTS,
  servers: MEMBERS,
});

const JOIN = object({
  token: string(1, 100),
  name: string(1, 63),
  url: string(1, 300),
  key: string(1, 200),
  time: integer(0),
  nonce: string(32, 32, /^[0-9a-f]{32}$/),
  proof: string(1, 200),
});

const GRANT: Validator<ServerGrant> = object({
  name: string(1, 63),
  trustDomain: string(1, 255),
  authority: AUTHORITY_STATE,
  serviceCidrs: array(string(1, 64), 16),
  zone: string(1, 253),
  server: string(1, 63),
  time: integer(0),
  state: STATE,
});

const sync = {
  digest: string(64, 64, /^[0-9a-f]{64}$/),
  generation: integer(0),
  state: optional(STATE),
  authority: optional(AUTHORITY_STATE),
};
const SYNC_REQUEST: Validator<SyncRequest> = object({ ...sync, issuedFrom: integer(0) });
const SYNC_ANSWER: Validator<SyncAnswer> = object({ ...sync, issued: string(0, 2 * MAX_ISSUED_BYTES) });

/** The text whose signature proves a joining server's key; worthless for another token, name, address or server. */
export function serverProofText(claim: {
  readonly tokenId: string;
  readonly name: string;
  readonly url: string;
  readonly keyHash: string;
  readonly time: WallMs;
  readonly nonce: string;
  readonly serverKeyHash: string;
}): Uint8Array {
  const { tokenId, name, url, keyHash, time, nonce, serverKeyHash } = claim;
  const lines = ["edgemesh server join 1", tokenId, name, url, keyHash, String(time), nonce, serverKeyHash];
  return new TextEncoder().encode(lines.join("\n"));
}

export function writeServerJoin(r: ServerJoinRequest): string {
  const { spki, proof, ...rest } = r;
  const key = Buffer.from(spki).toString("base64");
  return JSON.stringify({ version: IDENTITY_VERSION, ...rest, key, proof: Buffer.from(proof).toString("base64") });
}

/** Throws PROTOCOL, LIMIT or VERSION. */
export function readServerJoin(text: string): ServerJoinRequest {
  const { key, proof, ...rest } = parse(text, JOIN, "server's join request", MAX_REQUEST_BYTES);
  return {
    ...rest,
    spki: new Uint8Array(Buffer.from(key, "base64")),
    proof: new Uint8Array(Buffer.from(proof, "base64")),
  };
}

/** An answer that holds what was asked for. */
export function serverAnswer(granted: ServerGrant | SyncAnswer): Answer {
  return { status: 200, body: JSON.stringify({ version: IDENTITY_VERSION, granted }) };
}

/** Throws the other server's refusal, or PROTOCOL, LIMIT, VERSION. */
export function readServerGrant(text: string): ServerGrant {
  return answered(text, GRANT);
}

export function writeSync(request: SyncRequest): string {
  return JSON.stringify({ version: IDENTITY_VERSION, ...request });
}

/** Throws PROTOCOL, LIMIT or VERSION. */
export function readSync(text: string): SyncRequest {
  return parse(text, SYNC_REQUEST, "server's state", MAX_SERVER_BYTES);
}

/** Throws the other server's refusal, or PROTOCOL, LIMIT, VERSION. */
export function readSyncAnswer(text: string): SyncAnswer {
  return answered(text, SYNC_ANSWER);
}

function answered<T>(text: string, granting: Validator<T>): T {
  const shape = object({ granted: optional(granting), refused: optional(REFUSED) });
  const { granted, refused } = parse(text, shape, "server's answer", MAX_SERVER_BYTES);
  if (granted === undefined) throw refusalOf(refused);
  return granted as T;
}

function parse<T>(text: string, check: Validator<T>, what: string, maxBytes: number): T {
  return parseVersioned(text, check, { what, maxBytes, older: "update the older of the two servers" });
}
