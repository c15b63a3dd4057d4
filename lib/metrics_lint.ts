/**
 * What Prometheus' own linter (promtool check metrics) and its naming rules ask of an exposition, and a cap on series.
 * Run by the tests over what a real agent and server expose.
 */

/** Units that are written as another one in metrics (https://prometheus.io/docs/practices/naming). */
const WRONG_UNITS =
  /_(ms|milliseconds|us|microseconds|ns|minutes|hours|days|kb|mb|kilobytes|megabytes|bits|percent)(_|$)/;
const TYPE_IN_NAME = /_(counter|gauge|histogram|summary)(_|$)/;
/** Labels whose values grow with traffic or are different in each process. */
const UNBOUNDED = new Set(["client", "address", "ip", "id", "url", "endpoint", "error", "text", "name"]);

/** Every sentence is something to mend; an empty list is good. */
export function lintMetrics(text: string): string[] {
  const out: string[] = [];
  const help = new Map<string, string>();
  const types = new Map<string, string>();
  const seen = new Set<string>();
  if (!text.endsWith("\n")) out.push("the last line has no end");
  for (const line of text.split("\n")) {
    if (line === "") continue;
    const meta = /^# (HELP|TYPE) (\S+) (.+)$/.exec(line);
    if (meta) {
      const [, what, name, value] = meta as unknown as [string, string, string, string];
      const known = what === "HELP" ? help : types;
      if (known.has(name)) out.push(`${name}: a second ${what}`);
      known.set(name, value);
      if (what === "TYPE") out.push(...lintName(name, value));
      continue;
    }
    const sample = /^([a-zA-Z_:][a-zA-Z0-9_:]*)(?:\{(.*)\})? (-?[0-9.e+-]+|NaN|[+-]Inf)$/.exec(line);
    if (!sample) {
      out.push(`not a sample: ${line}`);
      continue;
    }
    const [, series, labels = ""] = sample;
    const name = types.get(series!) ? series! : series!.replace(/_(bucket|sum|count)$/, "");
    if (!types.has(name)) out.push(`${series}: no TYPE before it`);
    if (!help.has(name)) out.push(`${series}: no HELP before it`);
    if (seen.has(line.slice(0, line.lastIndexOf(" ")))) out.push(`${series}: a second sample with the same labels`);
    seen.add(line.slice(0, line.lastIndexOf(" ")));
    for (const [, label] of labels.matchAll(/([a-zA-Z_][a-zA-Z0-9_]*)="(?:[^"\\]|\\.)*"/g)) {
      if (UNBOUNDED.has(label!)) out.push(`${name}: label ${label} has a value per client or message`);
      if (!/^[a-z][a-z_]*$/.test(label!)) out.push(`${name}: label ${label} is not in lower case with underscores`);
    }
  }
  return [...new Set(out)];
}

function lintName(name: string, type: string): string[] {
  const out: string[] = [];
  const say = (what: string) => void out.push(`${name}: ${what}`);
  if (!/^[a-z][a-z0-9_]*$/.test(name)) say("not in lower case with underscores");
  if (type === "counter" && !name.endsWith("_total")) say("a counter must end in _total");
  if (type !== "counter" && name.endsWith("_total")) say(`a ${type} must not end in _total`);
  if (/_(sum|count|bucket)$/.test(name)) say("ends like a part of a histogram");
  if (WRONG_UNITS.test(name)) say("use seconds, bytes or a ratio");
  if (TYPE_IN_NAME.test(name)) say("its type is in its name");
  if (type === "histogram" && !/_(seconds|bytes)$/.test(name)) say("a histogram without unit");
  return out;
}
