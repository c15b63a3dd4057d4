/**
 * A folder of YAML as a source. Each file stands for itself: one that cannot be used keeps its last good content and
 * is reported with file, line and field, while the other files go on.
 */
import type { Cidr } from "../../addr.ts";
import type { Clock } from "../../clock.ts";
import { describe, MeshError } from "../../errors.ts";
import type { Logger } from "../../log.ts";
import type { MetaVersion } from "../model.ts";
import type { Folder } from "./folder.ts";
import type { LoadedFile } from "./files_state.ts";
import { combine, loadFile } from "./files_state.ts";
import { ConvertContext } from "../convert/convert.ts";
import type { Problem } from "../problems.ts";
import { problemText } from "../problems.ts";
import type { MetaSource, SourceState, SourceStatus } from "../source.ts";
import type { MetaLayer } from "../store/store.ts";

/** A file is read only after it stayed the same this long: editors and `cat >` write in pieces. */
const SETTLE_MS = 100;
/** How often the folder is looked at without being told of a change (network file systems tell nothing). */
const POLL_MS = 2000;
const MANIFEST = /^[^.].*\.(ya?ml|json)$/;

export interface FilesSourceOptions {
  readonly folder: Folder;
  readonly layer: MetaLayer;
  readonly clock: Clock;
  readonly log: Logger;
  /** Where Services without a clusterIP get one from, the first network first; none: they have no virtual address. */
  readonly allocateFrom?: readonly Cidr[];
  /** Makes versions of this run different from those of others; default random. */
  readonly epoch?: string;
  /** Keys of Service labels to keep besides those the product reads. */
  readonly extraLabels?: readonly string[];
}

export class FilesSource implements MetaSource {
  readonly #folder: Folder;
  readonly #layer: MetaLayer;
  readonly #clock: Clock;
  readonly #log: Logger;
  readonly #cidrs: readonly Cidr[];
  readonly #context: ConvertContext;
  readonly #files = new Map<string, LoadedFile>();
  /** Stamps as of the last look, for telling a file that still changes from one that has changed. */
  #seen = new Map<string, string>();
  readonly #allocated = new Map<string, string>();
  #version: MetaVersion;
  #problems: readonly Problem[] = [];
  #told = new Set<string>();
  #state: SourceState = "starting";
  #since: number;
  #lastError: string | undefined;
  #stopWatch: (() => void) | undefined;
  #timer: (() => void) | undefined;
  /** When the timer fires. */
  #due = Infinity;
  #looking: Promise<void> | undefined;
  #again = false;
  #published = false;

  constructor(options: FilesSourceOptions) {
    this.#folder = options.folder;
    this.#layer = options.layer;
    this.#clock = options.clock;
    this.#log = options.log;
    this.#cidrs = options.allocateFrom ?? [];
    this.#context = new ConvertContext(options.extraLabels);
    this.#version = { source: "files", epoch: options.epoch ?? crypto.randomUUID().slice(0, 8), number: 0 };
    this.#since = options.clock.now();
  }

  /** Reads the folder once, then follows it. A folder that cannot be read is reported and tried again. */
  async start(): Promise<void> {
    await this.#look(true);
    this.#stopWatch = this.#folder.watch(() => this.#lookSoon(SETTLE_MS));
    this.#lookSoon(POLL_MS);
  }

  async stop(): Promise<void> {
    this.#enter("stopped");
    this.#stopWatch?.();
    this.#timer?.();
    this.#timer = undefined;
    await this.#looking;
  }

  status(): SourceStatus {
    return {
      kind: "files",
      from: this.#folder.path,
      state: this.#state,
      since: this.#since,
      ...(this.#lastError === undefined ? {} : { lastError: this.#lastError }),
      problems: this.#problems,
    };
  }

  /** Never later than was planned: what changes all the time would put off the look for good, and with it the others. */
  #lookSoon(ms: number): void {
    if (this.#state === "stopped") return;
    if (this.#looking) {
      this.#again = true;
      return;
    }
    const at = this.#clock.now() + ms;
    if (this.#timer && this.#due <= at) return;
    this.#timer?.();
    this.#due = at;
    this.#timer = this.#clock.timer(ms, () => void this.#look(false));
  }

  #look(first: boolean): Promise<void> {
    this.#timer?.();
    this.#timer = undefined;
    this.#again = false;
    this.#looking = this.#scan(first)
      .then((unsettled) => unsettled ? SETTLE_MS : POLL_MS, (error) => {
        this.#fail(describe(error));
        return POLL_MS;
      })
      .then((next) => {
        this.#looking = undefined;
        if (!first) this.#lookSoon(this.#again ? SETTLE_MS : next);
      });
    return this.#looking;
  }

  /** One look at the folder. True if a file is still being written. */
  async #scan(first: boolean): Promise<boolean> {
    const listed = (await this.#folder.list()).filter((f) => MANIFEST.test(f.name));
    const seen = new Map(listed.map((f) => [f.name, f.stamp]));
    let unsettled = false;
    let changed = !this.#published;
    for (const { name, stamp } of listed) {
      if (this.#files.get(name)?.stamp === stamp) continue;
      if (!first && this.#seen.get(name) !== stamp) {
        unsettled = true;
        continue;
      }
      const bytes = await this.#read(name);
      const load = { name, stamp, bytes, before: this.#files.get(name) };
      this.#files.set(name, await loadFile(load, this.#context));
      changed = true;
    }
    this.#seen = seen;
    for (const name of [...this.#files.keys()]) {
      if (seen.has(name)) continue;
      this.#files.delete(name);
      changed = true;
    }
    if (this.#state === "stopped") return false;
    if (changed) this.#publish();
    else if (this.#state === "degraded") this.#enter("synced");
    return unsettled;
  }

  /** The content, or why this file, and no other, is not to be read. */
  #read(name: string): Promise<Uint8Array | MeshError> {
    return this.#folder.read(name).catch((error) => {
      if (error instanceof MeshError) return error;
      throw error;
    });
  }

  #publish(): void {
    const { changes, problems } = combine(this.#files, { cidrs: this.#cidrs, allocated: this.#allocated });
    this.#version = { ...this.#version, number: this.#version.number + 1 };
    const staging = this.#layer.stage();
    staging.add(changes);
    staging.commit({ version: this.#version, synced: true });
    this.#published = true;
    this.#problems = problems;
    const texts = new Set(problems.map(problemText));
    for (const text of texts) if (!this.#told.has(text)) this.#log.warn("manifest problem", { problem: text });
    this.#told = texts;
    this.#enter("synced");
  }

  #fail(error: string): void {
    if (this.#state === "stopped") return;
    if (this.#lastError !== error) {
      this.#log.warn("manifest folder cannot be read", { folder: this.#folder.path, error });
    }
    this.#enter(this.#state === "starting" ? "starting" : "degraded");
    this.#lastError = error;
  }

  #enter(state: SourceState): void {
    if (state === "synced") this.#lastError = undefined;
    if (this.#state === state) return;
    this.#state = state;
    this.#since = this.#clock.now();
  }
}
