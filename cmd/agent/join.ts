/** How the agent comes to its identity: from disk, or by joining once. */
import { systemClock } from "../../lib/clock.ts";
import type { AgentConfig } from "../../lib/config.ts";
import { describe, explain, MeshError } from "../../lib/errors.ts";
import { readReferenced } from "../../lib/file_reference.ts";
import { proxyChoice } from "../../lib/http_proxy.ts";
import { AgentIdentity } from "../../lib/identity/agent.ts";
import { parsePin } from "../../lib/identity/pin.ts";
import type { StateFiles } from "../../lib/identity/state_files.ts";
import type { Logger } from "../../lib/log.ts";
import { VERSION } from "../../lib/version.ts";
import { serverHint } from "../server_hint.ts";

const DAY_MS = 86_400_000;
/** Longest token text read from a file or stdin. */
const MAX_TOKEN_BYTES = 4096;

/** The identity on disk, or the one a join gives. Throws CONFIG_INVALID when there is neither and nothing to join with. */
export async function ensureIdentity(config: AgentConfig, files: StateFiles, log: Logger): Promise<AgentIdentity> {
  const options = {
    files,
    clock: systemClock,
    log: log.child("identity"),
    graceMs: config.tunnel.offlineGraceDays * DAY_MS,
    version: VERSION,
  };
  const existing = await AgentIdentity.open(options);
  if (existing) {
    if (config.nodeName !== undefined && config.nodeName !== existing.node) {
      throw new MeshError("CONFIG_INVALID", `This machine is node ${existing.node} already, not ${config.nodeName}`, {
        hint: `drop --node-name; or remove ${config.stateDir} and join as ${config.nodeName}`,
      });
    }
    const again = await joinedAgain(existing, { config, files, log });
    if (again) return await AgentIdentity.open(options) ?? existing;
    // A service keeps its flags over restarts: a token file that the join has deleted is as it should be.
    if (config.tokenFile !== undefined && config.tokenFile !== "-") await discardToken(config.tokenFile, log);
    return existing;
  }
  await join(config, files, log);
  const joined = await AgentIdentity.open(options);
  if (!joined) throw new MeshError("INTERNAL", "The join left no identity on disk");
  return joined;
}

/**
 * The authority was replaced while this node was away for the whole overlap: with a token, and the pin of an authority
 * it does not know, it joins again under its name and with its key. What it has stays where that fails.
 */
async function joinedAgain(
  existing: AgentIdentity,
  parts: { readonly config: AgentConfig; readonly files: StateFiles; readonly log: Logger },
): Promise<boolean> {
  const { config, files, log } = parts;
  const { tokenFile, caPin } = config;
  if (tokenFile === undefined || tokenFile === "-" || caPin === undefined) return false;
  if (existing.authorities.trusted.includes(parsePin(caPin))) return false;
  if (!await Deno.stat(tokenFile).then(() => true, () => false)) return false;
  try {
    await join({ ...config, nodeName: existing.node }, files, log);
    return true;
  } catch (error) {
    log.error("this node did not join again; it goes on with what it has", { error: describe(error) });
    return false;
  }
}

async function join(config: AgentConfig, files: StateFiles, log: Logger): Promise<void> {
  const { nodeName, server, tokenFile, caPin } = config;
  if (nodeName === undefined || server.length === 0 || tokenFile === undefined || caPin === undefined) {
    const missing = [
      nodeName === undefined ? "--node-name" : "",
      server.length === 0 ? "--server" : "",
      caPin === undefined ? "--ca-pin" : "",
      tokenFile === undefined ? "--token-file" : "",
    ].filter((flag) => flag !== "").join(", ");
    throw new MeshError(
      "CONFIG_INVALID",
      `This machine has not joined a mesh yet, and ${missing} ${missing.includes(",") ? "are" : "is"} not given`,
      {
        hint: "run `edgemesh token create` on the server host and paste the line it prints here",
      },
    );
  }
  const token = await readToken(tokenFile);
  // The join code is loaded once in a node's life; later starts do without it.
  const { joinMesh } = await import("../../lib/identity/join_client.ts");
  const grant = await explained(joinMesh({
    files,
    clock: systemClock,
    servers: server,
    pin: caPin,
    token,
    node: nodeName,
    version: VERSION,
    proxyFor: proxyChoice(config.proxy, Deno.env.get),
  }));
  if (tokenFile !== "-") await discardToken(tokenFile, log);
  log.info("joined", { node: grant.node, server: grant.server, trustDomain: grant.trustDomain });
}

/** Says what to do about a server that cannot be reached, as `status` and `check` do. */
async function explained<T>(work: Promise<T>): Promise<T> {
  try {
    return await work;
  } catch (error) {
    if (!(error instanceof MeshError) || error.code !== "SERVER_UNREACHABLE") throw error;
    const { text, hint } = explain(error);
    // A proxy's own refusal says more than we could.
    throw new MeshError("SERVER_UNREACHABLE", text, {
      hint: hint && text.includes("HTTP proxy") ? hint : serverHint(text),
    });
  }
}

/** A join token from a file, or from stdin for `-`. Throws CONFIG_INVALID, TOKEN_INVALID. */
export async function readToken(file: string): Promise<string> {
  try {
    if (file !== "-") return (await readReferenced(file)).trim();
    const parts: Uint8Array[] = [];
    let length = 0;
    for await (const chunk of Deno.stdin.readable) {
      length += chunk.length;
      if (length > MAX_TOKEN_BYTES) {
        throw new MeshError("TOKEN_INVALID", `Stdin holds more than ${MAX_TOKEN_BYTES} bytes, which is no join token`);
      }
      parts.push(chunk);
    }
    return new TextDecoder().decode(await new Blob(parts as BlobPart[]).arrayBuffer()).trim();
  } catch (cause) {
    if (cause instanceof MeshError) throw cause;
    throw new MeshError("CONFIG_INVALID", `The join token cannot be read from ${file}`, {
      cause,
      hint: "run `edgemesh token create` on the server host",
    });
  }
}

async function discardToken(file: string, log: Logger): Promise<void> {
  try {
    await Deno.remove(file);
  } catch (e) {
    if (!(e instanceof Deno.errors.NotFound)) {
      log.warn("the used token file could not be deleted", { file, error: describe(e) });
    }
  }
}
