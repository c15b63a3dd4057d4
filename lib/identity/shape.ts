/**
 * Checks of untrusted JSON, as small functions that either return a value of the type or throw. zod does the same
 * for configuration; here it would cost every agent its memory for a dozen small messages.
 *
 * Unknown properties are ignored (a newer peer may send more), missing or wrong ones refused, and every text and list
 * has a cap.
 */
import { MeshError } from "../errors.ts";

/** Returns the value typed, or throws PROTOCOL naming `path`. */
export type Validator<T> = (value: unknown, path: string) => T;

/** Text of `min` to `max` UTF-16 units that matches `pattern` when one is given. */
export function string(min: number, max: number, pattern?: RegExp): Validator<string> {
  return (value, path) => {
    if (typeof value !== "string") throw wrong(path, "is not text");
    if (value.length < min || value.length > max) {
      throw wrong(path, `has ${value.length} characters; ${min} to ${max} are allowed`);
    }
    if (pattern && !pattern.test(value)) throw wrong(path, `does not have the form ${pattern.source}`);
    return value;
  };
}

/** A safe integer in [min, max]. */
export function integer(min: number, max: number = Number.MAX_SAFE_INTEGER): Validator<number> {
  return (value, path) => {
    if (!Number.isSafeInteger(value)) throw wrong(path, "is not a whole number");
    const n = value as number;
    if (n < min || n > max) throw wrong(path, `is ${n}; ${min} to ${max} are allowed`);
    return n;
  };
}

export const boolean: Validator<boolean> = (value, path) => {
  if (typeof value !== "boolean") throw wrong(path, "is not true or false");
  return value;
};

/** One of a few texts or numbers. */
export function literal<const T extends readonly (string | number)[]>(...allowed: T): Validator<T[number]> {
  return (value, path) => {
    if (!allowed.includes(value as T[number])) throw wrong(path, `is not one of ${allowed.join(", ")}`);
    return value as T[number];
  };
}

/** A list of at most `max` elements. */
export function array<T>(element: Validator<T>, max: number): Validator<readonly T[]> {
  return (value, path) => {
    if (!Array.isArray(value)) throw wrong(path, "is not a list");
    if (value.length > max) throw wrong(path, `has ${value.length} elements; ${max} are allowed`);
    return value.map((v, i) => element(v, `${path}[${i}]`));
  };
}

/** A value that may be missing. */
export function optional<T>(inner: Validator<T>): Validator<T | undefined> {
  return (value, path) => (value === undefined ? undefined : inner(value, path));
}

type Shape = Readonly<Record<string, Validator<unknown>>>;
type Typed<S extends Shape> = { readonly [K in keyof S]: ReturnType<S[K]> };

/** An object; only the named properties are taken over. */
export function object<S extends Shape>(shape: S): Validator<Typed<S>> {
  const properties = Object.entries(shape);
  return (value, path) => {
    if (typeof value !== "object" || value === null || Array.isArray(value)) throw wrong(path, "is not an object");
    const result: Record<string, unknown> = {};
    for (const [name, check] of properties) {
      const own = Object.hasOwn(value, name) ? (value as Record<string, unknown>)[name] : undefined;
      const checked = check(own, `${path}.${name}`);
      if (checked !== undefined) result[name] = checked;
    }
    return result as Typed<S>;
  };
}

/** An object with arbitrary short keys, as labels are. */
export function record<T>(
  value: Validator<T>,
  options: { readonly max: number; readonly key: RegExp },
): Validator<Readonly<Record<string, T>>> {
  return (input, path) => {
    if (typeof input !== "object" || input === null || Array.isArray(input)) throw wrong(path, "is not an object");
    const entries = Object.entries(input);
    if (entries.length > options.max) throw wrong(path, `has ${entries.length} entries; ${options.max} are allowed`);
    const result: [string, T][] = [];
    for (const [k, v] of entries) {
      if (!options.key.test(k)) throw wrong(path, `has the key ${JSON.stringify(k.slice(0, 80))}`);
      result.push([k, value(v, `${path}.${k}`)]);
    }
    // Own properties whatever their names: a key `__proto__` stays a key.
    return Object.fromEntries(result);
  };
}

/** Labels of a node: keys and values as Kubernetes allows them. */
export const LABELS: Validator<Readonly<Record<string, string>>> = record(string(0, 63, /^[\w.-]*$/), {
  max: 32,
  key: /^([a-z0-9.-]{1,253}\/)?[A-Za-z0-9][\w.-]{0,62}$/,
});

/** JSON of at most `maxBytes` (measured as UTF-8) that passes a validator. Throws PROTOCOL or LIMIT. */
export function parseJson<T>(
  text: string,
  check: Validator<T>,
  options: { readonly what: string; readonly maxBytes: number },
): T {
  // A UTF-16 unit is at most three bytes of UTF-8, so most texts need no exact count.
  if (text.length * 3 > options.maxBytes && new TextEncoder().encode(text).length > options.maxBytes) {
    throw new MeshError("LIMIT", `${options.what} is larger than ${options.maxBytes} bytes`);
  }
  let value: unknown;
  try {
    value = JSON.parse(text);
  } catch (cause) {
    throw new MeshError("PROTOCOL", `${options.what} is not JSON`, { cause });
  }
  return check(value, options.what);
}

function wrong(path: string, why: string): MeshError {
  return new MeshError("PROTOCOL", `${path} ${why}`);
}
