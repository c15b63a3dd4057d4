/**
 * The latest snapshot and those who want to hear of changes. Sources write into layers; readers see one merged,
 * immutable snapshot. Single-threaded: a published snapshot is complete, and each subscriber hears of every change
 * once, in order, however many are folded into one call.
 */
import type { Clock } from "../../clock.ts";
import { MeshError } from "../../errors.ts";
import type { Logger } from "../../log.ts";
import { nullLogger } from "../../log.ts";
import type { Kind, Kinds, MetaVersion } from "../model.ts";
import { KINDS } from "../model.ts";
import type { Changes, ObjectChange } from "../objects.ts";
import { remove } from "../objects.ts";
import type { LayerName } from "./precedence.ts";
import { effectiveChanges } from "./precedence.ts";
import type { ApplyOptions, ChangeSet } from "./snapshot.ts";
import { isNoChange, mergeChangeSets, Snapshot, SnapshotBuilder } from "./snapshot.ts";

/** Told of a new snapshot. Must not throw; what it throws is logged and the others are still told. */
export type Listener = (snapshot: Snapshot, changes: ChangeSet) => void;

/** Where one source writes. */
export interface MetaLayer {
  /** This layer alone. */
  readonly snapshot: Snapshot;
  /** Applies changes and publishes. */
  apply(changes: Changes, options?: ApplyOptions): ChangeSet;
  /** Begins a complete new state, built in steps without publishing; what it does not mention will be removed. */
  stage(): Staging;
  /** Begins changes that are published together. */
  batch(): Batch;
}

/** Changes on their way. Nothing else may write to the layer meanwhile. */
export interface Batch {
  add(changes: Changes): void;
  /** An object as of now, what was added included. */
  get<K extends Kind>(kind: K, key: string): Kinds[K] | undefined;
  publish(options?: ApplyOptions): ChangeSet;
}

/** A complete state being built beside the published one. One at a time per layer. */
export interface Staging {
  add(changes: Changes): void;
  /** Replaces the layer's state and publishes the difference at once. */
  commit(options?: ApplyOptions): ChangeSet;
}

export interface StoreOptions {
  readonly clock: Clock;
  readonly log?: Logger;
  /** Layers that have a source: the store is synced when all of these are. Default: base only. */
  readonly layers?: readonly LayerName[];
}

export class MetaStore {
  readonly #clock: Clock;
  readonly #log: Logger;
  readonly #needed: readonly LayerName[];
  readonly #layers: Record<LayerName, Snapshot> = { local: Snapshot.empty(), base: Snapshot.empty() };
  readonly #subscribers = new Set<Subscriber>();
  #snapshot = Snapshot.empty();

  constructor(options: StoreOptions) {
    this.#clock = options.clock;
    this.#log = options.log ?? nullLogger;
    this.#needed = options.layers ?? ["base"];
  }

  /** The latest merged state. */
  get snapshot(): Snapshot {
    return this.#snapshot;
  }

  layer(name: LayerName): MetaLayer {
    const layers = this.#layers;
    return {
      get snapshot() {
        return layers[name];
      },
      apply: (changes, options) => {
        const result = layers[name].apply(changes, options);
        return this.#publish(name, result.snapshot, result.changes);
      },
      stage: () => this.#stage(name),
      batch: () => this.#batch(name),
    };
  }

  /**
   * Calls `listener` after each change. `coalesceMs`: the first change is told at once, later ones are folded into one
   * call per that many milliseconds. Returns the end of the subscription.
   */
  subscribe(listener: Listener, options: { readonly coalesceMs?: number } = {}): () => void {
    const subscriber = new Subscriber(listener, options.coalesceMs ?? 0, this.#clock, () => this.#snapshot, this.#log);
    this.#subscribers.add(subscriber);
    return () => {
      this.#subscribers.delete(subscriber);
      subscriber.stop();
    };
  }

  #batch(name: LayerName): Batch {
    const start = this.#layers[name];
    const builder = new SnapshotBuilder(start);
    return {
      add: (changes) => void builder.add(changes),
      get: (kind, key) => builder.get(kind, key),
      publish: (options) => {
        if (this.#layers[name] !== start) {
          throw new MeshError("INTERNAL", `Layer ${name} changed while a new state was built beside it`);
        }
        const { snapshot, changes } = builder.done(options);
        return this.#publish(name, snapshot, changes);
      },
    };
  }

