/** What a person means with a name: a node, or a Service in any of the forms in which programs write it. Pure. */
import { isNodeName } from "../lib/addr.ts";
import { MeshError } from "../lib/errors.ts";
import { nearest } from "../lib/nearest.ts";
import type { ServiceStatus } from "../lib/status.ts";

/** What names are looked up in. */
export interface TargetView {
  /** This node. */
  readonly node: string;
  /** Cluster zone, as in `web.shop.svc.cluster.local`. */
  readonly zone: string;
  /** All nodes that are known. */
  readonly nodes: ReadonlySet<string>;
  /** One entry per Service port, as in the status document. */
  readonly services: readonly ServiceStatus[];
}

export type PingTarget =
  | { readonly kind: "node"; readonly node: string; readonly self: boolean }
  | {
    readonly kind: "service";
    readonly service: string;
    /** Each endpoint once, with how connections get there. */
    readonly endpoints: readonly ServiceStatus["endpoints"][number][];
    /** Other nodes behind them, in order: whom a ping can ask. */
    readonly nodes: readonly string[];
  };

/** Names offered in an error. */
const MAX_OFFERED = 500;

/**
 * A bare label is a node if one is known by it, else a Service of the namespace `default`, else taken for a node that
 * the server may know. Throws NO_SERVICE for a Service that is not there.
 */
export function resolveTarget(name: string, view: TargetView): PingTarget {
  if (isNodeName(name) && (name === view.node || view.nodes.has(name))) return node(name, view);
  const found = findService(name, view);
  if (found) return serviceTarget(found, view);
  if (isNodeName(name)) return node(name, view);
  throw new MeshError("NO_SERVICE", `There is no Service or node ${name} here`, { hint: offer(name, view) });
}

/** The key `namespace/name` of a Service of the view by any of its names. */
export function findService(
  name: string,
  { zone, services }: Pick<TargetView, "zone" | "services">,
): string | undefined {
  const keys = new Set(services.map((s) => s.service));
  if (keys.has(name)) return name;
  const bare = name.replace(/\.$/, "").replace(new RegExp(`\\.svc(\\.${zone.replaceAll(".", "\\.")})?$`), "");
  const [service, namespace = "default", ...more] = bare.split(".");
  const key = `${namespace}/${service}`;
  return more.length === 0 && keys.has(key) ? key : undefined;
}

/** All Services whose ports are in the view by that name; throws NO_SERVICE with the nearest one. */
export function servicesNamed(name: string, view: Pick<TargetView, "zone" | "services">): readonly ServiceStatus[] {
  const key = findService(name, view);
  if (key === undefined) {
    throw new MeshError("NO_SERVICE", `There is no Service ${name} in this node's metadata`, {
      hint: offer(name, view),
    });
  }
  return view.services.filter((s) => s.service === key);
}

function node(name: string, view: TargetView): PingTarget {
  return { kind: "node", node: name, self: name === view.node };
}

function serviceTarget(service: string, view: TargetView): PingTarget {
  const endpoints = new Map<string, ServiceStatus["endpoints"][number]>();
  for (const port of view.services) {
    if (port.service !== service) continue;
    for (const e of port.endpoints) endpoints.set(`${e.node ?? ""} ${e.endpoint}`, e);
  }
  const all = [...endpoints.values()];
  const nodes = all.map((e) => e.node).filter((n) => n !== undefined && n !== view.node);
  return { kind: "service", service, endpoints: all, nodes: [...new Set(nodes as string[])] };
}

function offer(name: string, { services }: Pick<TargetView, "services">): string {
  const keys = [...new Set(services.map((s) => s.service))].slice(0, MAX_OFFERED);
  // People write `web.shop`, lists say `shop/web`: a slip in either is close to one of the two.
  const forms = new Map(keys.flatMap((key) => [[key, key], [key.split("/").reverse().join("."), key]] as const));
  const near = forms.get(nearest(name, [...forms.keys()]) ?? "") ??
    keys.find((key) => key.endsWith(`/${name.split(".")[0]}`));
  return near === undefined ? "edgemesh services" : `${near}, or: edgemesh services`;
}
