/** The mesh link: carries the mesh addresses and the routes to virtual addresses. Made at start, gone after a clean stop. */
import { type Cidr, cidrText, familyOf } from "../lib/addr.ts";
import { systemClock } from "../lib/clock.ts";
import type { AgentConfig } from "../lib/config.ts";
import { MeshError } from "../lib/errors.ts";
import type { Logger } from "../lib/log.ts";

/** How often the host's addresses are compared: a change must reach the rules within a second or two. */
const WATCH_MS = 1000;

export interface MeshLink extends AsyncDisposable {
  readonly name: string;
  /** Addresses that could be given to it. */
  readonly addresses: readonly string[];
  /** Calls `changed` when an address of this host came or went. */
  watch(changed: () => void): () => void;
}

/** Makes the link with its addresses and routes. Throws KERNEL when the kernel refuses it. */
export async function openMeshLink(config: AgentConfig, cidrs: readonly Cidr[], log: Logger): Promise<MeshLink> {
  const { interface: name, address, address6 } = config.mesh;
  await ip(["link", "del", name]).catch(() => {});
  const dummy = await ip(["link", "add", name, "type", "dummy"]).then(() => true, () => false);
  if (!dummy) await ip(["link", "add", name, "type", "bridge"]);
  await ip(["link", "set", name, "up"]);
  const addresses: string[] = [];
  for (const a of [address, ...(address6 === "off" ? [] : [address6])]) {
    try {
      await ip([
        "addr",
        "add",
        `${a}/${familyOf(a) === 4 ? 32 : 128}`,
        "dev",
        name,
        ...(familyOf(a) === 6 ? ["nodad"] : []),
      ]);
      addresses.push(a);
    } catch (error) {
      if (a === address) throw error;
      log.info("no IPv6 on this host: the mesh is IPv4 only", { error: String(error) });
    }
  }
  for (const cidr of cidrs) {
    if (familyOf(cidr.ip) === 6 && addresses.length < 2) continue;
    await ip([familyOf(cidr.ip) === 6 ? "-6" : "-4", "route", "replace", cidrText(cidr), "dev", name]);
  }
  return {
    name,
    addresses,
    watch(changed) {
      let seen = fingerprint();
      let cancel = systemClock.timer(WATCH_MS, look);
      function look() {
        const now = fingerprint();
        if (now !== seen) {
          seen = now;
          changed();
        }
        cancel = systemClock.timer(WATCH_MS, look);
      }
      return () => cancel();
    },
    async [Symbol.asyncDispose]() {
      await ip(["link", "del", name]);
    },
  };
}

/** Removes a link that an agent left behind; none is no error. */
export async function removeMeshLink(config: AgentConfig): Promise<void> {
  const there = Deno.networkInterfaces().some((i) => i.name === config.mesh.interface);
  if (there) await ip(["link", "del", config.mesh.interface]);
}

function fingerprint(): string {
  return Deno.networkInterfaces().map((i) => `${i.name} ${i.address}`).sort().join();
}

async function ip(args: readonly string[]): Promise<void> {
  const { success, stderr } = await new Deno.Command("ip", { args: [...args], stdout: "null", stderr: "piped" })
    .output();
  if (!success) {
    throw new MeshError("KERNEL", `ip ${args.join(" ")} failed: ${new TextDecoder().decode(stderr).trim()}`);
  }
}
