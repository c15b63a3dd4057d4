/** The state folder of this machine as {@link SnapshotFiles}. */
import type { SnapshotFiles } from "./disk.ts";

/** Files in `folder`, which exists. */
export function openSnapshotFiles(folder: string): SnapshotFiles {
  const path = (name: string) => `${folder}/${name}`;
  return {
    async read(name) {
      try {
        return await Deno.readFile(path(name));
      } catch (error) {
        if (error instanceof Deno.errors.NotFound) return undefined;
        throw error;
      }
    },
    async write(name, chunks) {
      try {
        using file = await Deno.open(path(name), { write: true, create: true, truncate: true, mode: 0o600 });
        for (const chunk of chunks) {
          for (let at = 0; at < chunk.length;) at += await file.write(chunk.subarray(at));
        }
        await file.sync();
      } catch (error) {
        await Deno.remove(path(name)).catch(() => {});
        throw error;
      }
    },
    async rename(from, to) {
      await Deno.rename(path(from), path(to));
      // Without this the rename itself may be lost with the power.
      using directory = await Deno.open(folder, { read: true });
      await directory.sync();
    },
  };
}
