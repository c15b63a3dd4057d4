/**
 * What all sessions of a server share: the current state with its number, which keys changed since when, and encoded
 * updates. A thousand agents that are at the same number get the same bytes, encoded once.
 */
import type { EndpointSlice, Kind, Pod } from "../model.ts";
import { KINDS, serviceKey } from "../model.ts";
import type { ScopeFilter } from "./scope.ts";
import { isOwnPod } from "./scope.ts";
import type { ChangeSet } from "../store/snapshot.ts";
import { Snapshot } from "../store/snapshot.ts";
import { encodeUnit } from "./wire.ts";
import { encodePatch } from "../codec/wire_endpoint.ts";
import { encodeObject } from "../codec/wire_objects.ts";

/** Changed keys remembered for agents that come back: beyond that they get a complete state. */
const MAX_LOG_KEYS = 50_000;
/** Text gathered per unit: one message for most, and a bounded piece of work per turn. */
const UNIT_TEXT = 12 * 1024;
/** Complete states kept encoded, one per scope in use. */
const MAX_IMAGES = 8;

interface LogEntry {
  readonly number: number;
  readonly changed: ReadonlyMap<Kind, ReadonlySet<string>>;
  readonly keys: number;
}

/** An encoded update. */
export interface Update {
  readonly messages: readonly Uint8Array[];
  /** Objects in it; 0 = it only tells the new number. */
  readonly items: number;
}

export type KeysByKind = ReadonlyMap<Kind, ReadonlySet<string>>;

export class FanoutFeed {
  #snapshot = Snapshot.empty();
  #number = 0;
  #log: LogEntry[] = [];
  #logKeys = 0;
  readonly #deltas = new Map<string, Update>();
  readonly #since = new Map<number, KeysByKind>();
  readonly #images = new Map<string, StateImage>();

  get snapshot(): Snapshot {
    return this.#snapshot;
  }

  /** Counts states since this feed began; the number of the current one. */
  get number(): number {
    return this.#number;
  }

