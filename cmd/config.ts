/** `edgemesh config`: the same reading as at a start, without starting anything. */
import { configJsonSchema, configPaths, type Role } from "../lib/config.ts";
import { checkConfig, type ConfigProblem, problemLine } from "../lib/config_load.ts";
import { MeshError } from "../lib/errors.ts";
import { redactConfig, redactText } from "../lib/redact.ts";
import { STATUS_VERSION } from "../lib/status.ts";
import { configSources } from "./daemon/daemon.ts";
import { type Format, printDocument, printError, table } from "./output.ts";

export interface ConfigFlags {
  readonly role?: Role;
  readonly config?: string;
  readonly set?: readonly string[];
  readonly output: Format;
}

/** Usage or configuration (see program.ts). */
const EXIT_INVALID = 2;

/** 0 = it can be used; 2 = it cannot, with every problem. */
export async function configValidate(file: string | undefined, flags: ConfigFlags): Promise<number> {
  // Named like an argument or, as every other command has it, by --config.
  const named = file ?? flags.config;
  const role = await roleOf(flags.role, named);
  const sources = await configSources(role, { ...asDaemon(flags), ...(named === undefined ? {} : { config: named }) });
  const { problems } = checkConfig(role, sources);
  const from = sources.file?.name ?? "defaults and environment";
  const document = {
    apiVersion: STATUS_VERSION,
    role,
    from,
    valid: problems.length === 0,
    problems: problems.map(shown),
  };
  if (problems.length === 0 || flags.output !== "text") {
    await printDocument(document, flags.output, () => `${from}: a usable ${role} configuration`);
  } else {
    const count = `${problems.length} problem${problems.length === 1 ? "" : "s"}`;
    printError(
      `The ${role} configuration has ${count} (${from}):\n  ` +
        `${problems.map((problem) => problemLine(shown(problem))).join("\n  ")}\n` +
        `try: edgemesh config schema ${role} lists every key`,
    );
  }
  return problems.length === 0 ? 0 : EXIT_INVALID;
}

/** Every value in force, with its origin. */
export async function configShow(flags: ConfigFlags): Promise<number> {
  const role = await roleOf(flags.role, flags.config);
  const sources = await configSources(role, asDaemon(flags));
  const { config, origin, problems } = checkConfig(role, sources);
  if (config === undefined) {
    printError(
      `The ${role} configuration cannot be used:\n  ${problems.map((p) => problemLine(shown(p))).join("\n  ")}`,
    );
    return EXIT_INVALID;
  }
  const document = shownConfig(role, config, origin);
  await printDocument(document, flags.output, () => {
    const rows = Object.entries(document.origin).map((
      [path, where],
    ) => [path, valueText(at(document.config, path)), where]);
    return table([["PATH", "VALUE", "FROM"], ...rows]);
  });
  return 0;
}

/** A configuration of KubeEdge's EdgeMesh as one of ours: YAML, with a comment for each line that has no place. */
export async function configConvert(file: string, flags: { readonly output: Format }): Promise<number> {
  const { convertEdgeMesh } = await import("./convert.ts");
  const { config, notes } = convertEdgeMesh(await textOf(file), file);
  const { stringify } = await import("../lib/yaml.ts");
  await printDocument({ apiVersion: STATUS_VERSION, config, notes }, flags.output, () => {
    const comments = notes.map(({ line, path, text }) => `# ${line > 0 ? `${file}:${line}: ` : ""}${path}: ${text}`);
    return [...comments, stringify(config).trimEnd()].join("\n");
  });
  return 0;
}

/** JSON Schema; YAML on request. */
export async function configSchema(role: Role, flags: { readonly output: Format }): Promise<number> {
  const schema = configJsonSchema(role);
  await printDocument(schema, flags.output, () => JSON.stringify(schema, null, 2));
  return 0;
}

export interface ShownConfig {
  readonly apiVersion: string;
  readonly role: Role;
  readonly config: Readonly<Record<string, unknown>>;
  /** Every path, and where its value was said: `default`, `flag`, `environment NAME` or `FILE:LINE`. */
  readonly origin: Readonly<Record<string, string>>;
}

/** A configuration as it may be shown to anybody. */
export function shownConfig(role: Role, config: object, origin: ReadonlyMap<string, string>): ShownConfig {
  return {
    apiVersion: STATUS_VERSION,
    role,
    config: redactConfig(config) as Readonly<Record<string, unknown>>,
    origin: Object.fromEntries(configPaths(role).map((path) => [path, origin.get(path) ?? "default"])),
  };
}

/** The role that a file belongs to: as told, by its name, by what lies on this host. */
async function roleOf(told: Role | undefined, file: string | undefined): Promise<Role> {
  if (told) return told;
  if (file !== undefined) return /(^|\/)[^/]*server[^/]*$/.test(file) ? "server" : "agent";
  const there = (role: Role) => Deno.stat(`/etc/edgemesh/${role}.yaml`).then(() => true, () => false);
  return !await there("agent") && await there("server") ? "server" : "agent";
}

async function textOf(file: string): Promise<string> {
  try {
    return await Deno.readTextFile(file);
  } catch (cause) {
    throw new MeshError("CONFIG_INVALID", `${file} cannot be read`, {
      cause,
      hint: "a file on this host; of a ConfigMap: kubectl -n kubeedge get configmap edgemesh-agent-cfg -o yaml >FILE",
    });
  }
}

function asDaemon({ config, set }: ConfigFlags) {
  return { ...(config === undefined ? {} : { config }), ...(set === undefined ? {} : { set }) };
}

function shown(problem: ConfigProblem): ConfigProblem {
  return { ...problem, problem: redactText(problem.problem) };
}

function at(config: unknown, path: string): unknown {
  return path.split(".").reduce<unknown>((value, key) => (value as Record<string, unknown> | undefined)?.[key], config);
}

function valueText(value: unknown): string {
  if (value === undefined) return "-";
  if (Array.isArray(value)) return value.length === 0 ? "[]" : value.map(String).join(",");
  return String(value);
}
