/**
 * The receiving side of the tunnel: may this peer be connected to that endpoint? Asked on every OPEN, answered from
 * this node's own knowledge only. The address that was checked is the address that is dialled; nothing is looked up
 * a second time.
 */
import { cidrContains, hostPort, isUnicastEndpoint } from "../addr.ts";
import type { ReasonCode } from "../errors.ts";
import type { EndpointSlice, MetaReader, Service } from "../meta/model.ts";
import type { IpPort, ServiceTarget } from "../net.ts";
import type { ForwardConfig, NodeFacts } from "./facts.ts";

export type Authorized =
  | { readonly ok: true; readonly dial: IpPort }
  | { readonly ok: false; readonly refused: ReasonCode; readonly why: string };

/** What this node lets in, beside its metadata. */
export interface InboundPolicy {
  readonly facts: NodeFacts;
  readonly config: Pick<ForwardConfig, "hostPorts" | "reservedPorts">;
}

/**
 * A target is let in when (1) this node's own snapshot has the Service and its port, (2) the endpoint is one of that
 * Service's endpoints on this node, and (3) its address is in this node's pod networks, or is this host's with a port
 * that the local configuration opened.
 */
export function authorize(target: ServiceTarget, meta: MetaReader | undefined, policy: InboundPolicy): Authorized {
  const { facts } = policy;
  const name = `${target.namespace}/${target.service} ${target.protocol}/${target.port}`;
  if (!meta?.synced) return no("NOT_SYNCED", "this node has no metadata yet");
  // An endpoint without a node is dialled by the client's own node; one of another node is that node's to judge.
  if (target.node !== facts.node) {
    return no("NOT_ALLOWED", `the endpoint is not on this node but on ${target.node ?? "no node"}`);
  }
  const service = meta.service(target.namespace, target.service);
  const portName = service && namesOfPort(service, target);
  if (!service || !portName) return no("NO_SERVICE", `${name} is not in this node's metadata`);
  const slices = meta.slicesOf(target.namespace, target.service);
  if (!slices.some((slice) => holds(slice, target, portName))) {
    return no("ENDPOINT_REMOVED", `${hostPort(target.endpoint)} is not an endpoint of ${name} on this node`);
  }
  return checkAddress(target.endpoint, policy);
}

function checkAddress(at: IpPort, { facts, config }: InboundPolicy): Authorized {
  if (!isUnicastEndpoint(at.ip)) return no("NOT_ALLOWED", `${at.ip} is loopback, link-local or multicast`);
  // A pod network usually holds an address of the host too (the bridge's): that one is the host, not a pod.
  if (facts.addresses.includes(at.ip)) {
    if (config.reservedPorts.includes(at.port)) return no("NOT_ALLOWED", `port ${at.port} is the agent's own`);
    if (!config.hostPorts.includes(at.port)) {
      return no("NOT_ALLOWED", `port ${at.port} of this host is not opened in forward.hostPorts`);
    }
    return { ok: true, dial: at };
  }
  if (!facts.podCidrs.some((cidr) => cidrContains(cidr, at.ip))) {
    return no("NOT_ALLOWED", `${at.ip} is outside this node's pod networks`);
  }
  return { ok: true, dial: at };
}

/** The names of the Service's ports that match (a Service may list one port for both protocols under two names). */
function namesOfPort(service: Service, target: ServiceTarget): readonly string[] | undefined {
  const names = service.ports
    .filter((p) => p.protocol === target.protocol && p.port === target.port)
    .map((p) => p.name);
  return names.length > 0 ? names : undefined;
}

function holds(slice: EndpointSlice, target: ServiceTarget, names: readonly string[]): boolean {
  return slice.ports.some((p) =>
    p.protocol === target.protocol && p.port === target.endpoint.port && names.includes(p.name)
  ) && slice.endpoints.some((e) => e.ip === target.endpoint.ip && e.node === target.node);
}

function no(refused: ReasonCode, why: string): Authorized {
  return { ok: false, refused, why };
}
