/**
 * Where configuration comes from: flags > `EDGEMESH_*` environment > YAML file > defaults. Pure: files and environment
 * are handed in. All problems are reported at once, each with its path and the place it was said.
 */
import { type Document, isMap, isScalar, LineCounter, parseDocument } from "yaml";
import {
  type AgentConfig,
  type ConfigIssue,
  configPaths,
  listPaths,
  parseConfig,
  type Role,
  type ServerConfig,
} from "./config.ts";
import { MeshError } from "./errors.ts";
import { nearest } from "./nearest.ts";

export interface ConfigSources {
  /** Values from flags, as dotted paths. */
  readonly flags: Readonly<Record<string, unknown>>;
  readonly env: Readonly<Record<string, string>>;
  /** Text of the YAML file and its name. */
  readonly file?: { readonly name: string; readonly text: string };
  /** Where a file that is referred to leads outside of its folder (lib/file_reference.ts). Default: not looked at. */
  leadsOutside?(path: string): string | undefined;
}

export interface LoadedConfig<C> {
  readonly config: C;
  /** Dotted path → where the value was said; paths not listed have their default. */
  readonly origin: ReadonlyMap<string, string>;
}

/** Environment variable of a path: `dns.zone` → `EDGEMESH_DNS_ZONE`, `nodeName` → `EDGEMESH_NODE_NAME`. */
export function envName(path: string): string {
  return "EDGEMESH_" + path.replace(/([a-z0-9])([A-Z])/g, "$1_$2").replaceAll(".", "_").toUpperCase();
}

/** Environment variables of the product that are not configuration. */
const OTHER_ENV = new Set([
  "EDGEMESH_EXE",
  "EDGEMESH_RUNTIME_DIR",
  "EDGEMESH_SERVICE_HOOK",
  "EDGEMESH_CACHE",
  "EDGEMESH_LAB",
  "EDGEMESH_SOCKET",
]);

/** One thing that keeps a configuration from being used. */
export interface ConfigProblem {
  /** Dotted path or variable; missing where the file as a whole cannot be read. */
  readonly path?: string;
  readonly problem: string;
  /** `FILE:LINE`, `environment NAME` or `flag`; missing for values nobody gave. */
  readonly where?: string;
}

export interface CheckedConfig<C> {
  /** Undefined when there are problems. */
  readonly config: C | undefined;
  readonly origin: ReadonlyMap<string, string>;
  readonly problems: readonly ConfigProblem[];
}

/** Merges the sources and checks the result: every problem at once. */
export function checkConfig(role: "agent", sources: ConfigSources): CheckedConfig<AgentConfig>;
export function checkConfig(role: "server", sources: ConfigSources): CheckedConfig<ServerConfig>;
export function checkConfig(role: Role, sources: ConfigSources): CheckedConfig<AgentConfig | ServerConfig>;
export function checkConfig(role: Role, sources: ConfigSources): CheckedConfig<AgentConfig | ServerConfig> {
  const raw: Record<string, unknown> = {};
  const origin = new Map<string, string>();
  const problems: ConfigProblem[] = [];
  const paths = configPaths(role);
  const lists = listPaths(role);

  if (sources.file) readFile(sources.file, raw, origin, problems);

  const byEnv = new Map(paths.map((p) => [envName(p), p]));
  for (const [name, text] of Object.entries(sources.env)) {
    if (!name.startsWith("EDGEMESH_") || OTHER_ENV.has(name)) continue;
    const path = byEnv.get(name);
    if (path === undefined) {
      // A host may carry variables of the other role; only near misses are worth a refusal.
      const near = nearest(name, [...byEnv.keys()]);
      if (near && !isOtherRole(role, name)) {
        problems.push({ path: name, problem: `is not a known variable; did you mean ${near}?`, where: "environment" });
      }
      continue;
    }
    setPath(raw, path, lists.has(path) ? list(text) : scalar(text));
    origin.set(path, `environment ${name}`);
  }
  for (const [path, value] of Object.entries(sources.flags)) {
    if (value === undefined) continue;
    // `--set` has read a single port as a number already; it is a list of one here.
    const given = lists.has(path) && typeof value !== "object" ? list(String(value)) : value;
    if (!setPath(raw, path, given)) {
      problems.push({ path: `--set ${path}`, problem: "is not a valid path" });
    }
    origin.set(path, "flag");
  }

  const parsed = parseConfig(role, raw);
  if ("issues" in parsed) {
    for (const issue of parsed.issues) {
      const where = whereSaid(issue, origin) ?? sources.file?.name;
      problems.push({ ...issue, ...(where === undefined ? {} : { where }) });
    }
  }
  problems.push(...outsideReferences(role, raw, origin, sources));
  return { config: problems.length > 0 || "issues" in parsed ? undefined : parsed.config, origin, problems };
}

/** The same for who cannot go on without. Throws MeshError CONFIG_INVALID naming every problem. */
export function loadConfig(role: "agent", sources: ConfigSources): LoadedConfig<AgentConfig>;
export function loadConfig(role: "server", sources: ConfigSources): LoadedConfig<ServerConfig>;
export function loadConfig(role: Role, sources: ConfigSources): LoadedConfig<AgentConfig | ServerConfig> {
  const { config, origin, problems } = checkConfig(role, sources);
  if (config === undefined) {
    throw new MeshError(
      "CONFIG_INVALID",
      `The ${role} configuration has ${problems.length} problem${problems.length === 1 ? "" : "s"}:\n  ` +
        problems.map(problemLine).join("\n  "),
      { hint: `edgemesh config schema ${role} lists every key` },
    );
  }
  return { config, origin };
}

