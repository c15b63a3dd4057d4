/**
 * The one connection on which nothing is known yet but the pin. TLS without the library's own judgement of names and
 * dates; the server's chain must lead to the pinned authority and say that it is a server, before a byte is sent.
 */
import type { IncomingMessage } from "node:http";
import { Buffer } from "node:buffer";
import type { Duplex } from "node:stream";
import type { TLSSocket } from "node:tls";
import type { CancelTimer, Clock } from "../clock.ts";
import { MeshError } from "../errors.ts";
import { type ProxyFor, throughProxy } from "../http_proxy.ts";
import { MAX_REPLY_BYTES } from "./messages.ts";
import { type Certificate, parsePem, toPem } from "./certificate.ts";
import { parseAuthorityUri } from "./names.ts";
import { pinnedAuthority } from "./pin.ts";
import { Revocations } from "./revocation.ts";
import { TrustedTime } from "./time.ts";
import { peerChain, type TlsMaterial } from "./tls_peer.ts";
import { checkPath, DEFAULT_GRACE_MS, parseChain, type VerifiedPeer, verifyPeer } from "./trust.ts";

export interface PinnedConnection {
  /** The server, verified against the pin. */
  readonly server: VerifiedPeer;
  readonly trustDomain: string;
  /** Posts JSON and gives the answer's text, whatever its status. One request per connection. */
  post(path: string, body: string): Promise<string>;
  close(): void;
}

export interface PinnedTarget {
  /** `wss://host` or `wss://host:port`; `https` means the same. */
  readonly url: string;
  readonly pin: string;
  readonly clock: Clock;
  /** The HTTP proxy that leads to the server, if any. */
  readonly proxyFor?: ProxyFor | undefined;
  /** For the whole of connecting, and again for the request. */
  readonly timeoutMs: number;
  /** A connection to the server that is there already, instead of a new one; owned from here on. */
  readonly socket?: Duplex;
  /** Largest answer; default {@link MAX_REPLY_BYTES}. */
  readonly maxReplyBytes?: number | undefined;
}

/** What connecting itself needs of a target. */
type Reachable =
  & Pick<PinnedTarget, "clock" | "timeoutMs" | "proxyFor" | "socket" | "maxReplyBytes">
  & { readonly tls?: TlsMaterial };

/** Another server of the mesh, asked by one. */
export interface VerifiedTarget extends Pick<PinnedTarget, "url" | "clock" | "timeoutMs"> {
  /** What this server shows. */
  readonly tls: TlsMaterial;
  readonly maxReplyBytes: number;
  /** Judges the other's certificates (DER, its own first) by throwing. */
  verify(chainDer: readonly Uint8Array[]): void;
}

/** Connects with a certificate, verifies, posts once. Throws SERVER_UNREACHABLE, CONFIG_INVALID and what `verify` throws. */
export async function postVerified(
  target: VerifiedTarget,
  request: { readonly path: string; readonly body: string },
): Promise<string> {
  const { host, port } = addressOf(target.url);
  const socket = await handshake(target, { host, port });
  try {
    target.verify(peerChain(socket));
    return await post(socket, { ...request, host: `${host}:${port}`, target });
  } finally {
    socket.destroy();
  }
}

/** Connects and verifies. Throws SERVER_UNREACHABLE, PIN_MISMATCH, CERT_UNTRUSTED, CERT_EXPIRED, CONFIG_INVALID. */
export async function connectPinned(target: PinnedTarget): Promise<PinnedConnection> {
  const { host, port } = addressOf(target.url);
  const socket = await handshake(target, { host, port });
  try {
    const { server, trustDomain } = judge(peerChain(socket), target);
    return {
      server,
      trustDomain,
      post: (path, body) => post(socket, { path, body, host: host + ":" + port, target }),
      close: () => void socket.destroy(),
    };
  } catch (e) {
    socket.destroy();
    throw e;
  }
}

function judge(
  chainDer: readonly Uint8Array[],
  target: PinnedTarget,
): { server: VerifiedPeer; trustDomain: string } {
  let chain: Certificate[];
  try {
    chain = parseChain(chainDer);
  } catch {
    chain = []; // Any public web server's chain: not of our kind, so the pin's sentence is the one that helps.
  }
  const authority = pinnedAuthority(chain, target.pin);
  const trustDomain = authority.uris.map(parseAuthorityUri).find((d) => d !== undefined);
  if (trustDomain === undefined) throw new MeshError("CERT_UNTRUSTED", "the pinned authority names no trust domain");
  // Read anew from its own bytes, so that nothing of the handshake's list is trusted beyond this one.
  const anchors = parsePem(toPem(authority));
  try {
    checkPath(chain, { anchors });
  } catch (cause) {
    throw new MeshError(
      "PIN_MISMATCH",
      "the server shows the pinned authority, but its own certificate is not from it",
      {
        cause,
        hint: "something between this machine and the server is intercepting the connection",
      },
    );
  }
  const server = verifyPeer({
    chainDer,
    expected: { role: "server" },
    trust: {
      trustDomain,
      anchors,
      revocations: new Revocations(),
      graceMs: DEFAULT_GRACE_MS,
    },
    now: new TrustedTime(target.clock).now(),
  });
  return { server, trustDomain };
}

