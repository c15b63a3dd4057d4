/**
 * Connection tracking over netlink (ctnetlink). A UDP flow has no end that the kernel could see: its entry lives as
 * long as datagrams come, and with it the rewriting that was chosen for the first one. When that choice is no longer
 * right the entry is deleted, and the next datagram is looked at anew.
 */
import { ipBytes, ipFromBytes } from "../../addr.ts";
import type { IpPort } from "../../net.ts";
import { NETLINK_NETFILTER, netlinkError, NetlinkSocket } from "../netlink.ts";
import { type Attributes, MessageBuilder, NLM_F_ACK, NLM_F_DUMP, parseAttributes } from "../netlink_message.ts";
import { AF_INET, AF_INET6 } from "../structs.ts";

const NFNL_SUBSYS_CTNETLINK = 1;
const GET = NFNL_SUBSYS_CTNETLINK << 8 | 1;
const DELETE = NFNL_SUBSYS_CTNETLINK << 8 | 2;
/** nfgenmsg before the attributes. */
const NFGENMSG = 4;

const CTA = { TUPLE_ORIG: 1, TUPLE_REPLY: 2, ID: 12, ZONE: 18, FILTER: 25 } as const;
const TUPLE = { IP: 1, PROTO: 2 } as const;
const IP = { V4_SRC: 1, V4_DST: 2, V6_SRC: 3, V6_DST: 4 } as const;
const PROTO = { NUM: 1, SRC_PORT: 2, DST_PORT: 3 } as const;
const FILTER_ORIG_FLAGS = 1;
const FILTER_REPLY_FLAGS = 2;
/** Parts of a tuple that a filter compares. */
const BY = { DESTINATION: 1 << 1, PROTOCOL: 1 << 3, DESTINATION_PORT: 1 << 5 } as const;

const IPPROTO_UDP = 17;
const ENOENT = 2;

/** One direction's end of a flow as the kernel sees it. */
export interface UdpFlowEntry {
  /** Who sends, and where to: before any rewriting. */
  readonly from: IpPort;
  readonly to: IpPort;
  /** Who answers: where datagrams really go. */
  readonly target: IpPort;
}

/** Which flows are meant: of one family, and of one destination address or port where given. */
export interface FlowScope {
  readonly family: 4 | 6;
  readonly ip?: string;
  readonly port?: number;
}

export class ConntrackTable {
  readonly #socket = new NetlinkSocket(NETLINK_NETFILTER);
  /** Kernels before 5.8 do not filter; then we do. */
  #filters = true;

  /** Throws MeshError KERNEL. */
  udpFlows(scope: FlowScope): UdpFlowEntry[] {
    return this.#list(scope).map(({ flow }) => flow);
  }

  /** Deletes the flows that `stale` names; returns how many. Throws MeshError KERNEL. */
  forgetUdp(scope: FlowScope, stale: (flow: UdpFlowEntry) => boolean): number {
    let count = 0;
    for (const { flow, attributes } of this.#list(scope)) {
      if (!stale(flow)) continue;
      const w = new MessageBuilder(this.#socket.nextSeq);
      w.message(DELETE, NLM_F_ACK, header(scope.family), () => {
        for (const type of [CTA.TUPLE_ORIG, CTA.ID, CTA.ZONE]) {
          const value = attributes.get(type);
          if (value) w.attr(type | (type === CTA.TUPLE_ORIG ? NESTED : 0), value);
        }
      });
      const outcome = this.#socket.request(w);
      // It may have ended by itself since the listing.
      if (outcome.errno !== 0 && outcome.errno !== ENOENT) throw netlinkError("delete a connection entry", outcome);
      if (outcome.errno === 0) count++;
    }
    return count;
  }

  close(): void {
    this.#socket.close();
  }

  #list(scope: FlowScope): { readonly flow: UdpFlowEntry; readonly attributes: Attributes }[] {
    const out: { flow: UdpFlowEntry; attributes: Attributes }[] = [];
    for (const message of this.#dump(scope)) {
      const attributes = parseAttributes(message.body, NFGENMSG);
      const flow = flowOf(attributes);
      if (!flow) continue;
      if (scope.ip !== undefined && flow.to.ip !== scope.ip) continue;
      if (scope.port !== undefined && flow.to.port !== scope.port) continue;
      out.push({ flow, attributes });
    }
    return out;
  }

  #dump(scope: FlowScope) {
    const request = (filtered: boolean) => (seq: number) => {
      const w = new MessageBuilder(seq);
      w.message(GET, NLM_F_DUMP, header(scope.family), () => filtered && writeFilter(w, scope));
      return w;
    };
    const action = "list connection entries";
    if (this.#filters) {
      try {
        return this.#socket.dump(action, request(true));
      } catch {
        this.#filters = false;
      }
    }
    return this.#socket.dump(action, request(false));
  }
}

const NESTED = 0x8000;

function header(family: 4 | 6): Uint8Array {
  return Uint8Array.of(family === 4 ? AF_INET : AF_INET6, 0, 0, 0);
}

function writeFilter(w: MessageBuilder, { family, ip: wanted, port }: FlowScope): void {
  // The kernel's filter for IPv6 addresses has its comparison the wrong way round (seen in 6.18): we compare those.
  const ip = family === 4 ? wanted : undefined;
  w.nest(CTA.TUPLE_ORIG, () => {
    if (ip !== undefined) w.nest(TUPLE.IP, () => w.attr(IP.V4_DST, ipBytes(ip)));
    w.nest(TUPLE.PROTO, () => {
      w.u8(PROTO.NUM, IPPROTO_UDP);
      if (port !== undefined) w.attr(PROTO.DST_PORT, Uint8Array.of(port >> 8, port & 0xff));
    });
  });
  w.nest(CTA.FILTER, () => {
    w.u32(
      FILTER_ORIG_FLAGS,
      BY.PROTOCOL | (ip === undefined ? 0 : BY.DESTINATION) | (port === undefined ? 0 : BY.DESTINATION_PORT),
    );
    w.u32(FILTER_REPLY_FLAGS, 0);
  });
}

function flowOf(attributes: Attributes): UdpFlowEntry | undefined {
  const original = tupleOf(attributes.get(CTA.TUPLE_ORIG));
  const reply = tupleOf(attributes.get(CTA.TUPLE_REPLY));
  return original && reply && { from: original.from, to: original.to, target: reply.from };
}

function tupleOf(bytes: Uint8Array | undefined): { readonly from: IpPort; readonly to: IpPort } | undefined {
  if (!bytes) return undefined;
  const tuple = parseAttributes(bytes);
  const proto = tuple.get(TUPLE.PROTO);
  const addresses = tuple.get(TUPLE.IP);
  if (!proto || !addresses) return undefined;
  const ports = parseAttributes(proto);
  if (ports.get(PROTO.NUM)?.[0] !== IPPROTO_UDP) return undefined;
  const ips = parseAttributes(addresses);
  const from = ips.get(IP.V4_SRC) ?? ips.get(IP.V6_SRC);
  const to = ips.get(IP.V4_DST) ?? ips.get(IP.V6_DST);
  if (!from || !to) return undefined;
  return {
    from: { ip: ipFromBytes(from), port: be16(ports.get(PROTO.SRC_PORT)) },
    to: { ip: ipFromBytes(to), port: be16(ports.get(PROTO.DST_PORT)) },
  };
}

function be16(bytes: Uint8Array | undefined): number {
  return bytes ? bytes[0]! << 8 | bytes[1]! : 0;
}
