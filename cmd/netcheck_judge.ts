/** What the servers' sightings of this node say about the NAT in between. Pure. */
import type { IpPort } from "../lib/net.ts";

/** One control connection: where it runs from, and how it arrives. */
export interface Sighting {
  readonly url: string;
  readonly local: IpPort;
  readonly observed: IpPort;
  /** The server's address as this host dials it. */
  readonly remote: IpPort;
}

export type NatKind =
  /** Servers see our own addresses and ports. */
  | "none"
  /** Translated, but ports stay: the same for every destination as far as seen. */
  | "ports-kept"
  /** Different servers see different public addresses. */
  | "addresses-vary"
  /** Translated, ports change, and one address to compare with is not enough. */
  | "unknown"
  | "not-seen";

export interface NatFinding {
  readonly kind: NatKind;
  /** One sentence without a final period. */
  readonly text: string;
}

export function judgeNat(sightings: readonly Sighting[]): NatFinding {
  const [first] = sightings;
  if (!first) {
    return { kind: "not-seen", text: "no server is connected, so nobody has seen this node's public address" };
  }
  const places = new Set(sightings.map((s) => s.remote.ip));
  const publicIps = new Set(sightings.map((s) => s.observed.ip));
  if (sightings.every((s) => s.local.ip === s.observed.ip && s.local.port === s.observed.port)) {
    return { kind: "none", text: `no NAT: the servers see this host's own address ${first.observed.ip}` };
  }
  if (publicIps.size > 1) {
    const list = [...publicIps].join(" and ");
    return {
      kind: "addresses-vary",
      text: `the servers see different public addresses (${list}): several ways out, or a NAT with a pool`,
    };
  }
  const kept = sightings.every((s) => s.local.port === s.observed.port);
  const where = `${first.local.ip} is seen as ${first.observed.ip}`;
  if (kept && places.size > 1) {
    return { kind: "ports-kept", text: `behind a NAT that keeps ports: ${where}, at ${places.size} server addresses` };
  }
  const ports = kept ? "the port stays" : "the port changes";
  return {
    kind: "unknown",
    text: places.size === 1
      ? `behind a NAT: ${where}, ${ports}; one server address cannot tell whether it maps each destination anew: a second server can, and so does a try at a direct path (edgemesh status --peers)`
      : `behind a NAT: ${where}, ${ports}; these connections have ports of their own, so whether it maps each destination anew is shown by a try at a direct path (edgemesh status --peers)`,
  };
}
