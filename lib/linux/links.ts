/** Changes to links, addresses and routes over rtnetlink, without the `ip` program. Every call may be repeated. */
import { type Cidr, cidrText, familyOf, ipBytes } from "../addr.ts";
import { EADDRNOTAVAIL, EEXIST, ENODEV, EOPNOTSUPP, ESRCH } from "./errno.ts";
import type { EpollLoop, FdWatch } from "./loop.ts";
import { NETLINK_ROUTE, netlinkError, NetlinkSocket, type Outcome } from "./netlink.ts";
import { MessageBuilder, NLM_F_ACK, NLM_F_CREATE, NLM_F_DUMP, NLM_F_EXCL } from "./netlink_message.ts";
import {
  IFA_ADDRESS,
  IFA_F_NODAD,
  IFA_FLAGS,
  IFA_LOCAL,
  IFA_PROTO,
  IFF_UP,
  IFLA_GROUP,
  IFLA_IFALIAS,
  IFLA_IFNAME,
  IFLA_INFO_KIND,
  IFLA_LINKINFO,
  type Link,
  type LinkAddress,
  type NetworkChange,
  readAddress,
  readChange,
  readLink,
  readRoute,
  type Route,
  RT_SCOPE_LINK,
  RT_SCOPE_UNIVERSE,
  RT_TABLE_MAIN,
  RTA_DST,
  RTA_OIF,
  RTA_PREFSRC,
  RTM_DELADDR,
  RTM_DELLINK,
  RTM_DELROUTE,
  RTM_GETADDR,
  RTM_GETLINK,
  RTM_GETROUTE,
  RTM_NEWADDR,
  RTM_NEWLINK,
  RTM_NEWROUTE,
  RTN_UNICAST,
  RTNLGRP_IPV4_IFADDR,
  RTNLGRP_IPV4_ROUTE,
  RTNLGRP_IPV6_IFADDR,
  RTNLGRP_IPV6_ROUTE,
  RTNLGRP_LINK,
} from "./rtnetlink.ts";
import { AF_INET, AF_INET6, STRUCT } from "./structs.ts";

/**
 * What we make bears this number, so that a later start knows it from what others made: as the group of links (given in
 * the same request that makes them, unlike the alias) and as the protocol of routes and addresses. It is free in
 * /etc/iproute2/group and /etc/iproute2/rt_protos.
 */
export const OUR_MARK = 96;
/** The alias of our links, for people who list them. */
export const OUR_ALIAS = "edgemesh";

/** What {@link Links.addRoute} found. */
export type RouteResult =
  | { readonly kind: "ours" }
  /** Somebody else has a route to the same network; it was left alone. */
  | { readonly kind: "foreign"; readonly route: Route };

/** A network that leaves through one link. */
export interface LinkRoute {
  readonly to: Cidr;
  readonly index: number;
  /** The address packets get that have none yet. */
  readonly source: string;
}

export class Links {
  readonly #socket = new NetlinkSocket(NETLINK_ROUTE);

  /** Every link of this network namespace. */
  list(): Link[] {
    return this.#dump("list links", RTM_GETLINK, STRUCT.ifinfomsg.size).map(readLink);
  }

  find(name: string): Link | undefined {
    return this.list().find((link) => link.name === name);
  }

