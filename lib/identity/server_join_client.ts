/** How a host becomes another server of a mesh: once, with a token and the pin; ever after its state is on disk. */
import { Buffer } from "node:buffer";
import { sign } from "node:crypto";
import { isNodeName } from "../addr.ts";
import type { Clock } from "../clock.ts";
import { MeshError } from "../errors.ts";
import { nullLogger } from "../log.ts";
import { publicKeyOf } from "./agent_state.ts";
import { installAuthority } from "./authority.ts";
import { CA_BUNDLE_FILE } from "./ca.ts";
import { hashKey, parsePem } from "./certificate.ts";
import { Enrolments } from "./enrolment.ts";
import { connectPinned, type PinnedConnection, type PinnedTarget } from "./join_connection.ts";
import { Members } from "./members.ts";
import { parsePin, pinOf } from "./pin.ts";
import { RevocationRegistry } from "./revocation_registry.ts";
import { openServerKey } from "./server_certificate.ts";
import {
  MAX_SERVER_BYTES,
  readServerGrant,
  SERVER_JOIN_PATH,
  type ServerGrant,
  serverProofText,
  writeServerJoin,
} from "./server_messages.ts";
import { SharedStore } from "./shared_state.ts";
import type { StateFiles } from "./state_files.ts";
import { parseToken } from "./token.ts";

const TIMEOUT_MS = 15_000;

export interface ServerJoinOptions {
  readonly files: StateFiles;
  readonly clock: Clock;
  /** A server of the mesh, `wss://…`. */
  readonly server: string;
  readonly pin: string;
  readonly token: string;
  /** Name and address of this server. */
  readonly name: string;
  readonly url: string;
  /** What this host is configured for: refused before the token is shown when the mesh differs. */
  readonly trustDomain: string;
  /** For tests; default {@link connectPinned}. */
  readonly connect?: ((target: PinnedTarget) => Promise<PinnedConnection>) | undefined;
}

/**
 * Joins and writes the authority and what the mesh's servers know. Throws the other server's refusal with its hint,
 * PIN_MISMATCH, SERVER_UNREACHABLE, CONFIG_INVALID, STATE_INVALID. A join whose answer was lost needs a new token.
 */
export async function joinServers(options: ServerJoinOptions): Promise<ServerGrant> {
  const { files, name, url } = options;
  if (!isNodeName(name)) {
    throw new MeshError("CONFIG_INVALID", `${JSON.stringify(name)} cannot be a server's name`, {
      hint: "use lower-case letters, digits and dashes, at most 63 characters",
    });
  }
  const pin = parsePin(options.pin);
  const token = parseToken(options.token);
  // A server of this mesh may join again; one with another authority has nodes that would lose it.
  const own = await files.read(CA_BUNDLE_FILE);
  if (own !== undefined && !parsePem(own).some((authority) => pinOf(authority) === pin)) {
    throw new MeshError("STATE_INVALID", "this host's server has another authority already", {
      hint: "its nodes would have to join again; to give it up, move the state directory away first",
    });
  }
  const keyPem = await openServerKey(files);
  const connect = options.connect ?? connectPinned;
  const connection = await connect({
    url: options.server,
    pin,
    clock: options.clock,
    timeoutMs: TIMEOUT_MS,
    maxReplyBytes: MAX_SERVER_BYTES,
  });
  try {
    if (connection.trustDomain !== options.trustDomain) {
      throw new MeshError(
        "CONFIG_INVALID",
        `that mesh has the trust domain ${connection.trustDomain}, this host is configured for ${options.trustDomain}`,
        { hint: `set trustDomain: ${connection.trustDomain} in /etc/edgemesh/server.yaml; the token is still good` },
      );
    }
    const spki = publicKeyOf(keyPem);
    const time = Math.floor(options.clock.wall());
    const nonce = Buffer.from(crypto.getRandomValues(new Uint8Array(16))).toString("hex");
    const claim = { tokenId: token.id, keyHash: hashKey(spki), serverKeyHash: connection.server.keyHash };
    const proof = new Uint8Array(sign("sha256", serverProofText({ ...claim, name, url, time, nonce }), keyPem));
    const body = writeServerJoin({ token: options.token.trim(), name, url, spki, time, nonce, proof });
    const grant = readServerGrant(await connection.post(SERVER_JOIN_PATH, body));
    await install(files, grant, options.clock);
    return grant;
  } finally {
    connection.close();
  }
}

/** The authority goes last: a crash before leaves a host that is no server yet, and can join with another token. */
async function install(files: StateFiles, grant: ServerGrant, clock: Clock): Promise<void> {
  const members = await Members.open(files);
  const shared = new SharedStore({
    members,
    enrolments: await Enrolments.open(files),
    registry: await RevocationRegistry.open(files),
    log: nullLogger,
  });
  await shared.merge(grant.server, grant.state, clock.wall());
  if (members.get(grant.name) === undefined) {
    throw new MeshError("PROTOCOL", `server ${grant.server} did not note ${grant.name} as one of the mesh`);
  }
  await installAuthority(files, grant.authority);
}
