/** Makes this host's own processes ask the agent for names, and takes that back. Only where `dns.integrate` says so. */
import type { AgentConfig } from "../../lib/config.ts";
import { disintegrate, integrate, type ResolverHost } from "../../lib/dns/host/integrate.ts";
import { describe } from "../../lib/errors.ts";
import type { Logger } from "../../lib/log.ts";

/** The machine's own files and programs. */
export const thisHost: ResolverHost = {
  readText(path) {
    try {
      return Deno.readTextFileSync(path);
    } catch {
      return undefined;
    }
  },
  // In place: container engines and the lab bind-mount this file, and a rename would replace the mount's target only.
  writeText: (path, text) => Deno.writeTextFile(path, text),
  isSymlink(path) {
    try {
      return Deno.lstatSync(path).isSymlink;
    } catch {
      return false;
    }
  },
  async run(program, args) {
    try {
      return (await new Deno.Command(program, { args: [...args], stdout: "null", stderr: "null" }).output()).success;
    } catch {
      return false;
    }
  },
};

export class HostResolver {
  readonly #config: AgentConfig;
  readonly #log: Logger;

  constructor(config: AgentConfig, log: Logger) {
    this.#config = config;
    this.#log = log.child("dns");
  }

  /** Brings the host's resolver to these addresses. Never throws: names from elsewhere still work without us. */
  async apply(addresses: readonly string[]): Promise<void> {
    const { dns, mesh } = this.#config;
    if (dns.integrate === "off") return;
    try {
      const done = await integrate(thisHost, {
        mode: dns.integrate,
        resolvConf: dns.resolvConf,
        link: mesh.interface,
        edit: { addresses, search: [] },
        zones: [dns.zone, ...dns.extraZones],
      });
      if (done.kind === "none") this.#log.warn("this host does not ask us for names", { why: done.why });
      else this.#log.info("this host asks us for names", { by: done.kind });
    } catch (error) {
      this.#log.warn("this host does not ask us for names", { why: describe(error) });
    }
  }

  /** Gives the host its own resolver back, also after an earlier process that could not. True when there was something. */
  async undo(): Promise<boolean> {
    const { dns, mesh } = this.#config;
    return await disintegrate(thisHost, { resolvConf: dns.resolvConf, link: mesh.interface }, this.#log);
  }
}