  /** The next state. */
  advance(snapshot: Snapshot, changes: ChangeSet): void {
    this.#snapshot = snapshot;
    this.#number++;
    this.#deltas.clear();
    this.#since.clear();
    let keys = 0;
    for (const set of changes.changed.values()) keys += set.size;
    this.#log.push({ number: this.#number, changed: changes.changed, keys });
    this.#logKeys += keys;
    let drop = 0;
    while (this.#logKeys > MAX_LOG_KEYS && drop < this.#log.length) this.#logKeys -= this.#log[drop++]!.keys;
    if (drop > 0) this.#log = this.#log.slice(drop);
  }

  /** Whether the keys changed after state `from` are known. */
  covers(from: number): boolean {
    if (from > this.#number || from < 0) return false;
    const first = this.#log[0]?.number ?? this.#number + 1;
    return from >= first - 1;
  }

  /** Keys changed after state `from`, by kind. Only for numbers that are covered. */
  keysSince(from: number): KeysByKind {
    const known = this.#since.get(from);
    if (known) return known;
    const merged = new Map<Kind, Set<string>>();
    for (let i = this.#log.length - 1; i >= 0 && this.#log[i]!.number > from; i--) {
      for (const [kind, keys] of this.#log[i]!.changed) {
        let into = merged.get(kind);
        if (!into) merged.set(kind, into = new Set());
        for (const key of keys) into.add(key);
      }
    }
    this.#since.set(from, merged);
    return merged;
  }

  /**
   * The update from state `from` to the current one as messages. `sent` is the state the agent has, undefined when
   * only its number is known (it came back). `node`: whose own pods are included.
   */
  delta(from: number, sent: Snapshot | undefined, to: { filter: ScopeFilter; node: string }): Update {
    const own = to.filter.ownPods ? this.#ownPodItems(from, sent, to) : [];
    const cacheKey = `${from} ${sent ? 1 : 0} ${to.filter.key}`;
    const cached = own.length === 0 ? this.#deltas.get(cacheKey) : undefined;
    if (cached) return cached;
    const units = new UnitWriter(`"k":"d","f":${from},"t":${this.#number},`);
    for (const item of this.#items(from, sent, to.filter)) units.add(item);
    for (const item of own) units.add(item);
    const update = { messages: units.finish(), items: units.items };
    if (own.length === 0) this.#deltas.set(cacheKey, update);
    return update;
  }

  /** The complete state for a scope; recent ones are reused as long as the log leads on from them. */
  image(filter: ScopeFilter): StateImage {
    const known = this.#images.get(filter.key);
    if (known && this.covers(known.number)) return known;
    const image = new StateImage(this.#snapshot, this.#number, filter);
    this.#images.delete(filter.key);
    this.#images.set(filter.key, image);
    if (this.#images.size > MAX_IMAGES) this.#images.delete(this.#images.keys().next().value!);
    return image;
  }

  /** Lets go of encoded complete states: called when no agent has asked for one for a while. */
  dropImages(): void {
    this.#images.clear();
  }

  *#items(from: number, sent: Snapshot | undefined, filter: ScopeFilter): IterableIterator<string> {
    const keys = this.keysSince(from);
    for (const [index, kind] of KINDS.entries()) {
      const changed = kind === "slice" && filter.byLabel ? this.#withMovedSlices(keys, sent, filter) : keys.get(kind);
      for (const key of changed ?? []) {
        if (!filter.admitsKey(kind, key)) continue;
        const after = filter.visible(kind, key, this.#snapshot);
        const before = sent && filter.visible(kind, key, sent);
        if (after === before && sent) continue;
        if (after === undefined) {
          yield JSON.stringify([index, key]);
          continue;
        }
        const patch = kind === "slice" && before && encodePatch(before as EndpointSlice, after as EndpointSlice);
        yield JSON.stringify(patch ? [index, key, patch] : [index, encodeObject(kind, after)]);
      }
    }
  }

  /** Changed slices, and all slices of Services that may have entered or left a scope by their labels. */
  #withMovedSlices(keys: KeysByKind, sent: Snapshot | undefined, filter: ScopeFilter): ReadonlySet<string> {
    const out = new Set(keys.get("slice"));
    for (const key of keys.get("service") ?? []) {
      const before = sent && filter.visible("service", key, sent);
      if ((before === undefined) === (filter.visible("service", key, this.#snapshot) === undefined)) continue;
      const [namespace, name] = key.split("/") as [string, string];
      for (const state of [sent, this.#snapshot]) {
        for (const slice of state?.slicesOf(namespace, name) ?? []) out.add(serviceKey(namespace, slice.name));
      }
    }
    return out;
  }

  #ownPodItems(from: number, sent: Snapshot | undefined, to: { filter: ScopeFilter; node: string }): string[] {
    const index = KINDS.indexOf("pod");
    const out: string[] = [];
    for (const key of this.keysSince(from).get("pod") ?? []) {
      if (!to.filter.admitsNamespace("pod", key)) continue;
      const after = this.#snapshot.get("pod", key);
      if (isOwnPod(after, to.node)) out.push(JSON.stringify([index, encodeObject("pod", after!)]));
      // Without the sent state it is not known whether the agent has the pod; removing what is not there is harmless.
      else if (!sent || isOwnPod(sent.get("pod", key), to.node)) out.push(JSON.stringify([index, key]));
    }
    return out;
  }
}

/** A complete state, encoded piece by piece as sessions ask for it, each piece once. */
export class StateImage {
  readonly snapshot: Snapshot;
  readonly number: number;
  readonly #filter: ScopeFilter;
  readonly #messages: Uint8Array[] = [];
  #units: Iterator<string> | undefined;
  #podsByNode: ReadonlyMap<string, readonly Pod[]> | undefined;

  constructor(snapshot: Snapshot, number: number, filter: ScopeFilter) {
    this.snapshot = snapshot;
    this.number = number;
    this.#filter = filter;
    this.#units = this.#encode();
  }

  /** Message `at` of the shared part; undefined past its end, where {@link tail} follows. */
  message(at: number): Uint8Array | undefined {
    while (this.#messages.length <= at && this.#units) {
      const next = this.#units.next();
      if (next.done) this.#units = undefined;
      else this.#messages.push(...encodeUnit(next.value));
    }
    return this.#messages[at];
  }

  /** The last unit: pods of the agent's own node, and the end of the update. */
  tail(node: string): Uint8Array[] {
    const units = new UnitWriter("");
    this.#podsByNode ??= this.#filter.ownPods
      ? Map.groupBy(this.#pods(), (pod) => pod.node ?? "")
      : new Map<string, readonly Pod[]>();
    const index = KINDS.indexOf("pod");
    for (const pod of this.#podsByNode.get(node) ?? []) units.add(JSON.stringify([index, encodeObject("pod", pod)]));
    return units.finish();
  }

  *#pods(): IterableIterator<Pod> {
    for (const [key, pod] of this.snapshot.entries("pod")) if (this.#filter.admitsNamespace("pod", key)) yield pod;
  }

  *#encode(): IterableIterator<string> {
    let head = `"k":"f","t":${this.number},`;
    let items: string[] = [];
    let size = 0;
    for (const [index, kind] of KINDS.entries()) {
      for (const [key] of this.snapshot.entries(kind)) {
        const object = this.#filter.visible(kind, key, this.snapshot);
        if (object === undefined) continue;
        const item = JSON.stringify([index, encodeObject(kind, object)]);
        items.push(item);
        size += item.length + 1;
        if (size < UNIT_TEXT) continue;
        yield `{${head}"m":1,"i":[${items.join(",")}]}`;
        [head, items, size] = ["", [], 0];
      }
    }
    yield `{${head}"m":1,"i":[${items.join(",")}]}`;
  }
}

/** Gathers items into units of bounded size and cuts those into messages. */
class UnitWriter {
  /** Items added in all. */
  items = 0;
  #head: string;
  #items: string[] = [];
  #size = 0;
  readonly #messages: Uint8Array[] = [];

  constructor(head: string) {
    this.#head = head;
  }

  add(item: string): void {
    if (this.#size + item.length > UNIT_TEXT && this.#items.length > 0) this.#flush(true);
    this.#items.push(item);
    this.#size += item.length + 1;
    this.items++;
  }

  finish(): Uint8Array[] {
    this.#flush(false);
    return this.#messages;
  }

  #flush(more: boolean): void {
    const text = `{${this.#head}${more ? '"m":1,' : ""}"i":[${this.#items.join(",")}]}`;
    this.#messages.push(...encodeUnit(text));
    [this.#head, this.#items, this.#size] = ["", [], 0];
  }
}
