/** Lab hosts run by a real systemd, for tests of the installer and the units. */
import assert from "node:assert/strict";
import { execOk } from "../../lib/lab/exec.ts";
import type { LabNode } from "../../lib/lab/node.ts";
import { Systemd } from "../../lib/lab/systemd.ts";
import { builtCommand } from "./support.ts";

const ROOT = new URL("../..", import.meta.url).pathname;
/** Where hosts see the checkout's scripts and the built executable. */
export const INSTALL = "/srv/edgemesh/scripts/install.sh";
export const EXE = "/srv/edgemesh-built/edgemesh";

/** Boots a node's host. Its folders for programs, units and state are its own: the defaults of the installer are used. */
export async function bootNode(node: LabNode): Promise<Systemd> {
  const [built] = builtCommand();
  const unpacked = (await execOk([`${ROOT}scripts/fetch_systemd.sh`], { timeoutMs: 120_000 })).stdout.trim();
  const systemd = await Systemd.boot(node.host, {
    unpacked,
    show: { "/srv/edgemesh": ROOT, "/srv/edgemesh-built": built.replace(/\/[^/]*$/, "") },
  });
  // The lab's hosts share the machine's unpacked executable; this one installs and removes its own.
  await systemd.execOk(["sh", "-ec", "umount /var/lib/edgemesh/runtime /var/lib/edgemesh; rm -r /var/lib/edgemesh"]);
  return systemd;
}

/** Every file the product could have touched, with type, mode and size; not what systemd itself keeps. */
export async function filesOf(systemd: Systemd): Promise<string> {
  const places = "/etc /usr/local /var/lib /run /dev/shm /tmp /var/tmp";
  const find = `find ${places} -xdev \\( -type d -printf '%p %y %m\\n' -o -printf '%p %y %m %s\\n' \\) | ` +
    "grep -vE '^/run/(systemd|log|lab)|^/var/lib/systemd|^/etc/machine-id|systemd-private-' | sort -u";
  return (await systemd.execOk(["sh", "-c", find])).stdout;
}

/** Rules, links, addresses and routes of the host. */
export async function kernelOf(systemd: Systemd): Promise<string> {
  const line = "nft list ruleset; ip -br link; ip -br addr; ip route show table all | sort; ip rule";
  return (await systemd.execOk(["sh", "-c", line])).stdout;
}

/** Runs the installer on the host, which must succeed; its output. */
export async function install(systemd: Systemd, args: readonly string[], stdin?: string): Promise<string> {
  const result = await systemd.exec(["sh", INSTALL, ...args], {
    timeoutMs: 120_000,
    ...(stdin === undefined ? {} : { stdin }),
  });
  assert.equal(result.code, 0, `${result.stderr}\n${result.stdout}`);
  return result.stdout;
}
