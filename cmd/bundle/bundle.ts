/**
 * `edgemesh support-bundle`: what somebody needs who was not there, in one file. Every text goes through the masker;
 * state directories (keys, tokens) are never read.
 */
import { systemClock } from "../../lib/clock.ts";
import type { Role } from "../../lib/config.ts";
import { checkConfig, problemLine } from "../../lib/config_load.ts";
import { describe, MeshError } from "../../lib/errors.ts";
import { buildInfo, VERSION } from "../../lib/version.ts";
import { adminCall } from "../admin_client.ts";
import { shownConfig } from "../config.ts";
import { configSources } from "../daemon/daemon.ts";
import { netcheck } from "../netcheck.ts";
import { type Format, print, printDocument } from "../output.ts";
import { within } from "../within.ts";
import { knownSecrets, masker } from "./secrets.ts";
import { tar, type TarFile } from "./tar.ts";

export interface BundleFlags {
  readonly runDir: string;
  readonly output: Format;
  readonly file?: string;
  readonly config?: string;
}

/** A program that hangs must not keep the bundle from being made. */
const PROGRAM_MS = 10_000;
const LOG_LINES = "2000";
/** Of one program's output; the end of it is the part that counts. */
const MAX_TEXT = 4 * 1024 * 1024;

const PROGRAMS: readonly (readonly [string, readonly string[]])[] = [
  ["uname.txt", ["uname", "-a"]],
  ["rules.txt", ["nft", "list", "ruleset"]],
  ["routes.txt", ["ip", "route", "show", "table", "all"]],
  ["route-rules.txt", ["ip", "rule"]],
  ["addresses.txt", ["ip", "-d", "address"]],
  ["sockets.txt", ["ss", "-lntup"]],
  ["log-agent.txt", ["journalctl", "--no-pager", "-n", LOG_LINES, "-u", "edgemesh-agent"]],
  ["log-server.txt", ["journalctl", "--no-pager", "-n", LOG_LINES, "-u", "edgemesh-server"]],
];
const FILES: readonly (readonly [string, string])[] = [
  ["os-release.txt", "/etc/os-release"],
  ["resolv-conf.txt", "/etc/resolv.conf"],
  ["meminfo.txt", "/proc/meminfo"],
];
const ADMIN: readonly (readonly [Role, string, string])[] = [
  ["agent", "status", "/v1/status"],
  ["agent", "check", "/v1/check"],
  ["agent", "connections", "/v1/connections"],
  ["agent", "dns", "/v1/dns"],
  ["server", "status", "/v1/status"],
  ["server", "nodes", "/v1/nodes"],
];

export async function bundleCommand(flags: BundleFlags): Promise<number> {
  const wall = systemClock.wall();
  const name = `edgemesh-support-${new Date(wall).toISOString().slice(0, 19).replaceAll(":", "")}`;
  const file = flags.file ?? `${name}.tar.gz`;
  const files = await gather(flags);
  const archive = tar(files.map((f) => ({ ...f, name: `${name}/${f.name}` })), Math.floor(wall / 1000));
  const packed = new Blob([archive]).stream().pipeThrough(new CompressionStream("gzip"));
  try {
    await Deno.writeFile(file, packed, { mode: 0o600 });
  } catch (cause) {
    throw new MeshError("CONFIG_INVALID", `The bundle cannot be written to ${file}`, {
      cause,
      hint: "--file /tmp/bundle.tar.gz",
    });
  }
  const listing = { file, files: files.map((f) => f.name) };
  await printDocument(listing, flags.output, () => `${file}: ${listing.files.join(", ")}`);
  if (flags.output === "text") {
    print("keys, tokens and passwords are left out; addresses and names are in it: look before you send it");
  }
  return 0;
}

async function gather(flags: BundleFlags): Promise<TarFile[]> {
  const files: TarFile[] = [];
  const secrets = new Set<string>();
  const put = (name: string, value: unknown) =>
    files.push({ name, text: typeof value === "string" ? value : JSON.stringify(value, null, 2) + "\n" });

  put("version.json", {
    version: VERSION,
    ...buildInfo(),
    deno: Deno.version.deno,
    at: new Date(systemClock.wall()).toISOString(),
  });
  for (const role of ["agent", "server"] as const) {
    const { shown, config } = await configOf(role, flags);
    put(`config-${role}.json`, shown);
    const sources = {
      env: Deno.env.toObject(),
      readText: (path: string) => Deno.readTextFile(path).catch(() => undefined),
    };
    for (const secret of await knownSecrets(config, sources)) secrets.add(secret);
  }
  for (const [role, name, path] of ADMIN) {
    put(`${name}-${role}.json`, await orProblem(() => adminCall({ role, runDir: flags.runDir }, "GET", path)));
  }
  put("netcheck.json", await orProblem(() => netcheck(flags)));
  for (const [name, argv] of PROGRAMS) put(name, await output(argv));
  for (const [name, path] of FILES) put(name, await Deno.readTextFile(path).catch((error) => describe(error) + "\n"));
  const mask = masker([...secrets].sort((a, b) => b.length - a.length));
  return files.map(({ name, text }) => ({ name, text: mask(text) }));
}

async function configOf(role: Role, { config: file }: BundleFlags): Promise<{ shown: unknown; config: object }> {
  try {
    const own = file !== undefined && /server/.test(file) === (role === "server");
    const sources = await configSources(role, own ? { config: file } : {});
    const { config, origin, problems } = role === "agent"
      ? checkConfig("agent", sources)
      : checkConfig("server", sources);
    return config
      ? { shown: shownConfig(role, config, origin), config }
      : { shown: { problems: problems.map(problemLine) }, config: {} };
  } catch (error) {
    return { shown: { problem: describe(error) }, config: {} };
  }
}

async function orProblem(read: () => Promise<unknown>): Promise<unknown> {
  try {
    return await read();
  } catch (error) {
    return { problem: describe(error) };
  }
}

/** What a program prints; why it cannot, where it cannot. */
async function output(argv: readonly string[]): Promise<string> {
  const [program, ...args] = argv;
  const stop = new AbortController();
  try {
    const running = new Deno.Command(program!, { args, stdin: "null", signal: stop.signal }).output();
    const { stdout, stderr } = await within(PROGRAM_MS, `${program} hangs`, running);
    const text = new TextDecoder().decode(stdout) + new TextDecoder().decode(stderr);
    return text.length > MAX_TEXT ? `(the beginning is cut off)\n${text.slice(-MAX_TEXT)}` : text;
  } catch (error) {
    stop.abort();
    return `${argv.join(" ")}: ${describe(error)}\n`;
  }
}
