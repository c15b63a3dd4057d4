/**
 * Endpoints on the wire, and the difference between two versions of a slice. One endpoint that changes in a slice of a
 * hundred is then some 60 bytes instead of 6 000.
 */
import { parseIp } from "../../addr.ts";
import { isLabel, isSubdomain } from "../convert/checker.ts";
import type { Endpoint, EndpointSlice } from "../model.ts";
import { sameValue } from "../objects.ts";
import type { Interner } from "../convert/intern.ts";
import type { Json } from "./wire_value.ts";
import { BadValue, WireReader } from "./wire_value.ts";
import { MAX_SLICE_ENDPOINTS } from "../convert/convert_endpoints.ts";

const READY = 1;
const SERVING = 2;
const TERMINATING = 4;
const MAX_HINTS = 64;

/** Address, node, flags, then what is there of pod, zone, hostname, hints. */
export function encodeEndpoint(e: Endpoint): Json {
  const flags = (e.ready ? READY : 0) | (e.serving ? SERVING : 0) | (e.terminating ? TERMINATING : 0);
  const out: Json[] = [
    e.ip,
    e.node ?? 0,
    flags,
    e.pod ?? 0,
    e.zone ?? 0,
    e.hostname ?? 0,
    e.hintZones ?? 0,
    e.hintNodes ?? 0,
  ];
  while (out[out.length - 1] === 0) out.pop();
  return out;
}

export function decodeEndpoint(r: WireReader): Endpoint {
  const ip = r.text(0, 64);
  if (parseIp(ip) !== ip) r.fail("is not an address in canonical form", 0);
  const node = r.optional(1, (i) => r.name(i, isSubdomain));
  const flags = r.int(2, 0, 0xff);
  const pod = r.optional(3, (i) => r.text(i, 253));
  if (pod !== undefined && !isSubdomain(pod)) r.fail("is not a valid name", 3);
  const zone = r.optional(4, (i) => r.shared(i, 63));
  const hostname = r.optional(5, (i) => r.text(i, 63));
  if (hostname !== undefined && !isLabel(hostname)) r.fail("is not a valid name", 5);
  const hintZones = r.optional(6, (i) => r.list(i, MAX_HINTS, (item) => item.wholeText(63)));
  const hintNodes = r.optional(7, (i) => r.list(i, MAX_HINTS, (item) => item.wholeText(253)));
  return {
    ip,
    ...(node === undefined ? {} : { node }),
    ...(zone === undefined ? {} : { zone }),
    ...(hostname === undefined ? {} : { hostname }),
    ...(pod === undefined ? {} : { pod }),
    ready: (flags & READY) !== 0,
    serving: (flags & SERVING) !== 0,
    terminating: (flags & TERMINATING) !== 0,
    ...(hintZones === undefined ? {} : { hintZones }),
    ...(hintNodes === undefined ? {} : { hintNodes }),
  };
}

/**
 * What turns `before` into `after`: endpoints gone (by address and node) and endpoints put. Undefined when a patch
 * cannot say it (ports or owner changed, order would differ, one identity twice) or would not be smaller.
 */
export function encodePatch(before: EndpointSlice, after: EndpointSlice): Json | undefined {
  if (before.service !== after.service || before.sourceCluster !== after.sourceCluster) return undefined;
  if (!sameValue(before.ports, after.ports)) return undefined;
  const old = byIdentity(before);
  const now = byIdentity(after);
  if (!old || !now) return undefined;
  const gone: Json[] = [];
  const puts: Endpoint[] = [];
  for (const [id, e] of old) if (!now.has(id)) gone.push([e.ip, e.node ?? 0]);
  for (const [id, e] of now) if (!sameValue(old.get(id), e)) puts.push(e);
  if ((gone.length + puts.length) * 2 > after.endpoints.length + 2) return undefined;
  const goneIds = new Set([...old.keys()].filter((id) => !now.has(id)));
  if (!sameValue(patched(before.endpoints, goneIds, puts), after.endpoints)) return undefined;
  return [gone, puts.map(encodeEndpoint)];
}

/** Applies a patch, or says why it cannot be. */
export function applyPatch(before: EndpointSlice, value: unknown, strings: Interner): EndpointSlice | string {
  try {
    const r = new WireReader(value, strings);
    const gone = new Set(r.list(0, MAX_SLICE_ENDPOINTS, (item) => {
      return identity({ ip: item.text(0, 64), node: item.optional(1, (i) => item.text(i, 253)) });
    }));
    const puts = r.list(1, MAX_SLICE_ENDPOINTS, decodeEndpoint);
    const endpoints = patched(before.endpoints, gone, puts);
    if (endpoints.length > MAX_SLICE_ENDPOINTS) return `would hold more than ${MAX_SLICE_ENDPOINTS} endpoints`;
    return { ...before, endpoints };
  } catch (error) {
    if (error instanceof BadValue) return error.message;
    throw error;
  }
}

/** Puts replace in place, new ones go to the end. */
function patched(
  before: readonly Endpoint[],
  gone: ReadonlySet<string>,
  puts: readonly Endpoint[],
): readonly Endpoint[] {
  const waiting = new Map(puts.map((e) => [identity(e), e]));
  const out: Endpoint[] = [];
  for (const e of before) {
    const id = identity(e);
    if (gone.has(id)) continue;
    out.push(waiting.get(id) ?? e);
    waiting.delete(id);
  }
  return [...out, ...waiting.values()];
}

function identity(e: { readonly ip: string; readonly node?: string | undefined }): string {
  return `${e.ip} ${e.node ?? ""}`;
}

function byIdentity(slice: EndpointSlice): Map<string, Endpoint> | undefined {
  const map = new Map(slice.endpoints.map((e) => [identity(e), e]));
  return map.size === slice.endpoints.length ? map : undefined;
}
