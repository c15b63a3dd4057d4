/**
 * Files that a configuration names: tokens, keys, kubeconfigs, manifests. A symbolic link among them may lead within
 * the folder that is named, as Kubernetes' mounts and rotated certificates do, but not out of it: whoever may only put
 * files there would choose which file of the whole machine is read, and parts of it would be in the next error message.
 */
import { MeshError } from "./errors.ts";

/**
 * Where a path leads outside of the folder it names; undefined where it stays inside, and where there is no such file,
 * which is for the reader to say.
 */
export function leadsOutside(path: string): string | undefined {
  const slash = path.lastIndexOf("/");
  try {
    // The folder itself may be reached by links (/var/run is one): it is what was named, and not what is in it.
    const folder = Deno.realPathSync(slash < 0 ? "." : path.slice(0, slash + 1));
    const target = Deno.realPathSync(path);
    return target.startsWith(folder === "/" ? folder : `${folder}/`) ? undefined : target;
  } catch {
    return undefined;
  }
}

/** Throws CONFIG_INVALID for a path whose links lead out of the folder it names. */
export function refuseOutside(path: string): void {
  const target = leadsOutside(path);
  if (target === undefined) return;
  throw new MeshError("CONFIG_INVALID", `${path} is a link that leads out of its folder, to ${target}`, {
    hint: "name that file itself, or put a copy here",
  });
}

/** The text of a file that a configuration names. Throws like {@link refuseOutside}, and what reading throws. */
export async function readReferenced(path: string): Promise<string> {
  refuseOutside(path);
  try {
    return await Deno.readTextFile(path);
  } catch (error) {
    throw notReadable(path, error) ?? error;
  }
}

/** For a file that is there and closed to this user: the services are not root. */
export function notReadable(path: string, error: unknown): MeshError | undefined {
  if (!(error instanceof Deno.errors.PermissionDenied)) return undefined;
  return new MeshError("CONFIG_INVALID", `The user ${Deno.uid()} may not read ${path}`, {
    hint: `where the service's user is edgemesh: chgrp edgemesh ${path} && chmod g+r ${path}`,
  });
}
