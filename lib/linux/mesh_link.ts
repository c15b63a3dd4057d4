/**
 * The mesh link: the interface that carries the agent's own addresses (DNS listens there) and to which the service
 * networks are routed, so that even a host without any default route reaches ClusterIPs.
 */
import { type Cidr, cidrText, familyOf } from "../addr.ts";
import { MeshError } from "../errors.ts";
import type { Logger } from "../log.ts";
import type { LinkTable } from "./link_table.ts";
import { OUR_MARK } from "./links.ts";
import type { Link, Route } from "./rtnetlink.ts";

/** A dummy link is the plain choice; kernels without that module have bridges, and every one has loopback. */
const KINDS = ["dummy", "bridge"];

export interface MeshLinkOptions {
  readonly name: string;
  /** With prefix length, usually /32 and /128. The first of a family is the source of its routes. */
  readonly addresses: readonly Cidr[];
  readonly log: Logger;
  /** Kinds of link to try, best first. */
  readonly kinds?: readonly string[];
}

export interface MeshLink {
  /** The link in use; `lo` where none could be made. */
  readonly link: Link;
  /** Addresses that are there; those of a family the host has switched off are missing. */
  readonly addresses: readonly Cidr[];
}

/**
 * Makes the mesh link, or takes the one of an earlier start (or of the original EdgeMesh) as it is, and gives it its
 * addresses. Throws MeshError KERNEL when not even loopback can have them.
 */
export function ensureMeshLink(links: LinkTable, options: MeshLinkOptions): MeshLink {
  const link = links.create(options.name, options.kinds ?? KINDS) ?? links.list().find((l) => l.loopback);
  if (link === undefined) {
    throw new MeshError("KERNEL", `Cannot create link ${options.name}: the kernel has neither dummy links nor bridges`);
  }
  if (link.loopback) options.log.warn("No link of our own can be made; addresses go to loopback", { link: link.name });
  links.setUp(link.index);
  const addresses = options.addresses.filter((address) => addAddress(links, link, address, options.log));
  if (addresses.length === 0) throw new MeshError("KERNEL", `Link ${link.name} takes none of the mesh addresses`);
  removeStale(links, link, options.addresses);
  return { link: links.find(link.name) ?? link, addresses };
}

/** What {@link routeServices} did. */
export interface RoutedNetworks {
  /** Networks that lead to the mesh link now. */
  readonly routed: readonly Cidr[];
  /** Routes of others to the same networks; they were left alone. */
  readonly foreign: readonly Route[];
}

/** Makes our routes be exactly `networks`, to the mesh link; removes those of ours that are no longer wanted. */
export function routeServices(links: LinkTable, mesh: MeshLink, networks: readonly Cidr[]): RoutedNetworks {
  const wanted = new Set(networks.map(cidrText));
  for (const route of links.ourRoutes()) if (!wanted.has(cidrText(route.to))) links.deleteRoute(route);
  const routed: Cidr[] = [];
  const foreign: Route[] = [];
  for (const to of networks) {
    const source = mesh.addresses.find((a) => familyOf(a.ip) === familyOf(to.ip))?.ip;
    if (source === undefined) continue;
    const result = links.addRoute({ to, index: mesh.link.index, source });
    if (result.kind === "ours") routed.push(to);
    else foreign.push(result.route);
  }
  return { routed, foreign };
}

/**
 * Removes everything of ours: routes, addresses, the link. Works after a crash and when there is nothing. A link that
 * somebody else made keeps existing and loses only our addresses.
 */
export function removeMeshLink(links: LinkTable, name: string, addresses: readonly Cidr[]): void {
  for (const route of links.ourRoutes()) links.deleteRoute(route);
  for (const link of links.list()) {
    if (link.name === name && link.group === OUR_MARK) {
      links.delete(link.index);
      continue;
    }
    if (link.name !== name && !link.loopback) continue;
    const ours = links.addresses(link.index).filter((there) =>
      there.protocol === OUR_MARK || addresses.some((a) => a.ip === there.ip && a.bits === there.bits)
    );
    for (const { ip, bits } of ours) links.deleteAddress(link.index, { ip, bits });
  }
}

/** False, with a line in the log, where the host has the address family switched off. */
function addAddress(links: LinkTable, link: Link, address: Cidr, log: Logger): boolean {
  try {
    links.addAddress(link.index, address);
    return true;
  } catch (error) {
    if (familyOf(address.ip) === 4 || !(error instanceof MeshError)) throw error;
    // EACCES with disable_ipv6=1, EOPNOTSUPP without IPv6 in the kernel: the mesh works on IPv4.
    log.info("The mesh link has no IPv6 address", { link: link.name, error: error.message });
    return false;
  }
}

/** Removes our addresses of an earlier start with another configuration. */
function removeStale(links: LinkTable, link: Link, wanted: readonly Cidr[]): void {
  for (const { ip, bits, protocol } of links.addresses(link.index)) {
    if (protocol !== OUR_MARK || wanted.some((a) => a.ip === ip && a.bits === bits)) continue;
    links.deleteAddress(link.index, { ip, bits });
  }
}
