/**
 * Our lines in a resolv.conf, put in and taken out so that nothing else in the file changes. Pure text to text:
 * `withoutUs(withUs(text)) === text` for every text, and both change nothing when done twice.
 *
 * The agent's address comes first and the file's own servers stay behind it: when the agent is stopped, its port is
 * closed, the C library hears so at once and goes on to the next server.
 */

const BEGIN = "# edgemesh begin: `edgemesh cleanup` takes these lines out and the marked ones back in";
const END = "# edgemesh end";
/** In front of a line that ours replace (`search` and `domain`: the last one wins, so two cannot stand together). */
const HELD = "#edgemesh# ";
/** resolv.conf(5): glibc takes six search domains before 2.26, and 256 characters. */
const MAX_SEARCH = 6;

export interface ResolvEdit {
  /** Addresses the agent answers on; port 53 is implied by the file's format. */
  readonly addresses: readonly string[];
  /** Search domains to put in front of the file's own; empty leaves them alone. */
  readonly search: readonly string[];
}

/** Puts our lines in, replacing those of an earlier time. */
export function withUs(text: string, edit: ResolvEdit): string {
  const original = withoutUs(text);
  const lines = original.split("\n");
  const ours = [BEGIN, ...edit.addresses.map((ip) => `nameserver ${ip}`)];
  if (edit.search.length > 0) {
    const own = lines.filter((line) => isSearch(line)).at(-1)?.trim().split(/\s+/).slice(1) ?? [];
    const all = [...new Set([...edit.search, ...own])].slice(0, MAX_SEARCH);
    ours.push(`search ${all.join(" ")}`);
  }
  ours.push(END);
  const rest = edit.search.length > 0 ? lines.map((line) => isSearch(line) ? HELD + line : line) : lines;
  return [...ours, ...rest].join("\n");
}

/** Takes our lines out and puts back what they replaced. */
export function withoutUs(text: string): string {
  const lines = text.split("\n");
  const begin = lines.indexOf(BEGIN);
  if (begin < 0) return text;
  const end = lines.indexOf(END, begin);
  // Without its end the block is no longer ours: somebody edited it, and only what is certainly ours goes.
  const rest = end < 0 ? lines.filter((_, i) => i !== begin) : [...lines.slice(0, begin), ...lines.slice(end + 1)];
  return rest.map((line) => line.startsWith(HELD) ? line.slice(HELD.length) : line).join("\n");
}

/** Whether our lines are in a text. */
export function hasUs(text: string): boolean {
  return text.split("\n").includes(BEGIN);
}

function isSearch(line: string): boolean {
  return /^\s*(search|domain)\s/.test(line);
}
