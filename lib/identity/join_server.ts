/**
 * The server's decision about a join. One order for all refusals, each with the sentence a person needs: form, rate,
 * token, name, proof, revocation, known key, clock. Nothing is used up by a join that is refused.
 */
import type { MonoMs, WallMs } from "../clock.ts";
import { isNodeName } from "../addr.ts";
import { codeOf, MeshError } from "../errors.ts";
import type { Backoff } from "./backoff.ts";
import type { CertificateAuthority } from "./ca.ts";
import { hashKey, isNodeKey, verifySignature } from "./certificate.ts";
import type { Enrolments } from "./enrolment.ts";
import { type Grant, type JoinRequest, type MeshInfo, proofText, readJoinRequest } from "./messages.ts";
import type { Revocations } from "./revocation.ts";
import { type ParsedToken, parseToken } from "./token.ts";
import type { TokenHolder, TokenStore } from "./token_store.ts";

/**
 * A fresh machine's clock may be off by this much at the join. More is refused, because a person is watching and can
 * set it; once joined, a wrong clock only warns (time.ts).
 */
export const MAX_JOIN_SKEW_MS = 5 * 60 * 1000;

/** What a join is judged by and changes. */
export interface JoinState {
  readonly authority: CertificateAuthority;
  readonly tokens: TokenStore;
  readonly enrolments: Enrolments;
  readonly revocations: Revocations;
  readonly backoff: Backoff;
  readonly serverName: string;
  /** Key of the certificate this server shows in handshakes now. */
  readonly serverKeyHash: string;
  readonly mesh: MeshInfo;
  readonly lifetimeMs: number;
}

export interface JoinMoment {
  /** IP the request came from. */
  readonly source: string;
  readonly now: WallMs;
  readonly mono: MonoMs;
}

/**
 * Admits a node or throws the refusal: PROTOCOL, LIMIT, VERSION, TOKEN_*, CERT_UNTRUSTED (proof), REVOKED,
 * NODE_KEY_MISMATCH, CLOCK_SKEW. Callers run one join at a time (IdentityServer does): two machines that claim one new
 * name at once must not both get it.
 */
export async function admitJoin(text: string, state: JoinState, at: JoinMoment): Promise<Grant> {
  checkRate(state.backoff, at);
  const request = readJoinRequest(text);
  const keyHash = hashKey(request.spki);
  const who = { role: "node", node: request.node, keyHash, now: at.now } as const;
  const token = checkToken(request.token, state, { ...at, who });
  checkName(request.node);
  checkProof(request, { tokenId: token.id, keyHash, serverKeyHash: state.serverKeyHash });
  checkRevoked(state.revocations, request.node, keyHash);
  state.enrolments.checkKey(request.node, keyHash);
  checkClock(request, at.now);

  // Each step is on disk before the next: a crash in between never leaves a certificate without an enrolment, or an
  // enrolment without a used token; the same machine may repeat the join until the token expires.
  const redeemed = await state.tokens.redeem(token, who);
  const { id, labels } = redeemed;
  await state.enrolments.enrol({ node: request.node, keyHash, enrolledAt: Math.floor(at.now), token: id, labels });
  const { authority } = state;
  const { lifetimeMs } = state;
  const why = `join token=${id} from=${at.source} agent=${request.agent}`;
  const issued = await authority.issue({
    role: "node",
    name: request.node,
    spki: request.spki,
    now: at.now,
    lifetimeMs,
    why,
  });
  return {
    node: request.node,
    trustDomain: authority.trustDomain,
    chainPem: issued.chainPem,
    bundlePem: authority.bundlePem,
    server: state.serverName,
    time: Math.floor(at.now),
    mesh: state.mesh,
    labels: state.enrolments.get(request.node)?.labels ?? labels,
  };
}

