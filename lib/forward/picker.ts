/**
 * Which of a port's agent-bound endpoints a connection gets. The kernel has already given each endpoint its share: it
 * chose "one of the agent's" as often as there are agent-bound slots, so choosing evenly among these keeps round
 * robin exact over all endpoints.
 */
import type { MonoMs } from "../clock.ts";
import type { PlannedPort, Slot } from "./plan_model.ts";

/** Client addresses remembered per agent; beyond it the longest unused is forgotten. */
export const AFFINITY_MAX = 65536;

export class Picker {
  readonly #turns = new Map<string, number>();
  /** `port id|client` → endpoint; in order of last use, because each use puts the entry at the end. */
  readonly #affinity = new Map<string, { readonly slot: string; readonly until: MonoMs }>();
  readonly #random: () => number;

  constructor(random: () => number = Math.random) {
    this.#random = random;
  }

  /** Chooses among `slots` (not empty), leaving out those that `failed` names unless nothing else is left. */
  pick(port: PlannedPort, slots: readonly Slot[], client: Client, failed: ReadonlySet<string> = NONE): Slot {
    const candidates = failed.size === 0 ? slots : slots.filter((slot) => !failed.has(slot.key));
    const from = candidates.length > 0 ? candidates : slots;
    if (port.affinitySeconds === undefined) return this.#choose(port, from, client.ip);
    const id = `${port.id}|${client.ip}`;
    const known = this.#affinity.get(id);
    const kept = known && known.until > client.now ? from.find((slot) => slot.key === known.slot) : undefined;
    const slot = kept ?? this.#choose(port, from, client.ip);
    this.#affinity.delete(id);
    this.#affinity.set(id, { slot: slot.key, until: client.now + port.affinitySeconds * 1000 });
    if (this.#affinity.size > AFFINITY_MAX) this.#affinity.delete(this.#affinity.keys().next().value!);
    return slot;
  }

  /** Forgets the turns of ports that are gone. */
  keep(ids: ReadonlySet<string>): void {
    for (const id of this.#turns.keys()) if (!ids.has(id)) this.#turns.delete(id);
  }

  get remembered(): number {
    return this.#affinity.size;
  }

  #choose(port: PlannedPort, slots: readonly Slot[], client: string): Slot {
    if (slots.length === 1) return slots[0]!;
    switch (port.balance) {
      case "random":
        return slots[Math.floor(this.#random() * slots.length)]!;
      case "source-hash":
        return highest(slots, client);
      case "least-connections":
      case "round-robin": {
        const turn = this.#turns.get(port.id) ?? 0;
        this.#turns.set(port.id, (turn + 1) % slots.length);
        return slots[turn % slots.length]!;
      }
    }
  }
}

export interface Client {
  readonly ip: string;
  readonly now: MonoMs;
}

const NONE: ReadonlySet<string> = new Set();

/** Rendezvous hashing: when an endpoint goes, only its own clients move (Thaler and Ravishankar, 1998). */
function highest(slots: readonly Slot[], client: string): Slot {
  let best = slots[0]!;
  let bestScore = -1;
  for (const slot of slots) {
    const score = fnv(`${client}|${slot.key}`);
    if (score > bestScore) {
      best = slot;
      bestScore = score;
    }
  }
  return best;
}

/** FNV-1a with a final mix: neighbouring addresses must not get neighbouring scores. */
function fnv(text: string): number {
  let h = 0x811c9dc5;
  for (let i = 0; i < text.length; i++) h = Math.imul(h ^ text.charCodeAt(i), 0x01000193);
  h = Math.imul(h ^ (h >>> 16), 0x85ebca6b);
  h = Math.imul(h ^ (h >>> 13), 0xc2b2ae35);
  return (h ^ (h >>> 16)) >>> 0;
}
