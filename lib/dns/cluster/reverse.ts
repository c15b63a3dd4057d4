/**
 * PTR answers: addresses back to names (Kubernetes DNS specification §2.3.3, §2.4.3). Metadata comes from elsewhere, so
 * it is believed for addresses of the cluster's own networks and of private space only: no pushed object can give a
 * public address a name. Everything unknown falls through to the upstreams, except inside networks that are ours alone.
 */
import { type Cidr, cidrContains, ipBytes, isPrivate, parseIp } from "../../addr.ts";
import type { MetaReader } from "../../meta/model.ts";
import type { AnswerOptions, ClusterAnswer } from "./answer.ts";
import { RCODE, TYPE } from "../wire/constants.ts";
import { endpointHost, whyUnusable } from "./endpoints.ts";
import { endsWith, type Labels } from "../wire/labels.ts";
import { nameRecord } from "../wire/records.ts";

export interface ReverseOptions extends AnswerOptions {
  /** Networks whose addresses nobody else can name: unknown ones do not exist (service networks, say). */
  readonly ownNetworks: readonly Cidr[];
  /** The zones of {@link ownNetworks}, by {@link reverseZones}. */
  readonly ownZones: readonly Labels[];
}

const V4: Labels = ["in-addr", "arpa"];
const V6: Labels = ["ip6", "arpa"];

/** The address a reverse name stands for; undefined when it is none, or only part of one. */
export function reverseAddress(name: Labels): string | undefined {
  if (endsWith(name, V4) && name.length === 6) {
    return parseIp(name.slice(0, 4).reverse().join("."));
  }
  if (endsWith(name, V6) && name.length === 34) {
    const nibbles = name.slice(0, 32).reverse();
    if (!nibbles.every((n) => /^[0-9a-f]$/.test(n))) return undefined;
    return parseIp(nibbles.join("").replace(/(....)(?=.)/g, "$1:"));
  }
  return undefined;
}

/** Reverse zones that cover a network, on label boundaries: 10.96.0.0/12 is sixteen zones of one /16 each. */
export function reverseZones(network: Cidr): readonly Labels[] {
  const bytes = ipBytes(network.ip);
  const v4 = bytes.length === 4;
  const step = v4 ? 8 : 4;
  const depth = Math.ceil(network.bits / step);
  const digits = v4 ? [...bytes] : [...bytes].flatMap((b) => [b >> 4, b & 0xf]);
  const count = 2 ** (depth * step - network.bits);
  const zones: Labels[] = [];
  for (let i = 0; i < count; i++) {
    const own = digits.slice(0, depth);
    if (depth > 0) own[depth - 1] = own[depth - 1]! + i;
    zones.push([...own.reverse().map((d) => d.toString(v4 ? 10 : 16)), ...(v4 ? V4 : V6)]);
  }
  return zones;
}

/** Answers a name under in-addr.arpa or ip6.arpa; undefined = not ours to answer. `name` as asked, `lower` the same. */
export function answerReverse(
  question: { readonly name: Labels; readonly lower: Labels; readonly type: number },
  meta: MetaReader,
  options: ReverseOptions,
): ClusterAnswer | undefined {
  const { name, lower, type } = question;
  const ip = reverseAddress(lower);
  const zone = options.ownZones.find((z) => endsWith(lower, z));
  const ours = ip !== undefined && options.ownNetworks.some((n) => cidrContains(n, ip));
  const names = ip !== undefined && (ours || isPrivate(ip)) ? namesOf(ip, meta, options) : [];
  const base = { additionals: [], chase: undefined, caseBound: false };
  if (names.length > 0 && type === TYPE.PTR) {
    const answers = names.map((target) => nameRecord(name, TYPE.PTR, target, options.ttl));
    return { ...base, rcode: RCODE.NOERROR, answers, soaOf: undefined, reason: "found" };
  }
  if (zone === undefined) return undefined;
  const soaOf = name.slice(name.length - zone.length);
  if (names.length > 0 || (ip === undefined && name.length === zone.length)) {
    return { ...base, rcode: RCODE.NOERROR, answers: [], soaOf, reason: "no-records-of-type" };
  }
  return meta.synced
    ? { ...base, rcode: RCODE.NXDOMAIN, answers: [], soaOf, reason: "no-service" }
    : { ...base, rcode: RCODE.SERVFAIL, answers: [], soaOf, reason: "not-synced" };
}

/** A Service's own address names the Service; otherwise every Service that selects the endpoint gives it a name. */
function namesOf(ip: string, meta: MetaReader, options: ReverseOptions): readonly Labels[] {
  const zone = options.zones.find((z) => !z.multicluster)?.labels;
  if (zone === undefined) return [];
  const shown = (namespace: string) => options.namespaces === undefined || options.namespaces.has(namespace);
  const owner = meta.serviceByIp(ip);
  if (owner && shown(owner.namespace)) return [[owner.name, owner.namespace, "svc", ...zone]];
  const names = new Map<string, Labels>();
  for (const slice of meta.slicesByIp(ip)) {
    const service = meta.service(slice.namespace, slice.service);
    if (!shown(slice.namespace)) continue;
    for (const endpoint of slice.endpoints) {
      if (endpoint.ip !== ip || (service ? whyUnusable(endpoint, service) !== undefined : !endpoint.ready)) continue;
      const labels = [endpointHost(endpoint), slice.service, slice.namespace, "svc", ...zone];
      names.set(labels.join("."), labels);
    }
  }
  return [...names.values()];
}
