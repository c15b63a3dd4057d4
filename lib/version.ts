/** What this build is. The build script replaces the commit; everything else is edited here when a release is made. */
export const VERSION = "0.1.0";
/** Short commit the executable was built from; `dev` when run from a checkout. */
export const COMMIT: string = "dev";
/** When the release was made: a lower bound for the time of day on machines whose clock is wrong (design: certificates). */
export const BUILD_TIME_MS = Date.UTC(2026, 10, 23);
