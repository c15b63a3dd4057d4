/** The SOA record of our zones: what makes negative answers cacheable (RFC 2308). */
import { TYPE } from "../wire/constants.ts";
import type { Labels } from "../wire/labels.ts";
import type { ResourceRecord } from "../wire/records.ts";

/** Timers as CoreDNS has them; nobody transfers these zones, so only `minimum` has an effect. */
const REFRESH = 7200;
const RETRY = 1800;
const EXPIRE = 86400;

/**
 * `zone` in the case it was asked, so that clients which vary the case (0x20) see theirs. TTL and minimum are the
 * zone's TTL: RFC 2308 §5 takes the smaller of both as the life of the negative answer.
 */
export function soaRecord(zone: Labels, serial: number, ttl: number): ResourceRecord {
  return {
    name: zone,
    type: TYPE.SOA,
    ttl,
    data: {
      kind: "soa",
      mname: ["ns", "dns", ...zone],
      rname: ["hostmaster", ...zone],
      // RFC 1982 leaves 0 a special meaning for some software.
      serial: (serial >>> 0) || 1,
      refresh: REFRESH,
      retry: RETRY,
      expire: EXPIRE,
      minimum: ttl,
    },
  };
}