  #stage(name: LayerName): Staging {
    const start = this.#layers[name];
    const batch = this.#batch(name);
    const seen = new Map<Kind, Set<string>>(KINDS.map((kind) => [kind, new Set()]));
    return {
      add: (changes) => {
        for (const { kind, key, object } of changes) {
          if (object === undefined) seen.get(kind)!.delete(key);
          else seen.get(kind)!.add(key);
        }
        batch.add(changes);
      },
      commit: (options) => {
        // What was added is mentioned by definition: only what was there before can be gone.
        const gone: ObjectChange[] = [];
        for (const kind of KINDS) {
          const keep = seen.get(kind)!;
          for (const [key] of start.entries(kind)) if (!keep.has(key)) gone.push(remove(kind, key));
        }
        batch.add(gone);
        return batch.publish(options);
      },
    };
  }

  #publish(name: LayerName, layer: Snapshot, changes: ChangeSet): ChangeSet {
    this.#layers[name] = layer;
    const before = this.#snapshot;
    const { local, base } = this.#layers;
    const merged = { synced: this.#needed.every((n) => this.#layers[n].synced), version: this.#version() };
    let told: ChangeSet;
    if (local.size === 0 && name === "base") {
      told = { ...changes, becameSynced: merged.synced && !before.synced };
    } else {
      const result = before.apply(effectiveChanges(changes, name, this.#layers), merged);
      this.#snapshot = result.snapshot;
      told = result.changes;
    }
    // Nothing is overridden: readers see the base layer itself, and no second copy of its indexes exists.
    if (local.size === 0) this.#snapshot = base.apply([], merged).snapshot;
    if (!isNoChange(told)) { for (const subscriber of [...this.#subscribers]) subscriber.tell(told); }
    return told;
  }

  #version(): MetaVersion {
    return this.#needed.includes("base") ? this.#layers.base.version : this.#layers.local.version;
  }
}

/** One listener with its folding of changes. */
class Subscriber {
  readonly #listener: Listener;
  readonly #window: number;
  readonly #clock: Clock;
  readonly #current: () => Snapshot;
  readonly #log: Logger;
  #waiting: ChangeSet | undefined;
  #timer: (() => void) | undefined;
  #telling = false;
  #stopped = false;

  constructor(listener: Listener, window: number, clock: Clock, current: () => Snapshot, log: Logger) {
    this.#listener = listener;
    this.#window = window;
    this.#clock = clock;
    this.#current = current;
    this.#log = log;
  }

  tell(changes: ChangeSet): void {
    this.#waiting = this.#waiting ? mergeChangeSets(this.#waiting, changes) : changes;
    if (this.#timer === undefined) this.#flush();
  }

  stop(): void {
    this.#stopped = true;
    this.#timer?.();
    this.#timer = undefined;
    this.#waiting = undefined;
  }

  #flush(): void {
    // A listener that causes a change is told of it after it returns, never in the middle of its own work.
    if (this.#telling) return;
    this.#telling = true;
    while (this.#waiting && !this.#stopped) {
      const changes = this.#waiting;
      this.#waiting = undefined;
      try {
        this.#listener(this.#current(), changes);
      } catch (error) {
        this.#log.error("metadata listener failed", { error: String(error) });
      }
      if (this.#window > 0) break;
    }
    this.#telling = false;
    if (this.#window > 0 && !this.#stopped) {
      this.#timer = this.#clock.timer(this.#window, () => {
        this.#timer = undefined;
        if (this.#waiting) this.#flush();
      });
    }
  }
}