/** One problem for a person. */
export function problemLine({ path, problem, where }: ConfigProblem): string {
  if (path === undefined) return `${where === undefined ? "" : `${where}: `}${problem}`;
  return `${path} ${problem}${where === undefined ? "" : ` (${where})`}`;
}

/** The paths among {@link configPaths} that name a file whose content is read. */
export function filePaths(role: Role): string[] {
  return configPaths(role).filter((path) => /(^|\.)kubeconfig$|File$/.test(path));
}

function* outsideReferences(
  role: Role,
  raw: unknown,
  origin: ReadonlyMap<string, string>,
  sources: ConfigSources,
): Generator<ConfigProblem> {
  for (const path of filePaths(role)) {
    const value = path.split(".").reduce<unknown>((at, key) => (at as Record<string, unknown> | undefined)?.[key], raw);
    const target = typeof value === "string" ? sources.leadsOutside?.(value) : undefined;
    if (target === undefined) continue;
    const where = origin.get(path);
    const problem = `is a link that leads out of its folder, to ${target}; name that file itself, or put a copy here`;
    yield { path, problem, ...(where === undefined ? {} : { where }) };
  }
}

function readFile(
  file: { name: string; text: string },
  raw: Record<string, unknown>,
  origin: Map<string, string>,
  problems: ConfigProblem[],
): void {
  const lines = new LineCounter();
  const doc = parseDocument(file.text, { uniqueKeys: true, prettyErrors: true, lineCounter: lines });
  for (const e of doc.errors) {
    problems.push({
      problem: e.message.split("\n")[0]!.replace(/ at line \d+, column \d+:?$/, ""),
      where: `${file.name}:${e.linePos?.[0].line ?? 1}`,
    });
  }
  if (doc.errors.length > 0) return;
  let value: unknown;
  try {
    value = doc.toJS({ maxAliasCount: 50 });
  } catch {
    problems.push({ problem: "refers to its own parts so often that it would not fit into memory", where: file.name });
    return;
  }
  if (value === null || value === undefined) return;
  if (typeof value !== "object" || Array.isArray(value)) {
    problems.push({ problem: "must hold keys and values", where: `${file.name}:1` });
    return;
  }
  const where = (path: string) => `${file.name}:${lineOf(doc, lines, path)}`;
  for (const path of forbiddenKeys(value)) problems.push({ path, problem: "is not a known key", where: where(path) });
  copyInto(raw, value as Record<string, unknown>, "", (path) => origin.set(path, where(path)));
}

/** Keys that would change the objects they are put into, wherever they are. */
function* forbiddenKeys(value: unknown, prefix = ""): Generator<string> {
  if (value === null || typeof value !== "object") return;
  for (const [key, inner] of Object.entries(value)) {
    const path = prefix ? `${prefix}.${key}` : key;
    if (FORBIDDEN.has(key)) yield path;
    else yield* forbiddenKeys(inner, path);
  }
}

/** The line of a key; of the nearest one above it where an alias hides it. */
function lineOf(doc: Document, lines: LineCounter, path: string): number {
  let at: unknown = doc.contents;
  let line = 1;
  for (const key of path.split(".")) {
    if (!isMap(at)) break;
    const pair = at.items.find((item) => isScalar(item.key) && String(item.key.value) === key);
    if (!pair || !isScalar(pair.key) || !pair.key.range) break;
    line = lines.linePos(pair.key.range[0]).line;
    at = pair.value;
  }
  return line;
}

function copyInto(
  to: Record<string, unknown>,
  from: Record<string, unknown>,
  prefix: string,
  seen: (path: string) => void,
): void {
  for (const [key, value] of Object.entries(from)) {
    const path = prefix ? `${prefix}.${key}` : key;
    if (FORBIDDEN.has(key)) continue;
    if (value !== null && typeof value === "object" && !Array.isArray(value)) {
      const child: Record<string, unknown> = {};
      to[key] = child;
      seen(path);
      copyInto(child, value as Record<string, unknown>, path, seen);
    } else {
      to[key] = value;
      seen(path);
    }
  }
}

const FORBIDDEN = new Set(["__proto__", "constructor", "prototype"]);

function setPath(raw: Record<string, unknown>, path: string, value: unknown): boolean {
  const keys = path.split(".");
  if (keys.some((k) => k === "" || FORBIDDEN.has(k))) return false;
  let at = raw;
  for (const key of keys.slice(0, -1)) {
    const next = at[key];
    if (next === null || typeof next !== "object" || Array.isArray(next)) at[key] = {};
    at = at[key] as Record<string, unknown>;
  }
  at[keys[keys.length - 1]!] = value;
  return true;
}

/** Text from the environment or `--set`: numbers and booleans read as such, all else as text. */
export function scalar(text: string): unknown {
  if (text === "true") return true;
  if (text === "false") return false;
  return /^-?\d{1,15}(\.\d+)?$/.test(text) ? Number(text) : text;
}

/** `a,b` and `[a, b]` read as a list; nothing at all as an empty one. */
function list(text: string): unknown[] {
  const inner = text.startsWith("[") && text.endsWith("]") ? text.slice(1, -1) : text;
  return inner.trim() === "" ? [] : inner.split(",").map((part) => scalar(part.trim()));
}

function isOtherRole(role: Role, name: string): boolean {
  return configPaths(role === "agent" ? "server" : "agent").some((p) => envName(p) === name);
}

/** Where the value was said, or the one it is part of, or, of a flag or variable, what is part of it. */
function whereSaid({ path }: ConfigIssue, origin: ReadonlyMap<string, string>): string | undefined {
  for (let at = path; at !== ""; at = at.slice(0, Math.max(0, at.lastIndexOf(".")))) {
    const where = origin.get(at);
    if (where !== undefined) return where;
  }
  return [...origin].find(([p]) => p.startsWith(path + "."))?.[1];
}
