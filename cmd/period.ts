/** Spans of time as people type them. */
import { MeshError } from "../lib/errors.ts";

const UNITS: Readonly<Record<string, number>> = { ms: 1, s: 1000, m: 60_000, h: 3_600_000 };

/** `500ms`, `5s`, `2m`, or a bare number of seconds, as milliseconds. Throws CONFIG_INVALID. */
export function parsePeriod(flag: string, text: string): number {
  const match = /^(\d{1,9}(?:\.\d{1,3})?)(ms|s|m|h)?$/.exec(text);
  const ms = match ? Number(match[1]) * UNITS[match[2] ?? "s"]! : 0;
  if (ms > 0) return ms;
  throw new MeshError("CONFIG_INVALID", `${flag} ${text} is not a span of time`, { hint: `${flag} 5s` });
}
