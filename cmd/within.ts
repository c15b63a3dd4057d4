/** A deadline for work that has none of its own. */
import { systemClock } from "../lib/clock.ts";
import { MeshError } from "../lib/errors.ts";

/** The work's result, or MeshError TIMEOUT with `message` after `ms`; the work itself goes on unheard. */
export async function within<T>(ms: number, message: string, work: Promise<T>): Promise<T> {
  let cancel = () => {};
  const late = new Promise<never>((_, reject) => {
    cancel = systemClock.timer(ms, () => reject(new MeshError("TIMEOUT", message)));
  });
  try {
    return await Promise.race([work, late]);
  } finally {
    cancel();
    // The loser of the race is nobody's any more.
    work.catch(() => {});
  }
}
