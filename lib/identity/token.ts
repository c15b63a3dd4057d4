/**
 * Join tokens: `em_<id>.<secret>`. The id may be shown in lists and logs; the secret is shown once, when the token is
 * made, and only its hash is kept. Decisions here are pure; token_store.ts keeps the tokens.
 */
import { Buffer } from "node:buffer";
import { createHash, timingSafeEqual } from "node:crypto";
import type { WallMs } from "../clock.ts";
import { MeshError } from "../errors.ts";
import type { Role } from "./names.ts";

/** 32 characters that cannot be mistaken for each other when read aloud or retyped: no 0, 1, l, o. */
const ALPHABET = "abcdefghijkmnpqrstuvwxyz23456789";
/** 40 bits: enough that ids do not collide among {@link MAX_TOKENS}. */
const ID_CHARS = 8;
/** 130 bits: cannot be guessed at any rate, so a plain hash is enough to store it. */
const SECRET_CHARS = 26;
const TOKEN = new RegExp(`^em_([${ALPHABET}]{${ID_CHARS}})\\.([${ALPHABET}]{${SECRET_CHARS}})$`);

/** An id as it appears in lists. */
export const TOKEN_ID = new RegExp(`^[${ALPHABET}]{${ID_CHARS}}$`);
/** Tokens kept at a time, expired ones included. */
export const MAX_TOKENS = 1000;
/** Nodes one token may enrol: a golden image for a large fleet. */
export const MAX_TOKEN_USES = 10_000;
/** Default life (design §5). */
export const DEFAULT_TOKEN_TTL_MS = 3600 * 1000;
/** Expired tokens are remembered this long, so that a late join is told "expired" and not "unknown". */
export const KEEP_EXPIRED_MS = 7 * 24 * 3600 * 1000;

export interface ParsedToken {
  readonly id: string;
  readonly secret: string;
}

/** One enrolment that a token paid for. */
export interface TokenUse {
  readonly node: string;
  readonly keyHash: string;
  readonly at: WallMs;
}

/** A token as the server keeps it. */
export interface TokenRecord {
  readonly id: string;
  /** SHA-256 of the secret, hex. */
  readonly secretHash: string;
  readonly createdAt: WallMs;
  readonly expiresAt: WallMs;
  readonly maxUses: number;
  readonly uses: readonly TokenUse[];
  /** Whom it admits: a node, or a server that gets the authority's key with it. */
  readonly role: Role;
  /** The only name it is good for, if it is bound to one. */
  readonly node?: string | undefined;
  /** Given to the nodes that join with it. */
  readonly labels: Readonly<Record<string, string>>;
}

/** Draws a new token. */
export function newToken(): ParsedToken & { readonly text: string } {
  const id = random(ID_CHARS);
  const secret = random(SECRET_CHARS);
  return { id, secret, text: `em_${id}.${secret}` };
}

/** Reads a token, allowing the space and line end that come with a file. Throws TOKEN_INVALID; never repeats the text. */
export function parseToken(text: string): ParsedToken {
  const m = TOKEN.exec(text.trim());
  if (m) return { id: m[1]!, secret: m[2]! };
  throw new MeshError(
    "TOKEN_INVALID",
    `the join token is not of the form em_${"x".repeat(ID_CHARS)}.<${SECRET_CHARS} characters>`,
    {
      hint: "copy the token again from the output of `edgemesh token create`",
    },
  );
}

/** SHA-256 of a secret, hex. */
export function hashSecret(secret: string): string {
  return createHash("sha256").update(secret).digest("hex");
}

/** What is asked of a token. */
export interface TokenDemand {
  readonly secret: string;
  /** What the holder wants to be. */
  readonly role: Role;
  readonly node: string;
  readonly keyHash: string;
  readonly now: WallMs;
}

/**
 * Decides whether a token admits a node. Returns whether a use has to be recorded: not when the same node with the
 * same key repeats a join whose answer was lost. Throws TOKEN_INVALID, TOKEN_EXPIRED, TOKEN_USED or TOKEN_NAME.
 *
 * What is wrong beyond the secret is only told to whoever knows the secret; an unknown id and a wrong secret take the
 * same time and get the same answer.
 */
export function judgeToken(record: TokenRecord | undefined, demand: TokenDemand): { readonly fresh: boolean } {
  const given = Buffer.from(hashSecret(demand.secret), "hex");
  const kept = Buffer.from(record?.secretHash ?? NO_HASH, "hex");
  if (!timingSafeEqual(given, kept) || !record) {
    throw new MeshError("TOKEN_INVALID", "the join token is not known to this server", {
      hint:
        "it may be mistyped, revoked, or of another server; make a new one with `edgemesh token create` on the server",
    });
  }
  if (record.role !== demand.role) throw wrongRole(record.role);
  if (record.node !== undefined && record.node !== demand.node) {
    throw new MeshError("TOKEN_NAME", `the join token is for ${record.role} ${record.node}, not for ${demand.node}`, {
      hint: record.role === "server"
        ? `join with --name ${record.node}, or make a token with \`edgemesh token create --server ${demand.node}\``
        : `join with --node-name ${record.node}, or make a token with \`edgemesh token create --node ${demand.node}\``,
    });
  }
  if (demand.now >= record.expiresAt) {
    throw new MeshError("TOKEN_EXPIRED", `the join token expired ${new Date(record.expiresAt).toISOString()}`, {
      hint: "make a new one with `edgemesh token create` on the server; --ttl sets how long it is good for",
    });
  }
  // A server's answer holds the authority's key: whoever could repeat the request must not get it again.
  const repeatable = record.role === "node";
  if (repeatable && record.uses.some((u) => u.node === demand.node && u.keyHash === demand.keyHash)) {
    return { fresh: false };
  }
  if (record.uses.length >= record.maxUses) {
    const last = record.uses.at(-1)!;
    const times = record.maxUses === 1 ? "is for one join and" : `is for ${record.maxUses} joins and`;
    throw new MeshError(
      "TOKEN_USED",
      `the join token ${times} was used up by ${record.role} ${last.node} on ${new Date(last.at).toISOString()}`,
      { hint: "make a new one with `edgemesh token create` on the server; --uses N makes one for N nodes" },
    );
  }
  return { fresh: true };
}

function wrongRole(role: Role): MeshError {
  return role === "server"
    ? new MeshError("TOKEN_NAME", "the join token is for a server, not for a node", {
      hint: "make one for a node with `edgemesh token create`",
    })
    : new MeshError("TOKEN_NAME", "the join token is for a node, not for a server", {
      hint: "make one for a server with `edgemesh token create --server NAME`",
    });
}

/** Compared with when the id is unknown: a hash no secret is known for. */
const NO_HASH = createHash("sha256").update(crypto.getRandomValues(new Uint8Array(32))).digest("hex");

function random(count: number): string {
  let text = "";
  // 256 is a multiple of 32: the remainder is uniform.
  for (const b of crypto.getRandomValues(new Uint8Array(count))) text += ALPHABET[b % ALPHABET.length];
  return text;
}
