/** The programs in tests/lab/fixtures as the tests start them. */
import type { ExecResult } from "../../lib/lab/exec.ts";
import type { Host } from "../../lib/lab/host.ts";
import type { HostProcess } from "../../lib/lab/process.ts";
import { fixture } from "./support.ts";

/** Where fixtures/tcp_peer.ts listens, and what it does there. */
export const PORTS = {
  /** Reads to the end, then answers with the count and the hash, and ends. */
  digest: 7001,
  /** Reads a number and a newline, sends so many bytes, and ends. */
  source: 7002,
  /** Sends for as long as somebody takes it. */
  flood: 7003,
  /** Resets the connection at the first byte. */
  reset: 7004,
} as const;

/** What became of a connection, as its client saw it. */
export interface Asked {
  /** `cleanly`, or a reason code. */
  readonly ended: string;
  readonly received: number;
  readonly ms: number;
  /** What the digest server said. */
  readonly answer: string;
  /** Of what was sent (`upload`, `abort`) or received (`download`). */
  readonly sha256: string;
}

const LONGEST_ASK_MS = 60_000;

/** The servers of all {@link PORTS} on one host. */
export function startPeer(host: Host): Promise<HostProcess> {
  return host.start("tcp-peer", [...fixture("tcp_peer"), "serve"], { ready: { log: /^listening/m } });
}

/** One connection to a peer, from its beginning to its end. */
export async function ask(
  host: Host,
  mode: "upload" | "download" | "reset" | "abort",
  ip: string,
  bytes = 0,
): Promise<Asked> {
  const result = await host.execOk([...fixture("tcp_peer"), "ask", mode, ip, String(bytes)], {
    timeoutMs: LONGEST_ASK_MS,
  });
  return parse(result);
}

/** A client of the flood that reads nothing until it gets SIGUSR2. */
export function startStalled(host: Host, ip: string): Promise<HostProcess> {
  return host.start("stalled", [...fixture("tcp_peer"), "ask", "stall", ip], { ready: { log: /^open/m } });
}

function parse({ stdout }: ExecResult): Asked {
  return JSON.parse(stdout) as Asked;
}
