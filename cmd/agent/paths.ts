/** What this host has for direct paths: its addresses, its sockets and its configuration. */
import { createHash } from "node:crypto";
import { type Cidr, parseCidr, parseHostPort } from "../../lib/addr.ts";
import type { AgentConfig } from "../../lib/config.ts";
import { describe, MeshError } from "../../lib/errors.ts";
import type { AgentIdentity } from "../../lib/identity/agent.ts";
import { type LanAddress, lanAddresses } from "../../lib/linux/lan.ts";
import { openLinks } from "../../lib/linux/link_table.ts";
import type { EpollLoop } from "../../lib/linux/loop.ts";
import { MulticastSocket } from "../../lib/linux/multicast.ts";
import { RT_TABLE_MAIN } from "../../lib/linux/rtnetlink.ts";
import type { Logger } from "../../lib/log.ts";
import type { IpPort, OnDatagram } from "../../lib/net.ts";
import type { AgentPathsOptions } from "../../lib/tunnel/agent_tunnel.ts";
import type { PathKind } from "../../lib/tunnel/carrier.ts";
import { StreamLeg } from "../../lib/tunnel/carriers/stream_leg.ts";
import { legOfFd } from "../../lib/tunnel/carriers/tcp_leg.ts";
import type { PathSockets } from "../../lib/tunnel/path/legs.ts";
import type { LanSocket } from "../../lib/tunnel/path/discovery.ts";

/** Where agents of a LAN find each other: an address for local use (RFC 2365 §6.1), the listener's port over UDP. */
const LAN_GROUP: IpPort = { ip: "239.255.96.16", port: 20006 };

export interface AgentPathsParts {
  readonly config: AgentConfig;
  readonly identity: AgentIdentity;
  /** Undefined where FFI is refused: then there are no direct paths. */
  readonly loop: EpollLoop | undefined;
  readonly log: Logger;
  /** The fast engine, or why there is none. */
  fast(): unknown;
  /** Virtual networks of the mesh: nothing in them is an address of a host. */
  virtual(): readonly Cidr[];
  /** A node was reached by this path. */
  onReached(node: string, path: PathKind): void;
}

export interface AgentPaths {
  /** What direct paths need; undefined when they are switched off. */
  readonly options: AgentPathsOptions | undefined;
  /** Looks at this host's network anew: all its addresses when something about it has changed. */
  refresh(): ReadonlySet<string> | undefined;
}

/** Throws CONFIG_INVALID. */
export function agentPaths(parts: AgentPathsParts): AgentPaths {
  let { host, text, addresses } = readHost(parts);
  return {
    options: pathsOptions(parts, () => host),
    refresh() {
      const before = text;
      ({ host, text, addresses } = readHost(parts));
      return text === before ? undefined : addresses;
    },
  };
}

function pathsOptions(parts: AgentPathsParts, host: () => readonly LanAddress[]): AgentPathsOptions | undefined {
  const { config, identity, loop, fast } = parts;
  const { mode, listen, advertise, directNetworks, punchPorts } = config.tunnel;
  if (mode === "off" || !loop) return undefined;
  return {
    eager: mode === "eager",
    sockets: pathSockets({ loop, fast }),
    keys: () => identity.anchors.map((anchor) => createHash("sha256").update(anchor.spki).digest()),
    host,
    listen: listen === "off" ? undefined : parseHostPort(listen)!,
    advertise: advertise.map((text) => {
      const at = parseHostPort(text);
      if (at && at.port > 0) return at;
      throw new MeshError("CONFIG_INVALID", `tunnel.advertise holds ${text}, which is not address:port`);
    }),
    allowed: directNetworks.map((text) => parseCidr(text)!),
    punchPorts,
    onReached: parts.onReached,
    openLan: config.tunnel.discovery ? (onDatagram) => openLan({ log: parts.log, loop }, onDatagram) : undefined,
  };
}

/** Makes connections of the loop into legs of the engine that this host has. */
export function pathSockets({ loop, fast }: { readonly loop: EpollLoop; fast(): unknown }): PathSockets {
  return {
    loop,
    leg: (stream) =>
      typeof fast() === "string" ? legOfFd(loop.takeFd(stream)) : new StreamLeg(stream, loop.localOf(stream).ip),
  };
}

function openLan(
  { loop, log }: { readonly loop: EpollLoop; readonly log: Logger },
  onDatagram: OnDatagram,
): LanSocket {
  const socket = new MulticastSocket(loop, LAN_GROUP, onDatagram);
  return {
    join(links) {
      try {
        socket.join(links);
      } catch (error) {
        log.warn("not every network is searched for agents", { error: describe(error) });
      }
    },
    send: (bytes, link) => socket.send(bytes, link),
    close: () => socket.close(),
  };
}

/** Pods come and go all day; what counts for paths is where this host is, and which way leads out. */
function readHost({ virtual }: AgentPathsParts) {
  const links = openLinks();
  try {
    const all = links.addresses();
    const host: readonly LanAddress[] = lanAddresses(links.list(), all, virtual());
    const ways = links.routes().filter((route) => route.to.bits === 0 && route.table === RT_TABLE_MAIN);
    const text = JSON.stringify([host, ways.map((way) => [way.index, way.gateway, way.source])]);
    const addresses: ReadonlySet<string> = new Set(all.map((address) => address.ip));
    return { host, text, addresses };
  } finally {
    links.close();
  }
}
