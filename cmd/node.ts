/** `edgemesh node …`, on the server host: who is enrolled, and who shall not be any more. */
import { adminCall } from "./admin_client.ts";
import { type Format, print, printDocument, table } from "./output.ts";

interface NodeFlags {
  readonly runDir: string;
  readonly output: Format;
}

/** One enrolled node as the server's admin socket gives it. */
export interface ListedNode {
  readonly node: string;
  readonly keyHash: string;
  readonly enrolledAt: string;
  readonly online: boolean;
  /** Why it is shut out; absent for a node in good standing. */
  readonly revoked?: string;
}

export async function nodeList(flags: NodeFlags): Promise<number> {
  const nodes = await adminCall({ role: "server", runDir: flags.runDir }, "GET", "/v1/nodes") as ListedNode[];
  nodes.sort((a, b) => a.node < b.node ? -1 : 1);
  await printDocument(
    nodes,
    flags.output,
    () =>
      nodes.length === 0 ? "no nodes are enrolled: `edgemesh token create` prints the join command" : table([
        ["NODE", "STATE", "ENROLLED", "KEY"],
        ...nodes.map((n) => [
          n.node,
          n.revoked !== undefined ? `revoked: ${n.revoked}` : n.online ? "online" : "offline",
          n.enrolledAt,
          n.keyHash.slice(0, 16),
        ]),
      ]),
  );
  return 0;
}

/** A machine was re-imaged: its name becomes free for another key, and the old key is shut out. */
export async function nodeReset(name: string, flags: { runDir: string }): Promise<number> {
  await adminCall({ role: "server", runDir: flags.runDir }, "POST", `/v1/node-reset/${encodeURIComponent(name)}`);
  print(`${name} may join again with a new key; its old key is revoked`);
  return 0;
}

/** A machine is gone for good, or was stolen: neither its key nor its name is trusted any more. */
export async function nodeRemove(name: string, flags: { runDir: string }): Promise<number> {
  await adminCall({ role: "server", runDir: flags.runDir }, "DELETE", `/v1/nodes/${encodeURIComponent(name)}`);
  print(`${name} is revoked: its sessions end now, and it cannot join again until \`edgemesh node reset ${name}\``);
  return 0;
}
