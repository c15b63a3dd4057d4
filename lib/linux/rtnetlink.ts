/** Links, addresses and routes as rtnetlink(7) describes them: reading its messages. */
import { type Cidr, ipFromBytes } from "../addr.ts";
import { type Attributes, attrText, attrU32, type NetlinkMessage, parseAttributes } from "./netlink_message.ts";
import { AF_INET, AF_INET6, STRUCT } from "./structs.ts";

export const RTM_NEWLINK = 16;
export const RTM_DELLINK = 17;
export const RTM_GETLINK = 18;
export const RTM_NEWADDR = 20;
export const RTM_DELADDR = 21;
export const RTM_GETADDR = 22;
export const RTM_NEWROUTE = 24;
export const RTM_DELROUTE = 25;
export const RTM_GETROUTE = 26;

export const RTNLGRP_LINK = 1;
export const RTNLGRP_IPV4_IFADDR = 5;
export const RTNLGRP_IPV4_ROUTE = 7;
export const RTNLGRP_IPV6_IFADDR = 9;
export const RTNLGRP_IPV6_ROUTE = 11;

export const IFF_UP = 0x1;
const IFF_LOOPBACK = 0x8;
const IFF_RUNNING = 0x40;

export const IFLA_IFNAME = 3;
const IFLA_MTU = 4;
const IFLA_MASTER = 10;
export const IFLA_LINKINFO = 18;
export const IFLA_INFO_KIND = 1;
export const IFLA_IFALIAS = 20;
export const IFLA_GROUP = 27;

export const IFA_ADDRESS = 1;
export const IFA_LOCAL = 2;
export const IFA_FLAGS = 8;
/** Kernel 5.18: who made an address. Older ones ignore it. */
export const IFA_PROTO = 11;
/** No duplicate address detection: the address is usable at once, also on a link without a carrier. */
export const IFA_F_NODAD = 0x02;
const IFA_F_TENTATIVE = 0x40;
const IFA_F_DADFAILED = 0x08;

export const RTA_DST = 1;
export const RTA_OIF = 4;
const RTA_GATEWAY = 5;
const RTA_PRIORITY = 6;
export const RTA_PREFSRC = 7;
const RTA_TABLE = 15;
export const RT_TABLE_MAIN = 254;
export const RTN_UNICAST = 1;
export const RT_SCOPE_UNIVERSE = 0;
export const RT_SCOPE_LINK = 253;

export interface Link {
  readonly index: number;
  readonly name: string;
  /** `bridge`, `dummy`, `veth`, …; undefined for hardware and loopback. */
  readonly kind: string | undefined;
  /** Administratively up. */
  readonly up: boolean;
  /** Up and with a carrier. */
  readonly running: boolean;
  readonly loopback: boolean;
  readonly mtu: number;
  /** The number of its group (`ip link set … group`), 0 by default. */
  readonly group: number;
  /** The free text of the link (`ip link set … alias`). */
  readonly alias: string | undefined;
  /** Index of the bridge it is a port of. */
  readonly master: number | undefined;
}

export interface LinkAddress {
  /** Index of the link. */
  readonly index: number;
  readonly ip: string;
  readonly bits: number;
  /** Not usable yet, or found on another machine too. */
  readonly tentative: boolean;
  /** Who made it, 0 if unknown. */
  readonly protocol: number;
}

export interface Route {
  /** The network; `0.0.0.0/0` and `::/0` for default routes. */
  readonly to: Cidr;
  readonly table: number;
  /** Who made it (/etc/iproute2/rt_protos). */
  readonly protocol: number;
  /** RTN_UNICAST, or a local, broadcast, blackhole, … entry. */
  readonly type: number;
  /** Index of the link; undefined for multipath and blackhole routes. */
  readonly index: number | undefined;
  readonly gateway: string | undefined;
  /** The source address the kernel prefers. */
  readonly source: string | undefined;
  readonly metric: number;
}

/** Something changed. `gone` is true when the object was removed. */
export type NetworkChange =
  | { readonly kind: "link"; readonly gone: boolean; readonly link: Link }
  | { readonly kind: "address"; readonly gone: boolean; readonly address: LinkAddress }
  | { readonly kind: "route"; readonly gone: boolean; readonly route: Route }
  /** The kernel dropped notifications: list everything anew. */
  | { readonly kind: "lost" };

