/** How far the way to a server goes: name, TCP, TLS, the pinned authority. Nothing is asked of the server. */
import { systemClock } from "../../lib/clock.ts";
import { codeOf, describe, MeshError } from "../../lib/errors.ts";
import type { ProxyFor } from "../../lib/http_proxy.ts";
import { connectPinned } from "../../lib/identity/join_connection.ts";
import { parseServerUrl } from "../../lib/tunnel/control/connect.ts";
import { within } from "../within.ts";
import type { ReachFact } from "./facts.ts";

/** Per step; over a satellite a handshake takes two seconds. */
const STEP_MS = 5_000;

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
  try {
    const server = parseServerUrl(url);
    const { host, port } = proxyFor(server) ?? server;
    const late = `no answer from ${host}:${port} within ${STEP_MS / 1000} s: a firewall drops it, or nothing is there`;
    const dialled = Deno.connect({ hostname: host, port });
    const connection = await within(STEP_MS, late, dialled).catch((error) => {
      dialled.then((conn) => conn.close(), () => {});
      throw error;
    });
    tcpMs = elapsed();
    connection.close();
    if (pin === undefined) return { url, tcpMs, pinned: false };
    const tlsStarted = systemClock.now();
    const pinned = await connectPinned({ url, pin, clock: systemClock, proxyFor, timeoutMs: STEP_MS });
    pinned.close();
    return { url, tcpMs, tlsMs: Math.round((systemClock.now() - tlsStarted) * 10) / 10, pinned: true };
  } catch (error) {
    const code = error instanceof MeshError ? codeOf(error) : "SERVER_UNREACHABLE";
    const text = error instanceof MeshError ? error.message : describe(error);
    const step = tcpMs !== undefined
      ? (code === "PIN_MISMATCH" || code === "CERT_UNTRUSTED" ? "pin" : "tls")
      : /lookup|resolve/i.test(text)
      ? "name"
      : "tcp";
    return { url, ...(tcpMs === undefined ? {} : { tcpMs }), pinned: false, failed: { step, code, text } };
  }
}
