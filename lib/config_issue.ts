/** What is wrong with a configuration value, for the person who wrote it: what it must be, and what it is. */

/** What the schema checker says of one value; only the fields that its `code` has are there. */
export interface ValueIssue {
  readonly code: string;
  readonly input?: unknown;
  /** With `invalid_type`. */
  readonly expected?: string;
  /** With `invalid_value`: all that is allowed. */
  readonly values?: readonly unknown[];
  /** With `too_small` and `too_big`. */
  readonly origin?: string;
  readonly minimum?: number | bigint;
  readonly maximum?: number | bigint;
}

/** Longest text that is repeated in a sentence. */
const MAX_SHOWN = 40;

const KINDS: Readonly<Record<string, string>> = {
  array: "a list",
  boolean: "true or false",
  int: "a whole number",
  number: "a number",
  object: "a group of keys and values",
  record: "a group of keys and values",
  string: "text",
};

/** The sentence after the value's path, like `must be true or false, not "maybe"`; undefined where the schema has its own. */
export function issueSentence(issue: ValueIssue): string | undefined {
  const { code, input, origin } = issue;
  const entries = origin === "array" ? " entries" : "";
  switch (code) {
    case "invalid_type":
      return `must be ${KINDS[issue.expected ?? ""] ?? issue.expected}, not ${shown(input)}`;
    case "invalid_value":
      return `must be ${oneOf((issue.values ?? []).map(String))}, not ${shown(input)}`;
    case "too_small":
      if (origin !== "number" && origin !== "int" && origin !== "array") return undefined;
      return `must ${entries ? "have" : "be"} at least ${issue.minimum}${entries}${
        entries ? "" : `, not ${shown(input)}`
      }`;
    case "too_big":
      if (origin !== "number" && origin !== "int" && origin !== "array") return undefined;
      return `must ${entries ? "have" : "be"} at most ${issue.maximum}${entries}${
        entries ? "" : `, not ${shown(input)}`
      }`;
    default:
      return undefined;
  }
}

function shown(value: unknown): string {
  if (value === undefined || value === null) return "nothing";
  if (Array.isArray(value)) return "a list";
  if (typeof value === "object") return "a group of keys and values";
  if (typeof value !== "string") return String(value);
  return value.length > MAX_SHOWN ? "a longer text" : JSON.stringify(value);
}

function oneOf(words: readonly string[]): string {
  return words.length < 2 ? words.join() : `${words.slice(0, -1).join(", ")} or ${words.at(-1)}`;
}
