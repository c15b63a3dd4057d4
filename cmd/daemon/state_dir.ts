/** The state directory of a role: 0700, files 0600, one process at a time. */
import { MeshError } from "../../lib/errors.ts";
import type { StateFiles } from "../../lib/identity/state_files.ts";
import {
  appendFile,
  fileSize,
  makePrivateDir,
  readIfThere,
  readRange,
  removeFile,
  writeAtomic,
} from "../../lib/linux/files.ts";
import { lockFile } from "../../lib/linux/lock.ts";

export interface StateDir extends AsyncDisposable {
  readonly path: string;
  readonly files: StateFiles;
}

/** Makes the directory if it is missing and locks it. Throws KERNEL when another process has it. */
export async function openStateDir(path: string, role: "agent" | "server"): Promise<StateDir> {
  await makePrivateDir(path);
  const lock = lockFile(`${path}/lock`);
  if (!lock) {
    throw new MeshError("KERNEL", `Another edgemesh ${role} uses the state in ${path}`, {
      hint: `stop it first (systemctl stop edgemesh-${role}), or give this one its own stateDir`,
    });
  }
  const at = (name: string) => `${path}/${name}`;
  return {
    path,
    files: {
      read: (name) => readIfThere(at(name)),
      writeAtomic: (name, text) => writeAtomic(at(name), text),
      append: (name, text) => appendFile(at(name), text),
      size: (name) => fileSize(at(name)),
      readRange: (name, from, max) => readRange(at(name), from, max),
      remove: (name) => removeFile(at(name)),
    },
    [Symbol.asyncDispose]() {
      lock.close();
      return Promise.resolve();
    },
  };
}
