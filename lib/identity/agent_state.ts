/**
 * The agent's identity on disk: one file that is written whole or not at all, checked against itself on every start.
 * A damaged one is an error with a sentence, never a fresh start: silently becoming a new node would lose the name.
 */
import { createPrivateKey, createPublicKey, generateKeyPairSync } from "node:crypto";
import { isNodeName } from "../addr.ts";
import type { WallMs } from "../clock.ts";
import { describe, MeshError } from "../errors.ts";
import { type Certificate, parsePem, sameBytes } from "./certificate.ts";
import type { Grant, MeshInfo } from "./messages.ts";
import { parseAuthorityUri, parseIdentityUri } from "./names.ts";
import { parsePin, pinnedAuthority, pinOf } from "./pin.ts";
import { array, integer, LABELS, literal, object, string } from "./shape.ts";
import type { StateFiles } from "./state_files.ts";
import { readState, writeState } from "./state_json.ts";
import { checkPath } from "./trust.ts";

export const IDENTITY_FILE = "identity.json";
/** Key of a join that has not been answered yet. */
export const PENDING_FILE = "joining.json";

/** Everything a node is, and whom it trusts at the root. */
export interface AgentState {
  readonly node: string;
  readonly trustDomain: string;
  /** PKCS #8 PEM. Never leaves this machine, never logged. */
  readonly keyPem: string;
  readonly chainPem: string;
  readonly bundlePem: string;
  /** The pin it joined with; new bundles must keep a way to it or to what replaced it. */
  readonly pin: string;
  readonly mesh: MeshInfo;
  readonly labels: Readonly<Record<string, string>>;
  readonly joinedAt: WallMs;
}

/** A state with its certificates parsed. */
export interface LoadedAgentState {
  readonly state: AgentState;
  readonly certificate: Certificate;
  readonly anchors: readonly Certificate[];
}

const KEY_PEM = string(100, 1000, /^-----BEGIN PRIVATE KEY-----/);
const STATE = object({
  format: literal(1),
  node: string(1, 63),
  trustDomain: string(1, 255),
  keyPem: KEY_PEM,
  chainPem: string(1, 16_384),
  bundlePem: string(1, 16_384),
  pin: string(71, 71),
  mesh: object({
    serviceCidrs: array(string(1, 64), 16),
    zone: string(1, 253),
    servers: array(string(1, 300), 8),
  }),
  labels: LABELS,
  joinedAt: integer(0),
});
const PENDING = object({ format: literal(1), node: string(1, 63), keyPem: KEY_PEM });

const DAMAGED_HINT = "restore it from a backup; or remove the state directory, have an operator remove this node's " +
  "enrolment on the server, and join again with a new token";

/** The identity on disk; undefined when this machine never joined. Throws STATE_INVALID. */
export async function loadAgentState(files: StateFiles): Promise<LoadedAgentState | undefined> {
  const saved = await readState(files, IDENTITY_FILE, { check: STATE, hint: DAMAGED_HINT });
  if (!saved) return undefined;
  const { format: _, ...state } = saved;
  try {
    return checkAgentState(state);
  } catch (cause) {
    throw new MeshError("STATE_INVALID", `the state file ${IDENTITY_FILE} contradicts itself: ${describe(cause)}`, {
      hint: DAMAGED_HINT,
    });
  }
}

/** Checks that a state fits together and writes it. */
export async function saveAgentState(files: StateFiles, state: AgentState): Promise<LoadedAgentState> {
  const loaded = checkAgentState(state);
  await writeState(files, IDENTITY_FILE, { format: 1, ...state });
  return loaded;
}

/**
 * The key to join with: the one of an unanswered join under this name, else a new one that is on disk before it is
 * used. So a join whose answer got lost can be repeated, and the server sees the same key.
 */
export async function pendingKey(files: StateFiles, node: string): Promise<string> {
  const pending = await readState(files, PENDING_FILE, {
    check: PENDING,
    hint: "remove it: it only holds the key of a join that was not finished",
  });
  if (pending?.node === node) return pending.keyPem;
  const keyPem = generateKeyPairSync("ec", { namedCurve: "P-256" }).privateKey
    .export({ type: "pkcs8", format: "pem" }) as string;
  await writeState(files, PENDING_FILE, { format: 1, node, keyPem });
  return keyPem;
}

