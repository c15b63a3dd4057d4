/** Code in documents that a reader may paste: which blocks are run where, and which are not, and why. */

const ROOT = new URL("..", import.meta.url).pathname;

export interface Snippet {
  /** File and line where its code begins. */
  readonly where: string;
  readonly code: string;
  /** Where a test runs it; a skipped one says why instead. */
  readonly how: { readonly run: string } | { readonly skip: string } | undefined;
}

/**
 * All fenced `sh` blocks of a document. `<!-- run: HOST -->` or `<!-- skip: REASON -->` stands in the line above, blank
 * ones between them.
 */
export async function snippets(file: string): Promise<readonly Snippet[]> {
  const lines = (await Deno.readTextFile(ROOT + file)).split("\n").map((line) => line.trim());
  const found: Snippet[] = [];
  let mark = "";
  for (let i = 0; i < lines.length; i++) {
    const line = lines[i]!;
    if (line !== "```sh") {
      if (line !== "") mark = line;
      continue;
    }
    const end = lines.indexOf("```", i + 1);
    const [, kind, text] = /^<!-- (run|skip): (.+) -->$/.exec(mark) ?? [];
    const how = kind === "run" ? { run: text! } : kind === "skip" ? { skip: text! } : undefined;
    found.push({ where: `${file}:${i + 2}`, code: lines.slice(i + 1, end).join("\n"), how });
    i = end;
    mark = "";
  }
  return found;
}
