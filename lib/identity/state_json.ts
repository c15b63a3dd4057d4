/** State files as checked JSON: a file is either what we wrote or a clear error, never silently made anew. */
import { describe, MeshError } from "../errors.ts";
import type { Validator } from "./shape.ts";
import type { StateFiles } from "./state_files.ts";

/** Reads a JSON state file; undefined when there is none. Throws STATE_INVALID with `hint` when it is damaged. */
export async function readState<T>(
  files: StateFiles,
  name: string,
  options: { readonly check: Validator<T>; readonly hint: string },
): Promise<T | undefined> {
  const text = await files.read(name);
  if (text === undefined) return undefined;
  try {
    return options.check(JSON.parse(text), name);
  } catch (e) {
    // A JSON error quotes the text around the fault, and the text may hold a key.
    const why = e instanceof MeshError ? describe(e) : "it is not JSON";
    throw new MeshError("STATE_INVALID", `the state file ${name} is damaged or of another version: ${why}`, {
      hint: options.hint,
    });
  }
}

/** Writes a JSON state file, readable for a person who looks. */
export function writeState(files: StateFiles, name: string, value: unknown): Promise<void> {
  return files.writeAtomic(name, JSON.stringify(value, null, 1) + "\n");
}
