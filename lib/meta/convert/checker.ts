/**
 * Reading values of unknown shape with field paths. A reader returns the value or, after noting a problem, undefined;
 * an absent value (undefined or null, as Kubernetes writes it) is no problem unless the caller says it is required.
 */
import { parseIp } from "../../addr.ts";
import type { ReasonCode } from "../../errors.ts";
import type { KeepKey } from "../labels.ts";
import type { Problem } from "../problems.ts";
import { shown } from "../problems.ts";

export type Fields = Readonly<Record<string, unknown>>;

/** Problems noted per object; an object with more is broken in one way many times. */
const MAX_PROBLEMS = 20;
/** Longest label or annotation value kept (Kubernetes' own limit for labels is 63; ours guards annotations). */
const MAX_LABEL_VALUE = 1024;

const LABEL = /^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?$/;
const SUBDOMAIN = /^[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*$/;

/** RFC 1123 label: names of namespaces and Services. */
export function isLabel(text: string): boolean {
  return LABEL.test(text);
}

/** RFC 1123 subdomain, at most 253 characters: names of pods, slices and Kubernetes nodes. */
export function isSubdomain(text: string): boolean {
  return text.length <= 253 && SUBDOMAIN.test(text);
}

export class Checker {
  readonly problems: Problem[] = [];
  /** How the object is called in problems, like `Service shop/web`. */
  object: string;
  readonly #where: string | undefined;

  constructor(object: string, where?: string) {
    this.object = object;
    this.#where = where;
  }

  /** Notes a problem. Returns undefined so that readers can end with it. */
  bad(field: string, value: unknown, reason: string, code: ReasonCode = "OBJECT_INVALID"): undefined {
    if (this.problems.length < MAX_PROBLEMS) {
      const problem: Problem = { object: this.object, field, value: shown(value), reason, code };
      this.problems.push(this.#where === undefined ? problem : { ...problem, where: this.#where });
    }
    return undefined;
  }

  fields(value: unknown, field: string): Fields | undefined {
    if (value === undefined || value === null) return undefined;
    if (typeof value !== "object" || Array.isArray(value)) return this.bad(field, value, "must be an object");
    return value as Fields;
  }

  list(value: unknown, field: string): readonly unknown[] {
    if (value === undefined || value === null) return [];
    if (!Array.isArray(value)) {
      this.bad(field, value, "must be a list");
      return [];
    }
    return value;
  }

  text(value: unknown, field: string): string | undefined {
    if (value === undefined || value === null) return undefined;
    return typeof value === "string" ? value : this.bad(field, value, "must be text");
  }

  flag(value: unknown, field: string): boolean | undefined {
    if (value === undefined || value === null) return undefined;
    return typeof value === "boolean" ? value : this.bad(field, value, "must be true or false");
  }

  int(value: unknown, field: string, range: { readonly min: number; readonly max: number }): number | undefined {
    if (value === undefined || value === null) return undefined;
    if (typeof value === "number" && Number.isInteger(value) && value >= range.min && value <= range.max) return value;
    return this.bad(field, value, `must be a whole number from ${range.min} to ${range.max}`);
  }

  /** A port that must be there. */
  port(value: unknown, field: string): number | undefined {
    if (value === undefined || value === null) return this.bad(field, value, "is required");
    return this.int(value, field, { min: 1, max: 65535 });
  }

  /** A canonical address. Leading zeros are refused, not read: programs disagree on them (CVE-2021-29923). */
  ip(value: unknown, field: string): string | undefined {
    const text = this.text(value, field);
    if (text === undefined) return undefined;
    return parseIp(text) ?? this.bad(field, text, "is not an IP address (plain decimal parts, no leading zeros)");
  }

  /** Text that satisfies a predicate. */
  name(value: unknown, field: string, valid: (text: string) => boolean = isLabel): string | undefined {
    const text = this.text(value, field);
    if (text === undefined || valid(text)) return text;
    return this.bad(field, text, valid === isLabel ? "is not a DNS label (RFC 1123)" : "is not a valid name");
  }

  /** One of a few words; `fallback` when absent or wrong. */
  word<T extends string>(value: unknown, field: string, words: readonly T[], fallback: T): T {
    const text = this.text(value, field);
    if (text === undefined) return fallback;
    if ((words as readonly string[]).includes(text)) return text as T;
    this.bad(field, text, `must be one of ${words.join(", ")}`);
    return fallback;
  }

  /** Labels or annotations whose key is kept. `fromEntries` defines own properties, so `__proto__` is a plain key. */
  labels(value: unknown, field: string, keep: KeepKey): Readonly<Record<string, string>> {
    const fields = this.fields(value, field);
    if (!fields) return NO_LABELS;
    const kept: [string, string][] = [];
    for (const key of Object.keys(fields)) {
      if (!keep(key)) continue;
      const text = this.text(fields[key], `${field}["${key}"]`);
      if (text === undefined) continue;
      if (text.length > MAX_LABEL_VALUE) this.bad(`${field}["${key}"]`, text, `is longer than ${MAX_LABEL_VALUE}`);
      else kept.push([key, text]);
    }
    return kept.length === 0 ? NO_LABELS : Object.fromEntries(kept);
  }
}

/** Shared by all objects without labels. */
const NO_LABELS: Readonly<Record<string, string>> = Object.freeze({});
