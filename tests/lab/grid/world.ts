/**
 * The sites of the grid and the pairs that meet: each kind of NAT with each, and the placements in which two nodes share
 * a router or a provider. What is expected was measured for TCP with plain tools before the product existed: a pair that
 * plain hole punching always connected must be direct; for the others the relay will do.
 */
import { NAT_KINDS, type NatKind } from "../../../lib/lab/nat.ts";
import type { SiteSpec } from "../../../lib/lab/topology.ts";
import type { MeshOptions } from "../fixture.ts";

export type Expected = "lan" | "direct" | "relay";

export interface Pair {
  /** Row and column of the grid, or the name of a placement. */
  readonly name: string;
  /** Nodes by site: `cone-a`, `same-lan 2` for the second one of a site. */
  readonly from: string;
  readonly to: string;
  /** The least that must be: a better path is no failure. */
  readonly expected: Expected;
  readonly kinds?: readonly [NatKind, NatKind];
}

export const KINDS = Object.keys(NAT_KINDS) as NatKind[];
/** The agent's listener, as a port-forwarding owner would know it. */
const LISTENER = 20_006;

/** Kinds that let in whoever the host has contacted, from any port: a symmetric NAT on the other side does no harm. */
const FORGIVING: readonly NatKind[] = ["public", "adf", "fullcone"];

/** What two kinds allow. */
export function expectedOf(a: NatKind, b: NatKind): Expected {
  // Nothing but TCP port 443 leaves such a site.
  if (a === "https-only" || b === "https-only") return "relay";
  if ([a, b].some((kind) => FORGIVING.includes(kind))) return "direct";
  // A port given at random is unknown to all: its host can only reach who lets it in from any port. One that is counted
  // up can be foretold.
  return a === "symrand" || b === "symrand" ? "relay" : "direct";
}

interface Placed {
  readonly spec: SiteSpec & { readonly name: string };
  /** Flags of the agents there. */
  readonly flags?: readonly string[];
}

const FORWARDED = { lan: "192.168.99.0/24", host: "192.168.99.2", wan: "198.51.100.99" } as const;

const PLACEMENTS: readonly Placed[] = [
  {
    spec: {
      name: "forwarded",
      nat: "cone",
      lan: FORWARDED.lan,
      address: FORWARDED.wan,
      forwards: [{ port: LISTENER, to: { ip: FORWARDED.host, port: LISTENER } }],
    },
    flags: ["--set", `tunnel.advertise=${FORWARDED.wan}:${LISTENER}`],
  },
  { spec: { name: "same-lan", nat: "cone", nodes: 2 } },
  { spec: { name: "isolated", nat: "cone", nodes: 2, ownLans: true, isolated: true } },
  { spec: { name: "hairpin", nat: "fullcone", nodes: 2, ownLans: true, isolated: true, hairpin: true } },
  { spec: { name: "cgn-1", nat: "cone", behind: "cgn" } },
  { spec: { name: "cgn-2", nat: "cone", behind: "cgn" } },
  { spec: { name: "cgn-hp-1", nat: "cone", behind: "cgn-hairpin" } },
  { spec: { name: "cgn-hp-2", nat: "cone", behind: "cgn-hairpin" } },
  { spec: { name: "cgn-rand", nat: "cone", behind: "cgn-eimrand" } },
  { spec: { name: "cgn-sym", nat: "cone", behind: "cgn-symrand" } },
  { spec: { name: "six-fw-1", nat: "symrand", ipv6: "fw" } },
  { spec: { name: "six-fw-2", nat: "symrand", ipv6: "fw" } },
  { spec: { name: "six-open", nat: "symrand", ipv6: "open" } },
];

const BY_KIND: readonly Placed[] = KINDS.flatMap((nat) =>
  ["a", "b"].map((side) => ({ spec: { name: `${nat}-${side}`, nat } }))
);
const SITES: readonly Placed[] = [...BY_KIND, ...PLACEMENTS];

/** Where sites can be told to stand behind. */
const PROVIDERS = [
  { name: "cgn", nat: "cone" },
  { name: "cgn-hairpin", nat: "fullcone", hairpin: true },
  { name: "cgn-eimrand", nat: "eimrand" },
  { name: "cgn-symrand", nat: "symrand" },
] as const satisfies MeshOptions["providers"];

/** A node of a site: `cone-a`, or `same-lan 2` for its second one. */
function siteOf(node: string): string {
  return node.split(" ")[0]!;
}

/** What has to stand for some pairs, and where their nodes are in it. */
export class World {
  readonly options: MeshOptions;
  readonly #sites: readonly Placed[];

  constructor(pairs: readonly Pair[]) {
    const used = new Set(pairs.flatMap(({ from, to }) => [siteOf(from), siteOf(to)]));
    this.#sites = SITES.filter(({ spec }) => used.has(spec.name));
    this.options = {
      sites: this.#sites.map(({ spec }) => spec),
      providers: PROVIDERS,
      ipv6: true,
      cloud: "none",
      defaultRoute: true,
    };
  }

  /** The topology's name of a node. */
  edge(node: string): string {
    const [site, index = "1"] = node.split(" ") as [string, string?];
    let before = 0;
    for (const { spec } of this.#sites) {
      if (spec.name === site) return `edge-${before + Number(index)}`;
      before += spec.nodes ?? 1;
    }
    throw new Error(`the grid has no node ${node}`);
  }

  site(node: string): SiteSpec & { readonly name: string } {
    return this.#sites.find(({ spec }) => spec.name === siteOf(node))!.spec;
  }

  /** Flags of a node's agent. */
  flags(node: string): readonly string[] {
    return this.#sites.find(({ spec }) => spec.name === siteOf(node))!.flags ?? [];
  }
}

/** Each kind with each, each once. */
const BY_KINDS: readonly Pair[] = KINDS.flatMap((a, i) =>
  KINDS.slice(i).map((b) => ({
    name: `${a} – ${b}`,
    from: `${a}-a`,
    to: `${b}-b`,
    expected: expectedOf(a, b),
    kinds: [a, b] as const,
  }))
);

const PLACED: readonly Pair[] = [
  ["same LAN", "same-lan", "same-lan 2", "lan"],
  ["one router, two isolated LANs, no hairpin", "isolated", "isolated 2", "relay"],
  ["one router, two isolated LANs, fullcone with hairpin", "hairpin", "hairpin 2", "direct"],
  ["two homes behind one CGN, no hairpin", "cgn-1", "cgn-2", "relay"],
  ["two homes behind one CGN, fullcone with hairpin", "cgn-hp-1", "cgn-hp-2", "direct"],
  ["home behind CGN (double NAT), cone", "cgn-1", "cone-b", "direct"],
  ["home behind CGN with random ports (EIM), cone", "cgn-rand", "cone-b", "direct"],
  ["home behind a symmetric CGN, cone", "cgn-sym", "cone-b", "relay"],
  ["home behind a symmetric CGN, fullcone", "cgn-sym", "fullcone-b", "direct"],
  ["forwarded port, symrand", "forwarded", "symrand-b", "direct"],
  ["symrand, forwarded port", "symrand-a", "forwarded", "direct"],
  ["symmetric NATs with IPv6 behind firewalls", "six-fw-1", "six-fw-2", "direct"],
  ["symmetric NATs with IPv6, one side without firewall", "six-fw-1", "six-open", "direct"],
].map(([name, from, to, expected]) => ({ name: name!, from: from!, to: to!, expected: expected as Expected }));

export const PAIRS: readonly Pair[] = [...BY_KINDS, ...PLACED];