/** Forgets the key of a finished join. */
export function clearPendingKey(files: StateFiles): Promise<void> {
  return files.remove(PENDING_FILE);
}

/** SubjectPublicKeyInfo of a private key. */
export function publicKeyOf(keyPem: string): Uint8Array {
  return new Uint8Array(createPublicKey(createPrivateKey(keyPem)).export({ type: "spki", format: "der" }));
}

/** What a join's grant makes of a key. Throws as {@link checkAgentState} does. */
export function stateFromGrant(
  grant: Grant,
  own: { readonly keyPem: string; readonly pin: string; readonly node: string; readonly now: WallMs },
): AgentState {
  if (grant.node !== own.node) {
    throw new MeshError("PROTOCOL", `the server granted a certificate for ${grant.node}, not for ${own.node}`);
  }
  pinnedAuthority(parsePem(grant.bundlePem), own.pin);
  const { node, trustDomain, chainPem, bundlePem, mesh, labels } = grant;
  const { keyPem, pin } = own;
  return { node, trustDomain, keyPem, chainPem, bundlePem, pin, mesh, labels, joinedAt: Math.floor(own.now) };
}

/**
 * What a renewal's grant makes of a state. The authorities may change, but one of the former must remain: a server
 * that replaces all at once would cut this node off from everyone who renewed earlier. The service networks do not
 * change: they were fixed at the join (design §6), and only a new join or local configuration moves them.
 */
export function renewedState(state: AgentState, grant: Grant): AgentState {
  const former = parsePem(state.bundlePem);
  const next = parsePem(grant.bundlePem);
  if (!next.some((n) => former.some((f) => sameBytes(n.spki, f.spki)))) {
    throw new MeshError("PIN_MISMATCH", `the server replaced every authority at once (${next.map(pinOf).join(", ")})`, {
      hint: "keep the old authority in ca.crt beside the new one until every node has renewed",
    });
  }
  if (grant.node !== state.node || grant.trustDomain !== state.trustDomain) {
    throw new MeshError(
      "PROTOCOL",
      `the server renewed ${grant.node} of ${grant.trustDomain}, not ${state.node} of ${state.trustDomain}`,
    );
  }
  const mesh = { ...grant.mesh, serviceCidrs: state.mesh.serviceCidrs };
  return { ...state, chainPem: grant.chainPem, bundlePem: grant.bundlePem, labels: grant.labels, mesh };
}

/** Parses a state and checks that its parts belong together. Throws CERT_UNTRUSTED or what the parsers throw. */
export function checkAgentState(state: AgentState): LoadedAgentState {
  const anchors = parsePem(state.bundlePem);
  const chain = parsePem(state.chainPem);
  const certificate = chain[0]!;
  parsePin(state.pin);
  checkPath(chain, { anchors });
  const identity = parseIdentityUri(certificate.uris[0] ?? "");
  if (!isNodeName(state.node) || identity?.role !== "node" || identity.name !== state.node) {
    throw new MeshError("CERT_UNTRUSTED", `the certificate is not for node ${state.node}`);
  }
  if (identity.trustDomain !== state.trustDomain) {
    throw new MeshError(
      "CERT_UNTRUSTED",
      `the certificate is of trust domain ${identity.trustDomain}, not ${state.trustDomain}`,
    );
  }
  if (!anchors.some((a) => a.uris.some((uri) => parseAuthorityUri(uri) === state.trustDomain))) {
    throw new MeshError("CERT_UNTRUSTED", `no authority is one of trust domain ${state.trustDomain}`);
  }
  let spki: Uint8Array;
  try {
    spki = publicKeyOf(state.keyPem);
  } catch {
    throw new MeshError("CERT_UNTRUSTED", "the private key cannot be read"); // No cause: it could quote the key.
  }
  if (!sameBytes(spki, certificate.spki)) {
    throw new MeshError("CERT_UNTRUSTED", "the certificate is not for this machine's key");
  }
  return { state, certificate, anchors };
}
