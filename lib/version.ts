/** What this build is. Edited when a release is made; commit and form are put in front of the bundle by scripts/build.ts. */
export const VERSION = "0.1.0";

/** When the release was made: a lower bound for the time of day on machines whose clock is wrong (lib/identity/time.ts). */
export const BUILD_TIME_MS = Date.UTC(2026, 10, 23);

export interface BuildInfo {
  /** Short commit, `dev` when run from a checkout. */
  readonly commit: string;
  /** How the executable was made; `source` when run from a checkout. */
  readonly form: "compiled" | "self-extracting" | "source";
}

/** Commit and form of the running program. */
export function buildInfo(): BuildInfo {
  return (globalThis as { edgemeshBuild?: BuildInfo }).edgemeshBuild ?? { commit: "dev", form: "source" };
}
