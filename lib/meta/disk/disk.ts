/**
 * The offline copy of a layer. Saved some time after a change, by temporary file, fsync and rename, with the copy
 * before kept; loaded at start. Nothing that is wrong with the disk stops the agent: the previous copy serves, or it
 * starts empty, and one line says why.
 */
import type { Clock } from "../../clock.ts";
import { describe, MeshError } from "../../errors.ts";
import type { Logger } from "../../log.ts";
import type { DiskHeader } from "./disk_codec.ts";
import { decodeSnapshot, encodeSnapshot } from "./disk_codec.ts";
import type { Guard } from "../guard.ts";
import { Pacer } from "../pace.ts";
import type { Snapshot } from "../store/snapshot.ts";
import type { MetaLayer } from "../store/store.ts";

/** The few things a snapshot asks of a folder. Errors of the system come through as they are. */
export interface SnapshotFiles {
  /** The whole file; undefined if there is none. */
  read(name: string): Promise<Uint8Array | undefined>;
  /** Writes a new file, mode 0600, and syncs it. Removes what it wrote when that fails. */
  write(name: string, chunks: Iterable<Uint8Array>): Promise<void>;
  /** Renames over what may be there, and syncs the folder. */
  rename(from: string, to: string): Promise<void>;
}

export const SNAPSHOT_FILE = "snapshot.jsonl";
export const PREVIOUS_FILE = "snapshot.previous.jsonl";
const TEMPORARY_FILE = "snapshot.tmp";

/** From the first change to the save: what comes in a burst is saved once. */
const SAVE_DELAY_MS = 1000;
/** Shortest time between two saves: flash memory of small devices wears out. */
const SAVE_INTERVAL_MS = 30_000;

export interface DiskOptions {
  readonly files: SnapshotFiles;
  readonly layer: MetaLayer;
  readonly clock: Clock;
  readonly log: Logger;
  /** What the loaded snapshot must pass, for copies of pushed metadata: the policy may have changed since. */
  readonly guard?: Guard;
}

export interface DiskStatus {
  /** Of the state that was loaded at start, while nothing newer was learned. */
  readonly loaded?: { readonly savedAt: number; readonly from: string; readonly previous: boolean };
  /** Wall-clock time of the last save. */
  readonly savedAt?: number;
  /** Why the last save failed; gone after one that did not. */
  readonly lastError?: string;
  /** Why a copy on disk could not be used at the start; gone once a new one is saved. */
  readonly loadError?: string;
}

export class DiskSnapshot {
  readonly #files: SnapshotFiles;
  readonly #layer: MetaLayer;
  readonly #clock: Clock;
  readonly #log: Logger;
  readonly #guard: Guard | undefined;
  #saved: Snapshot | undefined;
  #savedAt: number | undefined;
  #lastSave = -Infinity;
  #loaded: DiskStatus["loaded"];
  #lastError: string | undefined;
  #loadError: string | undefined;
  /** Whether the current file was read or written well; one that was not must not become the previous good copy. */
  #currentGood = false;
  #timer: (() => void) | undefined;
  #saving: Promise<void> | undefined;
  #from = "";

  constructor(options: DiskOptions) {
    this.#files = options.files;
    this.#layer = options.layer;
    this.#clock = options.clock;
    this.#log = options.log;
    this.#guard = options.guard;
  }

