/** The mesh link of this node: made at start with addresses and routes, taken away at a clean stop and by `cleanup`. */
import { type Cidr, cidrText, familyOf } from "../../lib/addr.ts";
import { systemClock } from "../../lib/clock.ts";
import type { AgentConfig } from "../../lib/config.ts";
import { explain, MeshError } from "../../lib/errors.ts";
import { type LinkTable, openLinks } from "../../lib/linux/link_table.ts";
import { watchNetwork } from "../../lib/linux/links.ts";
import type { EpollLoop } from "../../lib/linux/loop.ts";
import { ensureMeshLink, removeMeshLink, routeServices } from "../../lib/linux/mesh_link.ts";
import { pollNetwork } from "../../lib/linux/network_poll.ts";
import type { Logger } from "../../lib/log.ts";

/** Changes of the network come in bursts (a link goes up, gets addresses, gets routes): one look after all of them. */
const SETTLE_MS = 200;

export interface OpenMeshLink extends AsyncDisposable {
  /** Name of the link in use; `lo` where none could be made. */
  readonly name: string;
  /** The mesh addresses that are there. */
  readonly addresses: readonly string[];
  /** Service networks that other routes of this host lead elsewhere. */
  readonly foreignRoutes: readonly string[];
  /** Why there is no link; what needs none goes on. */
  readonly problem?: Explained;
}

/** What went wrong, and what to do about it. */
type Explained = ReturnType<typeof explain>;

/** Makes the link, its addresses and the routes to virtual addresses; or says why the kernel refuses that. */
export function openMeshLink(config: AgentConfig, cidrs: readonly Cidr[], log: Logger): OpenMeshLink {
  const links = openLinks();
  try {
    return makeMeshLink(links, config, cidrs, log);
  } catch (error) {
    links.close();
    if (!(error instanceof MeshError)) throw error;
    const problem = explain(error);
    log.error("There is no mesh link: no name and no Service is answered on this host; the tunnel goes on", problem);
    return {
      name: "none",
      addresses: [],
      foreignRoutes: [],
      problem,
      [Symbol.asyncDispose]: () => Promise.resolve(),
    };
  }
}

function makeMeshLink(links: LinkTable, config: AgentConfig, cidrs: readonly Cidr[], log: Logger): OpenMeshLink {
  const wanted = meshAddresses(config);
  const mesh = ensureMeshLink(links, { name: config.mesh.interface, addresses: wanted, log });
  const { foreign } = routeServices(links, mesh, cidrs);
  for (const route of foreign) {
    log.warn(
      "A service network is routed elsewhere on this host; Services in it are reached only where rules apply first",
      {
        network: cidrText(route.to),
      },
    );
  }
  return {
    name: mesh.link.name,
    addresses: mesh.addresses.map((a) => a.ip),
    foreignRoutes: foreign.map((route) => cidrText(route.to)),
    [Symbol.asyncDispose]() {
      removeMeshLink(links, config.mesh.interface, wanted);
      links.close();
      return Promise.resolve();
    },
  };
}

/** Removes the link, addresses and routes that an agent left behind; none is no error. */
export function removeLeftMeshLink(config: AgentConfig): void {
  const links = openLinks();
  try {
    removeMeshLink(links, config.mesh.interface, meshAddresses(config));
  } finally {
    links.close();
  }
}

/** Calls `changed` soon after links, addresses or routes of this host changed; without a loop that netlink can be on, by looking. */
export function watchHost(loop: EpollLoop | undefined, changed: () => void): () => void {
  if (!loop) return pollNetwork(systemClock, changed);
  let cancel: (() => void) | undefined;
  const watch = watchNetwork(loop, () => {
    cancel ??= systemClock.timer(SETTLE_MS, () => {
      cancel = undefined;
      changed();
    });
  });
  return () => {
    cancel?.();
    watch.close();
  };
}

function meshAddresses(config: AgentConfig): Cidr[] {
  const { address, address6 } = config.mesh;
  return [address, ...(address6 === "off" ? [] : [address6])].map((ip) => ({
    ip,
    bits: familyOf(ip) === 4 ? 32 : 128,
  }));
}
