/** What the agent and the server share as long-running processes: configuration, log, state directory, signals, readiness. */
import { type AgentConfig, type Role, type ServerConfig } from "../../lib/config.ts";
import { type ConfigSources, loadConfig } from "../../lib/config_load.ts";
import { describe, MeshError } from "../../lib/errors.ts";
import { leadsOutside, notReadable } from "../../lib/file_reference.ts";
import { systemClock } from "../../lib/clock.ts";
import { raiseFileLimit } from "../../lib/linux/privileges.ts";
import { notifyReady, notifyStatus, notifyWatchdog } from "../../lib/linux/process.ts";
import { createLogger, type Logger, type LogLevel, type LogSink, stderrSink } from "../../lib/log.ts";

import { missingText, type Readiness } from "../../lib/readiness.ts";

/** Flags of `edgemesh agent` and `edgemesh server` as commander gives them. */
export interface DaemonFlags {
  readonly config?: string;
  readonly set?: readonly string[];
  readonly manifests?: string;
  readonly stateDir?: string;
  readonly runDir?: string;
  readonly logLevel?: string;
  readonly nodeName?: string;
  readonly server?: readonly string[];
  readonly tokenFile?: string;
  readonly caPin?: string;
  readonly name?: string;
  readonly listen?: string;
  readonly url?: string;
}

/** Flag → configuration path. */
const FLAG_PATHS: Readonly<Partial<Record<keyof DaemonFlags, string>>> = {
  manifests: "manifests",
  stateDir: "stateDir",
  runDir: "runDir",
  logLevel: "log.level",
  nodeName: "nodeName",
  server: "server",
  tokenFile: "tokenFile",
  caPin: "caPin",
  name: "name",
  listen: "listen",
  url: "url",
};

/** Reads the configuration of a role from flags, environment and file. Throws CONFIG_INVALID. */
export async function readConfig(role: "agent", flags: DaemonFlags): Promise<AgentConfig>;
export async function readConfig(role: "server", flags: DaemonFlags): Promise<ServerConfig>;
export async function readConfig(role: Role, flags: DaemonFlags): Promise<AgentConfig | ServerConfig> {
  const sources = await configSources(role, flags);
  return role === "agent" ? loadConfig("agent", sources).config : loadConfig("server", sources).config;
}

/** What the configuration of a role is made of on this host. Throws CONFIG_INVALID where a named file cannot be read. */
export async function configSources(role: Role, flags: DaemonFlags): Promise<ConfigSources> {
  const values: Record<string, unknown> = {};
  for (const [flag, path] of Object.entries(FLAG_PATHS)) values[path] = flags[flag as keyof DaemonFlags];
  for (const entry of flags.set ?? []) {
    const at = entry.indexOf("=");
    if (at < 1) {
      throw new MeshError("CONFIG_INVALID", `--set ${entry} has no value`, {
        hint: "--set path=value, like --set dns.zone=edge.local",
      });
    }
    const { scalar } = await import("../../lib/config_load.ts");
    values[entry.slice(0, at)] = scalar(entry.slice(at + 1));
  }
  const name = flags.config ?? `/etc/edgemesh/${role}.yaml`;
  let text: string | undefined;
  try {
    text = await Deno.readTextFile(name);
  } catch (e) {
    if (flags.config !== undefined || !(e instanceof Deno.errors.NotFound)) {
      throw notReadable(name, e) ??
        new MeshError("CONFIG_INVALID", `The configuration file ${name} cannot be read`, { cause: e });
    }
  }
  const file = text === undefined ? {} : { file: { name, text } };
  return { flags: values, env: Deno.env.toObject(), leadsOutside, ...file };
}

/** As many descriptors as the machine allows: each carried connection takes two. */
export function prepareProcess(log: Logger): void {
  log.debug("open files allowed", { limit: raiseFileLimit().soft });
}

/** The root logger and the sink whose level can be changed while running. */
export function openLog(
  config: { readonly level: LogLevel; readonly format: "auto" | "text" | "json" },
): { log: Logger; sink: LogSink } {
  const sink = stderrSink(config.level, config.format === "auto" ? undefined : config.format);
  return { log: createLogger(sink), sink };
}

/** Resolves with the name of the first signal that asks the process to end. A second one ends it at once. */
export function untilStopped(): Promise<string> {
  return new Promise((resolve) => {
    let asked = false;
    for (const signal of ["SIGTERM", "SIGINT"] as const) {
      Deno.addSignalListener(signal, () => {
        if (asked) Deno.exit(1);
        asked = true;
        resolve(signal);
      });
    }
  });
}

/**
 * Gives what was started to its user: disposing of the result undoes the stack. Every part is undone even if another
 * one fails; a failure is a line in the log, because the process is on its way out.
 */
export function ownedBy<T extends AsyncDisposable>(started: T, stack: AsyncDisposableStack, log: Logger): T {
  const owned = stack.move();
  return Object.assign(started, {
    async [Symbol.asyncDispose]() {
      try {
        await owned.disposeAsync();
      } catch (e) {
        log.warn("stopping was not clean", { error: describe(e) });
      }
    },
  });
}

/** After this long a person who looks at the log wants to know what a start waits for. */
const LATE_MS = 3000;

export interface Announcement {
  readonly log: Logger;
  /** Which daemon, as the log has it. */
  readonly name: Role;
  /** What systemd shows of one that is ready. */
  readonly status: string;
  /** Of the line in the log. */
  readonly fields: Readonly<Record<string, unknown>>;
}

/**
 * Says that the process is ready, to systemd and in the log, as soon as it is; and until then what it waits for: at once to
 * systemd, to the log when it takes long and when it changes.
 */
export function announceReady(readiness: Readiness, { log, name, status, fields }: Announcement): void {
  let said = "";
  let cancel = () => {};
  const late = () => {
    const missing = readiness.missing.map(missingText).join("; ");
    if (missing !== said && missing !== "") {
      log.warn("not ready yet", { waitingFor: missing });
      notifyStatus(`waiting for ${missing}`);
    }
    said = missing;
    cancel = systemClock.timer(LATE_MS, late);
  };
  if (!readiness.ready) notifyStatus(`waiting for ${readiness.missing.map(missingText).join("; ")}`);
  cancel = systemClock.timer(LATE_MS, late);
  readiness.whenReady().then(() => {
    cancel();
    notifyReady(status);
    log.info(`${name} ready`, { ...fields, ms: Math.round(systemClock.now()) });
  });
}

/** Tells systemd's watchdog that the event loop turns, twice per period (WATCHDOG_USEC). Without one, nothing happens. */
export function startWatchdog(): () => void {
  const period = Number(Deno.env.get("WATCHDOG_USEC") ?? 0) / 1000;
  if (!(period > 0)) return () => {};
  let cancel = () => {};
  const beat = () => {
    notifyWatchdog();
    cancel = systemClock.timer(period / 2, beat);
  };
  beat();
  return () => cancel();
}

/** A random identifier of this start of the process. */
export function bootId(): string {
  return crypto.randomUUID().replaceAll("-", "").slice(0, 16);
}
