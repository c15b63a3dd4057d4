/**
 * The status document: what `edgemesh status` renders and `-o json` prints. A documented, versioned shape: fields are
 * added, never renamed; `apiVersion` changes when one is removed.
 */
import type { Missing } from "./readiness.ts";
import type { PathKind } from "./tunnel/carrier.ts";

export const STATUS_VERSION = "edgemesh/v1";

export interface ModuleStatus {
  readonly name: "metadata" | "dns" | "forward" | "tunnel";
  readonly state: "on" | "off" | "degraded";
  /** One sentence: what it does now, or why it does not. */
  readonly detail: string;
}

export interface ServerLinkStatus {
  readonly url: string;
  readonly state: "connected" | "connecting" | "down";
  readonly rttMs?: number;
  /** Our address as this server sees it. */
  readonly observed?: string;
  /** When down: what failed and what to do. */
  readonly detail?: string;
}

export interface PeerStatus {
  readonly node: string;
  readonly path: PathKind | "none";
  readonly rttMs?: number;
  readonly streams: number;
  readonly bytesIn: number;
  readonly bytesOut: number;
  /** Why there is no direct path, or why there is none at all. */
  readonly detail?: string;
  readonly events: readonly PathEvent[];
}

/** One entry of a peer's ring of path decisions. */
export interface PathEvent {
  readonly at: string;
  /** dial, up, down, failed, note or closed. */
  readonly kind: string;
  readonly path?: PathKind;
  /** Reason code. */
  readonly reason?: string;
  readonly text: string;
}

export interface ServiceStatus {
  readonly service: string;
  readonly address: string;
  readonly port: number;
  readonly protocol: "TCP" | "UDP";
  readonly endpoints: readonly {
    readonly endpoint: string;
    readonly node?: string;
    readonly way: string;
    readonly why: string;
  }[];
  /** Set when the port is refused or dropped as a whole. */
  readonly verdict?: string;
}

/** A Service with a virtual address that this node does not forward. */
export interface LeftAlone {
  readonly service: string;
  /** `label-exists`, `label-missing`, `namespace`, `headless-label`, `other-proxy`, `native-apiserver`, `native-dns`. */
  readonly reason: string;
  readonly why: string;
}

export interface Warning {
  readonly code: string;
  readonly text: string;
  readonly hint?: string;
}

export interface MemoryStatus {
  readonly privateMb: number;
  readonly rssMb: number;
}

interface CommonStatus {
  readonly apiVersion: typeof STATUS_VERSION;
  readonly version: string;
  readonly commit: string;
  readonly form: string;
  readonly pid: number;
  readonly uptimeSeconds: number;
  readonly ready: boolean;
  /** Named things that are not ready yet. */
  readonly waitingFor: readonly string[];
  /** The same with the reason where one is known; not told by versions before this field. */
  readonly missing?: readonly Missing[];
  readonly memory: MemoryStatus;
  readonly warnings: readonly Warning[];
}

/** A source of metadata as it is now. */
export interface SourceView {
  readonly kind: string;
  /** Folder or address. */
  readonly from: string;
  /** starting, synced, degraded. */
  readonly state: string;
  readonly detail?: string;
  /** What is wrong with its objects, and resources that cannot be read. */
  readonly problems: readonly string[];
  /** Resources of an API that cannot be read: no right to, or not known there (a CRD that is not installed). */
  readonly unreadable: readonly { readonly resource: string; readonly why: "forbidden" | "unknown" }[];
}

export interface AgentStatus extends CommonStatus {
  readonly role: "agent";
  readonly node: string;
  readonly mode: "online" | "offline";
  readonly modeSince: string;
  readonly tlsEngine: string;
  /** Which library the engine uses, or why it is not the fast one. */
  readonly tlsDetail: string;
  readonly modules: readonly ModuleStatus[];
  readonly servers: readonly ServerLinkStatus[];
  readonly metadata: {
    /** Who counts the versions: `server:NAME`, `kube:ADDRESS`, `metaserver:ADDRESS`. */
    readonly source: string;
    readonly epoch: string;
    readonly number: number;
    /** Since it was last known to be what the source has; 0 while the source is followed. */
    readonly ageSeconds: number;
    /** What is followed: server, kube or metaserver; where; and how it is. */
    readonly follows: SourceView;
    /** The folder whose objects win over the source's, where one is configured. */
    readonly local?: SourceView;
    readonly services: number;
    readonly endpoints: number;
    readonly nodes: number;
    /** What the guard refused, with reasons. */
    readonly refused: readonly string[];
  };
  readonly peers: readonly PeerStatus[];
  readonly services: readonly ServiceStatus[];
  /** Services that are answered by name but not forwarded, and why. */
  readonly leftAlone: readonly LeftAlone[];
}

/** A replacement of the authority that is under way; times in ms since 1970. */
export interface RotationStatus {
  readonly generation: number;
  readonly pin: string;
  readonly rotation?: {
    readonly phase: "announced" | "switched" | "returning";
    readonly next: string;
    readonly startedAt: number;
    readonly switchAt: number;
    readonly finishAt: number;
  };
  /** Nodes for which the next step changes nothing any more, of all. */
  readonly ready: number;
  readonly nodes: number;
  readonly waiting: readonly string[];
}

export interface ServerStatus extends CommonStatus {
  readonly role: "server";
  readonly name: string;
  readonly url: string;
  readonly pin: string;
  readonly trustDomain: string;
  /** While the authority is being replaced: phase, times, and which nodes are behind. */
  readonly rotation?: RotationStatus;
  /** The servers of the mesh, this one first. */
  readonly servers: readonly {
    readonly name: string;
    readonly url: string;
    readonly self: boolean;
    /** Since both knew the same; absent before the first time, and for this one. */
    readonly syncedSecondsAgo?: number;
    /** Why the last exchange failed; absent when it did not. */
    readonly error?: string;
  }[];
  readonly agents: readonly {
    readonly node: string;
    readonly address: string;
    readonly since: string;
    readonly version: string;
    readonly channels: number;
    readonly relayedBytes: number;
  }[];
  readonly metadata: {
    readonly source: string;
    readonly number: number;
    readonly services: number;
    readonly problems: readonly string[];
    /** The source that is followed; none: the server has no metadata to give. */
    readonly follows?: SourceView;
  };
}

export type Status = AgentStatus | ServerStatus;
