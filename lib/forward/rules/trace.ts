/** Walks the first packet of a connection through rules held in memory, as nf_tables' `nat` hooks would. */
import { cidrContains, type Family, familyOf, parseCidr } from "../../addr.ts";
import { MeshError } from "../../errors.ts";
import type { IpPort } from "../../net.ts";
import type { FakeKernel, FakeTable } from "./fake.ts";
import type { Action, Atom, Chain, Element, Field, Match, Pick, Rule } from "./ruleset.ts";
import { elementKey } from "./ruleset.ts";

export interface Packet {
  readonly protocol: "tcp" | "udp" | "icmp";
  readonly from: IpPort;
  readonly to: IpPort;
  /** Interface it came in through; undefined: made by a process of this host. */
  readonly via?: string;
  /** Interface it leaves through after rewriting; undefined: delivered on this host, over `lo`. */
  readonly out?: string;
}

export type Traced =
  | { readonly fate: "forwarded"; readonly to: IpPort; readonly table: string; readonly masquerade: boolean }
  | { readonly fate: "reject" | "drop" }
  /** No rule of ours took it. */
  | { readonly fate: "none" };

export interface TraceOptions {
  /** Addresses of the host, for "to this host". */
  readonly hostAddresses?: readonly string[];
  /** 0 ≤ x < 1 for random slots. */
  readonly random?: () => number;
}

/** Keeps the counters of "turn" picks, as the kernel does per rule. */
export class Tracer {
  readonly #kernel: FakeKernel;
  readonly #options: TraceOptions;
  readonly #turns = new WeakMap<Rule, number>();

  constructor(kernel: FakeKernel, options: TraceOptions = {}) {
    this.#kernel = kernel;
    this.#options = options;
  }

  trace(packet: Packet): Traced {
    const walk = new Walk(packet, this.#kernel.now, { options: this.#options, turns: this.#turns });
    const fate = this.#hook(packet.via === undefined ? "output" : "prerouting", walk);
    if (fate === "reject" || fate === "drop") return { fate };
    if (!walk.target) return { fate: "none" };
    const masquerade = this.#hook("postrouting", walk) === "masquerade";
    this.#hook("input", walk);
    return { fate: "forwarded", to: walk.target.to, table: walk.target.table, masquerade };
  }

  #hook(at: "prerouting" | "output" | "postrouting" | "input", walk: Walk): Outcome {
    const chains: { table: FakeTable; name: string; chain: Chain }[] = [];
    for (const [name, table] of this.#kernel.tables) {
      for (const chain of table.chains.values()) if (chain.hook?.at === at) chains.push({ table, name, chain });
    }
    chains.sort((a, b) => a.chain.hook!.priority - b.chain.hook!.priority);
    for (const { table, name, chain } of chains) {
      const target = walk.target;
      const outcome = walk.chain(table, name, chain);
      // Accepting ends this chain only; a rewriting ends the hook.
      if (outcome === "accept" && walk.target === target) continue;
      if (outcome !== "continue") return outcome;
    }
    return "continue";
  }
}

type Outcome = "continue" | "accept" | "reject" | "drop" | "masquerade" | "end";

class Walk {
  target: { to: IpPort; table: string } | undefined;
  readonly #packet: Packet;
  readonly #now: number;
  readonly #family: Family;
  readonly #options: TraceOptions;
  readonly #turns: WeakMap<Rule, number>;

  constructor(
    packet: Packet,
    now: number,
    of: { readonly options: TraceOptions; readonly turns: WeakMap<Rule, number> },
  ) {
    this.#packet = packet;
    this.#now = now;
    this.#family = familyOf(packet.to.ip);
    this.#options = of.options;
    this.#turns = of.turns;
  }