  /**
   * Makes a link of the first of `kinds` this kernel has, with {@link OUR_MARK}. Returns undefined when it has none of
   * them. A link of that name which exists is returned as it is. Throws MeshError KERNEL.
   */
  create(name: string, kinds: readonly string[]): Link | undefined {
    for (const kind of kinds) {
      const outcome = this.#do(RTM_NEWLINK, NLM_F_CREATE | NLM_F_EXCL, linkHeader(0, 0), (b) => {
        b.text(IFLA_IFNAME, name);
        b.u32(IFLA_GROUP, OUR_MARK);
        b.nest(IFLA_LINKINFO, () => b.text(IFLA_INFO_KIND, kind));
      });
      if (outcome.errno === 0) {
        this.#do(RTM_NEWLINK, 0, linkHeader(this.find(name)!.index, 0), (b) => b.text(IFLA_IFALIAS, OUR_ALIAS));
      }
      if (outcome.errno === 0 || outcome.errno === EEXIST) return this.find(name);
      if (outcome.errno !== EOPNOTSUPP) throw netlinkError(`create link ${name} of kind ${kind}`, outcome);
    }
    return undefined;
  }

  /** Removes a link with its addresses and routes. */
  delete(index: number): void {
    const outcome = this.#do(RTM_DELLINK, 0, linkHeader(index, 0));
    this.#check(`delete link ${index}`, outcome, ENODEV);
  }

  setUp(index: number): void {
    this.#check(`set link ${index} up`, this.#do(RTM_NEWLINK, 0, linkHeader(index, IFF_UP)));
  }

  /** Addresses of one link, or of all. */
  addresses(index?: number): LinkAddress[] {
    return this.#dump("list addresses", RTM_GETADDR, STRUCT.ifaddrmsg.size)
      .map(readAddress)
      .filter((address) => address !== undefined)
      .filter((address) => index === undefined || address.index === index);
  }

  /** Adds an address, usable at once. */
  addAddress(index: number, address: Cidr): void {
    const outcome = this.#address(RTM_NEWADDR, NLM_F_CREATE | NLM_F_EXCL, index, address);
    this.#check(`add address ${cidrText(address)} to link ${index}`, outcome, EEXIST);
  }

  deleteAddress(index: number, address: Cidr): void {
    const outcome = this.#address(RTM_DELADDR, 0, index, address);
    this.#check(`delete address ${cidrText(address)} of link ${index}`, outcome, EADDRNOTAVAIL, ENODEV);
  }

  /** Routes of every table and family. */
  routes(): Route[] {
    return this.#dump("list routes", RTM_GETROUTE, STRUCT.rtmsg.size).map(readRoute).filter((r) => r !== undefined);
  }

  /** Routes in the main table that we made, now or before a crash. */
  ourRoutes(): Route[] {
    return this.routes().filter((r) => r.protocol === OUR_MARK && r.table === RT_TABLE_MAIN);
  }

  /** Routes a network to a link. A route of somebody else to the same network is never replaced. */
  addRoute(route: LinkRoute): RouteResult {
    const outcome = this.#route(RTM_NEWROUTE, NLM_F_CREATE | NLM_F_EXCL, route);
    if (outcome.errno === 0) return { kind: "ours" };
    if (outcome.errno !== EEXIST) throw netlinkError(`add route ${cidrText(route.to)}`, outcome);
    const there = this.routes().filter((r) => r.table === RT_TABLE_MAIN && cidrText(r.to) === cidrText(route.to));
    const foreign = there.find((r) => r.protocol !== OUR_MARK);
    if (foreign) return { kind: "foreign", route: foreign };
    // Ours from an earlier start, to another link or with another source.
    if (!there.some((r) => r.index === route.index && r.source === route.source)) {
      for (const old of there) this.deleteRoute(old);
      this.#check(`add route ${cidrText(route.to)}`, this.#route(RTM_NEWROUTE, NLM_F_CREATE | NLM_F_EXCL, route));
    }
    return { kind: "ours" };
  }

  /** Removes a route of ours. */
  deleteRoute(route: Pick<Route, "to" | "index">): void {
    const outcome = this.#route(RTM_DELROUTE, 0, route);
    this.#check(`delete route ${cidrText(route.to)}`, outcome, ESRCH, ENODEV);
  }

  close(): void {
    this.#socket.close();
  }

  #address(type: number, flags: number, index: number, { ip, bits }: Cidr): Outcome {
    const { at, size } = STRUCT.ifaddrmsg;
    const header = new Uint8Array(size);
    header[at.family] = family(ip);
    header[at.prefixlen] = bits;
    new DataView(header.buffer).setUint32(at.index, index, true);
    return this.#do(type, flags, header, (b) => {
      b.attr(IFA_LOCAL, ipBytes(ip));
      b.attr(IFA_ADDRESS, ipBytes(ip));
      if (type !== RTM_NEWADDR) return;
      b.u32(IFA_FLAGS, familyOf(ip) === 6 ? IFA_F_NODAD : 0);
      b.u8(IFA_PROTO, OUR_MARK);
    });
  }

  #route(
    type: number,
    flags: number,
    route: Pick<Route, "to" | "index"> & { readonly source?: string | undefined },
  ): Outcome {
    const { at, size } = STRUCT.rtmsg;
    const header = new Uint8Array(size);
    header[at.family] = family(route.to.ip);
    header[at.dstLen] = route.to.bits;
    header[at.table] = RT_TABLE_MAIN;
    header[at.protocol] = OUR_MARK;
    header[at.scope] = familyOf(route.to.ip) === 4 ? RT_SCOPE_LINK : RT_SCOPE_UNIVERSE;
    header[at.type] = RTN_UNICAST;
    return this.#do(type, flags, header, (b) => {
      b.attr(RTA_DST, ipBytes(route.to.ip));
      if (route.index !== undefined) b.u32(RTA_OIF, route.index);
      if (route.source !== undefined) b.attr(RTA_PREFSRC, ipBytes(route.source));
    });
  }

  #do(type: number, flags: number, header: Uint8Array, attributes: (b: MessageBuilder) => void = () => {}): Outcome {
    const builder = new MessageBuilder(this.#socket.nextSeq);
    builder.message(type, flags | NLM_F_ACK, header, () => attributes(builder));
    return this.#socket.request(builder);
  }

  #dump(action: string, type: number, headerSize: number) {
    return this.#socket.dump(action, (seq) => {
      const builder = new MessageBuilder(seq);
      builder.message(type, NLM_F_DUMP, new Uint8Array(headerSize));
      return builder;
    });
  }

  #check(action: string, outcome: Outcome, ...fine: number[]): void {
    if (outcome.errno !== 0 && !fine.includes(outcome.errno)) throw netlinkError(action, outcome);
  }
}

/** Tells of every change of links, addresses and routes from now on. */
export function watchNetwork(loop: EpollLoop, onChange: (change: NetworkChange) => void): FdWatch {
  const socket = new NetlinkSocket(NETLINK_ROUTE, [
    RTNLGRP_LINK,
    RTNLGRP_IPV4_IFADDR,
    RTNLGRP_IPV6_IFADDR,
    RTNLGRP_IPV4_ROUTE,
    RTNLGRP_IPV6_ROUTE,
  ]);
  const watch = loop.watch(socket.fd, () => {
    const { messages, lost } = socket.notifications();
    for (const message of messages) {
      const change = readChange(message);
      if (change) onChange(change);
    }
    if (lost) onChange({ kind: "lost" });
  });
  return {
    close() {
      watch.close();
      socket.close();
    },
  };
}

function linkHeader(index: number, up: number): Uint8Array {
  const { at, size } = STRUCT.ifinfomsg;
  const header = new Uint8Array(size);
  const view = new DataView(header.buffer);
  view.setInt32(at.index, index, true);
  view.setUint32(at.flags, up, true);
  view.setUint32(at.change, up, true);
  return header;
}

function family(ip: string): number {
  return familyOf(ip) === 4 ? AF_INET : AF_INET6;
}
