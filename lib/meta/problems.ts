/** What is wrong with metadata, in a form a person can act on: which object, which field, which value, why. */
import type { ReasonCode } from "../errors.ts";

export interface Problem {
  /** `Service shop/web`, as a person would write it. */
  readonly object: string;
  /** Path of the field, like `spec.ports[0].port`. */
  readonly field: string;
  /** The value found, shortened. */
  readonly value: string;
  /** What is wrong with it, without a final period. */
  readonly reason: string;
  readonly code: ReasonCode;
  /** File and line, for objects from files. */
  readonly where?: string;
}

/** `Service shop/web: spec.ports[0].port 70000: must be 1 to 65535`. */
export function problemText(problem: Problem): string {
  const place = problem.where ? `${problem.where}: ` : "";
  const field = problem.field ? `${problem.field}${problem.value ? ` ${problem.value}` : ""}: ` : "";
  return `${place}${problem.object ? `${problem.object}: ` : ""}${field}${problem.reason}`;
}

/** A value as it appears in a {@link Problem}: JSON, at most 64 characters. */
export function shown(value: unknown): string {
  const text = value === undefined ? "" : typeof value === "string" ? value : JSON.stringify(value) ?? "";
  return text.length > 64 ? text.slice(0, 61) + "..." : text;
}

/** Objects with problems that are remembered; of more, only the count is. */
const MAX_OBJECTS = 1000;

/** The problems that hold now, by object: an object that was fixed or removed takes its problems with it. */
export class ProblemBook {
  readonly #byKey = new Map<string, readonly Problem[]>();
  #total = 0;
  #overflow = 0;

  /** Sets what is wrong with one object; an empty list clears it. True if it differs from before. */
  set(key: string, problems: readonly Problem[]): boolean {
    const before = this.#byKey.get(key);
    if (problems.length === 0) return this.#byKey.delete(key);
    if (before && before.length === problems.length && before.every((p, i) => same(p, problems[i]!))) return false;
    this.#total += problems.length;
    if (!before && this.#byKey.size >= MAX_OBJECTS) {
      this.#overflow++;
      return true;
    }
    this.#byKey.set(key, problems);
    return true;
  }

  clear(): void {
    this.#byKey.clear();
  }

  *all(): IterableIterator<Problem> {
    for (const problems of this.#byKey.values()) yield* problems;
  }

  /** Objects that have problems now. */
  get size(): number {
    return this.#byKey.size;
  }

  /** Problems ever noted: a counter for metrics. */
  get total(): number {
    return this.#total;
  }

  /** Problems not remembered because the book was full. */
  get overflow(): number {
    return this.#overflow;
  }
}

function same(a: Problem, b: Problem): boolean {
  return a.field === b.field && a.value === b.value && a.reason === b.reason && a.where === b.where;
}
