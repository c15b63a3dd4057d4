/**
 * What the server's sightings of one local port say about the NAT in front of it (RFC 4787 §4.1), and at which port it
 * will let the next connection out. Pure.
 */
import { familyOf } from "../../addr.ts";
import type { IpPort } from "../../net.ts";
import { type Mapping, MAX_STRIDE } from "../control/path_message.ts";

/** The holder of a port was seen. */
export interface Sighting {
  readonly from: IpPort;
  /** Our address that it came to. */
  readonly at: IpPort;
}

export interface Mapped {
  readonly mapping: Mapping;
  /** Where the next connection from the port will come from, as far as can be told. */
  readonly next: IpPort;
  /** With mapping `steps`: how far apart the ports of two connections are. */
  readonly stride?: number;
}

export function seenIn(sightings: readonly Sighting[], family: 4 | 6): Sighting[] {
  return sightings.filter((s) => familyOf(s.from.ip) === family);
}

/** Of one family, in which there is at least one sighting. */
export function mappedIn(sightings: readonly Sighting[], family: 4 | 6): Mapped {
  const seen = seenIn(sightings, family);
  const first = seen[0]!.from;
  const places = new Set(seen.map(({ at }) => `${at.ip} ${at.port}`)).size;
  if (seen.every(({ from }) => from.port === first.port && from.ip === first.ip)) {
    return { mapping: places > 1 ? "same" : "unknown", next: first };
  }
  // Who shares one address of several cannot be foretold, nor can IPv6: there is no NAT that counts.
  if (family === 6 || seen.some(({ from }) => from.ip !== first.ip)) return { mapping: "varies", next: first };
  // The two connections were made at once and may have passed the NAT in either order.
  const ports = [...new Set(seen.map(({ from }) => from.port))].sort((a, b) => a - b);
  const last = ports.at(-1)!;
  const stride = last - ports.at(-2)!;
  if (stride > MAX_STRIDE || last + stride > 65_535) return { mapping: "varies", next: first };
  return { mapping: "steps", next: { ip: first.ip, port: last + stride }, stride };
}
