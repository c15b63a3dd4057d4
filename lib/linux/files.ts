/**
 * Small state files that survive crashes: a reader finds the old content or the new one, never a part. Directories are
 * 0700 and files 0600, because what is in them is keys and metadata.
 */
import { MeshError } from "../errors.ts";

/** Makes a directory and its parents; the last one is closed to everybody else, also when it existed. */
export async function makePrivateDir(path: string): Promise<void> {
  try {
    await Deno.mkdir(path, { recursive: true, mode: 0o700 });
    await Deno.chmod(path, 0o700);
  } catch (cause) {
    throw fileError(`The directory ${path} cannot be made or closed to others`, cause);
  }
}

/** The whole file as text; undefined when there is none. */
export async function readIfThere(path: string): Promise<string | undefined> {
  try {
    return await Deno.readTextFile(path);
  } catch (cause) {
    if (cause instanceof Deno.errors.NotFound) return undefined;
    throw fileError(`The file ${path} cannot be read`, cause);
  }
}

/** Writes that are under way, by path. */
const writing = new Map<string, Promise<void>>();

/**
 * Replaces a file: temp file beside it, fsync, rename, fsync of the directory. Writes of one path follow each other in
 * the order of the calls, so that the last call's content stays.
 */
export async function writeAtomic(path: string, content: string | Uint8Array): Promise<void> {
  const bytes = typeof content === "string" ? new TextEncoder().encode(content) : content.slice();
  const before = writing.get(path);
  const write = (before ?? Promise.resolve()).catch(() => {}).then(() => replace(path, bytes));
  writing.set(path, write);
  try {
    await write;
  } finally {
    if (writing.get(path) === write) writing.delete(path);
  }
}

async function replace(path: string, bytes: Uint8Array): Promise<void> {
  // One name per path: a leftover of a crash is replaced by the next write instead of piling up.
  const tmp = `${path}.tmp`;
  try {
    await Deno.remove(tmp).catch(() => {});
    const file = await Deno.open(tmp, { write: true, createNew: true, mode: 0o600 });
    try {
      await writeAll(file, bytes);
      await file.sync();
    } finally {
      file.close();
    }
    await Deno.rename(tmp, path);
    await syncDir(path.slice(0, path.lastIndexOf("/")) || "/");
  } catch (cause) {
    await Deno.remove(tmp).catch(() => {});
    throw fileError(`The file ${path} cannot be written`, cause);
  }
}

/** Adds to the end of a file and fsyncs. */
export async function appendFile(path: string, text: string): Promise<void> {
  try {
    using file = await Deno.open(path, { append: true, create: true, mode: 0o600 });
    await writeAll(file, new TextEncoder().encode(text));
    await file.sync();
  } catch (cause) {
    throw fileError(`The file ${path} cannot be added to`, cause);
  }
}

/** Bytes of a file; 0 when there is none. */
export async function fileSize(path: string): Promise<number> {
  try {
    return (await Deno.stat(path)).size;
  } catch (cause) {
    if (cause instanceof Deno.errors.NotFound) return 0;
    throw fileError(`The file ${path} cannot be looked at`, cause);
  }
}

/** At most `max` bytes of a file from byte `from` on; empty beyond its end, and where there is no file. */
export async function readRange(path: string, from: number, max: number): Promise<Uint8Array> {
  try {
    using file = await Deno.open(path);
    await file.seek(from, Deno.SeekMode.Start);
    const bytes = new Uint8Array(max);
    let at = 0;
    while (at < max) {
      const n = await file.read(bytes.subarray(at));
      if (n === null) break;
      at += n;
    }
    return bytes.subarray(0, at);
  } catch (cause) {
    if (cause instanceof Deno.errors.NotFound) return new Uint8Array(0);
    throw fileError(`The file ${path} cannot be read`, cause);
  }
}

/** Removes a file; no error when there is none. */
export async function removeFile(path: string): Promise<void> {
  try {
    await Deno.remove(path);
  } catch (cause) {
    if (!(cause instanceof Deno.errors.NotFound)) throw fileError(`The file ${path} cannot be removed`, cause);
  }
}

async function writeAll(file: Deno.FsFile, bytes: Uint8Array): Promise<void> {
  for (let at = 0; at < bytes.length;) at += await file.write(bytes.subarray(at));
}

/** Makes a rename last through a power cut. File systems that cannot do it are left to their own promises. */
async function syncDir(path: string): Promise<void> {
  try {
    using dir = await Deno.open(path);
    await dir.sync();
  } catch {
    // Some file systems refuse to sync a directory (EINVAL); the content itself is synced already.
  }
}

function fileError(what: string, cause: unknown): MeshError {
  const text = String(cause instanceof Error ? cause.message : cause);
  const hint = /os error 28|No space/.test(text)
    ? "free some disk space"
    : /os error 30|Read-only/.test(text)
    ? "put the state directory on a writable file system"
    : cause instanceof Deno.errors.PermissionDenied
    ? "run as root, or give this user the directory"
    : undefined;
  return new MeshError("KERNEL", what, { cause, ...(hint ? { hint } : {}) });
}
