/**
 * Where configuration comes from: flags > `EDGEMESH_*` environment > YAML file > defaults. Pure: files and environment
 * are handed in. All problems are reported at once, each with its path and the place it was said.
 */
import { parseDocument } from "yaml";
import {
  type AgentConfig,
  type ConfigIssue,
  configPaths,
  listPaths,
  nearest,
  parseConfig,
  type Role,
  type ServerConfig,
} from "./config.ts";
import { MeshError } from "./errors.ts";

export interface ConfigSources {
  /** Values from flags, as dotted paths. */
  readonly flags: Readonly<Record<string, unknown>>;
  readonly env: Readonly<Record<string, string>>;
  /** Text of the YAML file and its name. */
  readonly file?: { readonly name: string; readonly text: string };
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
  "EDGEMESH_CACHE",
  "EDGEMESH_LAB",
  "EDGEMESH_SOCKET",
]);

/** Merges the sources and checks the result. Throws MeshError CONFIG_INVALID naming every problem. */
export function loadConfig(role: "agent", sources: ConfigSources): LoadedConfig<AgentConfig>;
export function loadConfig(role: "server", sources: ConfigSources): LoadedConfig<ServerConfig>;
export function loadConfig(role: Role, sources: ConfigSources): LoadedConfig<AgentConfig | ServerConfig> {
  const raw: Record<string, unknown> = {};
  const origin = new Map<string, string>();
  const problems: string[] = [];
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
        problems.push(`${name} (environment) is not a known variable; did you mean ${near}?`);
      }
      continue;
    }
    setPath(raw, path, lists.has(path) ? list(text) : scalar(text));
    origin.set(path, `environment ${name}`);
  }
  for (const [path, value] of Object.entries(sources.flags)) {
    if (value === undefined) continue;
    if (!setPath(raw, path, lists.has(path) && typeof value === "string" ? list(value) : value)) {
      problems.push(`--set ${path} is not a valid path`);
    }
    origin.set(path, "flag");
  }

  const parsed = parseConfig(role, raw);
  if ("issues" in parsed) {
    for (const issue of parsed.issues) problems.push(sentence(issue, origin, sources.file?.name));
  }
  if (problems.length > 0 || "issues" in parsed) {
    throw new MeshError(
      "CONFIG_INVALID",
      `The ${role} configuration has ${problems.length} problem${problems.length === 1 ? "" : "s"}:\n  ` +
        problems.join("\n  "),
      { hint: `edgemesh config schema ${role} lists every key` },
    );
  }
  return { config: parsed.config, origin };
}

function readFile(
  file: { name: string; text: string },
  raw: Record<string, unknown>,
  origin: Map<string, string>,
  problems: string[],
): void {
  const doc = parseDocument(file.text, { uniqueKeys: true, prettyErrors: true });
  for (const e of doc.errors) {
    problems.push(`${file.name}:${e.linePos?.[0].line ?? 1}: ${e.message.split("\n")[0]}`);
  }
  if (doc.errors.length > 0) return;
  const value: unknown = doc.toJS({ maxAliasCount: 50 });
  if (value === null || value === undefined) return;
  if (typeof value !== "object" || Array.isArray(value)) {
    problems.push(`${file.name}:1: must hold keys and values`);
    return;
  }
  copyInto(raw, value as Record<string, unknown>, "", (path) => origin.set(path, file.name));
}

function copyInto(
  to: Record<string, unknown>,
  from: Record<string, unknown>,
  prefix: string,
  seen: (path: string) => void,
): void {
  for (const [key, value] of Object.entries(from)) {
    const path = prefix ? `${prefix}.${key}` : key;
    if (FORBIDDEN.has(key)) {
      // Kept under a harmless name so that the schema refuses it by name instead of it changing objects.
      to[`(${key})`] = true;
      continue;
    }
    if (value !== null && typeof value === "object" && !Array.isArray(value)) {
      const child: Record<string, unknown> = {};
      to[key] = child;
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

function sentence(issue: ConfigIssue, origin: ReadonlyMap<string, string>, file: string | undefined): string {
  const where = origin.get(issue.path) ?? [...origin].find(([p]) => p.startsWith(issue.path + "."))?.[1] ?? file;
  return `${issue.path} ${issue.problem}${where ? ` (${where})` : ""}`;
}
