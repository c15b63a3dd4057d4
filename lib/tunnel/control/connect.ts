/** From a URL to an open WebSocket whose other end is proven to be a server of our mesh. */
import type http from "node:http";
import net from "node:net";
import type { Duplex } from "node:stream";
import { WebSocket } from "ws";
import { parseIp } from "../../addr.ts";
import { type HttpProxy, type ProxyFor, type ProxyTarget, throughProxy } from "../../http_proxy.ts";
import type { Clock } from "../../clock.ts";
import { MeshError, type ReasonCode, REASONS } from "../../errors.ts";
import type { IpPort } from "../../net.ts";
import type { PeerIdentity } from "../carrier.ts";
import type { TlsCredentials } from "../carriers/engine.ts";
import { secureClient } from "../carriers/tls_handshake.ts";
import { CONTROL_PATH } from "./front_door.ts";
import { MAX_REVOCATIONS_BYTES } from "./message.ts";
import { WS_OPTIONS } from "./socket.ts";

/**
 * For the name and the TCP handshake. Linux sends SYN at 0, 1 and 3 seconds: a host that comes back meets one of them
 * or the next attempt's first within two seconds, where waiting on would mean the SYN at 7 seconds.
 */
const TCP_MS = 3_500;
/** Bytes of a refusal that are read. */
const MAX_REFUSAL = 4096;

export interface ConnectOptions {
  readonly clock: Clock;
  /** `wss://host[:port]`. */
  readonly url: string;
  credentials(): TlsCredentials;
  /** A certificate chain in DER → the server it proves. Throws MeshError. */
  verify(chain: readonly Uint8Array[]): PeerIdentity;
  /** The HTTP proxy that leads to the server, if any. */
  readonly proxyFor?: ProxyFor;
  /** Makes the TCP connection; replaced where its local port matters (hole punching shares it). */
  dial?(host: string, port: number): net.Socket;
  readonly timeoutMs: number;
  readonly signal: AbortSignal;
  /** Something answered: TCP is connected. */
  onAnswer?(): void;
}

export interface Ends {
  readonly local: IpPort;
  readonly remote: IpPort | undefined;
}

export interface ControlConnection {
  readonly ws: WebSocket;
  readonly server: PeerIdentity;
  /** Where it runs between, as this host sees it; `remote` is undefined behind a proxy, which knows it alone. */
  readonly ends: Ends;
}

/**
 * Connects. Rejects with MeshError: SERVER_UNREACHABLE (name, route, refusal by TCP, no answer to it), TIMEOUT, the
 * verifier's code when the server is not ours, or the server's own reason for refusing us.
 */
export async function connectControl(options: ConnectOptions): Promise<ControlConnection> {
  const { host, port } = parseServerUrl(options.url);
  const deadline = options.clock.now() + options.timeoutMs;
  const left = () => Math.max(1, deadline - options.clock.now());
  const proxy = options.proxyFor?.({ host, port });
  const tcp = await dialed(options, proxy ?? { host, port });
  const onAbort = () => tcp.destroy(options.signal.reason as Error);
  options.signal.addEventListener("abort", onAbort, { once: true });
  try {
    // A proxy that stands says nothing about the server behind it.
    if (proxy) await piped(options, tcp, { proxy, host, port, timeoutMs: left() });
    options.onAnswer?.();
    const { socket, chain } = await secureClient(tcp, {
      credentials: options.credentials(),
      alpn: "http/1.1",
      clock: options.clock,
      timeoutMs: left(),
      ...(net.isIP(host) ? {} : { servername: host }),
    });
    const server = options.verify(chain);
    const ends = {
      local: endOf(tcp.localAddress, tcp.localPort),
      remote: proxy ? undefined : endOf(tcp.remoteAddress, tcp.remotePort),
    };
    return { ws: await upgraded(options, host, { socket, timeoutMs: left() }), server, ends };
  } catch (error) {
    tcp.destroy();
    throw error;
  } finally {
    options.signal.removeEventListener("abort", onAbort);
  }
}

/** Host and port of `wss://host[:port]`. Throws MeshError CONFIG_INVALID for anything else. */
export function parseServerUrl(url: string): { readonly host: string; readonly port: number } {
  let parsed: URL | undefined;
  try {
    parsed = new URL(url);
  } catch {
    // Reported below, together with what is none of ours.
  }
  if (parsed?.protocol !== "wss:" || parsed.hostname === "" || parsed.username !== "" || parsed.search !== "") {
    throw new MeshError("CONFIG_INVALID", `Server address ${JSON.stringify(url)} is not of the form wss://host:port`);
  }
  return { host: parsed.hostname.replace(/^\[|\]$/g, ""), port: parsed.port === "" ? 443 : Number(parsed.port) };
}

