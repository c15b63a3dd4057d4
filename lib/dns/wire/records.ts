/** Resource records as values, between the pure answers and the writer of bytes. */
import { TYPE } from "./constants.ts";
import type { Labels } from "./labels.ts";

/** The data of a record. `raw` is data of any other type, already without compression (RFC 3597). */
export type RData =
  | { readonly kind: "address"; readonly ip: string }
  | { readonly kind: "name"; readonly target: Labels }
  | {
    readonly kind: "srv";
    readonly priority: number;
    readonly weight: number;
    readonly port: number;
    readonly target: Labels;
  }
  | { readonly kind: "text"; readonly strings: readonly string[] }
  | {
    readonly kind: "soa";
    readonly mname: Labels;
    readonly rname: Labels;
    readonly serial: number;
    readonly refresh: number;
    readonly retry: number;
    readonly expire: number;
    readonly minimum: number;
  }
  | { readonly kind: "raw"; readonly bytes: Uint8Array };

export interface ResourceRecord {
  readonly name: Labels;
  readonly type: number;
  /** Seconds. */
  readonly ttl: number;
  readonly data: RData;
}

/** A or AAAA, by the family of a canonical address. */
export function addressRecord(name: Labels, ip: string, ttl: number): ResourceRecord {
  return { name, type: ip.includes(":") ? TYPE.AAAA : TYPE.A, ttl, data: { kind: "address", ip } };
}

/** A record whose data is one name: CNAME, NS, PTR. */
export function nameRecord(name: Labels, type: number, target: Labels, ttl: number): ResourceRecord {
  return { name, type, ttl, data: { kind: "name", target } };
}

export interface SrvTarget {
  readonly weight: number;
  readonly port: number;
  readonly target: Labels;
}

/** Priority 0, as Kubernetes has no other. */
export function srvRecord(name: Labels, srv: SrvTarget, ttl: number): ResourceRecord {
  return { name, type: TYPE.SRV, ttl, data: { kind: "srv", priority: 0, ...srv } };
}

/** Character strings (TXT, HINFO), one byte per character, each at most 255. */
export function textRecord(name: Labels, type: number, strings: readonly string[], ttl: number): ResourceRecord {
  return { name, type, ttl, data: { kind: "text", strings } };
}