async function handshake(target: Reachable, at: { host: string; port: number }): Promise<TLSSocket> {
  const [{ connect }, net] = await Promise.all([import("node:tls"), import("node:net")]);
  const where = `${at.host}:${at.port}`;
  const proxy = target.proxyFor?.(at);
  const pipe = proxy && net.connect({ host: proxy.host, port: proxy.port });
  if (pipe) {
    await withDeadline(
      target,
      () => `the HTTP proxy ${proxy.host}:${proxy.port} did not reach ${where}`,
      (onTimeout) => {
        onTimeout(() => pipe.destroy());
        return throughProxy(pipe, proxy, at);
      },
    ).catch((error) => {
      pipe.on("error", () => {});
      pipe.destroy();
      throw error;
    });
  }
  let connected = (pipe ?? target.socket) !== undefined;
  return await withDeadline(
    target,
    () => connected ? `${where} did not complete a TLS handshake` : `there was no answer from ${where}`,
    (onTimeout) =>
      new Promise((resolve, reject) => {
        const socket = connect({
          ...(pipe ? { socket: pipe } : target.socket ? { socket: target.socket as never } : at),
          ...(net.isIP(at.host) ? {} : { servername: at.host }),
          minVersion: "TLSv1.3",
          ALPNProtocols: ["http/1.1"],
          rejectUnauthorized: false,
          ...(target.tls ? { key: target.tls.keyPem, cert: target.tls.certPem } : {}),
        });
        onTimeout(() => socket.destroy());
        socket.once("connect", () => connected = true);
        socket.once("secureConnect", () => {
          socket.removeAllListeners("error");
          socket.on("error", () => {}); // What happens later is told by the request.
          resolve(socket);
        });
        socket.once("error", (cause) => {
          socket.destroy();
          reject(
            new MeshError("SERVER_UNREACHABLE", `the server at ${where} could not be reached`, {
              cause,
              hint: "check the address and that the port is open from here, for example with `curl -vk https://" +
                where + "/`",
            }),
          );
        });
      }),
  );
}

interface Post {
  readonly path: string;
  readonly body: string;
  readonly host: string;
  readonly target: Reachable;
}

async function post(socket: TLSSocket, p: Post): Promise<string> {
  const { request } = await import("node:http");
  return await withDeadline(
    p.target,
    () => `${p.host} did not answer`,
    (onTimeout) =>
      new Promise((resolve, reject) => {
        onTimeout(() => socket.destroy());
        const bytes = Buffer.from(p.body);
        const maxBytes = p.target.maxReplyBytes ?? MAX_REPLY_BYTES;
        const req = request({
          createConnection: () => socket,
          method: "POST",
          path: p.path,
          headers: {
            "host": p.host,
            "content-type": "application/json",
            "content-length": bytes.length,
            "connection": "close",
          },
        });
        const fail = (cause: unknown) =>
          reject(
            new MeshError("SERVER_UNREACHABLE", `the connection to ${p.host} broke before it answered`, { cause }),
          );
        req.once("error", fail);
        req.once("response", (res: IncomingMessage) => {
          const chunks: Buffer[] = [];
          let size = 0;
          res.on("data", (chunk: Buffer) => {
            size += chunk.length;
            if (size <= maxBytes) return void chunks.push(chunk);
            socket.destroy();
            reject(new MeshError("LIMIT", `the answer of ${p.host} is larger than ${maxBytes} bytes`));
          });
          res.once("error", fail);
          res.once("end", () => {
            const type = res.headers["content-type"] ?? "";
            if (type.startsWith("application/json")) return resolve(Buffer.concat(chunks).toString("utf8"));
            reject(
              new MeshError("PROTOCOL", `${p.host} answered ${res.statusCode} without JSON`, {
                hint: "is this an edgemesh server of the same version?",
              }),
            );
          });
        });
        req.end(bytes);
      }),
  );
}

/** Runs a step that `onTimeout` can end; rejects with SERVER_UNREACHABLE when it takes too long. */
function withDeadline<T>(
  target: Pick<PinnedTarget, "clock" | "timeoutMs">,
  what: () => string,
  step: (onTimeout: (end: () => void) => void) => Promise<T>,
): Promise<T> {
  let end = () => {};
  let cancel: CancelTimer = () => {};
  const deadline = new Promise<never>((_, reject) => {
    cancel = target.clock.timer(target.timeoutMs, () => {
      end();
      reject(new MeshError("SERVER_UNREACHABLE", `${what()} within ${target.timeoutMs / 1000} s`));
    });
  });
  return Promise.race([step((f) => end = f), deadline]).finally(() => cancel());
}

function addressOf(url: string): { host: string; port: number } {
  const parsed = URL.canParse(url) ? new URL(url) : undefined;
  if (!parsed || !["wss:", "https:"].includes(parsed.protocol) || parsed.username || parsed.hostname === "") {
    throw new MeshError("CONFIG_INVALID", `${JSON.stringify(url)} is not a server address`, {
      hint: "use wss://HOST or wss://HOST:PORT",
    });
  }
  return { host: parsed.hostname.replace(/^\[|\]$/g, ""), port: parsed.port === "" ? 443 : Number(parsed.port) };
}