function endOf(address: string | undefined, port: number | undefined): IpPort {
  return { ip: parseIp(address ?? "") ?? "0.0.0.0", port: port ?? 0 };
}

/** The connection to a proxy made one to the server. */
async function piped(
  options: ConnectOptions,
  tcp: net.Socket,
  { timeoutMs, proxy, ...target }: { readonly proxy: HttpProxy; readonly timeoutMs: number } & ProxyTarget,
): Promise<void> {
  const late = `The HTTP proxy ${proxy.host}:${proxy.port} did not reach ${options.url} within ${timeoutMs} ms`;
  const cancel = options.clock.timer(timeoutMs, () => tcp.destroy(new MeshError("SERVER_UNREACHABLE", late)));
  try {
    await throughProxy(tcp, proxy, target);
  } finally {
    cancel();
  }
}

function dialed(options: ConnectOptions, to: ProxyTarget): Promise<net.Socket> {
  const { host, port } = to;
  const where = options.url.includes(host) ? options.url : `the HTTP proxy ${host}:${port}`;
  return new Promise((resolve, reject) => {
    const socket = options.dial?.(host, port) ?? net.connect({ host, port });
    const end = (error?: MeshError) => {
      cancel();
      options.signal.removeEventListener("abort", onAbort);
      socket.removeListener("error", onError);
      if (!error) return resolve(socket);
      socket.on("error", () => {});
      socket.destroy();
      reject(error);
    };
    const onError = (cause: Error) => {
      end(new MeshError("SERVER_UNREACHABLE", `Cannot connect to ${where}`, { cause }));
    };
    const onAbort = () => end(options.signal.reason as MeshError);
    const timeoutMs = Math.min(TCP_MS, options.timeoutMs);
    const cancel = options.clock.timer(timeoutMs, () => {
      end(new MeshError("SERVER_UNREACHABLE", `No answer from ${where} within ${timeoutMs} ms`));
    });
    if (options.signal.aborted) return onAbort();
    options.signal.addEventListener("abort", onAbort, { once: true });
    socket.once("error", onError);
    socket.once("connect", () => {
      socket.setNoDelay(true);
      end();
    });
  });
}

function upgraded(
  options: ConnectOptions,
  host: string,
  on: { readonly socket: Duplex; readonly timeoutMs: number },
): Promise<WebSocket> {
  return new Promise((resolve, reject) => {
    const ws = new WebSocket(`ws://${net.isIPv6(host) ? `[${host}]` : host}${CONTROL_PATH}`, {
      ...WS_OPTIONS,
      createConnection: () => on.socket as net.Socket,
      maxPayload: 1 + MAX_REVOCATIONS_BYTES,
      // RFC 6455 §5.3 masks what a browser sends so that it cannot look like a request to a proxy. Inside TLS to our
      // own server nobody looks; an all-zero mask keeps the frame valid and spares a pass over every byte (8× CPU).
      generateMask: () => {},
      followRedirects: false,
    });
    const fail = (error: MeshError) => {
      cancel();
      reject(error);
      ws.terminate();
    };
    const cancel = options.clock.timer(on.timeoutMs, () => {
      fail(new MeshError("TIMEOUT", `${options.url} did not answer the upgrade`));
    });
    ws.once("open", () => {
      cancel();
      resolve(ws);
    });
    ws.on("error", (cause: Error) => {
      fail(new MeshError("SERVER_UNREACHABLE", `${options.url} ended the connection during the upgrade`, { cause }));
    });
    ws.once("unexpected-response", (_request: unknown, response: http.IncomingMessage) => {
      void refusalOf(response).then((error) => fail(error));
    });
  });
}

/** The server's reason in an answer that is no upgrade. */
function refusalOf(response: http.IncomingMessage): Promise<MeshError> {
  return new Promise((resolve) => {
    let body = "";
    response.on("data", (part: Uint8Array) => {
      if (body.length < MAX_REFUSAL) body += new TextDecoder().decode(part);
    });
    response.once("close", () => resolve(readRefusal(response.statusCode ?? 0, body)));
    response.once("error", () => resolve(readRefusal(response.statusCode ?? 0, body)));
  });
}

function readRefusal(status: number, body: string): MeshError {
  try {
    const { code, message } = JSON.parse(body) as { code?: unknown; message?: unknown };
    if (typeof code === "string" && Object.hasOwn(REASONS, code) && typeof message === "string") {
      return new MeshError(code as ReasonCode, `The server refused: ${message.slice(0, 300)}`);
    }
  } catch {
    // Not one of our servers, or a proxy in front of it answered.
  }
  return new MeshError("SERVER_UNREACHABLE", `The server answered the upgrade with HTTP ${status}`);
}
