/** Elements and chains that Services share, and those that follow from the node. Pure. */
import { type Cidr, cidrContains, cidrText, familyOf } from "../../addr.ts";
import { type Plan, type PlannedPort, slotsOf } from "../plan_model.ts";
import { isLearned, stickyChain } from "./affinity.ts";
import {
  AGENT_TABLE,
  type Atom,
  type Chain,
  type Element,
  type Fragment,
  TABLE,
  type TableFragment,
} from "./ruleset.ts";

/** The shared fragment of a plan; the same object as before when nothing in it changed. */
export function sharedFragment(plan: Plan, shards: number, previous: Fragment | undefined): Fragment {
  const persistent = new Elements();
  const agent = new Elements();
  const here = new Set<string>();
  const chains = new Map<string, Chain>();
  for (const service of plan.services.values()) {
    for (const port of service.ports) {
      collectLocal(port, here);
      if (isLearned(port, shards)) addOnce(chains, stickyChain(port));
    }
  }
  for (const ip of [...here].sort()) persistent.put(`hairpin${familyOf(ip)}`, [ip, ip]);
  for (const link of plan.facts.hairpinLinks) persistent.put("hairpin-links", [link, link]);
  persistent.networks("refused", plan.config.refuseCidrs);
  persistent.networks("remote", plan.facts.routable.map((subnet) => subnet.cidr));
  for (const table of [persistent, agent]) table.networks("pods", plan.facts.podCidrs);
  const next = [
    { table: TABLE, chains: [...chains.values()], sets: persistent.sets },
    { table: AGENT_TABLE, chains: [], sets: agent.sets },
  ];
  const same = previous?.tables.every((part, i) => sameShared(part, next[i]!)) ?? false;
  return same ? previous! : { tables: next };
}

class Elements {
  readonly #sets = new Map<string, Element[]>();

  put(set: string, key: readonly Atom[]): void {
    const list = this.#sets.get(set);
    if (list) list.push({ key });
    else this.#sets.set(set, [{ key }]);
  }

  networks(set: string, cidrs: readonly Cidr[]): void {
    for (const cidr of withoutOverlaps(cidrs)) this.put(`${set}${familyOf(cidr.ip)}`, [cidrText(cidr)]);
  }

  get sets(): TableFragment["sets"] {
    return [...this.#sets].map(([set, elements]) => ({ set, elements }));
  }
}

/** Endpoints of this node that the kernel forwards to: their pods may be their own clients. */
function collectLocal(port: PlannedPort, into: Set<string>): void {
  for (const verdict of [port.internal, port.external, port.externalFromHere]) {
    for (const slot of slotsOf(verdict)) if (slot.reason === "own-node") into.add(slot.endpoint.ip);
  }
}

/** Sets without values, in the same order, and chains that are known by their names. */
function sameShared(a: TableFragment, b: TableFragment): boolean {
  return a.chains.length === b.chains.length && a.chains.every((chain, i) => chain.name === b.chains[i]!.name) &&
    a.sets.length === b.sets.length && a.sets.every(({ set, elements }, i) => {
      const other = b.sets[i]!;
      return set === other.set && elements.length === other.elements.length &&
        elements.every(({ key }, j) => key.every((atom, k) => atom === other.elements[j]!.key[k]));
    });
}

/** Interval sets refuse networks that overlap; the larger one says it all. */
function withoutOverlaps(cidrs: readonly Cidr[]): Cidr[] {
  const sorted = [...cidrs].sort((a, b) => a.bits - b.bits);
  const out: Cidr[] = [];
  for (const cidr of sorted) if (!out.some((larger) => cidrContains(larger, cidr.ip))) out.push(cidr);
  return out;
}

function addOnce(chains: Map<string, Chain>, chain: Chain): void {
  if (!chains.has(chain.name)) chains.set(chain.name, chain);
}
