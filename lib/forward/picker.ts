/**
 * Which of a port's agent-bound endpoints a connection gets. The kernel has already given each endpoint its share: it
 * chose "one of the agent's" as often as there are agent-bound slots, so choosing evenly among these keeps round
 * robin exact over all endpoints. Endpoints that did not answer are left out for a while.
 */
import type { MonoMs } from "../clock.ts";
import type { PlannedPort, Slot } from "./plan_model.ts";

/** Client addresses remembered per agent; beyond it the longest unused is forgotten. */
export const AFFINITY_MAX = 65_536;
/** Failures in a row after which an endpoint is left out. One may be an accident; two cost two clients a retry. */
export const EJECT_AFTER = 2;
/** How long it is left out the first time; each further time twice as long. */
export const EJECT_MS = 5_000;
const EJECT_MAX_MS = 60_000;
/** Endpoints whose state is kept; those without connections and failures are forgotten first. */
const STATES_MAX = 16_384;

export interface Client {
  readonly ip: string;
  /** What of its request decides, where the Service is balanced so and the request has it. */
  readonly key?: string | undefined;
  readonly now: MonoMs;
}

/** What is known of one endpoint of one port. */
interface SlotState {
  active: number;
  failures: number;
  ejections: number;
  ejectedUntil: MonoMs;
}

export class Picker {
  readonly #turns = new Map<string, number>();
  /** `port id|client` → endpoint; in order of last use, because each use puts the entry at the end. */
  readonly #affinity = new Map<string, { readonly slot: string; readonly until: MonoMs }>();
  /** `port id|endpoint` → state; absent: nothing to remember. */
  readonly #states = new Map<string, SlotState>();
  readonly #random: () => number;
  /** When the last of all that are left out may be asked again; most of the time nobody is. */
  #ejectedUntil: MonoMs = -Infinity;

  constructor(random: () => number = Math.random) {
    this.#random = random;
  }

  /** Chooses among `slots` (not empty), leaving out those that `failed` names unless nothing else is left. */
  pick(port: PlannedPort, slots: readonly Slot[], client: Client, failed: ReadonlySet<string> = NONE): Slot {
    const from = this.#usable(port, slots, client.now, failed);
    if (port.affinitySeconds === undefined) return this.#choose(port, from, client);
    const id = `${port.id}|${client.ip}`;
    const known = this.#affinity.get(id);
    const kept = known && known.until > client.now ? from.find((slot) => slot.key === known.slot) : undefined;
    const slot = kept ?? this.#choose(port, from, client);
    this.#affinity.delete(id);
    this.#affinity.set(id, { slot: slot.key, until: client.now + port.affinitySeconds * 1000 });
    if (this.#affinity.size > AFFINITY_MAX) this.#affinity.delete(this.#affinity.keys().next().value!);
    return slot;
  }

  /** A connection to the endpoint is open: it answers. */
  opened(port: PlannedPort, slot: Slot): void {
    const state = this.#state(port, slot);
    state.active++;
    state.failures = 0;
    state.ejections = 0;
    state.ejectedUntil = 0;
  }

  closed(port: PlannedPort, slot: Slot): void {
    const id = stateId(port, slot);
    const state = this.#states.get(id);
    if (!state) return;
    state.active--;
    if (state.active <= 0 && state.failures === 0) this.#states.delete(id);
  }

  /** The endpoint did not answer. */
  failed(port: PlannedPort, slot: Slot, now: MonoMs): void {
    const state = this.#state(port, slot);
    if (++state.failures < EJECT_AFTER) return;
    state.ejectedUntil = now + Math.min(EJECT_MAX_MS, EJECT_MS * 2 ** state.ejections++);
    this.#ejectedUntil = Math.max(this.#ejectedUntil, state.ejectedUntil);
    // One failure after its time is over ejects it again at once.
    state.failures = EJECT_AFTER - 1;
  }

  /** Endpoints of a port that are left out now, by key: for status. */
  ejected(port: PlannedPort, slots: readonly Slot[], now: MonoMs): string[] {
    return slots.filter((slot) => this.#isEjected(port, slot, now)).map((slot) => slot.key);
  }

  /** Forgets ports that are gone. */
  keep(ids: ReadonlySet<string>): void {
    for (const id of this.#turns.keys()) if (!ids.has(id)) this.#turns.delete(id);
    for (const [id, state] of this.#states) {
      if (state.active <= 0 && !ids.has(id.slice(0, id.indexOf("|")))) this.#states.delete(id);
    }
  }

  get remembered(): number {
    return this.#affinity.size;
  }

  /** Not tried by this connection yet, and not left out; where nothing is left, the next best. */
  #usable(port: PlannedPort, slots: readonly Slot[], now: MonoMs, failed: ReadonlySet<string>): readonly Slot[] {
    if (failed.size === 0 && now >= this.#ejectedUntil) return slots;
    const untried = failed.size === 0 ? slots : slots.filter((slot) => !failed.has(slot.key));
    const healthy = untried.filter((slot) => !this.#isEjected(port, slot, now));
    return healthy.length > 0 ? healthy : untried.length > 0 ? untried : slots;
  }

  #isEjected(port: PlannedPort, slot: Slot, now: MonoMs): boolean {
    return (this.#states.get(stateId(port, slot))?.ejectedUntil ?? 0) > now;
  }

  #choose(port: PlannedPort, slots: readonly Slot[], client: Client): Slot {
    if (slots.length === 1) return slots[0]!;
    switch (port.balance) {
      case "random":
        return slots[Math.floor(this.#random() * slots.length)]!;
      case "source-hash":
        return highest(slots, client.ip);
      case "request-hash":
        // Requests without the key are spread evenly, as Envoy does.
        return client.key === undefined ? slots[this.#turn(port, slots.length)]! : highest(slots, client.key);
      case "least-connections":
        return this.#least(port, slots);
      case "round-robin":
        return slots[this.#turn(port, slots.length)]!;
    }
  }

  /** The one with the fewest open connections; of several the next in turn, so that idle endpoints share. */
  #least(port: PlannedPort, slots: readonly Slot[]): Slot {
    const start = this.#turn(port, slots.length);
    let best = slots[start]!;
    let fewest = Infinity;
    for (let i = 0; i < slots.length; i++) {
      const slot = slots[(start + i) % slots.length]!;
      const active = this.#states.get(stateId(port, slot))?.active ?? 0;
      if (active < fewest) {
        best = slot;
        fewest = active;
      }
    }
    return best;
  }

  #turn(port: PlannedPort, count: number): number {
    const turn = (this.#turns.get(port.id) ?? 0) % count;
    this.#turns.set(port.id, turn + 1);
    return turn;
  }

  #state(port: PlannedPort, slot: Slot): SlotState {
    const id = stateId(port, slot);
    let state = this.#states.get(id);
    if (!state) {
      if (this.#states.size >= STATES_MAX) this.#makeRoom();
      this.#states.set(id, state = { active: 0, failures: 0, ejections: 0, ejectedUntil: 0 });
    }
    return state;
  }

  #makeRoom(): void {
    for (const [id, state] of this.#states) if (state.active <= 0) this.#states.delete(id);
  }
}

const NONE: ReadonlySet<string> = new Set();

function stateId(port: PlannedPort, slot: Slot): string {
  return `${port.id}|${slot.key}`;
}

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
