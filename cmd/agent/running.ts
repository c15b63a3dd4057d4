/** An agent that runs, as its admin routes, metrics and warnings see it. `startAgent` makes it. */
import type { AgentConfig } from "../../lib/config.ts";
import type { NodeFacts } from "../../lib/forward/facts.ts";
import type { Forwarder } from "../../lib/forward/forwarder.ts";
import type { AgentIdentity } from "../../lib/identity/agent.ts";
import type { DiskSnapshot } from "../../lib/meta/disk/disk.ts";
import type { ServerSource } from "../../lib/meta/fanout/source_server.ts";
import type { Guard } from "../../lib/meta/guard.ts";
import type { MetaSource } from "../../lib/meta/source.ts";
import type { MetaStore } from "../../lib/meta/store/store.ts";
import type { Readiness } from "../../lib/readiness.ts";
import type { AgentTunnel } from "../../lib/tunnel/agent_tunnel.ts";
import type { DnsModule } from "./dns.ts";
import type { OpenMeshLink } from "./link.ts";
import type { AgentSockets } from "./sockets.ts";

export interface RunningAgent extends AsyncDisposable {
  /** In force: the one of the start, and what reloads changed of it. */
  readonly config: AgentConfig;
  readonly identity: AgentIdentity;
  readonly store: MetaStore;
  readonly source: ServerSource;
  readonly local: MetaSource | undefined;
  /** A Kubernetes API or MetaServer that is followed instead of the server, where one is named. */
  readonly explicit: MetaSource | undefined;
  readonly guard: Guard;
  readonly disk: DiskSnapshot;
  readonly dns: DnsModule | undefined;
  readonly forwarder: Forwarder | undefined;
  readonly sockets: AgentSockets;
  readonly tunnel: AgentTunnel;
  readonly readiness: Readiness;
  readonly link: OpenMeshLink;
  readonly startedAt: number;
  /** Wall-clock time since when a server is connected, or none is. */
  modeSince: number;
  facts: NodeFacts;
  /** Takes over what can change while running; the rest of `next` must be as it was. */
  reconfigure(next: AgentConfig): Promise<void>;
}