/** Reads an RTM_NEWLINK or RTM_DELLINK message. */
export function readLink({ body }: NetlinkMessage): Link {
  const { at, size } = STRUCT.ifinfomsg;
  const view = viewOf(body);
  const attributes = parseAttributes(body, size);
  const info = attributes.get(IFLA_LINKINFO);
  const flags = view.getUint32(at.flags, true);
  return {
    index: view.getInt32(at.index, true),
    name: attrText(attributes, IFLA_IFNAME) ?? "",
    kind: info && attrText(parseAttributes(info), IFLA_INFO_KIND),
    up: (flags & IFF_UP) !== 0,
    running: (flags & IFF_RUNNING) !== 0,
    loopback: (flags & IFF_LOOPBACK) !== 0,
    mtu: attrU32(attributes, IFLA_MTU) ?? 0,
    group: attrU32(attributes, IFLA_GROUP) ?? 0,
    alias: attrText(attributes, IFLA_IFALIAS),
    master: attrU32(attributes, IFLA_MASTER),
  };
}

/** Reads an RTM_NEWADDR or RTM_DELADDR message; undefined for other families. */
export function readAddress({ body }: NetlinkMessage): LinkAddress | undefined {
  const { at, size } = STRUCT.ifaddrmsg;
  const attributes = parseAttributes(body, size);
  // On point-to-point links IFA_ADDRESS is the other end; IFA_LOCAL is ours where it is given.
  const ip = attributes.get(IFA_LOCAL) ?? attributes.get(IFA_ADDRESS);
  if (!isIp(body[at.family]!) || ip === undefined) return undefined;
  const flags = attrU32(attributes, IFA_FLAGS) ?? body[at.flags]!;
  return {
    index: viewOf(body).getUint32(at.index, true),
    ip: ipFromBytes(ip),
    bits: body[at.prefixlen]!,
    tentative: (flags & (IFA_F_TENTATIVE | IFA_F_DADFAILED)) !== 0,
    protocol: attributes.get(IFA_PROTO)?.[0] ?? 0,
  };
}

/** Reads an RTM_NEWROUTE or RTM_DELROUTE message; undefined for other families. */
export function readRoute({ body }: NetlinkMessage): Route | undefined {
  const { at, size } = STRUCT.rtmsg;
  const family = body[at.family]!;
  if (!isIp(family)) return undefined;
  const attributes = parseAttributes(body, size);
  const any = family === AF_INET ? "0.0.0.0" : "::";
  return {
    to: { ip: attrIp(attributes, RTA_DST) ?? any, bits: body[at.dstLen]! },
    table: attrU32(attributes, RTA_TABLE) ?? body[at.table]!,
    protocol: body[at.protocol]!,
    type: body[at.type]!,
    index: attrU32(attributes, RTA_OIF),
    gateway: attrIp(attributes, RTA_GATEWAY),
    source: attrIp(attributes, RTA_PREFSRC),
    metric: attrU32(attributes, RTA_PRIORITY) ?? 0,
  };
}

/** Reads a notification; undefined for kinds nobody asked for. */
export function readChange(message: NetlinkMessage): NetworkChange | undefined {
  switch (message.type) {
    case RTM_NEWLINK:
    case RTM_DELLINK:
      return { kind: "link", gone: message.type === RTM_DELLINK, link: readLink(message) };
    case RTM_NEWADDR:
    case RTM_DELADDR: {
      const address = readAddress(message);
      return address && { kind: "address", gone: message.type === RTM_DELADDR, address };
    }
    case RTM_NEWROUTE:
    case RTM_DELROUTE: {
      const route = readRoute(message);
      return route && { kind: "route", gone: message.type === RTM_DELROUTE, route };
    }
    default:
      return undefined;
  }
}

function attrIp(attributes: Attributes, type: number): string | undefined {
  const value = attributes.get(type);
  return value && (value.length === 4 || value.length === 16) ? ipFromBytes(value) : undefined;
}

function isIp(family: number): boolean {
  return family === AF_INET || family === AF_INET6;
}

function viewOf(bytes: Uint8Array): DataView {
  return new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
}
