/** What a server's status warns about. */
import type { Warning } from "../../lib/status.ts";
import type { RunningServer } from "./running.ts";

export function serverWarnings(server: RunningServer, problems: number): readonly Warning[] {
  return [...metadataWarnings(server, problems), ...memberWarnings(server), ...rotationWarnings(server)];
}

function metadataWarnings({ sources }: RunningServer, problems: number): Warning[] {
  if (sources.length === 0) {
    const text = "no source of metadata is configured: agents will know no Services";
    return [{ code: "NOT_SYNCED", text, hint: "--manifests DIR" }];
  }
  if (problems === 0) return [];
  const text = `${problems} problem${problems === 1 ? "" : "s"} in the metadata (listed above)`;
  return [{ code: "CONFIG_INVALID", text }];
}

function memberWarnings({ identity, config }: RunningServer): Warning[] {
  const warnings = identity.group.status().filter((m) => m.error !== "").map(({ name, url, error }): Warning => ({
    code: "SERVER_UNREACHABLE",
    text: `server ${name} at ${url} cannot be asked, so revocations and enrolments do not get there: ${error}`,
    hint: `start it; or, if it is gone for good, \`edgemesh server remove ${name}\``,
  }));
  if (identity.members.get(config.name)?.gone) {
    warnings.push({
      code: "REVOKED",
      text: "this server was taken out of the mesh: the other servers tell it nothing any more",
      hint: "stop it, or let it join again with a token from `edgemesh token create --server NAME`",
    });
  }
  return warnings;
}

/** Whoever is away until the old authority is dropped has to join again: worth knowing while it can be helped. */
function rotationWarnings({ identity }: RunningServer): Warning[] {
  const { rotation, ready, nodes, waiting } = identity.keeper.status();
  if (!rotation || ready === nodes) return [];
  return [{
    code: "CERT_UNTRUSTED",
    text: `the authority is being replaced, and ${nodes - ready} of ${nodes} nodes were not connected since: ` +
      `${waiting.join(", ")}`,
    hint: `connect them before ${new Date(rotation.finishAt).toISOString()}, or they have to join again; ` +
      "`edgemesh server ca status`",
  }];
}
