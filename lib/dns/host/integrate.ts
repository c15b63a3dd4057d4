/**
 * Optional: makes this host's own processes ask the agent, and takes that back. Where systemd-resolved manages the
 * resolver, it is told about our link and forgets with it; else resolv.conf is edited in place. Nothing is done to
 * files that another program generates (symbolic links), and nothing that cannot be undone after a crash: what we
 * changed is marked in the file itself.
 */
import type { Logger } from "../../log.ts";
import { describe } from "../../errors.ts";
import { hasUs, type ResolvEdit, withoutUs, withUs } from "./resolv_edit.ts";
import { parseResolvConf, RESOLVED_STUBS } from "./resolvconf.ts";

/** What integration needs of the host; the agent hands in the real one. */
export interface ResolverHost {
  /** Undefined when there is no such file. */
  readText(path: string): string | undefined;
  /** Replaces the content, keeping owner and mode. */
  writeText(path: string, text: string): Promise<void>;
  isSymlink(path: string): boolean;
  /** Runs a program; true when it ended with 0, false when it failed or does not exist. */
  run(program: string, args: readonly string[]): Promise<boolean>;
}

export interface IntegrateOptions {
  /** `auto`: systemd-resolved where it is in charge, else the file. */
  readonly mode: "auto" | "resolved" | "file";
  readonly resolvConf: string;
  /** The mesh link; systemd-resolved keeps servers per link. */
  readonly link: string;
  readonly edit: ResolvEdit;
  /** Zones of the cluster: names below them are routed to us by systemd-resolved. */
  readonly zones: readonly string[];
}

/** What was done, for the log and `status`. */
export type Integration =
  | { readonly kind: "resolved"; readonly link: string }
  | { readonly kind: "file"; readonly path: string }
  | { readonly kind: "none"; readonly why: string };

/** Whether systemd-resolved answers for this host: its stub is the first server. */
export function usesResolved(text: string): boolean {
  const first = parseResolvConf(text).nameservers[0];
  return first !== undefined && RESOLVED_STUBS.includes(first.ip);
}

/** Brings this host's resolver to us. May be called again at any time: a file that was rewritten is edited again. */
export async function integrate(host: ResolverHost, options: IntegrateOptions): Promise<Integration> {
  const { resolvConf, link, mode, edit, zones } = options;
  const text = host.readText(resolvConf);
  const resolved = mode === "resolved" || (mode === "auto" && text !== undefined && usesResolved(text));
  if (resolved) {
    const routes = zones.map((zone) => `~${zone}`);
    const done = await host.run("resolvectl", ["dns", link, ...edit.addresses]) &&
      await host.run("resolvectl", ["domain", link, ...routes, ...edit.search]);
    return done ? { kind: "resolved", link } : { kind: "none", why: `resolvectl refused servers for ${link}` };
  }
  if (text === undefined) return { kind: "none", why: `${resolvConf} does not exist` };
  if (host.isSymlink(resolvConf)) {
    return { kind: "none", why: `${resolvConf} is a link to a file that another program writes` };
  }
  const next = withUs(text, edit);
  if (next !== text) await host.writeText(resolvConf, next);
  return { kind: "file", path: resolvConf };
}

/** Takes back whatever {@link integrate} may have done, also of an earlier process. True when something was undone. */
export async function disintegrate(
  host: ResolverHost,
  options: Pick<IntegrateOptions, "resolvConf" | "link">,
  log: Logger,
): Promise<boolean> {
  const { resolvConf, link } = options;
  const text = host.readText(resolvConf);
  if (text === undefined) return false;
  // Harmless where it never knew the link; the link itself may be gone already, and its servers with it.
  if (usesResolved(text)) return await host.run("resolvectl", ["revert", link]);
  if (!hasUs(text)) return false;
  try {
    await host.writeText(resolvConf, withoutUs(text));
    return true;
  } catch (error) {
    log.warn("Lines of ours are still in resolv.conf", { path: resolvConf, error: describe(error) });
    return false;
  }
}
