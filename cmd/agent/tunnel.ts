/** Gives the tunnel its identity, and metadata the server that is followed. */
import { systemClock } from "../../lib/clock.ts";
import type { AgentConfig } from "../../lib/config.ts";
import { describe } from "../../lib/errors.ts";
import { proxyChoice } from "../../lib/http_proxy.ts";
import type { AgentIdentity } from "../../lib/identity/agent.ts";
import type { Logger } from "../../lib/log.ts";
import type { MetaLink, ServerSource } from "../../lib/meta/fanout/source_server.ts";
import { type AgentPathsOptions, AgentTunnel } from "../../lib/tunnel/agent_tunnel.ts";
import type { FastParts } from "../../lib/tunnel/carriers/engines.ts";
import type { PathSockets } from "../../lib/tunnel/path/legs.ts";
import { MAX_SERVERS } from "../../lib/tunnel/control/servers.ts";
import type { ControlClient } from "../../lib/tunnel/control/client.ts";
import type { SessionEvents } from "../../lib/tunnel/session/session_types.ts";
import { VERSION } from "../../lib/version.ts";
import { bootId } from "../daemon/daemon.ts";

export interface TunnelParts {
  readonly config: AgentConfig;
  readonly identity: AgentIdentity;
  /** Addresses of the servers at the start; see {@link TunnelHandle.use}. */
  readonly servers: readonly string[];
  readonly log: Logger;
  /** Takes the server's metadata. */
  readonly source: ServerSource;
  /** Whether it is to be followed now; not where another source is, or metadata is switched off. */
  follows(): boolean;
  readonly onStream: SessionEvents["onStream"];
  readonly onFlow: SessionEvents["onFlow"];
  /** Makes connections of this host into legs, for the relay; undefined: it is reached over the control connection only. */
  readonly legs: PathSockets | undefined;
  /** The fast engine, or why there is none. */
  fast(): FastParts | string;
  /** Runs a task at the end of the loop's turn: what all connections had to say leaves together, and at once. */
  later(task: () => void): void;
  /** What this host has for direct paths; undefined when they are off. */
  readonly paths: AgentPathsOptions | undefined;
  /** A server came or went; so many are connected now. */
  onServers(connected: number): void;
}

/** A tunnel, and its say in what is followed. */
export interface TunnelHandle {
  readonly tunnel: AgentTunnel;
  /** Follows a server's metadata, or none any more, as {@link TunnelParts.follows} says now. */
  follow(): void;
  /** Connects to these servers from now on, and to no other, and tells them which authorities this node trusts now. */
  use(servers: readonly string[]): void;
  /** Ends the tunnel for good. */
  close(): Promise<void>;
}

/** Servers to be connected to: those configured, else those that the last grant named, as many as there may be. */
export function serversOf(config: AgentConfig, identity: AgentIdentity): readonly string[] {
  return (config.server.length > 0 ? config.server : identity.state.mesh.servers).slice(0, MAX_SERVERS);
}

/** Makes the tunnel of this agent; it connects when it is started. */
export function makeTunnel(parts: TunnelParts): TunnelHandle {
  const { config, identity, log, source } = parts;
  const links = new Map<ControlClient, MetaLink>();

  /** One server at a time is followed: the first connected one in the configured order, unless one is followed already. */
  const follow = () => {
    const followed = [...links.values()].find((link) => source.follows(link));
    if (!parts.follows()) {
      if (followed) source.detach(followed);
      return;
    }
    if (followed) return;
    const first = tunnel.servers.clients.map((client) => links.get(client)).find((link) => link !== undefined);
    if (first) source.attach(first);
  };

  const takeRevocations = async (server: ControlClient, list: unknown) => {
    try {
      if (!await identity.applyRevocations(server.url, list)) return;
      tunnel.manager.revoke((peer) => identity.revocations.find({ ...peer, serial: "" }) !== undefined);
    } catch (error) {
      log.warn("a server's revocation list cannot be used", { server: server.url, error: describe(error) });
    }
  };

  const tunnel: AgentTunnel = new AgentTunnel({
    urls: parts.servers,
    clock: systemClock,
    log,
    credentials: () => {
      const tls = identity.tls();
      return { cert: tls.certPem, key: tls.keyPem, ca: identity.state.bundlePem };
    },
    verifyServer: (chain) => identity.verify(chain, { role: "server" }),
    verifyNode: (chain, name) => identity.verify(chain, name === undefined ? { role: "node" } : { role: "node", name }),
    node: identity.node,
    version: VERSION,
    boot: bootId(),
    random: () => Math.random(),
    proxyFor: proxyChoice(config.proxy, Deno.env.get),
    onStream: parts.onStream,
    onFlow: parts.onFlow,
    fast: parts.fast,
    ...(parts.legs ? { legs: parts.legs } : {}),
    manager: { later: parts.later },
    ...(parts.paths ? { paths: parts.paths } : {}),
    events: {
      onUp(server) {
        links.set(server, {
          from: server.url,
          send: (message) => void server.sendMeta(message),
          fail: follow,
        });
        follow();
        parts.onServers(links.size);
      },
      onDown(server) {
        const link = links.get(server);
        links.delete(server);
        if (link) source.detach(link);
        follow();
        parts.onServers(links.size);
      },
      onMeta(server, message) {
        const link = links.get(server);
        if (link) source.receive(link, message);
      },
      onRevocations: (server, list) => void takeRevocations(server, list),
      onAuthorities(server, told) {
        identity.compareAuthorities(told);
        server.sendAuthorities(identity.authorities);
      },
      onTime: (server, time, sentAt) => void identity.learnTime(server.url, time, sentAt),
    },
  });
  return {
    tunnel,
    follow,
    use(servers) {
      tunnel.servers.use(servers);
      for (const client of tunnel.servers.clients) client.sendAuthorities(identity.authorities);
    },
    async close() {
      for (const link of links.values()) source.detach(link);
      links.clear();
      await tunnel.close();
    },
  };
}
