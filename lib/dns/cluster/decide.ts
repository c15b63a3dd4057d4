/**
 * Where the answer to a question comes from: a pure function of configuration and snapshot. Both the server and
 * `edgemesh resolve` ask it, so that the explanation is the truth.
 */
import type { MetaReader } from "../../meta/model.ts";
import { answerCluster, type ClusterAnswer } from "./answer.ts";
import { RCODE, TYPE } from "../wire/constants.ts";
import { fixedAnswer, type HostsTable } from "./hosts.ts";
import { endsWith, type Labels, lowerLabels } from "../wire/labels.ts";
import { zoneOf } from "./name.ts";
import { nameRecord } from "../wire/records.ts";
import { answerReverse, type ReverseOptions } from "./reverse.ts";
import { shortName, stormZone } from "./search.ts";

export interface DecideContext {
  readonly meta: MetaReader;
  readonly options: ReverseOptions;
  readonly hosts: HostsTable;
  readonly searchNamespaces: readonly string[];
  /** Zones with upstreams of their own, lower case. */
  readonly forwardZones: readonly Labels[];
  /** Whether the question comes from a process of this host. */
  readonly fromHost: boolean;
}

export type LocalOrigin = "hosts" | "zone" | "reverse" | "short-name" | "search-storm" | "special";

export type Decision =
  | {
    readonly kind: "local";
    readonly origin: LocalOrigin;
    readonly answer: ClusterAnswer;
    /** Whether the answer is the same for every source. */
    readonly shared: boolean;
  }
  | { readonly kind: "forward"; readonly zone: Labels };

const LOOPBACK = ["127.0.0.1", "::1"];

/** Decides about one question of class IN. */
export function decide(name: Labels, type: number, context: DecideContext): Decision {
  const { meta, options, hosts } = context;
  const lower = lowerLabels(name);
  const override = hosts.empty ? undefined : hosts.answer(name, lower, type);
  if (override) return { kind: "local", origin: "hosts", answer: override, shared: true };
  const forward = longest(lower, context.forwardZones);
  const zone = zoneOf(lower, options.zones);
  if (zone && zone.labels.length >= (forward?.length ?? 0)) {
    return { kind: "local", origin: "zone", answer: answerCluster(name, type, meta, options), shared: true };
  }
  if (forward) return { kind: "forward", zone: forward };
  if (lower.at(-1) === "arpa") {
    const answer = answerReverse({ name, lower, type }, meta, options);
    if (answer) return { kind: "local", origin: "reverse", answer, shared: true };
  }
  const special = specialUse(name, lower, type);
  if (special) return { kind: "local", origin: "special", answer: special, shared: true };
  if (stormZone(lower, options.zones)) {
    return { kind: "local", origin: "search-storm", answer: notThere(stormName(name, lower, options)), shared: true };
  }
  if (context.fromHost) {
    const full = shortName(lower, meta, {
      namespaces: context.searchNamespaces,
      zone: options.zones.find((z) => !z.multicluster)?.labels,
    });
    if (full) {
      return { kind: "local", origin: "short-name", answer: alias(name, full, type, context), shared: false };
    }
  }
  return { kind: "forward", zone: [] };
}

/** `web.shop` → CNAME → the full name's answer. */
function alias(name: Labels, full: Labels, type: number, context: DecideContext): ClusterAnswer {
  const link = nameRecord(name, TYPE.CNAME, full, context.options.ttl);
  if (type === TYPE.CNAME) {
    return {
      ...answerCluster(full, TYPE.A, context.meta, context.options),
      rcode: 0,
      answers: [link],
      soaOf: undefined,
    };
  }
  const answer = answerCluster(full, type, context.meta, context.options);
  return { ...answer, answers: [link, ...answer.answers] };
}

/** RFC 6761 §6.3, §6.4 and RFC 7686: names that never leave the machine. */
function specialUse(name: Labels, lower: Labels, type: number): ClusterAnswer | undefined {
  switch (lower.at(-1)) {
    case "localhost":
      return fixedAnswer(name, type, LOOPBACK);
    case "invalid":
    case "onion":
      return notThere(name.slice(-1));
    default:
      return undefined;
  }
}

function stormName(name: Labels, lower: Labels, options: ReverseOptions): Labels {
  const zone = stormZone(lower, options.zones);
  return name.slice(name.length - (zone?.length ?? name.length));
}

function notThere(soaOf: Labels): ClusterAnswer {
  return {
    rcode: RCODE.NXDOMAIN,
    answers: [],
    additionals: [],
    soaOf,
    chase: undefined,
    caseBound: false,
    reason: "no-such-shape",
  };
}

function longest(lower: Labels, zones: readonly Labels[]): Labels | undefined {
  let best: Labels | undefined;
  for (const zone of zones) if (endsWith(lower, zone) && zone.length >= (best?.length ?? 0)) best = zone;
  return best;
}
