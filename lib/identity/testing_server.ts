/** The identity endpoints of a server on loopback, over real TLS, as the product's control port serves them. */
import { Buffer } from "node:buffer";
import { once } from "node:events";
import https from "node:https";
import type { AddressInfo } from "node:net";
import type { TLSSocket } from "node:tls";
import { type Answer, JOIN_PATH, refusalAnswer, RENEW_PATH } from "./messages.ts";
import type { IdentityServer } from "./server.ts";
import { SERVER_JOIN_PATH, SERVER_SYNC_PATH } from "./server_messages.ts";
import { peerChain, type TlsMaterial } from "./tls_peer.ts";
import { verifyPeer } from "./trust.ts";

export interface TestFrontDoor {
  readonly url: string;
  readonly port: number;
  close(): Promise<void>;
}

/** Serves `identity` at a free port; `tls` replaces what it shows in handshakes. */
export async function serveIdentity(
  identity: IdentityServer,
  tls: TlsMaterial = identity.tls(),
  port = 0,
): Promise<TestFrontDoor> {
  const server = https.createServer(
    { key: tls.keyPem, cert: tls.certPem, requestCert: true, rejectUnauthorized: false, minVersion: "TLSv1.3" },
    async (req, res) => {
      const chunks: Uint8Array[] = [];
      for await (const chunk of req) chunks.push(chunk);
      const answer = await route(identity, {
        path: req.url ?? "",
        body: new TextDecoder().decode(await new Blob(chunks as BlobPart[]).arrayBuffer()),
        socket: req.socket as TLSSocket,
      });
      res.writeHead(answer.status, {
        "content-type": "application/json",
        "content-length": Buffer.byteLength(answer.body),
      });
      res.end(answer.body);
    },
  );
  server.listen(port, "127.0.0.1");
  await once(server, "listening");
  const bound = (server.address() as AddressInfo).port;
  return {
    url: `wss://127.0.0.1:${bound}`,
    port: bound,
    close: async () => {
      server.closeAllConnections();
      await new Promise((resolve) => server.close(resolve));
    },
  };
}

async function route(
  identity: IdentityServer,
  request: { readonly path: string; readonly body: string; readonly socket: TLSSocket },
): Promise<Answer> {
  if (request.path === JOIN_PATH) return await identity.handleJoin(request.body, request.socket.remoteAddress ?? "");
  if (request.path === SERVER_JOIN_PATH) {
    return await identity.handleServerJoin(request.body, request.socket.remoteAddress ?? "");
  }
  try {
    if (request.path === SERVER_SYNC_PATH) {
      return await identity.handleServerSync(request.body, identity.group.admit(peerChain(request.socket)));
    }
    if (request.path !== RENEW_PATH) return { status: 404, body: "{}" };
    const chainDer = peerChain(request.socket);
    const { trust } = identity;
    return await identity.handleRenew(
      request.body,
      verifyPeer({ chainDer, expected: { role: "node" }, trust, now: identity.now() }),
    );
  } catch (e) {
    return refusalAnswer(e);
  }
}