  /** Fills the layer from disk. True if there was something to fill it with. Never throws. */
  async load(): Promise<boolean> {
    for (const name of [SNAPSHOT_FILE, PREVIOUS_FILE]) {
      const header = await this.#loadFile(name);
      if (!header) continue;
      const previous = name === PREVIOUS_FILE;
      this.#currentGood = !previous;
      this.#loaded = { savedAt: header.savedAt, from: header.from, previous };
      this.#from = header.from;
      const minutes = Math.max(0, Math.round((this.#clock.wall() - header.savedAt) / 60_000));
      this.#log.info("metadata loaded from disk", { from: header.from, ageMinutes: minutes, previous });
      return true;
    }
    return false;
  }

  /** Tells that the layer changed; `from` is where the change came from, for people. */
  changed(from: string): void {
    this.#from = from;
    this.#loaded = undefined;
    if (this.#timer || this.#saving) return;
    this.#arm();
  }

  /** Saves now if there is something new: at a clean stop. Never throws. */
  async stop(): Promise<void> {
    this.#disarm();
    await this.#saving;
    this.#disarm();
    await this.#save();
  }

  status(): DiskStatus {
    return {
      ...(this.#loaded === undefined ? {} : { loaded: this.#loaded }),
      ...(this.#savedAt === undefined ? {} : { savedAt: this.#savedAt }),
      ...(this.#lastError === undefined ? {} : { lastError: this.#lastError }),
      ...(this.#loadError === undefined ? {} : { loadError: this.#loadError }),
    };
  }

  #arm(): void {
    const wait = Math.max(SAVE_DELAY_MS, this.#lastSave + SAVE_INTERVAL_MS - this.#clock.now());
    this.#timer = this.#clock.timer(wait, () => {
      this.#timer = undefined;
      this.#saving = this.#save().finally(() => {
        this.#saving = undefined;
        if (this.#layer.snapshot !== this.#saved) this.#arm();
      });
    });
  }

  #disarm(): void {
    this.#timer?.();
    this.#timer = undefined;
  }

  async #save(): Promise<void> {
    const snapshot = this.#layer.snapshot;
    if (snapshot === this.#saved || !snapshot.synced) return;
    this.#lastSave = this.#clock.now();
    const savedAt = this.#clock.wall();
    try {
      const header: DiskHeader = { version: snapshot.version, savedAt, from: this.#from };
      // As it was told: what the guard refuses today may be allowed tomorrow, and is not told again for that.
      const told = this.#guard ? snapshot.apply([...this.#guard.refused()]).snapshot : snapshot;
      await this.#files.write(TEMPORARY_FILE, encodeSnapshot(told, header));
      if (this.#currentGood) await this.#files.rename(SNAPSHOT_FILE, PREVIOUS_FILE);
      await this.#files.rename(TEMPORARY_FILE, SNAPSHOT_FILE);
      this.#currentGood = true;
      this.#saved = snapshot;
      this.#savedAt = savedAt;
      this.#lastError = this.#loadError = undefined;
    } catch (error) {
      this.#fail("snapshot not saved", describe(error));
    }
  }

  async #loadFile(name: string): Promise<DiskHeader | undefined> {
    this.#guard?.reset();
    try {
      const bytes = await this.#files.read(name);
      if (bytes === undefined) return undefined;
      const content = decodeSnapshot(bytes);
      const staging = this.#layer.stage();
      const pacer = new Pacer(this.#clock);
      for (const batch of content.batches()) {
        staging.add(this.#guard ? this.#guard.filter(batch) : batch);
        if (pacer.tired) await pacer.rest();
      }
      staging.commit({ version: content.header.version, synced: true });
      this.#saved = this.#layer.snapshot;
      return content.header;
    } catch (error) {
      const reason = error instanceof MeshError ? error.message : `Snapshot cannot be read: ${describe(error)}`;
      const next = name === SNAPSHOT_FILE ? "trying the copy before" : "starting without";
      this.#log.warn(`snapshot on disk not used, ${next}`, { error: `${name}: ${reason}` });
      this.#loadError = this.#loadError === undefined ? `${name}: ${reason}` : `${this.#loadError}; ${name}: ${reason}`;
      return undefined;
    }
  }

  /** One line per distinct failure: a full disk fails again and again in the same way. */
  #fail(what: string, error: string): void {
    if (this.#lastError !== error) this.#log.warn(what, { error });
    this.#lastError = error;
  }
}
