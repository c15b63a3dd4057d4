/** What /proc says about processes (proc(5)). A process that ends while it is being asked about is simply not there. */

/** All process ids. */
function pids(): number[] {
  return [...Deno.readDirSync("/proc")].filter((entry) => /^\d+$/.test(entry.name)).map((entry) => Number(entry.name));
}

/** Processes in one of the network namespaces given as `net:[inode]`. A zombie is in none. */
export function processesInNetwork(namespaces: ReadonlySet<string>): number[] {
  return pids().filter((pid) => {
    try {
      return namespaces.has(Deno.readLinkSync(`/proc/${pid}/ns/net`));
    } catch {
      return false;
    }
  });
}

/** Processes of a process group. */
export function processesInGroup(leader: number): number[] {
  return pids().filter((pid) => stat(pid)?.group === leader);
}

export interface ProcessStat {
  /** `Z` is a zombie. */
  readonly state: string;
  readonly group: number;
  /** User and system time so far, in clock ticks: 100 per second on every architecture we run on. */
  readonly ticks: number;
  /** Start in clock ticks since boot. */
  readonly started: string;
}

/** /proc/PID/stat; undefined for a process that is gone. */
export function stat(pid: number): ProcessStat | undefined {
  let text: string;
  try {
    text = Deno.readTextFileSync(`/proc/${pid}/stat`);
  } catch {
    return undefined;
  }
  // The second field is the program's name in parentheses and may hold anything, also spaces and parentheses.
  const fields = text.slice(text.lastIndexOf(")") + 2).split(" ");
  return {
    state: fields[0]!,
    group: Number(fields[2]),
    ticks: Number(fields[11]) + Number(fields[12]),
    started: fields[19]!,
  };
}
