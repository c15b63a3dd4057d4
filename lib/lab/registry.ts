/**
 * What each lab run has made, on disk before it is made: so that a run that was killed can be cleaned up by the next.
 * A lab's namespaces all carry its id in their names; its processes are those inside these namespaces.
 */
import { pause, systemClock } from "../clock.ts";
import { MeshError } from "../errors.ts";
import { exec } from "./exec.ts";
import { processesInNetwork, stat } from "./proc.ts";

/** One lab run. */
export interface LabRecord {
  /** Six hexadecimal digits; namespaces are called `em-<id>-<name>`. */
  readonly id: string;
  /** The process that owns the run. */
  readonly pid: number;
  /** Start of that process in clock ticks since boot: tells it from a later process with the same number. */
  readonly started: string;
  /** The boot it belongs to: after a reboot nothing is left to clean but its folder. */
  readonly boot: string;
  /** Folder with logs and the files of programs. */
  readonly dir: string;
  /** It was left standing on purpose: it stays until it is removed by name, or the machine reboots. */
  readonly kept?: boolean;
}

/** /run empties itself at boot, with the namespaces. */
const REGISTRY_DIR = "/run/edgemesh-lab";
const NETNS_DIR = "/run/netns";
/** How long processes may take to die of SIGKILL: they only wait for the kernel. */
const KILL_TIMEOUT_MS = 5_000;

/** Name of a lab's namespace as `ip netns` knows it. */
export function netnsName(id: string, name: string): string {
  return `em-${id}-${name}`;
}

/** Writes the record of a lab owned by this process. */
export async function register(id: string, dir: string): Promise<LabRecord> {
  const record = { id, pid: Deno.pid, started: stat(Deno.pid)?.started ?? "", boot: await bootId(), dir };
  await write(record);
  return record;
}

/** Leaves a lab standing when its owner ends. */
export async function keep(record: LabRecord): Promise<void> {
  await write({ ...record, kept: true });
}

/** All records on this machine, also of runs that are alive. */
export async function records(): Promise<LabRecord[]> {
  const found: LabRecord[] = [];
  try {
    for await (const entry of Deno.readDir(REGISTRY_DIR)) {
      if (!/^[0-9a-f]{6}\.json$/.test(entry.name)) continue;
      const text = await Deno.readTextFile(`${REGISTRY_DIR}/${entry.name}`).catch(() => "");
      // Gone or half-way: another process is cleaning up at this moment.
      if (text !== "") found.push(JSON.parse(text) as LabRecord);
    }
  } catch (error) {
    if (!(error instanceof Deno.errors.NotFound)) throw error;
  }
  return found;
}

/** Whether a lab is to stay: its owner still runs, or left it standing since the last boot. */
async function inUse(record: LabRecord): Promise<boolean> {
  if (record.boot !== await bootId()) return false;
  const process = stat(record.pid);
  return record.kept === true || (process?.started === record.started && process.state !== "Z");
}

/** Removes everything of lab runs whose owner is gone. Live and kept runs are not touched. Returns the ids that were removed. */
export async function sweep(): Promise<string[]> {
  const swept: string[] = [];
  for (const record of await records()) {
    if (await inUse(record)) continue;
    await removeLab(record);
    swept.push(record.id);
  }
  return swept;
}

/** Kills a lab's processes, deletes its namespaces, then its folder and its record. What is gone already is no error. */
export async function removeLab(record: LabRecord): Promise<void> {
  const names = await namespacesOf(record.id);
  await killInside(names);
  if (names.length > 0) {
    // -force: one that another cleaner has deleted does not keep the rest.
    await exec(["ip", "-force", "-batch", "-"], { stdin: names.map((n) => `netns delete ${n}\n`).join("") });
  }
  const left = await namespacesOf(record.id);
  if (left.length > 0) throw new MeshError("KERNEL", `Cannot delete network namespaces ${left.join(", ")}`);
  await Deno.remove(record.dir, { recursive: true }).catch(ignoreMissing);
  await Deno.remove(`${REGISTRY_DIR}/${record.id}.json`).catch(ignoreMissing);
}

/** Processes whose network namespace is one of `names`. */
export async function processesIn(names: readonly string[]): Promise<number[]> {
  const inodes = new Set<string>();
  for (const name of names) {
    const info = await Deno.stat(`${NETNS_DIR}/${name}`).catch(() => undefined);
    if (info?.ino) inodes.add(`net:[${info.ino}]`);
  }
  return inodes.size === 0 ? [] : processesInNetwork(inodes);
}

async function write(record: LabRecord): Promise<void> {
  await Deno.mkdir(REGISTRY_DIR, { recursive: true, mode: 0o755 });
  await Deno.writeTextFile(`${REGISTRY_DIR}/${record.id}.tmp`, JSON.stringify(record));
  await Deno.rename(`${REGISTRY_DIR}/${record.id}.tmp`, `${REGISTRY_DIR}/${record.id}.json`);
}

async function killInside(names: readonly string[]): Promise<void> {
  const deadline = systemClock.now() + KILL_TIMEOUT_MS;
  for (;;) {
    // Asked anew each time: a process may have forked between the look and the signal.
    const pids = await processesIn(names);
    if (pids.length === 0) return;
    if (systemClock.now() > deadline) throw new MeshError("KERNEL", `Processes ${pids.join(", ")} survive SIGKILL`);
    for (const pid of pids) {
      try {
        Deno.kill(pid, "SIGKILL");
      } catch (error) {
        ignoreMissing(error);
      }
    }
    await pause(1);
  }
}

async function namespacesOf(id: string): Promise<string[]> {
  const names: string[] = [];
  try {
    for await (const entry of Deno.readDir(NETNS_DIR)) {
      if (entry.name.startsWith(netnsName(id, ""))) names.push(entry.name);
    }
  } catch (error) {
    ignoreMissing(error);
  }
  return names;
}

async function bootId(): Promise<string> {
  return (await Deno.readTextFile("/proc/sys/kernel/random/boot_id")).trim();
}

function ignoreMissing(error: unknown): void {
  if (!(error instanceof Deno.errors.NotFound)) throw error;
}