  chain(table: FakeTable, name: string, chain: Chain): Outcome {
    for (const rule of chain.rules) {
      if (rule.family !== undefined && rule.family !== this.#family) continue;
      if (rule.within) this.#mustBe(rule.within, chain.name);
      if (!rule.match.every((m) => this.#matches(table, rule, m))) continue;
      const outcome = this.#act(table, name, rule);
      if (outcome === "end") return "continue";
      if (outcome !== "continue") return outcome;
    }
    return "continue";
  }

  /** A rule that relies on where its chain is reached from must never see another packet. */
  #mustBe(within: NonNullable<Rule["within"]>, chain: string): void {
    if (within.family === this.#family && within.protocol === this.#packet.protocol) return;
    throw new MeshError("INTERNAL", `A packet of ${this.#packet.protocol} v${this.#family} came to chain ${chain}`);
  }

  #act(table: FakeTable, name: string, rule: Rule): Outcome {
    const { action } = rule;
    if (action === "masquerade" || action === "drop" || action === "accept") return action;
    if ("reject" in action) return "reject";
    if ("jump" in action) return this.chain(table, name, table.chains.get(action.jump)!);
    if ("goto" in action) return this.#goto(table, name, action.goto);
    if ("learn" in action) return this.#learn(table, action);
    if ("vmap" in action) {
      const verdict = this.#find(table, action.map, action.vmap.map((f) => this.#field(f)))?.value;
      if (verdict === undefined) return "continue";
      if (verdict === "drop") return "drop";
      if ("goto" in verdict) return this.#goto(table, name, verdict.goto);
      throw new MeshError("INTERNAL", `verdict map ${action.map} holds a value that is no verdict`);
    }
    if ("to" in action) {
      this.target = { to: action.to, table: name };
      return "accept";
    }
    const key = action.dnat.map((part) =>
      typeof part === "string" ? this.#field(part) : typeof part === "number" ? part : this.#pick(rule, part)
    );
    const value = this.#find(table, action.map, key)?.value as readonly Atom[] | undefined;
    if (value === undefined) return "continue";
    this.target = { to: { ip: String(value[0]), port: Number(value[1]) }, table: name };
    return "accept";
  }

  /** After a goto the calling chain does not go on. */
  #goto(table: FakeTable, name: string, chain: string): Outcome {
    const outcome = this.chain(table, name, table.chains.get(chain)!);
    return outcome === "continue" ? "end" : outcome;
  }

  #learn(table: FakeTable, action: Extract<Action, { learn: unknown }>): Outcome {
    const key = action.learn.map((f) => this.#field(f));
    const element: Element = { key, value: action.value.map((f) => this.#field(f)) };
    const set = table.sets.get(action.map)!;
    const id = elementKey(key);
    // The kernel renews the time of what it knows, and does not touch its value.
    if (!this.#find(table, action.map, key)) set.elements.set(id, element);
    set.until.set(id, this.#now + action.seconds * 1000);
    return "continue";
  }

  #matches(table: FakeTable, rule: Rule, match: Match): boolean {
    if ("pick" in match) return this.#pick(rule, match.pick) < match.below;
    if ("fields" in match) {
      const found = this.#find(table, "in" in match ? match.in : match.notIn, match.fields.map((f) => this.#field(f)));
      return (found !== undefined) === ("in" in match);
    }
    if ("state" in match) {
      if (match.state === "dnat") return this.target !== undefined;
      const ours = this.#options.hostAddresses ?? [];
      if (match.state === "to-host" || match.state === "to-elsewhere") {
        return ours.includes(this.#packet.to.ip) === (match.state === "to-host");
      }
      return ours.includes(this.#packet.from.ip) === (match.state === "from-host");
    }
    const value = this.#field(match.field);
    const wanted = "is" in match ? match.is : match.isNot;
    const cidr = typeof wanted === "string" && wanted.includes("/") ? parseCidr(wanted) : undefined;
    const equal = cidr ? cidrContains(cidr, String(value)) : value === wanted;
    return "is" in match ? equal : !equal;
  }

  #find(table: FakeTable, name: string, key: readonly Atom[]): Element | undefined {
    const set = table.sets.get(name)!;
    if (!set.spec.interval) {
      const id = elementKey(key);
      return (set.until.get(id) ?? Infinity) > this.#now ? set.elements.get(id) : undefined;
    }
    for (const element of set.elements.values()) {
      if (cidrContains(parseCidr(String(element.key[0]))!, String(key[0]))) return element;
    }
    return undefined;
  }

  #pick(rule: Rule, pick: Pick): number {
    switch (pick.by) {
      case "turn": {
        const turn = this.#turns.get(rule) ?? 0;
        this.#turns.set(rule, (turn + 1) % pick.mod);
        return turn % pick.mod;
      }
      case "random":
        return Math.floor((this.#options.random ?? Math.random)() * pick.mod);
      case "source": {
        // Not the kernel's hash, but as steady: the same source always gets the same number.
        let h = pick.seed >>> 0;
        for (const c of this.#packet.from.ip) h = Math.imul(h ^ c.charCodeAt(0), 0x01000193) >>> 0;
        return h % pick.mod;
      }
    }
  }

  #field(field: Field): Atom {
    const { protocol, from, to, via, out } = this.#packet;
    const now = this.target?.to ?? to;
    switch (field) {
      case "saddr":
        return from.ip;
      case "daddr":
        return now.ip;
      case "proto":
        return protocol;
      case "dport":
        return now.port;
      case "iifname":
        return via ?? "";
      case "oifname":
        return out ?? "lo";
      case "ct-daddr":
        return to.ip;
      case "ct-dport":
        return to.port;
    }
  }
}
