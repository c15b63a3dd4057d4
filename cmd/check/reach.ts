/** How far the way to a server goes: name, TCP, TLS, the pinned authority. Nothing is asked of the server. */
import { parseIp } from "../../lib/addr.ts";
import { systemClock } from "../../lib/clock.ts";
import { codeOf, explain, MeshError } from "../../lib/errors.ts";
import type { ProxyFor } from "../../lib/http_proxy.ts";
import { connectPinned } from "../../lib/identity/join_connection.ts";
import { ffiProblem } from "../../lib/linux/ffi.ts";
import { EpollLoop } from "../../lib/linux/loop.ts";
import { nullLogger } from "../../lib/log.ts";
import { idleHandler } from "../../lib/net.ts";
import { legOfFd } from "../../lib/tunnel/carriers/tcp_leg.ts";
import { parseServerUrl } from "../../lib/tunnel/control/connect.ts";
import { within } from "../within.ts";
import type { ReachFact } from "./facts.ts";

/** Per step; over a satellite a handshake takes two seconds. */
const STEP_MS = 5_000;
/** Bytes of a segment that every link passes: IPv4 asks for packets of 576 (RFC 791). */
const SMALL_SEGMENT = 500;

export interface ReachOptions {
  /** Of the authority, where it is known. */
  readonly pin: string | undefined;
  /** The HTTP proxy that leads to a server, if any. */
  readonly proxyFor: ProxyFor;
}

/** Tries one server; with a pin, that its authority is ours. Never throws. */
export async function reachServer(url: string, { pin, proxyFor }: ReachOptions): Promise<ReachFact> {
  const started = systemClock.now();
  const elapsed = () => Math.round((systemClock.now() - started) * 10) / 10;
  let tcpMs: number | undefined;
  let via = "";
  try {
    const server = parseServerUrl(url);
    const proxy = proxyFor(server);
    const { host, port } = proxy ?? server;
    if (proxy) via = `the HTTP proxy ${host}:${port} cannot be reached: `;
    const late = `no answer from ${host}:${port} within ${STEP_MS / 1000} s: a firewall drops it, or nothing is there`;
    const dialled = Deno.connect({ hostname: host, port });
    const connection = await within(STEP_MS, late, dialled).catch((error) => {
      dialled.then((conn) => conn.close(), () => {});
      throw error;
    });
    tcpMs = elapsed();
    const ip = parseIp(connection.remoteAddr.hostname);
    connection.close();
    if (pin === undefined) return { url, tcpMs, pinned: false };
    const tlsStarted = systemClock.now();
    try {
      (await connectPinned({ url, pin, clock: systemClock, proxyFor, timeoutMs: STEP_MS })).close();
    } catch (error) {
      // Silence after TCP: the handshake's packets are the first large ones.
      const silent = /within/.test(explain(error).text) && proxy === undefined && ip !== undefined;
      if (!silent || !await passesSmall({ url, pin }, { ip, port })) throw error;
      const text =
        `TLS completes with segments of ${SMALL_SEGMENT} bytes only: larger packets to or from ${host} are ` +
        "lost on the way, and nobody says so (an MTU black hole)";
      return { url, tcpMs, pinned: true, failed: { step: "mtu", code: "SERVER_UNREACHABLE", text } };
    }
    return { url, tcpMs, tlsMs: Math.round((systemClock.now() - tlsStarted) * 10) / 10, pinned: true };
  } catch (error) {
    const code = error instanceof MeshError ? codeOf(error) : "SERVER_UNREACHABLE";
    const text = (tcpMs === undefined ? via : "") + explain(error).text;
    const step = tcpMs !== undefined
      ? (code === "PIN_MISMATCH" || code === "CERT_UNTRUSTED" ? "pin" : "tls")
      : /lookup|resolve/i.test(text)
      ? "name"
      : "tcp";
    return { url, ...(tcpMs === undefined ? {} : { tcpMs }), pinned: false, failed: { step, code, text } };
  }
}

/** Whether the same handshake passes in small segments. */
async function passesSmall(
  target: { readonly url: string; readonly pin: string },
  at: { readonly ip: string; readonly port: number },
): Promise<boolean> {
  // Without FFI the size of segments cannot be set.
  if (ffiProblem() !== undefined) return false;
  await using loop = EpollLoop.open({ clock: systemClock, log: nullLogger });
  try {
    const opened = Promise.withResolvers<void>();
    const stream = loop.dialTcp(at, {
      ...idleHandler,
      onOpen: () => opened.resolve(),
      onClose: (reason) => opened.reject(new MeshError(reason ?? "PEER_GONE", "The connection did not open")),
    }, { timeoutMs: STEP_MS, maxSegment: SMALL_SEGMENT });
    await opened.promise;
    const socket = legOfFd(loop.takeFd(stream));
    (await connectPinned({ ...target, clock: systemClock, timeoutMs: STEP_MS, socket })).close();
    return true;
  } catch {
    return false;
  }
}
