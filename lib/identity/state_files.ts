/**
 * What identity needs of a state directory. cmd/ gives it a directory (0700, files 0600) through lib/linux; tests give
 * it memory.
 */

/** Small text files by name, in one directory. Names are fixed in the code, never taken from input. */
export interface StateFiles {
  /** The whole file, or undefined when there is none. Other failures throw. */
  read(name: string): Promise<string | undefined>;
  /** Replaces the file so that a crash leaves the old or the new one: temp file, fsync, rename, fsync of the directory. */
  writeAtomic(name: string, text: string): Promise<void>;
  /** Adds to the end of the file and fsyncs. */
  append(name: string, text: string): Promise<void>;
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

  remove(name: string): Promise<void> {
    this.files.delete(name);
    return Promise.resolve();
  }
}
