/** What `edgemesh check` gathers before anything is judged, and what a judgement is. */
import type { ReasonCode } from "../../lib/errors.ts";
import type { UsageFacts } from "../../lib/dns/host/usage.ts";
import type { FoundUsage } from "../../lib/dns/host/usage_gather.ts";
import type { Status } from "../../lib/status.ts";

export type CheckState = "ok" | "warn" | "fail";

/** One judged line. */
export interface Check {
  readonly category: "system" | "network" | "server" | "agent" | "names" | "identity" | "mesh";
  /** Stable, for programs. */
  readonly name: string;
  readonly state: CheckState;
  /** One sentence without a final period. */
  readonly text: string;
  /** What to do; present unless the state is ok. */
  readonly hint?: string;
}

/** A port that the agent wants. */
export interface PortFact {
  readonly what: string;
  readonly at: string;
  /** Who holds it now: `systemd-resolve (pid 412)`; undefined: it is free. */
  readonly holder?: string;
}

/** How far the way to a server goes. */
export interface ReachFact {
  readonly url: string;
  readonly tcpMs?: number;
  /** The whole of TCP and TLS. */
  readonly tlsMs?: number;
  /** Whether the server's authority was compared with the pin. */
  readonly pinned: boolean;
  readonly failed?: {
    readonly step: "name" | "tcp" | "tls" | "mtu" | "pin";
    readonly code: ReasonCode;
    readonly text: string;
  };
}

/** This host, whatever runs on it. */
export interface HostFacts {
  readonly kernel: string;
  readonly glibc: string | undefined;
  /** Wall clock and the release's own date, in milliseconds. */
  readonly wall: number;
  readonly built: number;
  /** Variables of an HTTP proxy that are set, by name. */
  readonly proxies: readonly string[];
  /** Bridges that pods of this node are on, and whether packets between their ports meet the rules. */
  readonly bridges: readonly string[];
  readonly bridgeCall: string | undefined;
}

/** What a start of the agent would find. */
export interface StartFacts {
  readonly missingCapabilities: readonly string[];
  readonly nftables: { readonly by: "netlink" | "nft" } | { readonly problem: string };
  readonly ports: readonly PortFact[];
  readonly openFiles: number;
  /** Why FFI is refused; undefined: it works. */
  readonly ffi: string | undefined;
  readonly stateDir: { readonly path: string; readonly problem?: string };
  readonly joined: { readonly node: string } | { readonly problem: string } | undefined;
  readonly servers: readonly ReachFact[];
}

/** What a running agent says of itself beyond its status; answered by `GET /v1/check`. */
export interface AgentAnswer {
  /** Set where FFI is refused, or given up by the configuration: why. */
  readonly withoutFfi?: { readonly why: string; readonly chosen: boolean };
  readonly rules: { readonly backend: string; readonly repairs: number; readonly problem?: string } | undefined;
  readonly dns: {
    readonly listen: readonly string[];
    readonly problem?: string;
    readonly hint?: string;
    /** Resolvers for other names, and why some that were named are not asked. */
    readonly upstreams: number;
    readonly leftOut: readonly string[];
  } | undefined;
  /** A name that this node must answer, and with what; undefined while no Service has an address. */
  readonly sample?: { readonly name: string; readonly address: string };
  readonly certificate: {
    readonly notBefore: number;
    readonly notAfter: number;
    readonly expired: boolean;
    readonly lastError?: string;
  };
  /** This machine's clock minus the servers'. */
  readonly skewMs?: number;
  readonly snapshot: {
    readonly savedAt?: number;
    readonly lastError?: string;
    /** Why a copy could not be used at the start. */
    readonly loadError?: string;
    readonly writeProblem?: string;
  };
  /** What the resolvers of this host and its pods are judged by. */
  readonly usage: UsageFacts;
  readonly foreignRoutes: readonly string[];
  readonly podBridges: readonly string[];
  readonly servers: readonly { readonly url: string; readonly name?: string; readonly version?: string }[];
}

/** The same with what the command sees of the host's other programs, and an agent that is not root may not. */
export interface AgentFacts extends Omit<AgentAnswer, "usage"> {
  readonly resolvers: readonly FoundUsage[];
  /** Why other programs' files were not looked at: we are not root, or the agent does not say what to judge them by. */
  readonly podsHidden?: "not root" | "other version";
}

export interface RunningFacts {
  readonly status: Status;
  readonly agent?: AgentFacts;
  /** The answer of the mesh address to the sample. */
  readonly answer?: { readonly addresses: readonly string[]; readonly ms: number } | { readonly problem: string };
  /** Limit of open files of the running process. */
  readonly openFiles?: number;
}
