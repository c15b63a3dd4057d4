/** A folder of files as the folder source sees it, and the machine's own. */
import { refuseOutside } from "../../file_reference.ts";

export interface FileStamp {
  readonly name: string;
  /** Changes whenever the content may have: inode, size and time of modification. */
  readonly stamp: string;
}

export interface Folder {
  readonly path: string;
  /** Regular files directly in the folder, symbolic links to such included (ConfigMap mounts are made of those). */
  list(): Promise<readonly FileStamp[]>;
  /** Throws CONFIG_INVALID for a link that leads out of the folder. */
  read(name: string): Promise<Uint8Array>;
  /** Calls `changed` after anything may have changed. A hint only: callers also look from time to time. */
  watch(changed: () => void): () => void;
}

/** A folder of this machine. */
export function openFolder(path: string): Folder {
  return {
    path,
    async list() {
      const out: FileStamp[] = [];
      for await (const entry of Deno.readDir(path)) {
        if (entry.isDirectory) continue;
        try {
          const info = await Deno.stat(`${path}/${entry.name}`);
          if (!info.isFile) continue;
          out.push({ name: entry.name, stamp: `${info.ino ?? 0}:${info.size}:${info.mtime?.getTime() ?? 0}` });
        } catch (error) {
          // Gone between the listing and the look, or a dangling link: as good as not there.
          if (!(error instanceof Deno.errors.NotFound)) throw error;
        }
      }
      return out;
    },
    async read(name) {
      refuseOutside(`${path}/${name}`);
      return await Deno.readFile(`${path}/${name}`);
    },
    watch(changed) {
      let watcher: Deno.FsWatcher;
      try {
        watcher = Deno.watchFs(path, { recursive: false });
      } catch {
        // No inotify instance left, or no such folder: looking from time to time remains.
        return () => {};
      }
      (async () => {
        try {
          for await (const event of watcher) if (event.kind !== "access") changed();
        } catch {
          // The folder went away; the next look says so.
        }
      })();
      return () => {
        try {
          watcher.close();
        } catch {
          // Closed already by its own end.
        }
      };
    },
  };
}
