/** Printing: text, JSON or YAML on stdout, errors on stderr. Closed pipes (`| head`) end quietly. */

export type Format = "text" | "json" | "yaml";

const encoder = new TextEncoder();

/** Writes text and a newline to stdout. */
export function print(text: string): void {
  writeAll(Deno.stdout, text + "\n");
}

/** Writes `error: …` to stderr. */
export function printError(text: string): void {
  writeAll(Deno.stderr, `error: ${text}\n`);
}

/** Prints a document in the wanted form; `text` renders it for people. */
export async function printDocument(value: unknown, format: Format, text: () => string): Promise<void> {
  if (format === "json") print(JSON.stringify(value, null, 2));
  else if (format === "yaml") print((await import("../lib/yaml.ts")).stringify(value).trimEnd());
  else print(text());
}

const COLOURS = { red: 31, green: 32, yellow: 33 } as const;

/** Text in a colour, where a person watches: on a terminal, unless NO_COLOR is set (https://no-color.org). */
export function paint(colour: keyof typeof COLOURS, text: string): string {
  return Deno.stdout.isTerminal() && (Deno.env.get("NO_COLOR") ?? "") === "" && Deno.env.get("TERM") !== "dumb"
    ? `\x1b[${COLOURS[colour]}m${text}\x1b[0m`
    : text;
}

/** Columns aligned by the widest cell; the first row is the head. */
export function table(rows: readonly (readonly string[])[]): string {
  const widths: number[] = [];
  for (const row of rows) row.forEach((cell, i) => widths[i] = Math.max(widths[i] ?? 0, cell.length));
  return rows.map((row) =>
    row.map((cell, i) => i === row.length - 1 ? cell : cell.padEnd(widths[i]!)).join("  ").trimEnd()
  ).join("\n");
}

/** Bytes for people: 512 B, 1.5 kB, 20 MB. */
export function bytes(n: number): string {
  const units = ["B", "kB", "MB", "GB", "TB"];
  let i = 0;
  let v = n;
  while (v >= 1000 && i < units.length - 1) {
    v /= 1000;
    i++;
  }
  return `${i === 0 || v >= 100 ? Math.round(v) : v.toFixed(1)} ${units[i]}`;
}

/** Seconds for people: 42s, 5m10s, 3h2m, 4d1h. */
export function duration(seconds: number): string {
  const s = Math.max(0, Math.floor(seconds));
  if (s < 60) return `${s}s`;
  if (s < 3600) return `${Math.floor(s / 60)}m${s % 60}s`;
  if (s < 86400) return `${Math.floor(s / 3600)}h${Math.floor(s % 3600 / 60)}m`;
  return `${Math.floor(s / 86400)}d${Math.floor(s % 86400 / 3600)}h`;
}

function writeAll(to: { writeSync(bytes: Uint8Array): number }, text: string): void {
  const data = encoder.encode(text);
  try {
    for (let at = 0; at < data.length;) at += to.writeSync(data.subarray(at));
  } catch (e) {
    if (!(e instanceof Deno.errors.BrokenPipe)) throw e;
  }
}
