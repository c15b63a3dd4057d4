/** How a machine becomes a node: once, with a token and a pin; ever after its state is on disk. */
import { Buffer } from "node:buffer";
import { sign } from "node:crypto";
import type { Clock } from "../clock.ts";
import { isNodeName } from "../addr.ts";
import { MeshError } from "../errors.ts";
import type { ProxyFor } from "../http_proxy.ts";
import {
  clearPendingKey,
  loadAgentState,
  pendingKey,
  publicKeyOf,
  saveAgentState,
  stateFromGrant,
} from "./agent_state.ts";
import { hashKey } from "./certificate.ts";
import { connectPinned, type PinnedConnection, type PinnedTarget } from "./join_connection.ts";
import { type Grant, JOIN_PATH, proofText, readAnswer, writeJoinRequest } from "./messages.ts";
import { parsePin } from "./pin.ts";
import type { StateFiles } from "./state_files.ts";
import { parseToken } from "./token.ts";

const TIMEOUT_MS = 15_000;

export interface JoinOptions {
  readonly files: StateFiles;
  readonly clock: Clock;
  /** Tried in order; the first that can be reached decides. */
  readonly servers: readonly string[];
  readonly pin: string;
  readonly token: string;
  readonly node: string;
  /** Version text for the server's log. */
  readonly version: string;
  /** The HTTP proxy that leads to a server, if any. */
  readonly proxyFor?: ProxyFor | undefined;
  /** Join although this machine's clock is off by more than the server accepts. */
  readonly acceptSkew?: boolean | undefined;
  /** For tests; default {@link connectPinned}. */
  readonly connect?: ((target: PinnedTarget) => Promise<PinnedConnection>) | undefined;
}

/**
 * Joins and writes the identity; `AgentIdentity.open` reads it. Throws the server's refusal with its hint,
 * PIN_MISMATCH, SERVER_UNREACHABLE, CONFIG_INVALID, STATE_INVALID. Safe to repeat with the same token until that
 * expires, also after a crash: the key is on disk before it is shown to anyone.
 */
export async function joinMesh(options: JoinOptions): Promise<Grant> {
  const { files, node } = options;
  if (!isNodeName(node)) {
    throw new MeshError("CONFIG_INVALID", `${JSON.stringify(node)} cannot be a node name`, {
      hint: "use lower-case letters, digits and dashes, at most 63 characters",
    });
  }
  const pin = parsePin(options.pin);
  const token = parseToken(options.token);
  const existing = await loadAgentState(files);
  if (existing && existing.state.node !== node) {
    throw new MeshError(
      "CONFIG_INVALID",
      `this machine is node ${existing.state.node} already, it cannot join as ${node}`,
      {
        hint: `drop --node-name; or stop the agent, remove its state directory and join as ${node}`,
      },
    );
  }
  const keyPem = existing?.state.keyPem ?? await pendingKey(files, node);

  const connection = await connectFirst(options, pin);
  try {
    const body = joinBody(options, { keyPem, tokenId: token.id, serverKeyHash: connection.server.keyHash });
    const grant = readAnswer(await connection.post(JOIN_PATH, body));
    if (grant.trustDomain !== connection.trustDomain) {
      throw new MeshError(
        "PROTOCOL",
        `the server granted trust domain ${grant.trustDomain}, its authority is ${connection.trustDomain}`,
      );
    }
    await saveAgentState(files, stateFromGrant(grant, { keyPem, pin, node, now: grant.time }));
    await clearPendingKey(files);
    return grant;
  } finally {
    connection.close();
  }
}

/** A server that answers with another authority ends the attempt: going on to the next would hide it. */
async function connectFirst(options: JoinOptions, pin: string): Promise<PinnedConnection> {
  const connect = options.connect ?? connectPinned;
  let last: unknown = new MeshError("CONFIG_INVALID", "no server to join is configured", {
    hint: "give --server wss://HOST",
  });
  for (const url of options.servers) {
    try {
      return await connect({
        url,
        pin,
        clock: options.clock,
        proxyFor: options.proxyFor,
        timeoutMs: TIMEOUT_MS,
      });
    } catch (e) {
      if (!(e instanceof MeshError) || e.code !== "SERVER_UNREACHABLE") throw e;
      last = e;
    }
  }
  throw last;
}

function joinBody(
  options: JoinOptions,
  by: { readonly keyPem: string; readonly tokenId: string; readonly serverKeyHash: string },
): string {
  const { node } = options;
  const spki = publicKeyOf(by.keyPem);
  const time = Math.floor(options.clock.wall());
  const nonce = Buffer.from(crypto.getRandomValues(new Uint8Array(16))).toString("hex");
  const { tokenId, serverKeyHash } = by;
  const text = proofText({ tokenId, node, keyHash: hashKey(spki), time, nonce, serverKeyHash });
  return writeJoinRequest({
    token: options.token.trim(),
    node,
    spki,
    time,
    nonce,
    proof: new Uint8Array(sign("sha256", text, by.keyPem)),
    agent: options.version,
    acceptSkew: options.acceptSkew ?? false,
  });
}
