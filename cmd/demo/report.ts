/** What the demo prints: one line per step while it runs, a table at the end. */
import { bytes, print, table } from "../output.ts";

/** What a step found out. */
export interface Shown {
  /** The number or fact that shows it, like `312 ms`. */
  readonly value: string;
  /** What a user would type to see the same. */
  readonly command?: string;
}

interface Line {
  readonly title: string;
  readonly ok: boolean;
  readonly value: string;
}

export class Report {
  readonly #color = Deno.stdout.isTerminal() && !Deno.env.get("NO_COLOR");
  readonly #lines: Line[] = [];

  /** Runs a step and prints its line. False: it failed; the reason is printed. */
  async step(title: string, run: () => Promise<Shown>): Promise<boolean> {
    try {
      const { value, command } = await run();
      this.#add({ title, ok: true, value }, command);
      return true;
    } catch (e) {
      this.#add({ title, ok: false, value: e instanceof Error ? e.message : String(e) }, undefined);
      return false;
    }
  }

  /** A headline between groups of steps. */
  section(text: string): void {
    print(`\n${this.#paint("1", text)}`);
  }

  get failed(): readonly string[] {
    return this.#lines.filter((l) => !l.ok).map((l) => l.title);
  }

  /** All steps once more, aligned. */
  summary(): void {
    print("");
    print(
      table([["", "STEP", "RESULT"], ...this.#lines.map((l) => [l.ok ? "✓" : "✗", l.title, l.value.split("\n")[0]!])]),
    );
  }

  #add(line: Line, command: string | undefined): void {
    this.#lines.push(line);
    const mark = line.ok ? this.#paint("32", "✓") : this.#paint("31", "✗");
    print(`${mark} ${line.title.padEnd(46)} ${line.value}`);
    if (command !== undefined) print(`    ${this.#paint("2", command)}`);
  }

  #paint(code: string, text: string): string {
    return this.#color ? `\x1b[${code}m${text}\x1b[0m` : text;
  }
}

/** `312 ms`, `4.2 s`. */
export function milliseconds(ms: number): string {
  return ms < 1000 ? `${Math.round(ms)} ms` : `${(ms / 1000).toFixed(1)} s`;
}

export function megabytes(n: number): string {
  return `${(n / 1e6).toFixed(1)} MB`;
}

export { bytes };

/** Ends a step that did not show what it should. */
export class NotShown extends Error {}

/** Throws {@link NotShown} unless the condition holds. */
export function must(condition: boolean, otherwise: string): asserts condition {
  if (!condition) throw new NotShown(otherwise);
}

/** Lines that only one of two texts has, as a short diff. */
export function difference(before: string, after: string): string {
  const [a, b] = [before, after].map((text) => new Set(text.split("\n"))) as [Set<string>, Set<string>];
  const gone = [...a].filter((line) => !b.has(line)).map((line) => `- ${line}`);
  const come = [...b].filter((line) => !a.has(line)).map((line) => `+ ${line}`);
  return [...gone, ...come].slice(0, 20).join("\n");
}
