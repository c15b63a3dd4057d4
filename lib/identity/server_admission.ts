/**
 * A server's decision about another one that wants to share its authority. It gives away the key of the mesh, so it is
 * stricter than about nodes: a token of its own kind, good once whatever happens, and never repeated.
 */
import { isNodeName } from "../addr.ts";
import { MeshError } from "../errors.ts";
import type { Authority } from "./authority.ts";
import type { Backoff } from "./backoff.ts";
import { ISSUANCE_LOG_FILE } from "./ca.ts";
import { hashKey, isNodeKey, verifySignature } from "./certificate.ts";
import { checkClock, checkRate, checkToken, type JoinMoment } from "./join_server.ts";
import type { Members } from "./members.ts";
import type { MeshInfo } from "./messages.ts";
import { readServerJoin, type ServerGrant, type ServerJoinRequest, serverProofText } from "./server_messages.ts";
import type { SharedStore } from "./shared_state.ts";
import type { StateFiles } from "./state_files.ts";
import type { TokenStore } from "./token_store.ts";

export interface ServerAdmission {
  readonly files: StateFiles;
  readonly authority: Authority;
  readonly tokens: TokenStore;
  readonly members: Members;
  readonly shared: SharedStore;
  readonly backoff: Backoff;
  /** This server: name, address and key. */
  readonly name: string;
  readonly url: string;
  readonly keyHash: string;
  readonly mesh: MeshInfo;
}

/**
 * Admits a server or throws the refusal: LIMIT, PROTOCOL, VERSION, TOKEN_*, CERT_UNTRUSTED (proof), NODE_KEY_MISMATCH,
 * CLOCK_SKEW. Callers run one at a time.
 */
export async function admitServer(text: string, state: ServerAdmission, at: JoinMoment): Promise<ServerGrant> {
  checkRate(state.backoff, at);
  const request = readServerJoin(text);
  const { name, url } = request;
  const keyHash = hashKey(request.spki);
  const who = { role: "server", node: name, keyHash, now: at.now } as const;
  const token = checkToken(request.token, state, { ...at, who });
  checkForm(request);
  checkProof(request, { tokenId: token.id, keyHash, serverKeyHash: state.keyHash });
  if (name === state.name) {
    throw new MeshError("NODE_KEY_MISMATCH", `the server that is asked is called ${name} itself`, {
      hint: "give the new one a --name of its own",
    });
  }
  state.members.checkFree(name, keyHash);
  checkClock({ time: request.time, acceptSkew: false }, at.now);

  // Used up before the key leaves: a crash in between costs a token, never a second copy.
  const { id } = await state.tokens.redeem(token, who);
  await state.members.put({ name: state.name, url: state.url, keyHash: state.keyHash, gone: false }, at.now);
  await state.members.put({ name, url, keyHash, gone: false }, at.now);
  await state.files.append(
    ISSUANCE_LOG_FILE,
    JSON.stringify({
      time: new Date(at.now).toISOString(),
      role: "server",
      name,
      keyHash,
      why: `authority handed over token=${id} from=${at.source} url=${url}`,
    }) + "\n",
  );
  return {
    name,
    trustDomain: state.authority.trustDomain,
    authority: state.authority.state,
    serviceCidrs: state.mesh.serviceCidrs,
    zone: state.mesh.zone,
    server: state.name,
    time: Math.floor(at.now),
    state: state.shared.value(),
  };
}

function checkForm({ name, url }: ServerJoinRequest): void {
  if (!isNodeName(name)) {
    throw new MeshError("PROTOCOL", `${JSON.stringify(name)} cannot be a server's name`, {
      hint: "use lower-case letters, digits and dashes, at most 63 characters",
    });
  }
  if (URL.canParse(url) && new URL(url).protocol === "wss:") return;
  throw new MeshError("PROTOCOL", `${JSON.stringify(url)} is not a server address`, {
    hint: "use wss://HOST or wss://HOST:PORT",
  });
}

function checkProof(
  request: ServerJoinRequest,
  by: { readonly tokenId: string; readonly keyHash: string; readonly serverKeyHash: string },
): void {
  const { name, url, time, nonce, spki } = request;
  if (isNodeKey(spki) && verifySignature(spki, serverProofText({ ...by, name, url, time, nonce }), request.proof)) {
    return;
  }
  throw new MeshError("CERT_UNTRUSTED", `the request does not prove that server ${name} holds the key it names`, {
    hint: "try again; if it stays, something between the two servers ends TLS: it must pass through untouched",
  });
}
