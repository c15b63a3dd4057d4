/**
 * What identity needs of a state directory. cmd/ gives it a directory (0700, files 0600) through lib/linux; tests give
 * it memory.
 */

/** Small text files by name, in one directory. Names are fixed in the code, or made of a checked server's name. */
export interface StateFiles {
  /** The whole file, or undefined when there is none. Other failures throw. */
  read(name: string): Promise<string | undefined>;
  /** Replaces the file so that a crash leaves the old or the new one: temp file, fsync, rename, fsync of the directory. */
  writeAtomic(name: string, text: string): Promise<void>;
  /** Adds to the end of the file and fsyncs. */
  append(name: string, text: string): Promise<void>;
  /** Bytes of the file; 0 when there is none. */
  size(name: string): Promise<number>;
  /** At most `max` bytes of the file from byte `from` on; empty beyond its end. */
  readRange(name: string, from: number, max: number): Promise<Uint8Array>;
  /** Removes the file; no error when there is none. */
  remove(name: string): Promise<void>;
}

/** Files in memory, for tests and `demo`. */
export class MemoryStateFiles implements StateFiles {
  readonly files = new Map<string, string>();

  read(name: string): Promise<string | undefined> {
    return Promise.resolve(this.files.get(name));
  }

  writeAtomic(name: string, text: string): Promise<void> {
    this.files.set(name, text);
    return Promise.resolve();
  }

  append(name: string, text: string): Promise<void> {
    this.files.set(name, (this.files.get(name) ?? "") + text);
    return Promise.resolve();
  }

  size(name: string): Promise<number> {
    return Promise.resolve(this.#bytes(name).length);
  }

  readRange(name: string, from: number, max: number): Promise<Uint8Array> {
    return Promise.resolve(this.#bytes(name).slice(from, from + max));
  }

  #bytes(name: string): Uint8Array {
    return new TextEncoder().encode(this.files.get(name) ?? "");
  }

  remove(name: string): Promise<void> {
    this.files.delete(name);
    return Promise.resolve();
  }
}
