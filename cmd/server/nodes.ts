/** Admin routes about enrolled nodes. */
import type { AdminRoute } from "../../lib/admin.ts";
import { MeshError } from "../../lib/errors.ts";
import type { IdentityServer } from "../../lib/identity/server.ts";
import type { VerifiedPeer } from "../../lib/identity/trust.ts";
import type { ControlServer } from "../../lib/tunnel/control/server.ts";
import type { RevocationList } from "../../lib/identity/revocation.ts";
import type { ListedNode } from "../node.ts";
import type { RunningServer } from "./running.ts";

/** Tells every agent who is revoked, and cuts connections of whoever is on the list now. */
export function publishRevocations(identity: IdentityServer, control: ControlServer<VerifiedPeer>): void {
  control.pushRevocations((peer) => identity.trust.revocations.find({ ...peer, serial: "" }) !== undefined);
}

export function nodeRoutes(server: RunningServer): AdminRoute[] {
  const { identity, control } = server;
  const publish = (list: RevocationList | undefined) => {
    if (list) publishRevocations(identity, control);
  };
  const known = (name: string) => {
    if (identity.enrolments.get(name)) return;
    throw new MeshError("UNKNOWN_NODE", `No node ${name} is enrolled`, { hint: "edgemesh node list" });
  };
  return [
    {
      method: "GET",
      path: "/v1/nodes",
      changes: false,
      handle: () =>
        identity.enrolments.list().map(({ node, keyHash, enrolledAt }): ListedNode => {
          const revoked = identity.trust.revocations.find({ node, keyHash, serial: "" });
          return {
            node,
            keyHash,
            enrolledAt: new Date(enrolledAt).toISOString(),
            online: control.online(node),
            ...(revoked ? { revoked: revoked.reason } : {}),
          };
        }),
    },
    {
      method: "DELETE",
      path: "/v1/nodes/*",
      changes: true,
      handle: async (_request, name) => {
        known(name);
        publish(await identity.revoke("node", name, "removed by an operator"));
        return {};
      },
    },
    {
      method: "POST",
      path: "/v1/node-reset/*",
      changes: true,
      handle: async (_request, name) => {
        known(name);
        publish(await identity.removeNode(name));
        publish(await identity.liftRevocation("node", name));
        return {};
      },
    },
  ];
}