/** Throws LIMIT while a source that guessed has to wait. */
export function checkRate(backoff: Backoff, at: JoinMoment): void {
  const waitMs = backoff.waitMs(at.source, at.mono);
  if (waitMs <= 0) return;
  throw new MeshError("LIMIT", `too many wrong join tokens came from ${at.source}`, {
    hint: `wait ${Math.ceil(waitMs / 1000)} seconds, then try with a token from \`edgemesh token create\``,
  });
}

/** Judges a token; guesses at secrets count against the source. Throws TOKEN_*. */
export function checkToken(
  text: string,
  state: Pick<JoinState, "tokens" | "backoff">,
  at: JoinMoment & { readonly who: TokenHolder },
): ParsedToken {
  try {
    const token = parseToken(text);
    state.tokens.check(token, at.who);
    state.backoff.succeed(at.source);
    return token;
  } catch (e) {
    // Only a wrong secret counts: whoever holds a real but expired token is no guesser.
    if (codeOf(e) === "TOKEN_INVALID") state.backoff.fail(at.source, at.mono);
    throw e;
  }
}

function checkName(node: string): void {
  if (isNodeName(node)) return;
  throw new MeshError("PROTOCOL", `${JSON.stringify(node)} cannot be a node name`, {
    hint: "use lower-case letters, digits and dashes, at most 63 characters",
  });
}

function checkProof(
  request: JoinRequest,
  by: { readonly tokenId: string; readonly keyHash: string; readonly serverKeyHash: string },
): void {
  const { node, time, nonce } = request;
  const proven = isNodeKey(request.spki) &&
    verifySignature(request.spki, proofText({ ...by, node, time, nonce }), request.proof);
  if (proven) return;
  throw new MeshError("CERT_UNTRUSTED", `the request does not prove that ${node} holds the key it names`, {
    hint: "try again; if it stays, something between the agent and the server ends TLS: it must pass through untouched",
  });
}

function checkRevoked(revocations: Revocations, node: string, keyHash: string): void {
  const entry = revocations.find({ node, keyHash, serial: "" });
  if (!entry) return;
  throw new MeshError(
    "REVOKED",
    `${entry.by === "node" ? `node ${node}` : `the key of ${node}`} was revoked on ${new Date(entry.at).toISOString()}`,
    {
      hint: entry.by === "node"
        ? "an operator can lift the revocation on the server"
        : "remove the state directory on this machine, so that it makes a new key, and join again with a new token",
    },
  );
}

/** Throws CLOCK_SKEW. */
export function checkClock(request: Pick<JoinRequest, "time" | "acceptSkew">, now: WallMs): void {
  const skew = request.time - now;
  if (request.acceptSkew || Math.abs(skew) <= MAX_JOIN_SKEW_MS) return;
  const amount = `${durationText(Math.abs(skew))} ${skew < 0 ? "behind" : "ahead of"}`;
  throw new MeshError(
    "CLOCK_SKEW",
    `the clock of this machine is ${amount} the server's: it says ${iso(request.time)}, the server ${iso(now)}`,
    { hint: `set it, for example with \`date -u -s @${Math.floor(now / 1000)}\`, check NTP on both, and join again` },
  );
}

function iso(ms: WallMs): string {
  // Beyond the range of Date an agent's clock is nonsense; the number still says so.
  return Math.abs(ms) <= 8.64e15 ? new Date(ms).toISOString() : `${ms} ms`;
}

/** `3 days 4 h`, `2 h 5 min`, `7 min`: the two largest units. */
export function durationText(ms: number): string {
  const minutes = Math.round(ms / 60_000);
  const parts: [number, string][] = [
    [Math.floor(minutes / 1440), " days"],
    [Math.floor(minutes / 60) % 24, " h"],
    [minutes % 60, " min"],
  ];
  const first = parts.findIndex(([n]) => n > 0);
  const from = first < 0 ? parts.length - 1 : first;
  const shown = parts.slice(from, from + 2).filter(([n], i) => n > 0 || i === 0);
  return shown.map(([n, unit]) => (n === 1 && unit === " days" ? "1 day" : n + unit)).join(" ");
}
