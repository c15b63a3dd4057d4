/** fixtures/udp_peer.ts as the tests start it. */
import type { Host } from "../../lib/lab/host.ts";
import type { HostProcess } from "../../lib/lab/process.ts";
import { fixture } from "./support.ts";

/** What came back for one datagram. */
export interface UdpAnswer {
  readonly size: number;
  /** The answer is what was sent. */
  readonly same: boolean;
  readonly text: string;
  /** `address:port` it came from; empty: nothing came. */
  readonly from: string;
  readonly ms: number;
}

/** What became of many numbered datagrams that an echo sent back. */
export interface UdpRun {
  readonly sent: number;
  readonly received: number;
  readonly duplicates: number;
  /** Of another size, or with a number that nobody sent. */
  readonly wrong: number;
  /** Number of the last one that did not come back; -1: all came. */
  readonly lastLost: number;
  readonly first: number;
  readonly last: number;
  /** Round trips in milliseconds. */
  readonly p50: number;
  readonly p99: number;
  /** Payload that made it there and back, over the time of sending. */
  readonly kbitPerSecond: number;
}

const LONGEST_ASK_MS = 120_000;

/** An echo that also tells its name and answers late. */
export function startUdpPeer(host: Host, name: string, port: number): Promise<HostProcess> {
  return host.start(`udp-${name}`, [...fixture("udp_peer"), "serve", name, String(port)], {
    ready: { port, protocol: "udp" },
  });
}

/** Runs one client to its end. */
export async function askUdp<T>(host: Host, what: string, ip: string, port: number, ...rest: unknown[]): Promise<T> {
  const argv = [...fixture("udp_peer"), "ask", what, ip, String(port), ...rest.map(String)];
  return JSON.parse((await host.execOk(argv, { timeoutMs: LONGEST_ASK_MS })).stdout) as T;
}

/** A client that asks for the server's name ten times a second; each answer is a line of its log. */
export function startWho(host: Host, ip: string, port: number): Promise<HostProcess> {
  return host.start("who", [...fixture("udp_peer"), "ask", "who", ip, String(port)], { ready: { log: /^open/m } });
}
