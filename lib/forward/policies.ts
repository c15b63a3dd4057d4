/**
 * What Istio's DestinationRules say about layer 4: the balancing of a Service or of one of its ports. Rules are kept as
 * they came, so everything in them is looked at with care: a value that is not known here is a note, never an error.
 */
import { type MetaReader, type RouteObject, type ServiceKey, serviceKey } from "../meta/model.ts";
import type { Balance } from "./facts.ts";
import type { HashOn } from "./request_key.ts";

const GROUP = "networking.istio.io";
const KIND = "DestinationRule";

/** How connections are spread, and by what of their first request where that decides. */
export interface Balancing {
  readonly balance: Balance;
  /** Set for `request-hash` only. */
  readonly hashOn?: HashOn;
}

export interface ServicePolicy {
  /** The rule this was read from: an equal reference means an equal policy. */
  readonly from: RouteObject;
  /** Undefined: the rule says nothing, and the configuration's default holds. */
  readonly balancing: Balancing | undefined;
  readonly perPort: ReadonlyMap<number, Balancing>;
  /** What of it cannot be done, one sentence each. */
  readonly notes: readonly string[];
}

/** Policies by the Service they are for. Of two rules for one Service the one whose name sorts first counts. */
export function policiesOf(meta: MetaReader): ReadonlyMap<ServiceKey, ServicePolicy> {
  const out = new Map<ServiceKey, ServicePolicy>();
  for (const rule of meta.routes(GROUP, KIND)) {
    const key = hostKey(text(field(rule.spec, "host")), rule.namespace);
    if (key === undefined) continue;
    const known = out.get(key)?.from;
    if (known && nameOf(known) < nameOf(rule)) continue;
    out.set(key, parsed.get(rule) ?? parse(rule));
  }
  return out;
}

/** Reading a rule twice is wasted: they are immutable and asked for with every snapshot. */
const parsed = new WeakMap<RouteObject, ServicePolicy>();

function parse(rule: RouteObject): ServicePolicy {
  const notes: string[] = [];
  const read = (policy: unknown) => {
    const { balancing, note } = balanceOf(field(policy, "loadBalancer"));
    if (note) notes.push(`DestinationRule ${nameOf(rule)}: ${note}`);
    return balancing;
  };
  const traffic = field(rule.spec, "trafficPolicy");
  const perPort = new Map<number, Balancing>();
  const balancing = read(traffic);
  const settings = field(traffic, "portLevelSettings");
  for (const setting of Array.isArray(settings) ? settings : []) {
    const number = field(field(setting, "port"), "number");
    const own = read(setting);
    if (typeof number === "number" && own !== undefined) perPort.set(number, own);
  }
  const policy = { from: rule, balancing, perPort, notes };
  parsed.set(rule, policy);
  return policy;
}

const SIMPLE: Readonly<Record<string, Balance>> = {
  ROUND_ROBIN: "round-robin",
  RANDOM: "random",
  LEAST_CONN: "least-connections",
  LEAST_REQUEST: "least-connections",
};

function balanceOf(loadBalancer: unknown): { readonly balancing?: Balancing; readonly note?: string } {
  if (loadBalancer === undefined) return {};
  const simple = field(loadBalancer, "simple");
  if (simple !== undefined) {
    // UNSPECIFIED and PASSTHROUGH leave the choice to us.
    if (simple === "UNSPECIFIED" || simple === "PASSTHROUGH") return {};
    const balance = typeof simple === "string" && Object.hasOwn(SIMPLE, simple) ? SIMPLE[simple] : undefined;
    return balance
      ? { balancing: { balance } }
      : { note: `loadBalancer.simple ${JSON.stringify(simple)} is not known` };
  }
  const hash = field(loadBalancer, "consistentHash");
  if (hash === undefined) return { note: "loadBalancer says neither simple nor consistentHash" };
  if (field(hash, "useSourceIp") === true) return { balancing: { balance: "source-hash" } };
  const hashOn = hashOnOf(hash);
  return hashOn
    ? { balancing: { balance: "request-hash", hashOn } }
    : { note: "consistentHash names nothing that is known to hash" };
}

/** `minimumRingSize`, `ringHash` and `maglev` size tables that rendezvous hashing does not have. */
function hashOnOf(hash: unknown): HashOn | undefined {
  const header = text(field(hash, "httpHeaderName"));
  if (header) return { kind: "header", name: header.toLowerCase() };
  const cookie = text(field(field(hash, "httpCookie"), "name"));
  if (cookie) return { kind: "cookie", name: cookie };
  const query = text(field(hash, "httpQueryParameterName"));
  return query ? { kind: "query", name: query } : undefined;
}

/** `web`, `web.shop`, `web.shop.svc` and `web.shop.svc.cluster.local` are the Service shop/web. */
function hostKey(host: string | undefined, namespace: string): ServiceKey | undefined {
  if (host === undefined || host === "" || host.includes("*")) return undefined;
  const labels = host.replace(/\.$/, "").split(".");
  if (labels.length === 1) return serviceKey(namespace, labels[0]!);
  return labels.length === 2 || labels[2] === "svc" ? serviceKey(labels[1]!, labels[0]!) : undefined;
}

function nameOf(rule: RouteObject): string {
  return `${rule.namespace}/${rule.name}`;
}

function field(value: unknown, name: string): unknown {
  if (typeof value !== "object" || value === null || !Object.hasOwn(value, name)) return undefined;
  return (value as Record<string, unknown>)[name];
}

function text(value: unknown): string | undefined {
  return typeof value === "string" ? value : undefined;
}
