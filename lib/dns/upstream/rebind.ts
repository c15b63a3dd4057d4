/**
 * Names of others that lead into our own network (DNS rebinding): a page from outside is loaded, its name then resolves
 * to an address here, and the browser lets the page talk to it.
 */
import { ipFromBytes, isPrivate, isUnicastEndpoint } from "../../addr.ts";
import { TYPE } from "../wire/constants.ts";
import { endsWith, type Labels } from "../wire/labels.ts";
import type { ResourceRecord } from "../wire/records.ts";

/** Whether a record may be passed on for a name (lower case) of somebody else. */
export type AllowRecord = (name: Labels, record: ResourceRecord) => boolean;

/** Refuses addresses that mean something only here, except for names in `allowed` zones (lower case). */
export function rebindFilter(allowed: readonly Labels[]): AllowRecord {
  return (name, record) => {
    if (record.type !== TYPE.A && record.type !== TYPE.AAAA) return true;
    if (record.data.kind !== "raw" || allowed.some((zone) => endsWith(name, zone))) return true;
    const ip = ipFromBytes(record.data.bytes);
    return isUnicastEndpoint(ip) && !isPrivate(ip);
  };
}
