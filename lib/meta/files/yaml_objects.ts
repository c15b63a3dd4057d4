/**
 * YAML (or JSON, which is YAML) text → Kubernetes objects with the line each begins at. Pure. Bounded: aliases,
 * documents and objects are capped, keys must be unique.
 */
import type { Document } from "yaml";
import { isMap, isScalar, isSeq, LineCounter, parseAllDocuments } from "yaml";
import type { Problem } from "../problems.ts";

/** Bytes of one manifest file. */
export const MAX_FILE_BYTES = 16 * 1024 * 1024;
/** Aliases expanded per document: a manifest uses none or a few, an alias bomb thousands. */
const MAX_ALIASES = 100;
const MAX_OBJECTS = 100_000;

export interface LocatedObject {
  readonly value: unknown;
  /** 1-based. */
  readonly line: number;
  /** Line of a field by path like `spec.ports[0].port`; the object's own line where the path is not found. */
  lineOf(field: string): number;
}

export interface ParsedFile {
  readonly objects: readonly LocatedObject[];
  /** Syntax errors. With any, the file as a whole is not to be used. */
  readonly errors: readonly Problem[];
}

/** Parses one file's text. `name` is used in problems. */
export function parseObjects(text: string, name: string): ParsedFile {
  const lines = new LineCounter();
  const errors: Problem[] = [];
  const objects: LocatedObject[] = [];
  const documents = parseAllDocuments(text, { lineCounter: lines, uniqueKeys: true, prettyErrors: false });
  if (!Array.isArray(documents)) return { objects, errors };
  for (const document of documents as Document.Parsed[]) {
    for (const error of document.errors) {
      errors.push(syntax(name, lines.linePos(error.pos[0]).line, firstLine(error.message)));
    }
    if (document.errors.length > 0) continue;
    let value: unknown;
    try {
      value = document.toJS({ maxAliasCount: MAX_ALIASES });
    } catch (error) {
      errors.push(syntax(name, lineAt(document.contents, lines, 1), firstLine(String((error as Error).message))));
      continue;
    }
    if (value === null || value === undefined) continue;
    collect(value, document.contents, lines, objects);
    if (objects.length > MAX_OBJECTS) {
      errors.push(syntax(name, 1, `holds more than ${MAX_OBJECTS} objects`));
      break;
    }
  }
  return { objects, errors };
}

/** An object, or the items of any `…List` (as `kubectl get -o yaml` writes them), however nested. */
function collect(value: unknown, node: unknown, lines: LineCounter, into: LocatedObject[]): void {
  const fields = typeof value === "object" && !Array.isArray(value) ? value as Record<string, unknown> : undefined;
  const kind = fields?.kind;
  if (fields && typeof kind === "string" && kind.endsWith("List") && Array.isArray(fields.items)) {
    const items = isMap(node) ? node.get("items", true) : undefined;
    for (const [i, item] of fields.items.entries()) {
      collect(withKind(item, kind, fields.apiVersion), isSeq(items) ? items.items[i] : undefined, lines, into);
    }
    return;
  }
  const line = lineAt(node, lines, 1);
  into.push({ value, line, lineOf: (field) => lineAt(descend(node, field), lines, line) });
}

/** Items of a typed list (`ServiceList`) come without kind and apiVersion. */
function withKind(item: unknown, listKind: string, apiVersion: unknown): unknown {
  if (listKind === "List" || typeof item !== "object" || item === null || "kind" in item) return item;
  return { ...item, kind: listKind.slice(0, -"List".length), apiVersion };
}

function descend(node: unknown, field: string): unknown {
  let at = node;
  let found = node;
  for (const step of field.matchAll(/\["([^"]*)"\]|\[(\d+)\]|([^.[\]]+)/g)) {
    if (step[2] !== undefined) at = isSeq(at) ? at.items[Number(step[2])] : undefined;
    else {
      const key = step[1] ?? step[3]!;
      const pair = isMap(at) ? at.items.find((p) => isScalar(p.key) && String(p.key.value) === key) : undefined;
      if (pair) found = pair.key;
      at = pair?.value;
      if (pair === undefined) return found;
      continue;
    }
    if (at === undefined) return found;
    found = at;
  }
  return found;
}

function lineAt(node: unknown, lines: LineCounter, fallback: number): number {
  const range = (node as { range?: readonly number[] | null } | undefined)?.range;
  return range ? lines.linePos(range[0]!).line : fallback;
}

function syntax(name: string, line: number, reason: string): Problem {
  return { object: "", field: "", value: "", reason, code: "OBJECT_INVALID", where: `${name}:${line}` };
}

function firstLine(text: string): string {
  return text.split("\n", 1)[0]!.replace(/\.$/, "");
}
