/** Lab hosts run by a real systemd, for tests of the installer and the units. */
import assert from "node:assert/strict";
import { systemClock } from "../../lib/clock.ts";
import { execOk, until } from "../../lib/lab/exec.ts";
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

/**
 * Every file the product could have touched, with type, mode, owner and size, and the content of those in /etc; not what
 * systemd itself keeps, nor the copies that useradd makes of the lists it changes.
 */
export async function filesOf(systemd: Systemd): Promise<string[]> {
  const places = "/etc /usr/local /var/lib /var/cache /run /dev/shm /tmp /var/tmp";
  const find = `find ${places} -xdev \\( -type d -printf '%p %y %m %u\\n' -o -printf '%p %y %m %u %s\\n' \\)`;
  const not =
    "/run/(systemd|log|lab)|/var/lib/systemd|/etc/machine-id|/etc/(passwd|group|g?shadow)- ?|/etc/.pwd.lock|systemd-private-";
  const contents = "find /etc -xdev -type f -exec sha256sum {} + | sed 's/^\\([0-9a-f]*\\)  \\(.*\\)/\\2 is \\1/'";
  const { stdout } = await systemd.execOk(["sh", "-c", `{ ${find}; ${contents}; } | grep -vE '${not}' | sort -u`]);
  return stdout.trim().split("\n");
}

/** Lines that only one of two lists has, with a sign: nothing where they are the same. */
export function difference(before: readonly string[], after: readonly string[]): string[] {
  const [was, is] = [new Set(before), new Set(after)];
  return [
    ...before.filter((line) => !is.has(line)).map((l) => `- ${l}`),
    ...after.filter((l) => !was.has(l)).map((l) => `+ ${l}`),
  ];
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

/** CAP_NET_BIND_SERVICE; the agent: and CAP_NET_ADMIN. */
const CAPS = { agent: 0x1400n, server: 0x400n } as const;

/** What the kernel says about the running service: capabilities, system call filter, no way to more privileges. */
export async function confined(systemd: Systemd, role: "agent" | "server"): Promise<void> {
  const pid = await systemd.property(`edgemesh-${role}`, "MainPID");
  const { stdout } = await systemd.execOk(["cat", `/proc/${pid}/status`]);
  const field = (name: string) => new RegExp(`^${name}:\\s*(\\S+)`, "m").exec(stdout)?.[1];
  const uid = (await systemd.execOk(["id", "-u", "edgemesh"])).stdout.trim();
  assert.match(stdout, new RegExp(`^Uid:(\\s+${uid}){4}$`, "m"), "not the services' own user");
  assert.notEqual(uid, "0");
  for (const set of ["CapEff", "CapPrm", "CapBnd", "CapAmb"]) {
    assert.equal(BigInt(`0x${field(set)}`), CAPS[role], `${set} of the ${role}`);
  }
  assert.deepEqual([field("NoNewPrivs"), field("Seccomp")], ["1", "2"]);
  const see = (script: string) => systemd.exec(["nsenter", "-t", pid, "-m", "sh", "-c", script]);
  assert.equal((await see("touch /etc/edgemesh/x 2>/dev/null")).code, 1, "the service could write /etc");
  assert.equal((await see("echo 1 >/proc/sys/net/ipv4/ip_forward")).code === 0, false, "kernel settings are writable");
  assert.equal((await see("ls /root 2>/dev/null | head -n 1")).stdout, "");
}

/** Names of the files of an agent's state, and the hashes of its identity. */
export function identityOf(systemd: Systemd): Promise<string> {
  return systemd.execOk(["sh", "-ec", "cd /var/lib/edgemesh/agent; ls | sort; sha256sum identity*"]).then((r) =>
    r.stdout
  );
}

/** Runs a command on the host, and waits until the agent is a new, ready start; in milliseconds. */
export function replaced(systemd: Systemd, command: readonly string[]): Promise<number> {
  return replacedBy(systemd, () => systemd.execOk(command));
}

/** The same for more than one command. */
export async function replacedBy(systemd: Systemd, act: () => Promise<unknown>): Promise<number> {
  const before = await systemd.property("edgemesh-agent", "InvocationID");
  const started = systemClock.now();
  await act();
  await until("the agent to be a new start", async () => {
    const [state, id] = [
      await systemd.property("edgemesh-agent", "ActiveState"),
      await systemd.property("edgemesh-agent", "InvocationID"),
    ];
    return state === "active" && id !== before ? true : undefined;
  }, 60_000);
  return systemClock.now() - started;
}
